"""Data that grow as a learner's do: episodes of a replay, shards, a source that grows when it is told to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

pytest.importorskip("grpc", reason="needs chunkrl[online]")

from online_records import SPEC, episode

from chunkrl.data import ChunkDataset, ChunkSettings
from chunkrl.data.collection import ChunkCollection
from chunkrl.online.learner.data import replay_settings
from chunkrl.online.learner.replay import Replay
from chunkrl.online.link.config import ReplayConfig
from chunkrl.online.link.records import StepRecord
from chunkrl.progress import silent

HORIZON = 3
T = TypeVar("T")


def present(value: T | None) -> T:
    """`value`, which must be there."""
    assert value is not None
    return value


def add(replay: Replay, number: int, length: int = 6, outcome: str = "success", task: str = "push") -> None:
    items = episode(number, length, outcome)  # type: ignore[arg-type]
    replay.add([replace(item, task=task) for item in items if isinstance(item, StepRecord)])


def offline(root: Path, num_episodes: int = 6) -> ChunkDataset:
    """Data of the replay's shapes, from a shard of another replay."""
    replay = Replay(root, SPEC, ReplayConfig(cameras="image"))
    for number in range(num_episodes):
        add(replay, 1000 + number, 5 + number, "success" if number % 2 else "failure")
    replay.close()
    return ChunkDataset(root / "shard-000000", settings(), cache_dir=root / "cache", progress=silent)


def settings(**changes) -> ChunkSettings:
    return replay_settings(ChunkSettings(HORIZON, **changes))


class Growing:
    """Grows when it is told to. at: update -> what it is from then on."""

    stopped = False

    def __init__(self, at: dict[int, ChunkCollection]) -> None:
        self.data = at[0]
        self._at, self._update = at, 0

    def is_due(self, done, last_phase):
        return self._at.get(self._update, self.data) is self.data

    def take(self, done, last_phase):
        self.data = self._at[self._update]
        return self.data

    def updated(self, update):
        self._update = update

    def metrics(self):
        return {}

    def digest(self):
        return ""


def collections(tmp_path: Path) -> dict[str, ChunkCollection]:
    """few: two shards of 4 episodes; more: the second has 8; fewer: the first is gone. Opened again by each call."""
    made = {}
    for name, numbers in (("a", range(4)), ("b", range(4, 8)), ("c", range(4, 12))):
        if not (tmp_path / name).exists():
            replay = Replay(tmp_path / name, SPEC, ReplayConfig(cameras="image"))
            for number in numbers:
                add(replay, number, 5 + number % 3, "success" if number % 2 else "failure")
            replay.close()
        made[name] = ChunkDataset(
            tmp_path / name / "shard-000000",
            settings(cameras=()),
            cache_dir=tmp_path / "cache",
            progress=silent,
        )
    return {
        "few": ChunkCollection([made["a"], made["b"]]),
        "more": ChunkCollection([made["a"], made["c"]]),
        "fewer": ChunkCollection([made["c"]]),
    }
