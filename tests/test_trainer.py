"""Determinism, resuming, checkpoints that survive kills, and runs that must stop."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import identity_factory, image_episodes, open_chunks, random_episodes, write_dataset
from chunk_data import settings as training_settings

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.cloning import Cloning, CloningConfig
from chunkrl.algorithms.config import DistilConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.manifest import MANIFEST_FILE
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.training import checkpoint
from chunkrl.training.algorithm import Metrics
from chunkrl.training.checkpoint import load_state, save_state
from chunkrl.training.config import OptimConfig
from chunkrl.training.saved_batch import load_batch, save_batch
from chunkrl.training.trainer import NonFiniteLossError, Trainer, TrainerConfig
from chunkrl.types import TensorRecord

SMALL = NetworkConfig(hidden_dim=16, num_layers=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", random_episodes(6))


def settings(data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    own = {"num_updates": 12, "value_epochs": 2.0, "num_folds": 3, "network": SMALL, "log_interval": 5}
    return training_settings(data, output, own, **changes)


def state_of(run: ChunkLevelOfflineRL) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    checkpoint._flatten(run.algorithm.state_dict(), "", flat, {})
    return flat


def assert_equal(a: ChunkLevelOfflineRL, b: ChunkLevelOfflineRL) -> None:
    first, second = state_of(a), state_of(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert a.trainer is not None and b.trainer is not None
    assert dict(a.trainer.history) == dict(b.trainer.history)


OBJECTIVES: list[dict[str, Any]] = [
    {"objective": "cross_fitted", "train_q": True},
    {"objective": "cross_fitted", "policy": PolicyConfig("flow")},
    {"objective": "cross_fitted", "fit": ValueFit(draw="weight")},
    {"objective": "cross_fitted", "distil": DistilConfig(3, updates=5)},
    {"objective": "cross_fitted", "fit": ValueFit(num_critics=2, aggregate="min")},
    {"objective": "iql"},
    {"objective": "document"},
    {"objective": "success_cloning"},
    {"objective": "shuffled_advantages"},
]
IDS = [
    "-".join([str(o["objective"]), *(name for name in ("train_q", "policy", "fit", "distil") if name in o)])
    for o in OBJECTIVES
]


class KilledError(Exception):
    """Stands for the end of the process."""


def train_and_die(run: ChunkLevelOfflineRL, stop: int) -> None:
    """Trains `run`; it dies after update `stop`, just after a checkpoint was saved."""

    def progress(stage: str, done: int, total: int) -> None:
        if run.trainer is not None and run.trainer.update == stop:
            run.trainer.save()
            raise KilledError

    run.progress = progress
    with pytest.raises(KilledError):
        run.train()


def die_without_saving(run: ChunkLevelOfflineRL) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        raise KilledError

    run.progress = progress
    run.train()


@pytest.mark.parametrize("everywhere", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=IDS)
def test_resuming_equals_not_stopping(
    data: Path, tmp_path: Path, objective: dict[str, Any], everywhere: bool
) -> None:
    whole = ChunkLevelOfflineRL(**settings(data, tmp_path / "whole", **objective))
    torch.randn(7)  # what others draw between construction and training has no influence
    whole.train()
    assert whole.trainer is not None
    total = whole.trainer.num_updates
    # in the first phase, at the end of the phase before the last, one update into the last, and near its end
    last = total - [phase for phase in whole.algorithm.phases() if phase.num_updates][-1].num_updates
    for stop in sorted({1, last, last + 1, total - 2} - {0} if everywhere else {1, last + 1}):
        output = tmp_path / f"stop{stop}"
        killed = ChunkLevelOfflineRL(**settings(data, output, **objective))
        train_and_die(killed, stop)
        resumed = ChunkLevelOfflineRL(**settings(data, output, resume=str(output), **objective))
        torch.randn(3)
        resumed.train()
        assert_equal(whole, resumed)
        ours, theirs = (Path(run.config.output_dir) / "policy" for run in (whole, resumed))
        assert (ours / checkpoint.TENSORS).read_bytes() == (theirs / checkpoint.TENSORS).read_bytes()


def test_two_runs_with_one_seed_are_equal_and_two_seeds_differ(data: Path, tmp_path: Path) -> None:
    runs = [ChunkLevelOfflineRL(**settings(data, tmp_path / str(i), seed=i // 2)) for i in range(3)]
    for run in runs:  # built first, trained later: the order has no influence
        run.train()
    assert_equal(runs[0], runs[1])
    differing = [not torch.equal(a, b) for a, b in zip(*map(parameters, (runs[0], runs[2])), strict=True)]
    assert all(differing[:4])


def parameters(run: ChunkLevelOfflineRL) -> list[torch.Tensor]:
    return list(run.policy.parameters())


def test_load_then_train_continues(data: Path, tmp_path: Path) -> None:
    whole = ChunkLevelOfflineRL(**settings(data, tmp_path / "whole"))
    whole.train()
    killed = ChunkLevelOfflineRL(**settings(data, tmp_path / "killed"))
    train_and_die(killed, 3)
    resumed = ChunkLevelOfflineRL(**settings(data, tmp_path / "new"))
    resumed.load(tmp_path / "killed")
    assert resumed.trainer is not None and resumed.trainer.update == 3
    assert all(torch.equal(a, b) for a, b in zip(parameters(killed), parameters(resumed), strict=True))
    resumed.train()
    assert_equal(whole, resumed)


def test_more_epochs_continue_a_finished_run(data: Path, tmp_path: Path) -> None:
    def epochs(output: Path, num_epochs: int, **more: Any) -> ChunkLevelOfflineRL:
        changes = {"num_updates": None, "num_epochs": num_epochs, "log_interval": 1}
        run = ChunkLevelOfflineRL(**settings(data, output, **changes, **more))
        run.train()
        return run

    long = epochs(tmp_path / "long", 3)
    epochs(tmp_path / "short", 2)
    assert_equal(long, epochs(tmp_path / "short", 3, resume=str(tmp_path / "short")))
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "api", num_updates=None, log_interval=1))
    run.train(num_epochs=3)
    assert_equal(long, run)
    assert json.loads((tmp_path / "api" / "config.json").read_text())["num_epochs"] == 3
    # num_updates may grow as well, and an explicit num_epochs counts more than the configuration's num_updates
    total = 3 * run.updates_per_epoch
    updates = {"num_updates": total, "log_interval": 1, "resume": str(tmp_path / "fewer")}
    epochs(tmp_path / "fewer", 2)
    more = ChunkLevelOfflineRL(**settings(data, tmp_path / "fewer", **updates))
    more.train()
    assert_equal(long, more)
    explicit = ChunkLevelOfflineRL(**settings(data, tmp_path / "explicit", num_updates=1, log_interval=1))
    explicit.train(num_epochs=3)
    assert_equal(long, explicit)


def test_a_fresh_run_goes_into_a_folder_where_nothing_was_saved_yet(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    for gamma in (0.9, 0.5):  # the second with other settings: nothing of the first is lost
        fresh = ChunkLevelOfflineRL(**settings(data, output, gamma=gamma, save_interval=0))
        with pytest.raises(KilledError):
            die_without_saving(fresh)
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            ChunkLevelOfflineRL(**settings(data, output, gamma=gamma, resume=str(output)))
    ChunkLevelOfflineRL(**settings(data, output)).train()


def test_checkpoint_of_another_configuration_is_refused(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    ChunkLevelOfflineRL(**settings(data, output)).train()
    before = (output / "config.json").read_text()
    for change in ({"gamma": 0.5}, {"network": replace(SMALL, hidden_dim=8)}, {"objective": "value"}):
        name = next(iter(change))
        with pytest.raises(CheckpointError, match=f"another configuration.*{name}"):
            # into the same folder, as one resumes
            ChunkLevelOfflineRL(**settings(data, output, resume=str(output), **change)).train()
    assert (output / "config.json").read_text() == before
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        ChunkLevelOfflineRL(**settings(data, output, resume=str(tmp_path / "absent")))
    # without the run's config.json the networks themselves do not fit
    (output / "config.json").unlink()
    other = ChunkLevelOfflineRL(**settings(data, tmp_path / "b", network=replace(SMALL, hidden_dim=8)))
    with pytest.raises(CheckpointError, match="another configuration"):
        other.load(output)


def test_checkpoint_of_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    ChunkLevelOfflineRL(**settings(data, tmp_path / "run")).train()
    other = write_dataset(tmp_path / "other", random_episodes(6, seed=1))
    with pytest.raises(CheckpointError, match="other data"):
        ChunkLevelOfflineRL(**settings(other, tmp_path / "b", resume=str(tmp_path / "run"))).train()


def test_checkpoints_are_safetensors_and_json_alone(data: Path, tmp_path: Path) -> None:
    ChunkLevelOfflineRL(**settings(data, tmp_path / "run")).train()
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file() and p.parent.name != "tensorboard"]
    assert {p.name for p in files} == {
        "config.json",
        "run.json",
        "versions.json",
        "trained_on.json",
        "last",
        "metrics.jsonl",
        "values.parquet",
        "policy_preprocessor.json",  # of LeRobot, for the plug-in
        "policy_postprocessor.json",
        MANIFEST_FILE,
        checkpoint.TENSORS,
        checkpoint.VALUES,
    }
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert not list((tmp_path / "run").rglob(".*"))  # no temporary is left


TREE = {"a": torch.arange(3), "b": {"c": 1, "d": [1, 2.5, None], "e": {}, "f": {"g": torch.ones(2, 2)}}}


def test_state_round_trip(tmp_path: Path) -> None:
    save_state(tmp_path / "s", TREE)
    found = load_state(tmp_path / "s")
    assert torch.equal(found["a"], TREE["a"])  # type: ignore[arg-type]
    assert found["b"].keys() == {"c", "d", "e", "f"}
    assert found["b"]["d"] == [1, 2.5, None] and found["b"]["e"] == {}
    assert torch.equal(found["b"]["f"]["g"], torch.ones(2, 2))


@pytest.mark.parametrize("step", ["save_file", "fsync", "first rename", "second rename", "rmtree"])
def test_a_kill_while_saving_leaves_a_whole_state(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    save_state(folder, {"version": 1, "x": torch.zeros(3)})
    renames: list[Path] = []
    rename = Path.rename

    def die(*_: Any, **__: Any) -> None:
        raise KilledError

    def counted(self: Path, target: Path) -> Path:
        renames.append(self)
        if len(renames) == {"first rename": 1, "second rename": 2}[step]:
            raise KilledError
        return rename(self, target)

    with monkeypatch.context() as patch:
        if step == "save_file":
            patch.setattr(checkpoint, "save_file", die)
        elif step == "fsync":
            patch.setattr(checkpoint.os, "fsync", die)
        elif step == "rmtree":
            patch.setattr(checkpoint.shutil, "rmtree", die)
        else:
            patch.setattr(Path, "rename", counted)
        with pytest.raises(KilledError):
            save_state(folder, {"version": 2, "x": torch.ones(3)})
    found = load_state(folder)
    version = 2 if step == "rmtree" else 1
    assert found["version"] == version and torch.equal(found["x"], torch.full((3,), version - 1.0))
    save_state(folder, {"version": 3, "x": torch.ones(3)})
    assert load_state(folder)["version"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]  # and nothing is left


def test_a_save_that_dies_leaves_the_older_checkpoint_to_resume_from(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ChunkLevelOfflineRL(**settings(data, tmp_path / "whole"))
    whole.train()
    output = tmp_path / "run"
    killed = ChunkLevelOfflineRL(**settings(data, output))
    with monkeypatch.context() as patch:
        train_and_die(killed, 4)
        patch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(KilledError()))
        assert killed.trainer is not None
        killed.trainer.update = 5
        killed.trainer.save()
        with pytest.raises(KilledError):
            killed.trainer.wait_for_save()
    resumed = ChunkLevelOfflineRL(**settings(data, output, resume=str(output)))
    resumed.train()
    assert_equal(whole, resumed)


KILL_SCRIPT = """
import sys, torch
from pathlib import Path
from chunkrl.training.checkpoint import save_state
folder, number = Path(sys.argv[1]), 1
while True:
    save_state(folder, {"number": number, "x": torch.full((200_000,), float(number))})
    print(number, flush=True)
    number += 1
