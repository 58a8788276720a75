"""What can be wrong before the first step: settings, the policy to improve, data that say of nobody who succeeded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from chunkrl import ranks
from chunkrl.algorithms.registry import METHODS
from chunkrl.data.formats import describe
from chunkrl.data.label_files import chosen_labels
from chunkrl.data.label_rules import success_column
from chunkrl.data.problems import Collector
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.files.output_folder import numbered, stem_of
from chunkrl.improve.config import WEIGHTED, ImproveConfig
from chunkrl.improve.diagnosis import DataFacts
from chunkrl.improve.plan import POLICY, Plan
from chunkrl.improve.recipe import OF_SUCCESSES, Recipe
from chunkrl.policies.registry import family_in
from chunkrl.run.checks import check_config
from chunkrl.run.config import TrainConfig
from chunkrl.run.folder import is_run_folder


def make_plan(config: ImproveConfig) -> Plan:
    """The steps of `config`. Raises ChunkRLError for settings that exclude each other, data that do not say who
    succeeded, and a policy that is none."""
    _check_own(config)
    label_file, told = find_labels(config)
    asked = config.train.objective
    train = config.train.of_objective(WEIGHTED if asked == "auto" else asked)
    output = train.output_dir or str(numbered(stem_of(config.data, "improve")))
    train = replace(train, dataset_dir=config.data, output_dir=output, resume=None, overwrite=False)
    folder = None if config.policy is None else policy_folder(config.policy)
    if folder is not None:
        train = _beginning_with(train, folder)
    plan = Plan(config, train, label_file, told, folder)
    for checked in (train, plan.values(), plan.training("control", OF_SUCCESSES)):
        check_config(checked)
    return plan


def _check_own(config: ImproveConfig) -> None:
    train = config.train
    if ranks.world_size() > 1:
        raise ChunkRLError(
            "improve is one process: start it without torchrun; a training can be started by it, with chunkrl train "
            "--config DIR/05-train/config.json, and the same improve then goes on after it"
        )
    if not config.data:
        raise ChunkRLError("name the data: chunkrl improve FOLDER, or owner/name on the Hub")
    unused = {
        "--dataset-dir": (train.dataset_dir, "name the data as chunkrl improve DATA"),
        "--additional-offline-dataset-paths": (
            train.additional_offline_dataset_paths,
            "improve is of one data set: train on several by hand (chunkrl train, chunkrl verdict)",
        ),
        "--init": (train.init, "name the policy to improve with --policy"),
        "--pi0-config": (train.pi0_config, "name the checkpoint's folder with --policy"),
        "--values": (train.values, "improve trains values of its own: leave it out"),
        "--sample-weights": (train.sample_weights, "improve makes the weights: leave it out"),
        "--use-pi0-actions": (train.use_pi0_actions, "improve learns from recorded chunks: leave it out"),
        "--train-q": (train.train_q, "the verdict is on policies without Q: leave it out"),
        "--distil.num-candidates": (
            train.distil.num_candidates,
            "the control could not have it: leave it out",
        ),
    }
    for flag, (value, cure) in unused.items():
        if value:
            raise ChunkRLError(f"{flag} is not for chunkrl improve: {cure}")
    if train.num_folds < 2:
        raise ChunkRLError(
            "--num-folds 1 has no values of episodes that a network never saw, and the diagnosis is about these: use "
            "2 or more"
        )
    if train.resume is not None and Path(train.resume).resolve() != Path(train.output_dir).resolve():
        raise ChunkRLError(f"--resume {train.resume} goes on in its own folder: give it as --output-dir too")


def find_labels(config: ImproveConfig) -> tuple[str, str]:
    """The file of labels that the data have, "" where a rule makes them; and what says who succeeded, for people.

    Raises DatasetError where nothing says which episodes succeeded: it asks for that.
    """
    train = config.train
    rule = train.labels
    description = describe(config.data, train.mapping, train.revision, Collector())
    file = chosen_labels(description.root, rule)
    if file is not None:
        return file.name, f"the file {file.name}"
    column = success_column(rule, list(description.features))
    if column is None and rule.success == "auto":
        outcomes = [name for name in description.features if "succe" in name.lower()]
        known = f" (here: {', '.join(outcomes)})" if outcomes else ""
        raise DatasetError(
            f"Which episodes of {config.data} succeeded? Nothing says it: no column next.success, next.reward, "
            f"reward or {rule.subgoal_key}, and no file of labels beside the data. Say it, and call this again: all "
            "of them did (--success all); those of a list (--success-file FILE.txt, or --success episodes "
            f"--success-episodes 0 3 7); a column holds each episode's outcome{known} (--success episode_flag "
            f"--success-key COLUMN). Or keep it beside the data: chunkrl label {config.data} --success-file "
            f"FILE.txt, or look at the episodes and press keys: chunkrl label {config.data} --browser"
        )
    if column is not None:
        return "", f"the column {column[0]}"
    return "", f"the list {rule.success_file}" if rule.success_file else f"--success {rule.success}"


def policy_folder(given: str) -> Path:
    """The folder of the policy to improve: a saved policy's, a pi checkpoint's, or the policy of a run's.

    Raises ChunkRLError where there is none.
    """
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise ChunkRLError(
            f"--policy {given}: there is no such folder: name a run, its policy, or a pi checkpoint"
        )
    return folder / POLICY if is_run_folder(folder) else folder


def _beginning_with(train: TrainConfig, folder: Path) -> TrainConfig:
    """The settings of a training that begins with the policy in `folder`, with what that decides."""
    family = family_in(folder)
    if not family.is_pretrained:
        return family.pretrained(replace(train, init=str(folder)), family_in)[1]
    kind = family.kinds[0]
    changes: dict[str, Any] = {"pi0_config": folder.name, "pi0_checkpoints_dir": str(folder.parent)}
    if train.policy.kind != kind:
        if train.policy != TrainConfig().policy:
            raise ChunkRLError(
                f"--policy {folder} is a {kind} policy, and --policy.kind is {train.policy.kind}: leave that out"
            )
        changes["policy"] = family.settings(kind=kind)  # type: ignore[call-arg]
    return replace(train, **changes)


def check_recipe(recipe: Recipe, data: DataFacts) -> None:
    """Raises ChunkRLError where a method was asked for that has nothing to learn from."""
    if not METHODS[recipe.objective].of_successes and not data.returns_differ:
        raise ChunkRLError(
            f"--objective {recipe.objective} learns from values, and all episodes return the same from the same step "
            "on: leave it out, or add failures"
        )
