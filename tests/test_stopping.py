"""A Control-C saves a checkpoint and says how the run goes on; checkpoints come by time from the first minutes on."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chunk_data import random_episodes, settings, write_dataset
from waiting import until

from chunkrl import ChunkLevelOfflineRL, TrainConfig, signals
from chunkrl.cli import main
from chunkrl.config import save_config
from chunkrl.errors import TrainingStopped
from chunkrl.signals import handled
from chunkrl.training import save_clock
from chunkrl.training.save_clock import SaveClock
from chunkrl.training.trainer import Trainer

LONG = {"num_updates": 300, "save_interval": 0, "log_interval": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "arm", random_episodes(6))


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The policy of a run that was never asked to stop."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("whole")
    ChunkLevelOfflineRL(**settings(data, run, **LONG)).train()
    return (run / "policy" / "state.safetensors").read_bytes()


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    own = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.Popen(
        [sys.executable, "-m", "chunkrl", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=own,
    )


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_goes_on_to_the_same_policy(
    data: Path,
    tmp_path: Path,
    uninterrupted: bytes,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.set_num_threads(1)
    run = tmp_path / "run"
    save_config(TrainConfig(**settings(data, run, **LONG)), tmp_path / "config.json")
    process = start("train", "--config", str(tmp_path / "config.json"))
    metrics = run / "metrics.jsonl"

    def is_training() -> bool:
        assert process.poll() is None, process.communicate()
        return metrics.exists() and metrics.stat().st_size > 0

    until(is_training, 240, pause_s=0.001)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in said
    assert "stopping after this update, with a checkpoint" in said
    found = re.search(
        r"stopped after update (\d+) of (\d+); checkpoint: (\S+)\nresume with: chunkrl (.+)\n", said
    )
    assert found is not None, said
    update, total, checkpoint, command = found.groups()
    assert 0 < int(update) < int(total)
    assert checkpoint == str(run / "checkpoints" / f"{int(update):07d}")
    kept = sorted(p.name for p in (run / "checkpoints").iterdir() if p.name != "last")
    at_ends = {"0000006"}  # of the value phase, which a signal may come after
    assert kept[-1] == f"{int(update):07d}" and set(kept[:-1]) <= at_ends
    assert not (run / "policy").exists()  # it is no finished run's
    main(shlex.split(command))
    assert f"going on from update {update} of {total}" in capsys.readouterr().out
    assert (run / "policy" / "state.safetensors").read_bytes() == uninterrupted


def test_a_stop_in_python(data: Path, tmp_path: Path) -> None:
    """At any update, that of a checkpoint and the last one of a phase too; what is done is done."""
    whole = ChunkLevelOfflineRL(**settings(data, tmp_path / "whole"))
    whole.train()
    assert whole.trainer is not None
    total = whole.trainer.num_updates
    last_phase = total - 6
    for at in (1, 2, last_phase, total - 1):
        run = ChunkLevelOfflineRL(**settings(data, tmp_path / str(at), save_updates=2))

        def stop(
            stage: str, done: int, total: int, *_: Any, run: ChunkLevelOfflineRL = run, at: int = at
        ) -> None:
            if run.trainer is not None and run.trainer.update == at:
                run.stop()

        run.progress = stop
        with pytest.raises(TrainingStopped) as stopped:
            run.train()
        assert (stopped.value.update, stopped.value.num_updates) == (at, total)
        assert (tmp_path / str(at) / "checkpoints" / "last").read_text().strip() == f"{at:07d}"
        ChunkLevelOfflineRL(resume=str(tmp_path / str(at))).train()
        for name in ("policy/state.safetensors",):
            assert (tmp_path / str(at) / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "end"))
    run.progress = lambda *_, **more: run.stop() if run.trainer and run.trainer.update == total else None
    run.train()  # nothing was left to do
    assert (tmp_path / "end" / "policy").is_dir()


def test_a_second_signal_ends_the_process_at_once() -> None:
    """Wherever it is: here in a wait that nothing else ends."""
    script = (
        "import signal\nfrom chunkrl.signals import handled\n"
        "with handled(lambda: print('first', flush=True), kill=True):\n    print('ready', flush=True)\n"
        "    while True:\n        signal.pause()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "first\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT


def test_signals_that_come_together_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [10.0], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    with handled(lambda: calls.append(clock[0]), same_s=0.5):
        signal.raise_signal(signal.SIGINT)
        clock[0] = 10.4
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert calls == [10.0]
        clock[0] = 10.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert calls == [10.0]


@pytest.mark.parametrize("module", ["dacite", "torch"])
def test_an_interruption_while_modules_are_imported_shows_no_traceback(tmp_path: Path, module: str) -> None:
    """One that the command line needs for any command, and one that training needs."""
    body = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise AssertionError('it went on')\n"
    (tmp_path / f"{module}.py").write_text(body)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = start("train", "--dataset-dir", "x", PYTHONPATH=path)
    output, said = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT)
    assert said == output == ""


def test_when_checkpoints_are_due_by_time() -> None:
    now = [1000.0]
    clock = SaveClock(10, lambda: now[0])

    def due_after(seconds: float) -> bool:
        now[0] += seconds
        return clock.is_due

    assert not due_after(119) and due_after(1)  # in the first minutes, whatever the interval
    clock.saved(began=now[0] - 1)
    assert not due_after(599) and due_after(1)
    clock.saved(began=now[0] - 60)  # it took a minute: 5 % of the time is one in 20 minutes
    assert not due_after(1199) and due_after(1)
    now[0] = 0.0
    never = SaveClock(0, lambda: now[0])
    now[0] = 1e9
    assert not never.is_due
    now[0] = 0.0
    often = SaveClock(1, lambda: now[0])
    now[0] = 60.0
    assert often.is_due


def test_checkpoints_by_time_take_the_place_of_one_another(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ones that are due by updates stay, a killed run resumes from the newest, and numbers are the same."""
    config = settings(data, tmp_path / "run", save_updates=4, num_updates=6, value_updates=6)
    seen: list[list[int]] = []
    monkeypatch.setattr(SaveClock, "is_due", property(lambda self: True))
    original = Trainer._run_updates

    def watch(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        self.wait_for_save()
        assert self.run_dir is not None
        seen.append(sorted(int(p.name) for p in (self.run_dir / "checkpoints").glob("0*")))

    monkeypatch.setattr(Trainer, "_run_updates", watch)
    ChunkLevelOfflineRL(**config).train()
    # at the end of the value phase: that of updates and the newest one by time; later the end of the phase too
    assert seen == [[4, 5], [4, 6, 8, 11]]
    left = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").glob("0*"))
    assert left == [4, 6, 8, 12]
    # one by time that a run resumes from goes as well, when there is a newer one
    stopped = ChunkLevelOfflineRL(**config | {"output_dir": str(tmp_path / "b"), "save_updates": None})

    def fails(*_: object, **more: object) -> None:
        if stopped.trainer and stopped.trainer.update == 3:
            raise OSError

    stopped.progress = fails
    with pytest.raises(OSError):
        stopped.train()
    assert [p.name for p in (tmp_path / "b" / "checkpoints").glob("0*")] == ["0000002"]
    ChunkLevelOfflineRL(resume=str(tmp_path / "b")).train()
    assert sorted(int(p.name) for p in (tmp_path / "b" / "checkpoints").glob("0*")) == [6, 12]
    ours, theirs = ((tmp_path / name / "policy" / "state.safetensors").read_bytes() for name in ("run", "b"))
    assert ours == theirs


def test_the_default_has_a_checkpoint_in_the_first_minutes() -> None:
    assert save_clock.FIRST_S <= 180 and 0 < TrainConfig().save_minutes <= 30
