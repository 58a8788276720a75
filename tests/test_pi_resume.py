"""What a training of a pi policy leaves, and how it goes on from that."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pi_runs
import pytest
import torch
from pi_runs import CRITIC, config

from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.errors import CheckpointError
from chunkrl.integration.config import PiTrainingConfig
from chunkrl.models.config import LoRAConfig
from chunkrl.models.pi import load_pretrained, save_pretrained
from chunkrl.models.pi.actor import PiActor
from chunkrl.training.trainer import Trainer

root, checkpoints = pi_runs.root, pi_runs.checkpoints


def interrupted(settings: TrainConfig, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until update `at`, whose checkpoint is the last, as a kill would leave it."""
    original = Trainer.save

    def stop(self: Trainer) -> Path:
        folder = original(self)
        if self.update == at:
            raise KeyboardInterrupt
        return folder

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save", stop)
        ChunkLevelOfflineRL(settings).train()


@pytest.mark.parametrize("at", [2, 4])
def test_a_resumed_run_reaches_the_same_numbers(
    root: Path, checkpoints: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the value phase and in the policy phase; with average, accumulation and cosine."""
    settings = config(
        *(root, checkpoints, tmp_path / "whole", "advantage_conditioned"),
        batch_size=5,
        num_epochs=1,
        num_updates=None,
        value_epochs=0.5,
        microbatch_size=2,
        ema_decay=0.9,
        schedule="cosine",
        pi=PiTrainingConfig(
            train="expert", num_noise=2, critic=replace(CRITIC, state_noise=0.3, dropout=0.2)
        ),
    )
    whole = ChunkLevelOfflineRL(settings)
    whole.train()
    assert whole.trainer is not None and whole.trainer.update == 9  # 3 of the value, 6 of the policy
    part = replace(settings, output_dir=str(tmp_path / "part"))
    with monkeypatch.context() as patch:
        # a checkpoint after every update
        patch.setattr(ChunkLevelOfflineRL, "_start_trainer", saving_each(ChunkLevelOfflineRL._start_trainer))
        interrupted(part, at, monkeypatch)
    resumed = ChunkLevelOfflineRL(replace(part, resume=part.output_dir))
    resumed.train()
    assert resumed.trainer is not None
    ours = {k: v for k, v in resumed.trainer.history.items() if k.startswith(("loss", "value", "grad"))}
    theirs = {k: v for k, v in whole.trainer.history.items() if k.startswith(("loss", "value", "grad"))}
    assert ours == theirs
    for name in ("whole", "part"):
        assert (tmp_path / name / "policy" / "model.safetensors").is_file()
    files = [(tmp_path / name / "policy" / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert files[0] == files[1]


def test_a_run_resumes_on_the_checkpoint_that_it_was_started_from(
    root: Path, checkpoints: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints / "pi05", tmp_path / "pi05")
    pi = PiTrainingConfig(train="expert", num_noise=1, critic=CRITIC)
    settings = config(root, tmp_path, tmp_path / "run", "behaviour_cloning", pi=pi)
    ChunkLevelOfflineRL(settings).train()
    again = replace(settings, resume=settings.output_dir, num_updates=4)
    other = load_pretrained(tmp_path / "pi05")
    with torch.no_grad():
        other.model.language.embed_tokens.weight.add_(0.1)
    save_pretrained(other, tmp_path / "pi05", overwrite=True)
    with pytest.raises(CheckpointError, match="started from other weights"):
        ChunkLevelOfflineRL(again).train()
    shutil.rmtree(tmp_path / "pi05")
    shutil.copytree(checkpoints / "pi05", tmp_path / "pi05")
    ChunkLevelOfflineRL(again).train()


def saving_each(original: Any) -> Any:
    def start(self: ChunkLevelOfflineRL, run_dir: Path | None) -> None:
        original(self, run_dir)
        assert self.trainer is not None
        self.trainer.config = replace(self.trainer.config, save_interval=1)

    return start


def test_the_average_is_what_is_saved(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "behaviour_cloning", ema_decay=0.5))
    start = run.policy.policy.model.action_out_proj.weight.detach().clone()
    steps = []
    update = run.algorithm.update

    def recorded(name: str, batch: Any) -> Any:
        metrics = update(name, batch)
        steps.append(run.policy.policy.model.action_out_proj.weight.detach().clone())
        return metrics

    run.algorithm.update = recorded
    run.train()
    average = start
    for step in steps:
        average = 0.5 * average + 0.5 * step
    saved = load_pretrained(tmp_path / "policy").model.action_out_proj.weight
    torch.testing.assert_close(saved.detach(), average)
    assert not torch.allclose(saved.detach(), steps[-1], atol=1e-8)


def test_lora_is_merged_into_an_ordinary_checkpoint(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    pi = PiTrainingConfig(train="lora", lora=LoRAConfig(rank=2), num_noise=2, critic=CRITIC)
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "cross_fitted", pi=pi))
    trained = [n for n, p in run.policy.policy.model.named_parameters() if p.requires_grad]
    assert trained and all("lora" in name for name in trained)
    assert not any("lora" in name for name, _ in run.algorithm.values.networks.named_parameters())
    ours = run.train()
    saved = load_pretrained(tmp_path / "policy")
    original = load_pretrained(checkpoints / "pi05")
    assert [n for n, _ in saved.model.named_parameters()] == [n for n, _ in original.model.named_parameters()]
    observation = run.dataset.batch(np.arange(3)).observation
    chunk = PiActor(saved).act(observation, [], "mode")
    torch.testing.assert_close(ours.act(observation, [], "mode"), chunk, atol=1e-4, rtol=1e-4)
    both = PiTrainingConfig(train="lora_and_expert", lora=LoRAConfig(rank=2), num_noise=2, critic=CRITIC)
    wider = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path / "both", "cross_fitted", pi=both))
    names = [n for n, p in wider.policy.policy.model.named_parameters() if p.requires_grad]
    assert any("lora" in name for name in names) and not any("expert" in n and "lora" in n for n in names)
    assert any(name.startswith("expert") for name in names)
    # the last run's state holds no copy of the frozen weights
    tensors = (tmp_path / "checkpoints").rglob("state.safetensors")
    assert all(
        file.stat().st_size < (tmp_path / "policy" / "model.safetensors").stat().st_size for file in tensors
    )


def test_old_checkpoints_go_when_newer_are_whole(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    settings = config(
        *(root, checkpoints, tmp_path, "cross_fitted"), save_updates=1, keep_checkpoints=2, num_updates=3
    )
    run = ChunkLevelOfflineRL(settings)
    run.train()
    folder = tmp_path / "checkpoints"
    assert run.trainer is not None and run.trainer.update == 5
    assert sorted(f.name for f in folder.iterdir()) == ["0000004", "0000005", "last"]
    ChunkLevelOfflineRL(replace(settings, resume=str(tmp_path), num_updates=4)).train()
    assert sorted(f.name for f in folder.iterdir()) == ["0000005", "0000006", "last"]
