"""Every step of every round as the configuration of an existing command, so that it can be repeated by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chunkrl.collect.command import CollectCommand
from chunkrl.collect.config import CollectConfig
from chunkrl.data.label_rules import AUTO_LABELS, NO_LABELS, SuccessRule
from chunkrl.envs.registry import family_of
from chunkrl.evaluation.config import EvaluateCommand, EvaluateConfig
from chunkrl.iterate.config import ArmName, IterateConfig
from chunkrl.iterate.records import Rollouts
from chunkrl.label.config import LabelCommand
from chunkrl.run.build import label_rules
from chunkrl.run.config import TrainConfig
from chunkrl.settings import Settings

if TYPE_CHECKING:  # it needs the extra `online`
    from chunkrl.online.actor.command import ActorCommand

ROLLOUTS, TRAIN, EVALUATION, SELECTION = "rollouts", "train", "evaluation", "selection"
CLONING_ARMS: tuple[ArmName, ...] = ("success_cloning", "behaviour_cloning")
_ACTOR_SHARD = "shard-000000"


@dataclass(frozen=True)
class Plan:
    """Steps' configurations.

    config: the command's, with the training settings that the pretrained policy decides. pretrained: its folder.
    actor: settings of --rollouts.actor.
    """

    config: IterateConfig
    pretrained: Path
    actor: ActorCommand | None = None

    @property
    def root(self) -> Path:
        """The run's folder."""
        return Path(self.config.train.output_dir)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Simulated tasks that are evaluated; none where only roll-outs say what a policy is worth."""
        if self.config.evaluation.env:
            return self.config.evaluation.env
        if self.config.rollouts.folder is not None:
            return ()
        if self.actor is not None:
            return () if self.actor.env is None else (self.actor.env,)
        return tuple(self.config.collect.env.split("+"))

    def folder(self, arm: ArmName, number: int) -> Path:
        """The folder of a round; the pretrained policy's is one for all arms."""
        name = f"round-{number:03d}"
        return self.root / name if number == 0 else self.root / arm / name

    def policy(self, arm: ArmName, number: int) -> Path:
        """The policy of a round."""
        return self.pretrained if number == 0 else self.folder(arm, number) / TRAIN / "policy"

    def rolls_out(self, arm: ArmName, number: int) -> bool:
        """Whether a round's policy records roll-outs: later rounds train on them, or they choose between policies."""
        is_trained_on = number < self.config.rounds and (arm != "no_new_data" or number == 0)
        return is_trained_on or self.config.selection.by == "rollouts"

    def trained_on(self, arm: ArmName, number: int) -> range:
        """The rounds whose roll-outs round `number` trains on."""
        return range(min(number, 1) if arm == "no_new_data" else number)

    def collect(self, arm: ArmName, number: int) -> CollectCommand:
        """Roll-outs in the simulator: the policy alone, whole episodes."""
        given = self.config.collect
        settings: dict[str, Any] = {f.name: getattr(given, f.name) for f in fields(CollectConfig)}
        return CollectCommand(
            **settings
            | {
                "mixture": replace(given.mixture, mixture="episodes", policy_share=1.0),
                "policy": str(self.policy(arm, number)),
                "seed": given.seed + number,
            },
            output_dir=str(self.folder(arm, number) / ROLLOUTS),
        )

    def record(self, arm: ArmName, number: int) -> ActorCommand:
        """Roll-outs of an actor."""
        assert self.actor is not None
        return replace(
            self.actor,
            policy=str(self.policy(arm, number)),
            output_dir=str(self.folder(arm, number) / "actor"),
            spool=None,
            offline=True,
            seed=self.actor.seed + number,
        )

    def data(self, arm: ArmName, number: int) -> Path:
        """The data set of a round's roll-outs."""
        if self.config.rollouts.folder is not None:
            return Path(self.config.rollouts.folder) / f"round-{number:03d}"
        rollouts = self.folder(arm, number) / ROLLOUTS
        return rollouts if self.actor is None else rollouts / _ACTOR_SHARD

    @property
    def success_rule(self) -> SuccessRule:
        """How success is read in the roll-outs."""
        train = self.config.train
        if not train.dataset_dir:
            return train.labels.success
        return train.additional_success or "auto"

    def label(self, arm: ArmName, number: int) -> LabelCommand:
        """Labels of a round's roll-outs, as the trainings of later rounds read them."""
        train = self.config.train
        before = [Rollouts(str(self.data(arm, earlier)), "", {}, 1, 0) for earlier in range(number + 1)]
        return LabelCommand(
            dataset=str(self.data(arm, number)),
            rule=label_rules(self.train("default", number + 1, before))[-1],
            output=str(self.folder(arm, number) / "labels.parquet"),
            mapping=train.mapping,
            skip_bad_episodes=train.frames.skip_bad_episodes,
        )

    def train(self, arm: ArmName, number: int, rollouts: Sequence[Rollouts]) -> TrainConfig:
        """A round's training, on its data sets and the roll-outs `rollouts`, from the pretrained policy."""
        train = self.config.train
        paths = [r.data for r in rollouts]
        changes: dict[str, Any] = {
            "output_dir": str(self.folder(arm, number) / TRAIN),
            "resume": None,
            "overwrite": False,
        }
        if train.dataset_dir:
            changes["additional_offline_dataset_paths"] = (*train.additional_offline_dataset_paths, *paths)
            changes["dataset_weights"] = self._weights(rollouts)
            if train.additional_labels:  # which name a file for each of the other data sets
                found = NO_LABELS if train.labels.labels == NO_LABELS else AUTO_LABELS
                changes["additional_labels"] = (*train.additional_labels, *[found] * len(paths))
            if self.success_rule != train.labels.success:
                changes["additional_success"] = self.success_rule
        else:
            changes["dataset_dir"], changes["additional_offline_dataset_paths"] = paths[0], tuple(paths[1:])
        if arm == "no_new_data":
            changes["num_epochs"] = number * train.num_epochs
            changes["num_updates"] = None if train.num_updates is None else number * train.num_updates
            if train.distil.updates is not None:
                changes["distil"] = replace(train.distil, updates=number * train.distil.updates)
        elif arm in CLONING_ARMS:  # cloning has no values, and refuses settings of them
            return replace(train, train_q=False, **changes).with_objective(arm)
        return replace(train, **changes)

    def _weights(self, rollouts: Sequence[Rollouts]) -> tuple[float, ...]:
        """How often each data set is drawn from: the roll-outs share theirs by their frames."""
        share, given = self.config.rollouts.share, self.config.train.dataset_weights or (1.0,)
        if share is None:
            return ()
        total = sum(r.num_frames for r in rollouts)
        first = [(1 - share) * weight / sum(given) for weight in given]
        return (*first, *(share * r.num_frames / total for r in rollouts))

    def evaluate(self, arm: ArmName, number: int) -> EvaluateCommand:
        """What is reported of a round's policy."""
        return self._evaluation(arm, number, EVALUATION)

    def select(self, arm: ArmName, number: int) -> EvaluateCommand:
        """Success from the initial states of the selection; LIBERO's official ones are for what is reported."""
        rule, tasks = self.config.selection, self.tasks
        return replace(
            self._evaluation(arm, number, SELECTION),
            num_episodes=rule.num_episodes,
            seed=rule.seed,
            initial="sampled" if family_of(tasks[0]).has_official_states else "official",
            videos=0,
        )

    def _evaluation(self, arm: ArmName, number: int, name: str) -> EvaluateCommand:
        given = self.config.evaluation
        settings: dict[str, Any] = {f.name: getattr(given, f.name) for f in fields(EvaluateConfig)}
        settings["env"] = self.tasks
        return EvaluateCommand(
            **settings,
            policy=str(self.policy(arm, number)),
            output_dir=str(self.folder(arm, number) / name),
        )


def load_actor(file: str) -> ActorCommand:
    """The settings of --rollouts.actor. Raises MissingExtraError without the extra `online`."""
    from chunkrl.online.actor.command import ActorCommand

    return Settings(ActorCommand()).of_file(Path(file))
