"""A pi policy on data that grow: labels of interventions, and weights that the saved policy takes, LoRA merged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

pytest.importorskip("grpc", reason="needs chunkrl[online]")

from chunk_data import write_dataset
from growing_data import Growing
from pi_runs import CAMERAS, HUMAN, checkpoints, config, root  # noqa: F401
from pi_tiny import ACTION_DIM, STATE_DIM

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.models.config import LoRAConfig
from chunkrl.models.pi.actor import PiActor
from chunkrl.online.actor.policy_runner import PolicyRunner
from chunkrl.online.link.weights import make_push, push_tensors, snapshot
from chunkrl.run.policy_io import load_policy


def corrected(folder: Path) -> Path:
    """Two episodes, of which a human did the second."""
    rng = np.random.default_rng(5)
    episodes = [
        {
            "observation.state": rng.normal(size=(5, STATE_DIM)).astype(np.float32),
            "action": rng.normal(size=(5, ACTION_DIM)).astype(np.float32),
            "next.success": np.array([False] * 4 + [number == 1]),
            HUMAN: np.full(5, number == 1),
            **{camera: rng.integers(0, 256, (5, 56, 56, 3), dtype=np.uint8) for camera in CAMERAS},
        }
        for number in range(2)
    ]
    return write_dataset(folder, episodes, ("push", "pull"))


@pytest.mark.parametrize("train", ["lora_and_expert", "expert"])
def test_interventions_that_come_are_labelled_high_and_weights_are_acted_with(
    root: Path,  # noqa: F811
    checkpoints: Path,  # noqa: F811
    tmp_path: Path,
    train: str,
) -> None:
    settings = config(
        root, checkpoints, tmp_path / "run", "advantage_conditioned", num_updates=6, value_updates=2
    )
    settings = replace(settings, pi=replace(settings.pi, train=cast(Any, train), lora=LoRAConfig(rank=2)))
    first = ChunkDataset(root, settings.chunk_settings())
    second = ChunkDataset(corrected(tmp_path / "more"), settings.chunk_settings())
    data = {0: ChunkCollection([first]), 4: ChunkCollection([first, second])}
    run = ChunkLevelOfflineRL(settings, source=Growing(data))
    run.save(tmp_path / "begun")
    run.train()
    highest = settings.conditioning.highest
    bins = run.algorithm.labels["advantage_bin"]
    assert len(bins) == len(data[4])
    human = data[4].frame_labels.human
    assert (bins[len(first) + 5 :] == highest).all() and human[len(first) + 5 :].all()

    policy = load_policy(tmp_path / "begun")
    assert isinstance(policy, PiActor)
    runner = PolicyRunner(policy, "push", "mode")
    push = make_push(1, snapshot(run.algorithm), 10)
    runner.push(1, push_tensors(push))
    runner.begin_episode()
    assert runner.version == 1
    trained = load_policy(tmp_path / "run/policy")
    ours = dict(runner._active.policy.policy.named_parameters())
    moved = 0
    for name, parameter in trained.policy.named_parameters():
        expected = parameter.to(torch.bfloat16) if name in push.tensors else parameter
        assert torch.equal(ours[name].to(expected.dtype), expected), name
        moved += name in push.tensors
    assert moved == len(push.tensors) > 0
