"""What a run records: files that survive kills, curves without double points, histograms, speed and memory."""

import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import identity_factory, open_chunks, random_episodes, settings, write_dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.cloning import Cloning, CloningConfig
from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError
from chunkrl.training import trainer
from chunkrl.training.algorithm import Histogram
from chunkrl.training.config import OptimConfig, TrackingConfig
from chunkrl.training.metrics import (
    METRICS_FILE,
    MetricWriter,
    Record,
    SpeedMeter,
    peak_resident_bytes,
    read_records,
)
from chunkrl.training.trainer import Trainer, TrainerConfig

HISTOGRAM = Histogram((1, 0, 2), (-1.0, 0.0, 1.0, 2.0))


def record(update: int, **scalars: float) -> Record:
    return Record(update, "policy", 1000.0 + update, scalars)


def test_histogram_counts_finite_values() -> None:
    found = Histogram.of(np.array([0.0, 0.1, 1.0, np.nan, np.inf]), num_bins=2)
    assert found == Histogram((2, 1), (0.0, 0.5, 1.0))
    assert sum(Histogram.of(np.array([np.nan])).counts) == 0


def test_records_come_back(tmp_path: Path) -> None:
    past = [record(1, loss=0.5), Record(2, "value", 3.5, {"a/b": math.nan}, {"h": HISTOGRAM})]
    writer = MetricWriter(tmp_path, past=past[:1])
    writer.write(past[1])
    writer.close()
    first, second = read_records(tmp_path / METRICS_FILE)
    assert first == past[0]
    assert math.isnan(second.scalars["a/b"]) and second.histograms == {"h": HISTOGRAM}
    for line in (tmp_path / METRICS_FILE).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON


def test_a_line_that_a_kill_cut_off_is_left_out_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    whole = "".join(json.dumps(record(i, loss=i).to_json()) + "\n" for i in (1, 2))
    for cut in range(1, len(whole)):
        path.write_text(whole[:cut])
        assert len(read_records(path)) == whole[:cut].count("\n")
    path.write_text("{}\n" + whole)
    with pytest.raises(ChunkRLError, match=r"metrics.jsonl, line 1 is no record"):
        read_records(path)
    path.write_text("".join(reversed(whole.splitlines(keepends=True))))
    with pytest.raises(ChunkRLError, match="line 2: update 1 stands after update 2"):
        read_records(path)
    path.write_text(whole + whole.splitlines(keepends=True)[1])
    with pytest.raises(ChunkRLError, match="line 3: the same record of update 2 stands before it"):
        read_records(path)
    path.write_bytes(whole.encode()[:-9] + bytes(9))  # what a lost block leaves is no cut line
    with pytest.raises(ChunkRLError, match="line 2 is damaged"):
        read_records(path)
    with pytest.raises(ChunkRLError, match="give the folder of a training run"):
        read_records(tmp_path / "absent.jsonl")


def tensorboard(folder: Path) -> EventAccumulator:
    return EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0}
    ).Reload()


def test_a_second_start_leaves_no_point_twice(tmp_path: Path) -> None:
    """The first process dies after update 4; the second goes on from its checkpoint at update 2."""
    past = [record(i, loss=float(i)) for i in (1, 2)]
    killed = MetricWriter(tmp_path)
    for one in (*past, record(3, loss=-1.0), Record(4, "policy", 0.0, {"loss": -1.0}, {"h": HISTOGRAM})):
        killed.write(one)
    killed.close()
    resumed = MetricWriter(tmp_path, past=past)
    resumed.write(record(3, loss=3.0))
    resumed.close()
    assert read_records(tmp_path / METRICS_FILE) == [*past, record(3, loss=3.0)]
    events = tensorboard(tmp_path)
    assert [(e.step, e.value, e.wall_time) for e in events.Scalars("loss")] == [
        (i, float(i), 1000.0 + i) for i in (1, 2, 3)
    ]
    assert not events.Tags()["histograms"] or not events.Histograms("h")


def test_tensorboard_has_the_histogram(tmp_path: Path) -> None:
    writer = MetricWriter(tmp_path)
    writer.write(Record(5, "value", 7.0, {}, {"advantage": HISTOGRAM}))
    writer.close()
    (event,) = tensorboard(tmp_path).Histograms("advantage")
    found = event.histogram_value
    assert (event.step, found.min, found.max, found.num) == (5, -1.0, 2.0, 3)
    assert sum(found.bucket) == 3


def test_speed_of_an_interval() -> None:
    now = iter([0.0, 1.0, 1.0, 4.0, 10.0, 10.0, 10.0, 10.0])
    meter = SpeedMeter(clock=lambda: next(now))
    with meter.waiting():
        pass
    with meter.computing(num_samples=8):
        pass
    found = meter.flush()
    assert found["speed/samples_per_second"] == 2.0
    assert (found["speed/seconds_waiting_for_data"], found["speed/seconds_computing"]) == (1.0, 3.0)
    assert 0.01 < found["memory/peak_resident_gb"] == peak_resident_bytes() / 1e9
    with meter.computing(num_samples=8):
        pass
    assert meter.flush()["speed/samples_per_second"] == 0.0  # a clock too coarse to see it


