"""Checkpoints written alongside training: what was copied is what is written, one at a time, nothing hidden."""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from chunk_data import random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.training import checkpoint
from chunkrl.training.checkpoint import BackgroundSaver, load_state
from chunkrl.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", random_episodes(6))


class Gate:
    """Holds writing until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.write = checkpoint.save_file

    def __call__(self, *args: Any) -> None:
        self.reached.set()
        assert self.open.wait(30)
        self.write(*args)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(checkpoint, "save_file", made)
    yield made
    made.open.set()


def test_what_was_copied_is_written_while_the_state_moves_on(tmp_path: Path, gate: Gate) -> None:
    x, numbers, done = torch.zeros(3), [1], []
    with BackgroundSaver() as saver:
        saver.save(tmp_path / "s", {"x": x, "numbers": numbers}, lambda: done.append(1))
        assert gate.reached.wait(30)
        x += 1
        numbers.append(2)
        assert not (tmp_path / "s").exists() and not done
        gate.open.set()
    assert done == [1]
    found = load_state(tmp_path / "s")
    assert torch.equal(found["x"], torch.zeros(3)) and found["numbers"] == [1]


def test_one_is_written_at_a_time(tmp_path: Path, gate: Gate) -> None:
    order: list[str] = []
    with BackgroundSaver() as saver:
        saver.save(tmp_path / "a", {"x": torch.zeros(1)}, lambda: order.append("a"))
        assert gate.reached.wait(30)
        threading.Timer(0.05, gate.open.set).start()
        saver.save(tmp_path / "b", {"x": torch.zeros(1)}, lambda: order.append("b"))
        assert order[0] == "a"  # the second began when the first was whole
    assert order == ["a", "b"]


def test_an_error_of_writing_comes_up_at_the_next_save_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", full)
    state = {"x": torch.zeros(1)}
    saver = BackgroundSaver()
    saver.save(tmp_path / "a", state, lambda: None)
    with pytest.raises(OSError, match="no space left"):
        saver.save(tmp_path / "b", state, lambda: None)
    with pytest.raises(OSError, match="no space left"), saver:
        saver.save(tmp_path / "b", state, lambda: None)
    # of two errors the one that stopped the run is told, and the other logged
    with caplog.at_level(logging.WARNING), pytest.raises(KeyError), saver:
        saver.save(tmp_path / "c", state, lambda: None)
        raise KeyError
    assert "no space left" in caplog.text


@contextmanager
def saves(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Iterator[list[tuple[int, bool]]]:
    """The update of every save that was begun, and whether training then waited for the one before."""
    begun: list[tuple[int, bool]] = []
    save = Trainer.save

    def spied(self: Trainer) -> Path:
        waits = self._saver._writing is not None and not self._saver._writing.done()
        begun.append((self.update, waits))
        if waits:
            gate.open.set()
        return save(self)

    monkeypatch.setattr(Trainer, "save", spied)
    yield begun


def test_training_goes_on_while_a_checkpoint_is_written(
    data: Path, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"objective": "behaviour_cloning", "save_updates": 2, "keep_checkpoints": 2}
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", num_updates=7, **changes))
    with saves(monkeypatch, gate) as begun:
        run.train()
    # the first is still being written when the second is due, which waits for it
    assert [update for update, _ in begun] == [2, 4, 6, 7]
    assert begun[:2] == [(2, False), (4, True)]
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["0000006", "0000007", "last"]
    assert (folder / "last").read_text().strip() == "0000007"
    # each holds the state of its own update
    for update in (6, 7):
        found = load_state(folder / f"{update:07d}")
        assert found["update"] == update
        assert found["algorithm"]["policy_optimizer"]["num_applied"] == update
        assert all(record["update"] <= update for record in found["records"])


def test_a_checkpoint_that_cannot_be_written_stops_the_run_with_its_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    write = checkpoint.save_file

    def full(*args: Any) -> None:
        nonlocal written
        written += 1
        if written == 2:
            raise OSError("no space left")
        write(*args)

    monkeypatch.setattr(checkpoint, "save_file", full)
    changes = {"objective": "behaviour_cloning", "save_updates": 2}
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", num_updates=7, **changes))
    with pytest.raises(OSError, match="no space left"):
        run.train()
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "last").read_text().strip() == "0000002"  # the last whole one
    assert json.loads((folder / "0000002" / checkpoint.VALUES).read_text())["update"] == 2
