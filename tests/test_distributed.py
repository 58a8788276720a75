"""Training on two processes (torchrun, gloo, FSDP2) against one: losses, weights, checkpoints, failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import write_dataset
from pi_tiny import ACTION_DIM, STATE_DIM, TOKENIZER, tiny_policy
from safetensors.torch import load_file, save_file

from chunkrl import ChunkLevelOfflineRL, TrainConfig, ranks
from chunkrl.algorithms.config import BalanceConfig, DistilConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.config import save_config
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.integration import pi_training
from chunkrl.integration.config import PiTrainingConfig
from chunkrl.integration.pi_saving import Q_FOLDER
from chunkrl.manifest import MANIFEST_FILE, write_manifest
from chunkrl.models.config import LoRAConfig, PolicyConfig
from chunkrl.models.pi import load_pretrained, save_pretrained
from chunkrl.models.pi.config import PiCriticConfig
from chunkrl.run import offline
from chunkrl.training.checkpoint import load_state, save_state
from chunkrl.training.metrics import MEASURED, METRICS_FILE
from chunkrl.training.saved_batch import load_batch
from chunkrl.training.shard_files import SHARDS, StoredTensor, shards_file
from chunkrl.training.shards import shard_rows

CAMERAS = ("observation.images.front", "observation.images.wrist")
CRITIC = PiCriticConfig(depth=2, num_queries=2, head_width=8)
PI = PiTrainingConfig(num_noise=2, critic=CRITIC)
WORKER = Path(__file__).with_name("ranks_worker.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Tiny pi policies and data: 2 value updates, then 3 policy updates, a checkpoint every 3."""
    pytest.importorskip("sentencepiece", reason="the tokenizer needs chunkrl[pi]")
    folder, rng = tmp_path_factory.mktemp("ranks"), np.random.default_rng(0)
    episodes = [
        {
            "observation.state": rng.normal(size=(5, STATE_DIM)).astype(np.float32),
            "action": rng.normal(size=(5, ACTION_DIM)).astype(np.float32),
            "next.success": np.array([False] * 4 + [number % 2 == 0]),
            **{camera: rng.integers(0, 256, (5, 56, 56, 3), dtype=np.uint8) for camera in CAMERAS},
        }
        for number in range(6)
    ]
    root = write_dataset(folder / "d", episodes, ("push", "pull"))
    for kind in ("pi0", "pi05"):
        save_pretrained(tiny_policy(kind), folder / "bare" / kind)
        save_pretrained(load_pretrained(folder / "bare" / kind, tokenizer=TOKENIZER), folder / kind)
    return TrainConfig(
        dataset_dir=str(root),
        action_horizon=3,
        action_dim=ACTION_DIM,
        batch_size=10,
        num_updates=3,
        value_epochs=0.4,
        num_folds=2,
        device="cpu",
        save_interval=1,
        log_interval=1,
        policy=PolicyConfig(kind="pi"),
        pi0_config="pi05",
        pi0_checkpoints_dir=str(folder),
        pi0=replace(TrainConfig().pi0, cameras=CAMERAS),
        pi=PI,
        objective="advantage_conditioned",
    )