class KilledError(Exception):
    """Stands for the end of the process."""


def test_a_resumed_run_has_the_curves_of_one_that_never_stopped(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(6))
    whole = ChunkLevelOfflineRL(**settings(data, tmp_path / "whole"))
    whole.train()
    assert whole.trainer is not None
    killed = ChunkLevelOfflineRL(**settings(data, tmp_path / "killed"))

    def progress(stage: str, done: int, total: int) -> None:
        assert killed.trainer is not None
        if stage == "policy" and done == 2:
            killed.trainer.save()
        if stage == "policy" and done == 5:
            raise KilledError

    killed.progress = progress
    with pytest.raises(KilledError):
        killed.train()
    for output in (tmp_path / "killed", tmp_path / "elsewhere"):
        config = settings(data, output, resume=str(tmp_path / "killed"))
        ChunkLevelOfflineRL(**config).train()
        ours, theirs = (read_records(folder / METRICS_FILE) for folder in (output, tmp_path / "whole"))
        assert [(r.update, r.phase, set(r.scalars), r.histograms) for r in ours] == [
            (r.update, r.phase, set(r.scalars), r.histograms) for r in theirs
        ]
        assert all(a.update <= b.update for a, b in pairwise(ours))
        points = tensorboard(output).Scalars("loss/policy")
        steps, values = zip(*whole.trainer.history["loss/policy"], strict=True)
        assert tuple(p.step for p in points) == steps
        assert [p.value for p in points] == pytest.approx(values)
    names = set().union(*(r.scalars for r in ours))
    assert {"speed/samples_per_second", "memory/peak_resident_gb", "loss/policy", "loss/value"} <= names
    assert not any(name.startswith(("speed/", "memory/")) for name in whole.trainer.history)


def test_wandb_that_is_missing_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(4))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"wandb.*pip install .*\[tracking\]'"):
        ChunkLevelOfflineRL(**settings(data, tmp_path / "run", tracking=TrackingConfig(wandb=True)))
    with pytest.raises(ChunkRLError, match=r"tracking\.mode is 'off'"):
        TrackingConfig(mode="off")  # type: ignore[arg-type]


def test_wandb_offline_needs_no_network_and_no_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs the extra `tracking`")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # whoever asks the network gets no answer
    writer = MetricWriter(tmp_path, TrackingConfig(wandb=True, mode="offline"), [record(1, loss=2.0)])
    writer.write(Record(2, "policy", 0.0, {"loss": 1.0}, {"h": HISTOGRAM}))
    writer.close()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 0
    assert b"loss" in file.read_bytes()
    assert "wandb" in sys.modules


def test_a_run_without_end_keeps_a_bounded_number_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "MAX_RECORDS", 40)
    nothing: Any = None  # is trained here, on nothing
    run = Trainer(nothing, nothing, TrainerConfig())
    run._remember(Record(0, "value", 0.0, {"start": 1.0}))
    for update in range(1, 1001):  # two series in turn
        run._remember(Record(update, "policy", 0.0, {"loss/policy": update, "speed/x": 1.0}))
        run._remember(Record(update, "policy", 0.0, {}, {"advantage": HISTOGRAM}))
        assert len(run.records) <= 40
    assert run.records[0].scalars == {"start": 1.0}  # the only one of its kind
    updates = [record.update for record in run.records]
    assert (
        updates == sorted(updates) and updates[1] == 1 and updates[-20:] == [*np.repeat(range(991, 1001), 2)]
    )
    assert run.history["loss/policy"] == [
        (r.update, r.update) for r in run.records if "loss/policy" in r.scalars
    ]
    assert abs(sum(bool(record.histograms) for record in run.records) - len(run.history["loss/policy"])) <= 1
    assert "speed/x" not in run.history


def test_a_metric_of_some_updates_is_their_mean(tmp_path: Path) -> None:
    """As the loss of a bin that is not in every batch."""
    dataset = open_chunks(write_dataset(tmp_path / "d", random_episodes(4)))
    config = CloningConfig(policy_updates=4, value_updates=0)
    learner = Cloning(config, identity_factory(dataset), OptimConfig(), dataset, 0, torch.device("cpu"))
    values = iter([{"a": 1.0, "b": 5.0}, {"a": 2.0}, {"a": 3.0, "h": HISTOGRAM}, {"a": 6.0}])
    learner.update = lambda name, batch: next(values)  # type: ignore[method-assign]
    trainer = Trainer(learner, dataset, TrainerConfig(batch_size=4, log_interval=4))
    trainer.run()
    assert trainer.history == {"a": [(4, 3.0)], "b": [(4, 5.0)]}
    assert [(r.update, r.histograms) for r in trainer.records] == [(3, {"h": HISTOGRAM}), (4, {})]
