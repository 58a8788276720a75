"""`chunkrl iterate`: its settings, those of `chunkrl train` among them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from chunkrl.collect.config import CollectConfig
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.config import EvaluateConfig
from chunkrl.run.config import TrainConfig, going_on
from chunkrl.run.noted import noted_config

CONFIG_FILE = "iterate.json"
ArmName = Literal["default", "success_cloning", "behaviour_cloning", "no_new_data"]
SelectBy = Literal["states", "rollouts"]


@dataclass(frozen=True)
class RolloutSource:
    """Where each round's episodes come from, and how much of a batch they are."""

    actor: str | None = None
    """JSON file with settings of chunkrl actor, which then records the roll-outs in place of --collect: a robot, or a
    simulator with a scripted corrector. Policy, folders and initial states are each round's own."""
    folder: str | None = None
    """Folder to which you bring each round's episodes, LeRobot data sets named round-000, round-001, ..., in place of
    --collect: for example what lerobot-rollout recorded with that round's policy."""
    share: float | None = None
    """Share of every batch that is drawn from the roll-outs, where there is --dataset-dir; default: every frame is
    equally likely."""

    def __post_init__(self) -> None:
        if self.actor is not None and self.folder is not None:
            raise ChunkRLError("--rollouts.actor and --rollouts.folder are two sources: give one of them")
        if self.share is not None and not 0 < self.share < 1:
            raise ChunkRLError(f"rollouts.share is {self.share}; it lies between 0 and 1, without these")


@dataclass(frozen=True)
class SelectionRule:
    """How the policy to use is chosen among the rounds': never by the states that are reported."""

    by: SelectBy = "states"
    """states: success from initial states of their own, executed as in the evaluation; rollouts: success of the
    roll-outs that the round's policy made afterwards (the last policy makes some for that alone); an episode that was
    corrected is no success of the policy."""
    num_episodes: int = 50
    """Initial states per task, by states."""
    seed: int = 1000
    """Determines these initial states and their noise; another one than the evaluation's."""

    def __post_init__(self) -> None:
        if self.by not in get_args(SelectBy):
            raise ChunkRLError(f"selection.by is {self.by!r}; use one of {', '.join(get_args(SelectBy))}")
        for name, least in (("num_episodes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ChunkRLError(f"selection.{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class StopRule:
    """When rounds end before there are enough."""

    patience: int = 0
    """Rounds in a row without a better selection after which no further one begins (0: all rounds are made)."""
    at_full_success: bool = True
    """Whether no further round begins once every episode of the selection succeeds."""

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ChunkRLError(f"stop.patience is {self.patience}; it must be at least 0")


def _train_defaults() -> TrainConfig:
    return TrainConfig(keep_checkpoints=1)  # rounds are many, and kept


def _no_tasks() -> EvaluateConfig:
    return EvaluateConfig(env=())


@dataclass(frozen=True)
class IterateConfig:
    """Rounds: a policy's own roll-outs, values on all data so far, and the policy again from the pretrained one. All
    settings of `chunkrl train` hold; the pretrained policy is --init FOLDER, or a pi policy's --pi0-config."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=_train_defaults)
    """The settings of `chunkrl train`: data beside the roll-outs (none: the roll-outs alone), objective, updates per
    round; --output-dir is the run's folder (default: runs/iterate-001, the next free number), --resume RUN alone goes
    on."""
    rounds: int = 3
    """Policies that are trained, one per round."""
    arms: tuple[ArmName, ...] = ("default",)
    """What runs: default, the objective of the settings; and controls with the same roll-outs and updates per round,
    success_cloning (filtered cloning), behaviour_cloning (uniform cloning), no_new_data (the first roll-outs alone,
    as many updates as the rounds so far together)."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """Roll-outs in a simulator: tasks, episodes, seed (round r takes seed + r); the policy samples its actions."""
    rollouts: RolloutSource = field(default_factory=RolloutSource)
    """Other sources of roll-outs."""
    evaluation: EvaluateConfig = field(default_factory=_no_tasks)
    """What is reported of each round's policy. --evaluation.env: default, the simulator's tasks; none with a robot or
    with episodes that you bring."""
    selection: SelectionRule = field(default_factory=SelectionRule)
    """How the policy to use is chosen."""
    stop: StopRule = field(default_factory=StopRule)
    """When rounds end early."""


def resumed_iteration(run: Path, given: Collection[str] = ()) -> IterateConfig:
    """All settings of the run in the folder `run`, to resume it; given: as `run_folder.resumed_config`.

    Raises ChunkRLError where it is no folder of an iteration."""
    cure = "name the folder of a run of chunkrl iterate"
    config = noted_config(IterateConfig, run / CONFIG_FILE, cure=cure)
    init = config.train.init  # the pretrained policy, which every round begins with
    return replace(config, train=replace(going_on(config.train, run, run, given), init=init))
