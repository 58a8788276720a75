"""Settings of training: the optimiser, where metrics go, videos, and how a trained policy acts."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal, get_args

from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError

Schedule = Literal["constant", "cosine"]
OptimizerKind = Literal["adamw", "adamw_8bit"]


@dataclass(frozen=True)
class OptimConfig:
    """Settings of `Optimizer`; a learning-rate schedule counts updates, not batches of an accumulation.

    lr: AdamW's learning rate, the schedule's peak. weight_decay, betas: AdamW's.
    grad_clip: largest gradient norm of a clip group.
    schedule: `constant`, or `cosine` from lr to final_lr_ratio * lr over all updates.
    warmup_updates: the rate grows linearly from 0 over that many updates, with either schedule.
    kind: `adamw`, 8 bytes of moments a parameter, or `adamw_8bit`, 2 (block-wise quantised, arXiv 2110.02861).
    """

    lr: float = 3e-4
    weight_decay: float = 0.0
    grad_clip: float = 10.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = "constant"
    warmup_updates: int = 0
    final_lr_ratio: float = 0.1
    kind: OptimizerKind = "adamw"

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.grad_clip <= 0 or self.weight_decay < 0:
            raise ChunkRLError("lr and grad_clip must be positive and weight_decay not negative")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ChunkRLError(f"betas is {self.betas}; AdamW needs two numbers in [0, 1)")
        for name, choices in (("schedule", get_args(Schedule)), ("kind", get_args(OptimizerKind))):
            if getattr(self, name) not in choices:
                raise ChunkRLError(
                    f"optimiser {name} is {getattr(self, name)!r}; use one of {', '.join(choices)}"
                )
        if self.warmup_updates < 0 or not 0 <= self.final_lr_ratio <= 1:
            raise ChunkRLError("warmup_updates must not be negative, and final_lr_ratio lies in [0, 1]")


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go besides TensorBoard and metrics.jsonl."""

    wandb: bool = False
    """Also to Weights & Biases (extra `tracking`)."""
    project: str = "chunkrl"
    """Its project."""
    mode: Literal["online", "offline"] = "online"
    """offline: into the run folder, without network and account; `wandb sync` uploads it later."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Literal["online", "offline"]) or not self.project:
            raise ChunkRLError(
                f"tracking.mode is {self.mode!r} and tracking.project {self.project!r}; use online or offline, and a "
                "name"
            )

    def check(self) -> None:
        """Raises MissingExtraError where Weights & Biases is asked for and not installed."""
        if self.wandb and importlib.util.find_spec("wandb") is None:
            raise MissingExtraError("--tracking.wandb", "wandb", "tracking")


@dataclass(frozen=True)
class ValueVideoConfig:
    """Videos of episodes with their values, rendered alongside training."""

    num_episodes: int = 0
    """Episodes of --dataset-dir to render, successes and failures in turn (0: no videos)."""
    every_saves: int = 1
    """Checkpoints between two times; where the values are still the same, there are no new videos."""
    every_episodes: int = 0
    """chunkrl learner: episodes of actors between two videos, each of the newest episode (0: no videos)."""

    def __post_init__(self) -> None:
        if self.num_episodes < 0 or self.every_saves < 1 or self.every_episodes < 0:
            raise ChunkRLError(
                "value_videos.num_episodes and value_videos.every_episodes must be at least 0, "
                "value_videos.every_saves at least 1"
            )
