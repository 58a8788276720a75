"""Defects of the earlier pi0.5 RL implementation, where no other test guards against them.

docs/training.md lists all of them, each with its test.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pi_runs as pi
import pytest
import torch
from chunk_data import open_chunks, random_episodes, write_dataset
from pi_runs import config
from pi_tiny import TOKENIZER, tiny_policy

from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.algorithms.config import BalanceConfig, ConditioningConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.data.chunk_settings import ChunkSettings
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.sidecar import load_sidecar
from chunkrl.errors import ChunkRLError
from chunkrl.integration.config import PiTrainingConfig
from chunkrl.integration.pi_training import check_conditioning
from chunkrl.models.pi import PiPolicy, load_pretrained, save_pretrained
from chunkrl.models.pi.flow import PiModel

root, checkpoints = pi.root, pi.checkpoints  # the data and the tiny checkpoints of those tests
EVERY_FRAME = Counter({(episode, frame): 1 for episode in range(6) for frame in range(5)})


class DeafTokenizer:
    """Hears the task's first words and nothing after them, as a tokenizer that cuts would."""

    def encode(self, text: str, add_bos: bool) -> list[int]:
        return [ord(c) % 200 + 3 for c in text[:12]]


def test_an_advantage_that_the_policy_cannot_hear_stops_the_run_at_its_start(root: Path) -> None:
    """Lesson 1: the text at the end of the prompt was cut off for two months."""
    data = ChunkDataset(root, ChunkSettings(pi.HORIZON))
    deaf = tiny_policy("pi05")
    policy = PiPolicy(deaf.model, deaf.recipe, deaf.norm_stats, DeafTokenizer())
    renamed = replace(policy.recipe.settings, cameras=pi.CAMERAS)
    policy.recipe = replace(policy.recipe, settings=renamed)
    with pytest.raises(ChunkRLError, match="the prompt is cut before the advantage"):
        check_conditioning(policy, data, ConditioningConfig())


@pytest.mark.parametrize("failures", ["left_out", "apart"])
def test_both_phases_train_on_every_frame_of_every_episode(tmp_path: Path, failures: Any) -> None:
    """Lesson 2: starts whose own chunk held the terminal were dropped, so the last chunks were never learned. The
    policy learns from the successful episodes alone by default, in as many updates."""
    rng = np.random.default_rng(0)
    flags = [np.array([False] * 4 + [number % 2 == 0]) for number in range(6)]
    episodes = [
        {
            "observation.state": rng.normal(size=(5, 3)).astype(np.float32),
            "action": rng.normal(size=(5, 2)).astype(np.float32),
            "next.success": success,
        }
        for success in flags
    ]
    data = write_dataset(tmp_path / "d", episodes)
    run = ChunkLevelOfflineRL(
        TrainConfig(
            dataset_dir=str(data),
            output_dir=str(tmp_path / "run"),
            action_horizon=4,
            action_dim=2,
            batch_size=5,
            num_epochs=1,
            value_epochs=1,
            num_folds=2,
            device="cpu",
            balance=BalanceConfig(failures=failures),
        )
    )
    seen: dict[str, Counter] = {"value": Counter(), "policy": Counter()}
    losses: list[int] = []
    update = run.algorithm.update

    def recorded(name: str, batch: Any) -> Any:
        seen[name].update(zip(batch.episode_index.tolist(), batch.frame_index.tolist(), strict=True))
        if name == "value":
            values = run.algorithm.values
            mask = values.networks.trains_on(batch.labels["fold"]) & batch.labels["outcome_known"]
            losses.append(int(mask.sum()))
        return update(name, batch)

    run.algorithm.update = recorded
    run.train()
    successes = Counter({(episode, frame): 2 for episode, frame in EVERY_FRAME if episode % 2 == 0})
    assert seen == {"value": EVERY_FRAME, "policy": successes if failures == "left_out" else EVERY_FRAME}
    assert sum(losses) == 30  # each frame teaches the one network that may see its episode


@pytest.mark.parametrize("time_out", ["failure", "bootstrap"])
def test_a_time_out_means_what_is_said(tmp_path: Path, time_out: Any) -> None:
    """Lesson 3: a time-out counted as a failure, and `truncated` was used nowhere."""
    run = ChunkLevelOfflineRL(
        TrainConfig(
            dataset_dir=str(write_dataset(tmp_path / "d", random_episodes(6))),
            output_dir=str(tmp_path / "run"),
            action_horizon=3,
            action_dim=2,
            num_folds=2,
            device="cpu",
            fit=ValueFit(time_out=time_out, lam=1.0),
        )
    )
    labels = run.algorithm.values.label(lambda *_: None)
    success = run.dataset.success
    last = np.append(np.diff(run.dataset.episode) > 0, True)
    ended_by_time = last & ~success
    known = run.dataset.batch(np.arange(len(success)), next_observation=False).labels["outcome_known"]
    assert known.tolist() == (success | (time_out == "failure")).tolist()
    target = (labels.value + labels.advantage)[ended_by_time]
    # with `bootstrap` the return of the last action is V of the last stored frame
    expected = labels.value[ended_by_time] if time_out == "bootstrap" else 0.0
    assert np.allclose(target, expected, atol=1e-6) and labels.value[ended_by_time].min() > 0.01


