"""What can be wrong with an iteration before its first step, and what the pretrained policy decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from chunkrl import ranks
from chunkrl.data.label_rules import AUTO_LABELS, NO_LABELS
from chunkrl.envs.registry import family_of
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.rollout import initial_seeds
from chunkrl.iterate.config import ArmName, IterateConfig
from chunkrl.iterate.plan import CLONING_ARMS, Plan, load_actor
from chunkrl.iterate.records import Rollouts
from chunkrl.policies.registry import family_in
from chunkrl.run.checks import check_config

_FREE_RULES = ("auto", "next.success")  # of success, that fit what simulators and actors record


def make_plan(config: IterateConfig) -> Plan:
    """The steps of `config`. Raises ChunkRLError for settings that exclude each other or the pretrained policy."""
    _check_own(config)
    _check_labels(config)
    pretrained, train = config.train.family.pretrained(config.train, family_in)
    config = replace(config, train=train)
    actor = None if config.rollouts.actor is None else load_actor(config.rollouts.actor)
    plan = Plan(config, pretrained, actor)
    _check_source(plan)
    _check_q(plan)
    _check_selection(plan)
    some = Rollouts(str(plan.data("default", 0)), "", {}, 1, 0)
    for arm in config.arms:
        check_config(plan.train(arm, 1, [some]))
    return plan


def _check_own(config: IterateConfig) -> None:
    if ranks.world_size() > 1:
        raise ChunkRLError(
            "iterate is one process: start it without torchrun; a round's training can be started by it, with "
            "chunkrl train --config ROUND/train.json, and --resume then goes on after it"
        )
    train = config.train
    if config.rounds < 1:
        raise ChunkRLError(f"rounds is {config.rounds}; it must be at least 1")
    unknown = sorted(set(config.arms) - set(get_args(ArmName)))
    if not config.arms or unknown or len(set(config.arms)) < len(config.arms):
        raise ChunkRLError(
            f"arms is {config.arms}; name one or several of {', '.join(get_args(ArmName))}, each once"
        )
    if not train.method.trains_policy:
        raise ChunkRLError("--objective value trains no policy: use cross_fitted or advantage_conditioned")
    if train.values is not None:
        raise ChunkRLError("--values are of one round's data: leave it out, each round trains its own")
    if train.sample_weights:
        raise ChunkRLError("--sample-weights are of data that stay: leave them out, each round has more")
    if config.collect.policy is not None:
        raise ChunkRLError(
            "--collect.policy and --collect.mixture.policy-share are each round's: leave them out"
        )
    if train.resume is not None and Path(train.resume).resolve() != Path(train.output_dir).resolve():
        raise ChunkRLError(
            f"--resume {train.resume} goes on in the run's own folder: give it as --output-dir too"
        )
    share = config.rollouts.share
    if share is not None and not train.dataset_dir:
        raise ChunkRLError(
            "--rollouts.share is of batches with other data: give --dataset-dir, or leave it out"
        )
    if train.dataset_weights and share is None:
        raise ChunkRLError(
            "--dataset-weights are of the data sets that you name: say with --rollouts.share how often the roll-outs "
            "are drawn"
        )
    num_named = 1 + len(train.additional_offline_dataset_paths)
    if share is not None and num_named != len(train.dataset_weights or (1.0,)):
        raise ChunkRLError(
            f"--rollouts.share with {num_named} data sets beside the roll-outs: give --dataset-weights, one for each"
        )


def _check_labels(config: IterateConfig) -> None:
    train = config.train
    if not train.dataset_dir and train.additional_offline_dataset_paths:
        raise ChunkRLError("name the first data set beside the roll-outs with --dataset-dir")
    named_alike = train.additional_offline_dataset_paths or not train.dataset_dir
    rule = train.additional_success or train.labels.success
    if named_alike and rule not in _FREE_RULES and config.rollouts.folder is None:
        raise ChunkRLError(
            f"--success {rule} would be the roll-outs' rule too, which say it as next.success: write the labels of "
            "the other data sets into them with chunkrl label --export, and train on those"
        )
    if not train.dataset_dir and train.labels.labels not in (AUTO_LABELS, NO_LABELS):
        raise ChunkRLError(
            f"--labels {train.labels.labels} is a file of one data set, and each round has its own: leave it out, "
            "the file in a round's labels/ is found by itself"
        )
    if rule == "episodes" and named_alike:
        raise ChunkRLError(
            "--success episodes lists episodes of one data set: label each round's with chunkrl label --export"
        )


def _check_source(plan: Plan) -> None:
    config, actor = plan.config, plan.actor
    by_hand = config.rollouts.folder is not None
    if actor is not None:
        replace(actor, offline=True).check()
        if actor.send_only:
            raise ChunkRLError(f"{config.rollouts.actor}: send_only records nothing: leave it out")
        if actor.env is not None and actor.num_episodes is None:
            raise ChunkRLError(
                f"{config.rollouts.actor}: say with num_episodes how many episodes a round has; nobody is there to "
                "quit"
            )
        by_hand = actor.env is None
    if by_hand and len(config.arms) > 1:
        raise ChunkRLError(
            "several arms make their roll-outs by themselves, in a simulator: with a robot, or with episodes that "
            "you bring, use one of --arms"
        )


def _check_q(plan: Plan) -> None:
    """Refuses to choose chunks by a Q that the policies of an arm's rounds lack."""
    config, actor = plan.config, plan.actor
    rolling: Sequence[ArmName] = [
        arm for arm in config.arms if any(plan.rolls_out(arm, n) for n in range(1, config.rounds + 1))
    ]
    modes: list[tuple[str, str, Sequence[ArmName]]] = []
    if plan.tasks:
        modes.append(("--evaluation.mode", config.evaluation.mode, config.arms))
    if actor is not None:
        modes.append((f"{config.rollouts.actor}: mode", actor.mode, rolling))
    elif config.rollouts.folder is None:
        modes.append(("--collect.mode", config.collect.mode, rolling))
    for name, mode, arms in modes:
        if mode != "best_of_n":
            continue
        if without := [arm for arm in arms if arm in CLONING_ARMS]:
            raise ChunkRLError(
                f"{name} best_of_n picks chunks by Q, and {' and '.join(without)} only clones: leave "
                f"{'that arm' if len(without) == 1 else 'these arms'} out, or use mode or sample"
            )
        if arms and not (config.train.train_q or config.train.method.joint):
            raise ChunkRLError(
                f"{name} best_of_n picks chunks by Q, which the policies of the rounds have with --train-q alone: "
                "add it, or use mode or sample"
            )