def on_two(configs: Sequence[TrainConfig], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Trains with each configuration in two processes of this machine."""
    files = [folder / f"{number}.json" for number in range(len(configs))]
    for config, file in zip(configs, files, strict=True):
        save_config(config, file)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*launcher, str(WORKER), *map(str, files), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def on_one(config: TrainConfig) -> None:
    ChunkLevelOfflineRL(config).train()


def scalars(config: TrainConfig) -> dict[str, list[float]]:
    """Everything a run recorded, by name, but for what a machine and a moment make of it."""
    found: dict[str, list[float]] = {}
    for line in (Path(config.output_dir) / METRICS_FILE).read_text().splitlines():
        for name, value in json.loads(line)["scalars"].items():
            if not name.startswith(MEASURED):
                found.setdefault(name, []).append(value)
    return found


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    """Of the saved policy, and of Q where it has one."""
    folder = Path(config.output_dir) / "policy"
    q = load_state(folder / Q_FOLDER)["q"] if (folder / Q_FOLDER).exists() else {}
    return load_file(folder / "model.safetensors") | q


def assert_close(ours: TrainConfig, theirs: TrainConfig, losses: float = 1e-5, moved: float = 1e-4) -> None:
    """losses: largest difference of anything recorded, relative above 1. moved: of a weight; one in a thousand may
    move three times as far, since Adam's step is as long where a gradient is hardly more than rounding."""
    a, b = scalars(ours), scalars(theirs)
    assert a.keys() == b.keys() and "loss/policy" in a
    for name, values in a.items():
        np.testing.assert_allclose(values, b[name], rtol=losses, atol=losses, err_msg=name)
    first, second = weights(ours), weights(theirs)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        gap = (tensor - second[name]).abs()
        assert gap.max() < 3 * moved and (gap > moved).double().mean() < 1e-3, (name, float(gap.max()))


def assert_equal(ours: TrainConfig, theirs: TrainConfig) -> None:
    assert scalars(ours) == scalars(theirs)
    first, second = weights(ours), weights(theirs)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_two_processes_equal_one_and_either_resumes_the_other(base: TrainConfig, tmp_path: Path) -> None:
    one = replace(base, output_dir=str(tmp_path / "one"))
    two = replace(base, output_dir=str(tmp_path / "two"))
    on_one(one)
    middle = {run.output_dir: f"{run.output_dir}/checkpoints/0000003" for run in (one, two)}
    again = replace(base, output_dir=str(tmp_path / "again"), resume=middle[two.output_dir])
    wider = replace(base, output_dir=str(tmp_path / "wider"), resume=middle[one.output_dir])
    done = on_two([two, again, wider], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    narrower = replace(base, output_dir=str(tmp_path / "narrower"), resume=middle[two.output_dir])
    on_one(narrower)
    assert "loss/value" in scalars(one)
    for other in (two, wider, narrower):
        assert_close(one, other)
    assert_equal(two, again)
    assert sorted(p.name for p in Path(middle[two.output_dir]).iterdir()) == sorted(
        [SHARDS, MANIFEST_FILE, "state.json", "state.safetensors", shards_file(0, 2), shards_file(1, 2)]
    )
    whole, first, second = (
        (Path(middle[two.output_dir]) / name).stat().st_size
        for name in ("state.safetensors", shards_file(0, 2), shards_file(1, 2))
    )
    assert abs(first - second) < 0.01 * first and whole < 0.02 * first  # each has half of all that is large


@pytest.mark.slow
def test_all_processes_stop_where_one_is_asked_to(base: TrainConfig, tmp_path: Path) -> None:
    """After the same update, with one checkpoint, from which the run goes on to the numbers of one that did not."""
    config = replace(base.with_objective("behaviour_cloning"), num_updates=4, save_interval=0)
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    stopped = replace(config, output_dir=str(tmp_path / "stopped"))
    resumed = replace(stopped, resume=stopped.output_dir)
    done = on_two([stopped, resumed, whole], tmp_path, "--stop", "1", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        assert (
            f"rank {rank}: stopped after update 2 of 4; checkpoint: {stopped.output_dir}/checkpoints/0000002"
            in (done.stdout)
        )
    assert "torchrun, as before, with -m chunkrl.cli train --resume" in done.stdout
    assert_equal(whole, stopped)


VARIANTS: dict[str, dict[str, Any]] = {
    "weights over several strata, V from V, moving average": {
        "objective": "cross_fitted",
        "balance": BalanceConfig(min_starts=5, time_bins=2),
        "fit": ValueFit(target="bootstrap", target_rate=0.1),
        "reward": "sum",
        "ema_decay": 0.5,
    },
    "values go on learning, in parts of a batch": {
        "value_updates_per_update": 1,
        "relabel_interval": 2,
        "microbatch_size": 10,
    },
    "pi0, state noise, recomputation": {
        "pi0_config": "pi0",
        "pi": replace(
            PI,
            state_noise=0.1,
            gradient_checkpointing=True,
            critic=replace(CRITIC, state_noise=0.1, gradient_checkpointing=True),
        ),
    },
    "Q, the expert alone": {"train_q": True, "pi": replace(PI, train="expert")},
    "two critics per fold": {"fit": ValueFit(num_critics=2, aggregate="min")},
    "best of N, distilled": {
        "objective": "cross_fitted",
        "distil": DistilConfig(2),
        "pi": replace(PI, train="expert"),
    },
    "LoRA": {"pi": replace(PI, train="lora", lora=LoRAConfig(rank=3))},
    "one fold, a critic without blocks": {
        "num_folds": 1,
        "pi": replace(PI, critic=replace(CRITIC, depth=0)),
    },
}


def in_parts(config: TrainConfig) -> TrainConfig:
    """The same for two processes: each has half of the rows that are in memory at once."""
    size = config.microbatch_size
    return config if size is None else replace(config, microbatch_size=size // 2)


@pytest.mark.slow
def test_whatever_is_trained_two_processes_equal_one(base: TrainConfig, tmp_path: Path) -> None:
    ones = [
        replace(base, output_dir=str(tmp_path / "one" / str(number)), **changes)
        for number, changes in enumerate(VARIANTS.values())
    ]
    twos = [
        in_parts(replace(one, output_dir=str(tmp_path / "two" / str(number))))
        for number, one in enumerate(ones)
    ]
    done = on_two(twos, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, one, two in zip(VARIANTS, ones, twos, strict=True):
        on_one(one)
        try:
            assert_close(one, two)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.slow
def test_frozen_parameters_in_another_precision(
    base: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: bfloat16 where frozen, and float32 masters, in one layer."""
    pi = replace(PI, train="lora", lora=LoRAConfig(rank=3, alpha=8))
    one = replace(base, pi=pi, output_dir=str(tmp_path / "one"))
    two = replace(one, output_dir=str(tmp_path / "two"))
    monkeypatch.setattr(pi_training, "frozen_dtype", lambda device: torch.bfloat16)
    on_one(one)
    done = on_two([two], tmp_path, "--frozen-bfloat16")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {t.dtype for t in weights(two).values()} == {t.dtype for t in weights(one).values()}
    assert_close(one, two, losses=2e-2, moved=2e-2)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_it_resumes_to_the_same_numbers(
    base: TrainConfig, tmp_path: Path
) -> None:
    whole = replace(base, num_updates=6, output_dir=str(tmp_path / "whole"))
    done = on_two([whole], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        killed = replace(whole, output_dir=str(tmp_path / f"killed{rank}"))
        assert on_two([killed], tmp_path, "--kill", str(rank), "2").returncode != 0
        checkpoints = Path(killed.output_dir) / "checkpoints"
        # the first, at the end of the value phase, and not the second
        assert (checkpoints / "last").read_text().strip() == "0000002"
        assert [path.name for path in sorted(checkpoints.glob("0*"))] == ["0000002"]
        resumed = replace(killed, resume=killed.output_dir)
        assert on_two([resumed], tmp_path).returncode == 0
        assert_equal(whole, resumed)
        assert not list(checkpoints.glob(".*"))


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_process_stops_all(base: TrainConfig, tmp_path: Path) -> None:
    as_they_come = replace(base.conditioning, positive_share=None)  # else positives are drawn several times
    run = replace(base, output_dir=str(tmp_path / "run"), conditioning=as_they_come)
    done = on_two([run], tmp_path, "--nan", "1", "2")
    assert done.returncode != 0
    assert done.stderr.count("loss/policy") >= 2 and "not finite; the batch is saved" in done.stderr
    ours, theirs = (load_batch(tmp_path / "run" / f"non_finite_batch{end}")[0] for end in ("", "-rank1"))
    rows = torch.cat([ours.index, theirs.index])
    assert len(rows) == len(torch.unique(rows, dim=0)) == base.batch_size


def test_what_several_processes_do_not_train(
    base: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: 3)
    refused: dict[str, dict[str, Any]] = {
        "--policy.kind pi": {"policy": PolicyConfig(), "pi0_config": None, "objective": "cross_fitted"},
        "whose values are trained before them": {"objective": "iql"},
        "adamw_8bit is for one process": {"optimizer": "adamw_8bit"},
        "dropout": {"pi": replace(PI, critic=replace(CRITIC, dropout=0.1))},
        "a multiple of 3": {},
    }
    for message, changes in refused.items():
        with pytest.raises(ChunkRLError, match=message):
            offline.check_ranks(replace(base, **changes))


def test_rows_are_read_from_any_number_of_files(tmp_path: Path) -> None:
    whole = torch.arange(14.0).reshape(7, 2)
    for written in (1, 2, 3, 5, 9):
        files = [tmp_path / shards_file(rank, written) for rank in range(written)]
        for rank, file in enumerate(files):
            save_file({"x": whole[shard_rows(7, rank, written)].clone()}, file)
        stored = StoredTensor(files, "x", (7, 2))
        for read in (1, 2, 4, 8):
            rows = [shard_rows(7, rank, read) for rank in range(read)]
            parts = [stored[part] for part in rows]
            assert torch.equal(torch.cat(parts), whole)
            assert [len(part) for part in parts] == [len(whole[part]) for part in rows]


def test_a_checkpoint_that_lacks_a_part_is_refused(base: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "0000003"
    folder.mkdir(parents=True)
    save_state(folder, {"a": torch.ones(2)})
    (folder / SHARDS).write_text(json.dumps({"num_ranks": 2, "shapes": {"b": [4]}}))
    with pytest.raises(CheckpointError, match=rf"{SHARDS} is not among the files"):
        load_state(folder)
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=rf"{shards_file(0, 2)} is missing: the folder is not a whole"):
        load_state(folder)
    wrong = (
        {"num_ranks": 0},
        {"num_ranks": True},
        {"num_ranks": 10**9},
        {"shapes": {"b": [-4]}},
        {"shapes": [4]},
    )
    for change in wrong:
        (folder / SHARDS).write_text(json.dumps({"num_ranks": 2, "shapes": {"b": [4]}} | change))
        write_manifest(folder)
        with pytest.raises(CheckpointError, match=SHARDS):
            load_state(folder)


@pytest.mark.slow
def test_an_error_in_the_data_is_told_once(base: TrainConfig, tmp_path: Path) -> None:
    run = replace(base, dataset_dir=str(tmp_path / "none"), output_dir=str(tmp_path / "run"))
    done = on_two([run], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("ChunkRLError: the main process could not prepare the data") == 1
    assert done.stderr.count("none: no such folder") == 1