def test_the_critics_own_label_is_kept_beside_a_forced_one(
    root: Path, checkpoints: Path, tmp_path: Path
) -> None:
    """Lesson 5: forcing a high advantage hid what the critic was worth."""
    labels = ConditioningConfig(edges="quantiles", success="free")
    rules = {"conditioning": labels, "human_chunks": "critic"}  # no other chunk is forced
    free = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path / "free", "advantage_conditioned", **rules))
    forced = config(
        *(root, checkpoints, tmp_path / "forced", "advantage_conditioned"),
        **rules | {"conditioning": replace(labels, force_high=(0,))},
    )
    free.train()
    run = ChunkLevelOfflineRL(forced)
    run.train()
    arrays = load_sidecar(tmp_path / "forced" / "values.parquet", run.dataset.datasets[0].table).arrays
    assert arrays["advantage_bin"].tolist() == [1] * 30
    assert arrays["advantage_bin_raw"].tolist() == free.algorithm.labels["advantage_bin_raw"].tolist()
    assert set(arrays["advantage_bin_raw"]) == {0, 1}
    assert run.trainer is not None
    ((_, share),) = run.trainer.history["advantage/forced_fraction"]
    assert share == pytest.approx(np.mean(arrays["advantage_bin_raw"] == 0))


@pytest.mark.parametrize("objective", ["cross_fitted", "advantage_conditioned"])
def test_an_update_sees_its_pictures_once(
    root: Path, checkpoints: Path, tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lesson 8: images were embedded twice an update. All folds, and all noise samples, share one pass."""
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, objective, num_folds=3))
    shown: list[int] = []
    original = PiModel.embed_cameras

    def counted(self: PiModel, inputs: Any) -> Any:
        shown.append(len(inputs.tokens))
        return original(self, inputs)

    monkeypatch.setattr(PiModel, "embed_cameras", counted)
    for phase in ("value", "policy"):
        run.algorithm.start_phase(phase)
        shown.clear()
        run.algorithm.update(phase, run.dataset.batch(np.arange(6), next_observation=False))
        assert shown == [6]


def test_trained_parameters_are_float32_whatever_the_checkpoint_holds(
    root: Path, checkpoints: Path, tmp_path: Path
) -> None:
    """Lesson 9: steps below one unit in the last place of bfloat16 are lost."""
    half = load_pretrained(checkpoints / "pi05", dtype=torch.bfloat16, tokenizer=TOKENIZER)
    save_pretrained(half, tmp_path / "half")
    run = ChunkLevelOfflineRL(
        config(
            *(root, tmp_path, tmp_path / "run", "advantage_conditioned"),
            pi0_config="half",
            pi=PiTrainingConfig(train="expert", num_noise=1, critic=pi.CRITIC),
            fit=ValueFit(target="bootstrap"),
            reward="sum",
            ema_decay=0.9,
        )
    )
    policy = run.policy.policy.model
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in policy.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in run.algorithm.values.networks.parameters()} == {torch.float32}
    assert {p.dtype for p in run.algorithm.values.training.targets.parameters()} == {torch.float32}
    assert {average.dtype for average in run.algorithm.step._ema.state_dict().values()} == {torch.float32}


def test_a_checkpoint_without_statistics_does_not_start_without_a_word(
    root: Path, checkpoints: Path, tmp_path: Path
) -> None:
    """Lesson 11: starting from a base checkpoint silently had no statistics."""
    whole = load_pretrained(checkpoints / "pi05")
    bare = PiPolicy(whole.model, whole.recipe, None, whole.tokenizer)
    save_pretrained(bare, tmp_path / "bare")
    settings = config(root, tmp_path, tmp_path / "run", "behaviour_cloning", pi0_config="bare")
    with pytest.raises(ChunkRLError, match=r"--pi\.norm-stats data"):
        ChunkLevelOfflineRL(settings)
    ChunkLevelOfflineRL(replace(settings, pi=replace(settings.pi, norm_stats="data")))


def test_chunks_of_every_start_are_of_one_episode_and_in_order(tmp_path: Path) -> None:
    """Lesson 2: the window broke where the ring buffer wrapped."""
    data = write_dataset(tmp_path / "d", random_episodes(6))
    chunks = open_chunks(data, horizon=4)
    batch = chunks.batch(np.arange(len(chunks)), next_observation=False)
    for row in range(len(chunks)):
        real = int(batch.action_mask[row].sum())
        rows = np.arange(row, row + real)
        assert (chunks.episode[rows] == chunks.episode[row]).all()
        assert batch.actions[row, :real].tolist() == chunks.table.action[rows].tolist()