def check_brought(plan: Plan) -> None:
    """Raises ChunkRLError where the episodes that are brought are recorded with another arm's policies: an arm has
    its own from the second round on, and their folder is one. Whose it is, the first step that asked for them says.
    """
    config = plan.config
    for arm in config.arms if config.rollouts.folder is not None else ():
        takes_some = any(plan.rolls_out(arm, number) for number in range(1, config.rounds + 1))
        others = [
            one for one in get_args(ArmName) if one != arm and (plan.folder(one, 1) / "label.json").is_file()
        ]
        if takes_some and others:
            raise ChunkRLError(
                f"{config.rollouts.folder} has, from round-001 on, episodes of the policies of {others[0]}, and "
                f"{arm} learns from those of its own: resume with --arms {others[0]}, or begin with another "
                "--output-dir and another --rollouts.folder"
            )


def _check_selection(plan: Plan) -> None:
    config, tasks = plan.config, plan.tasks
    if config.selection.by == "rollouts":
        return
    if not tasks:
        raise ChunkRLError(
            "nothing can be evaluated where no simulator is: choose the policy by its roll-outs (--selection.by "
            "rollouts), or name a simulator's tasks with --evaluation.env"
        )
    rule, evaluation = config.selection, config.evaluation
    if family_of(tasks[0]).has_official_states and evaluation.initial == "official":
        return  # the selection's placements are sampled
    count = max(rule.num_episodes, evaluation.num_episodes or 100)
    if set(initial_seeds(rule.seed, count)) & set(initial_seeds(evaluation.seed, count)):
        raise ChunkRLError(
            f"--selection.seed {rule.seed} gives initial states that --evaluation.seed {evaluation.seed} reports: a "
            "choice by them would make the report too good; use another seed"
        )
