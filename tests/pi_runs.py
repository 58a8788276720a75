"""A data set, tiny checkpoints and settings of trainings of pi policies that take a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunk_data import write_dataset
from pi_tiny import ACTION_DIM, STATE_DIM, TOKENIZER, tiny_policy

from chunkrl import TrainConfig
from chunkrl.integration.config import PiTrainingConfig
from chunkrl.models.config import PolicyConfig
from chunkrl.models.pi import load_pretrained, save_pretrained
from chunkrl.models.pi.config import PiCriticConfig

CAMERAS = ("observation.images.front", "observation.images.wrist")


HORIZON = 3


HUMAN = "complementary_info.is_intervention"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("data") / "d")


def write_root(folder: Path) -> Path:
    """Six episodes of five frames, two tasks; episode 1 is a human's, episode 2 from its third frame on."""
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observation.state": rng.normal(size=(5, STATE_DIM)).astype(np.float32),
            "action": rng.normal(size=(5, ACTION_DIM)).astype(np.float32),
            "next.success": np.array([False] * 4 + [number % 2 == 0]),
            HUMAN: np.array([number == 1] * 2 + [number in (1, 2)] * 3),
            **{camera: rng.integers(0, 256, (5, 56, 56, 3), dtype=np.uint8) for camera in CAMERAS},
        }
        for number in range(6)
    ]
    return write_dataset(folder, episodes, ("push", "pull"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def write_checkpoints(folder: Path) -> Path:
    """Tiny pi0 and pi0.5 checkpoints, statistics and tokenizer included."""
    pytest.importorskip("sentencepiece", reason="the tokenizer needs chunkrl[pi]")
    for kind in ("pi0", "pi05"):
        save_pretrained(tiny_policy(kind), folder / "bare" / kind)
        save_pretrained(load_pretrained(folder / "bare" / kind, tokenizer=TOKENIZER), folder / kind)
    return folder


CRITIC = PiCriticConfig(depth=1, num_queries=2, head_width=8)


def config(root: Path, checkpoints: Path, output: Path, objective: str, **settings: Any) -> TrainConfig:
    base = TrainConfig(
        dataset_dir=str(root),
        output_dir=str(output),
        action_horizon=HORIZON,
        action_dim=ACTION_DIM,
        batch_size=6,
        num_updates=3,
        value_epochs=0.4,
        num_folds=2,
        device="cpu",
        log_interval=1,
        policy=PolicyConfig(kind="pi"),
        pi0_config="pi05",
        pi0_checkpoints_dir=str(checkpoints),
        pi0=replace(TrainConfig().pi0, cameras=CAMERAS),
        pi=PiTrainingConfig(num_noise=2, critic=CRITIC),
        objective=objective,  # type: ignore[arg-type]
    )
    return replace(base, **settings).with_objective(objective)
