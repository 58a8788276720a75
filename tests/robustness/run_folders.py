"""Whole training runs and evaluations to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from chunk_data import random_episodes, settings, write_dataset
from evaluations import SETTINGS

from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.evaluation.evaluation_result import (
    EpisodeOutcome,
    Evaluation,
    write_evaluation,
)

RUN_FOLDERS: dict[str, dict[str, Any]] = {
    "cross_fitted": {"objective": "cross_fitted", "train_q": True, "ema_decay": 0.5},
    "iql": {"objective": "iql", "log_interval": 1},
    "value": {"objective": "value", "value_updates": 4},
}
NUM_UPDATES = 4


def run_config(name: str, root: Path, output: Path, **changes: Any) -> TrainConfig:
    """Of the run of this name on the data beside `root`."""
    own = {"num_updates": NUM_UPDATES, "save_updates": 2, "value_epochs": 1.0}
    return TrainConfig(**settings(root.parent / "data", output, own, **(RUN_FOLDERS[name] | changes)))


def write_run_folder(name: str, root: Path) -> Path:
    """A finished run, beside its data."""
    shutil.rmtree(root, ignore_errors=True)
    write_dataset(root.parent / "data", random_episodes(6))
    ChunkLevelOfflineRL(run_config(name, root, root)).train()
    shutil.rmtree(root / "tensorboard")
    return root


def write_evaluation_folder(name: str, root: Path) -> Path:
    """A finished evaluation."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    episodes = {
        env: tuple(EpisodeOutcome(seed, (seed + place) % 3 == 0, 10 + seed) for seed in range(4))
        for place, env in enumerate(SETTINGS.envs)
    }
    write_evaluation(root, Evaluation(SETTINGS, episodes, 60.0, 2))
    return root
