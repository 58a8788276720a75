"""`chunkrl improve`: its settings, those of `chunkrl train` among them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from chunkrl.algorithms.registry import METHODS, Method
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.run.config import TrainConfig
from chunkrl.run.noted import noted_config

CONFIG_FILE = "improve.json"
HELD_OUT = 0.2  # of the episodes, by default
WEIGHTED = "cross_fitted"  # what the diagnosis chooses where values are worth something
Asked = Literal["auto", "cross_fitted", "advantage_conditioned", "success_cloning"]


def _frames() -> FrameSettings:
    return FrameSettings(held_out=HELD_OUT)


@dataclass(frozen=True)
class ImproveTraining(TrainConfig):
    """The settings of both trainings, and which method they may choose."""

    objective: Asked = "auto"
    """auto: the method that the diagnosis chooses (docs/improve.md has the rule); or the one to use in any case."""
    frames: Annotated[FrameSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=_frames)
    """How images are kept, what becomes of bad episodes, and which part is held out for the verdict."""
    output_dir: str = ""
    """The folder of all steps, in which the same call goes on; default: the next free runs/DATA-improve-001."""
    keep_checkpoints: int = 1
    """Newest checkpoints that are kept; older ones are deleted once a newer is whole (0: all are kept)."""

    @property
    def method(self) -> Method:
        """What the settings are of: where the diagnosis chooses, those of weights hold."""
        return METHODS[WEIGHTED] if self.objective == "auto" else METHODS[self.objective]

    def of_objective(self, objective: str) -> TrainConfig:
        """The settings of a training by the method `objective`; what that does not read stands at its default."""
        own: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(TrainConfig)}
        return TrainConfig(**{**own, "objective": objective})


@dataclass(frozen=True)
class ImproveConfig:
    """A better policy from a data set in one command: inspection, labels, values, diagnosis, training beside a
    control, verdict, and a page that tells it. The same call again goes on where it stopped. All settings of
    `chunkrl train` hold."""

    data: Annotated[str, tyro.conf.Positional] = ""
    """LeRobot data set: a folder or a Hub repository id."""
    policy: str | None = None
    """The policy to improve: a pi checkpoint's folder, a saved policy's, or a run's; default: a small one, new."""
    train: Annotated[ImproveTraining, tyro.conf.arg(name="")] = field(default_factory=ImproveTraining)
    """The settings of `chunkrl train`; --resume DIR alone goes on in a folder."""
    dry_run: bool = False
    """Only print the plan: steps, minutes and memory, measured on the first updates. Nothing is written."""


def resumed_improvement(run: Path, given: Collection[str] = ()) -> ImproveConfig:
    """All settings of the run in the folder `run`, to resume it. given: names of settings that are given besides.

    Raises ChunkRLError where it is no folder of `chunkrl improve`."""
    config = noted_config(
        ImproveConfig, run / CONFIG_FILE, cure="name the folder of a run of chunkrl improve"
    )
    return replace(config, train=replace(config.train, resume=str(run), output_dir=str(run)))