"""


def test_sigkill_while_saving_leaves_a_whole_state(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    command = [sys.executable, "-c", KILL_SCRIPT, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    written = [int(process.stdout.readline()) for _ in range(5)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = load_state(folder)
    assert found["number"] >= written[-1]
    assert torch.equal(found["x"], torch.full((200_000,), float(found["number"])))


def test_damaged_states_are_refused(tmp_path: Path) -> None:
    for name, content in (
        (checkpoint.TENSORS, None),
        (checkpoint.TENSORS, b"\x00" * 20),
        (checkpoint.VALUES, None),
        (checkpoint.VALUES, b"{"),
        (checkpoint.VALUES, b"\xff\xfe"),
        (checkpoint.VALUES, b"[1]"),
    ):
        folder = tmp_path / "s"
        save_state(folder, TREE)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(
            CheckpointError, match=rf"{name} (is missing|is damaged|has changed|holds a list).*copy"
        ):
            load_state(folder)
    save_state(tmp_path / "t", TREE)
    tensors = tmp_path / "t" / checkpoint.TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"state\.safetensors has changed since it was written"):
        load_state(tmp_path / "t")


def test_non_finite_loss_stops_with_the_batch_saved(data: Path, tmp_path: Path) -> None:
    dataset = open_chunks(data)
    factory = identity_factory(dataset)
    config = CloningConfig(policy_updates=5, value_updates=0)
    learner = Cloning(config, factory, OptimConfig(), dataset, 0, torch.device("cpu"))
    update = learner.update

    def poisoned(name: str, batch: Any) -> Metrics:
        metrics = update(name, batch)
        return metrics | ({"loss/policy": float("nan")} if trainer.update == 2 else {})

    learner.update = poisoned  # type: ignore[method-assign]
    trainer = Trainer(learner, dataset, TrainerConfig(batch_size=8, save_interval=1), tmp_path / "run")
    with pytest.raises(NonFiniteLossError, match=r"update 3: loss/policy not finite.*non_finite_batch.*--lr"):
        trainer.run()
    batch, facts = load_batch(tmp_path / "run" / "non_finite_batch")
    assert (facts["update"], facts["phase"], facts["metrics"]["loss/policy"]) == (3, "policy", "nan")
    assert_same_record(batch, dataset.batch(batch.index.numpy(), next_observation=False))
    # the last checkpoint is of before
    assert (tmp_path / "run" / "checkpoints" / "last").read_text().strip() == "0000002"


def assert_same_record(a: Any, b: Any) -> None:
    """Equal in everything, tensors to the bit."""
    if isinstance(a, TensorRecord):
        for f in fields(a):
            assert_same_record(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert_same_record(value, b[key])
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


def test_a_saved_batch_comes_back_whole(tmp_path: Path) -> None:
    dataset = open_chunks(write_dataset(tmp_path / "d", image_episodes(3, size=8)))
    dataset.attach("weight", np.arange(len(dataset), dtype=np.float32))
    batch = dataset.batch(np.arange(5))
    assert batch.observation.images and batch.observation.task
    save_batch(tmp_path / "batch", batch, {"update": 3})
    found, facts = load_batch(tmp_path / "batch")
    assert_same_record(found, batch)
    assert facts == {"update": 3}
    (tmp_path / "no").mkdir()
    save_state(tmp_path / "no", {"x": 1})
    with pytest.raises(CheckpointError, match="not a saved batch"):
        load_batch(tmp_path / "no")


def test_metrics_are_means_over_the_interval(data: Path, tmp_path: Path) -> None:
    def history(log_interval: int) -> list[tuple[int, float]]:
        run = ChunkLevelOfflineRL(
            **settings(
                data, tmp_path / str(log_interval), objective="behaviour_cloning", log_interval=log_interval
            )
        )
        run.train()
        assert run.trainer is not None
        return run.trainer.history["loss/policy"]

    single, fives = history(1), history(5)
    assert [update for update, _ in single] == list(range(1, 13))
    assert [update for update, _ in fives] == [5, 10, 12]
    values = np.array([value for _, value in single])
    expected = [values[:5].mean(), values[5:10].mean(), values[10:].mean()]
    assert [value for _, value in fives] == pytest.approx(expected)


def test_settings_are_checked_before_training(data: Path, tmp_path: Path) -> None:
    for change in (
        {"batch_size": 0},
        {"lr": -1.0},
        {"weight_decay": -1.0},
        {"grad_clip": 0.0},
        {"save_interval": -1},
        {"seed": -1},
        {"num_updates": 0},
        {"num_folds": 0},
        {"objective": "magic"},
    ):
        with pytest.raises(ChunkRLError, match=next(iter(change))):
            ChunkLevelOfflineRL(**settings(data, tmp_path / "x", **change))
    with pytest.raises(ChunkRLError, match=r"unknown configuration key.*learning_rate"):
        ChunkLevelOfflineRL(**settings(data, tmp_path / "x"), learning_rate=1.0)
    assert not (tmp_path / "x").exists()


def test_policy_updates_do_not_read_the_next_observation(data: Path) -> None:
    dataset = open_chunks(data)
    batch = dataset.batch(np.arange(4), next_observation=False)
    assert batch.next_observation is batch.observation


def test_saved_configuration_is_the_whole_one(data: Path, tmp_path: Path) -> None:
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run"))
    run.train()
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["fit"]["lam"] == run.config.fit.lam
    assert saved["network"]["hidden_dim"] == 16
