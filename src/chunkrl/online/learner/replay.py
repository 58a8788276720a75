"""The learner's memory: finished episodes as a row of LeRobot v3.0 data sets (shards) that grows and forgets.

Why shards and not one data set: the format numbers frames and episodes through, in files of many episodes, so
that dropping the oldest ones would rewrite everything; and the trainer's cache of decoded images is keyed by a
data set's contents, so that one growing data set would be decoded again after every episode. A shard that is
full never changes again. Each shard is a normal data set for `chunkrl train`, `chunkrl inspect` and LeRobot;
`ChunkCollection` reads them together.

Visible: an episode is part of its shard when `add` returns; a trainer sees it when it next opens the folders
that `reading` gives. `reading` and `add` exclude each other, also over processes.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock
import numpy as np
import pyarrow.parquet as pq

from chunkrl.data.episode_columns import check_columns
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.identity import EPISODE_ID_KEY
from chunkrl.data.metadata import integer
from chunkrl.data.writer import DatasetWriter
from chunkrl.errors import DatasetError, RecordError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.online.link.config import ReplayConfig
from chunkrl.online.link.records import StepRecord, StreamSpec

EPISODE_KEY = EPISODE_ID_KEY
ACTOR_KEY = "complementary_info.actor_id"
_INFO = "meta/info.json"
_SHARD = "shard-"
_EVICTED = ".evicted-"
_READING_LOCK = ".reading.lock"
_FORGOTTEN = "evicted.json"


@dataclass(frozen=True)
class StoredEpisode:
    """Where an episode is: the shard's folder and its index there."""

    episode_id: str
    folder: Path
    index: int
    num_steps: int
    success: bool


def replay_features(spec: StreamSpec, cameras: Literal["video", "image"]) -> dict[str, FeatureSpec]:
    """The columns of every shard. `next.*` follow the action of their frame; `action` is the executed one."""
    flag, number, text = FeatureSpec("bool", (1,)), FeatureSpec("int64", (1,)), FeatureSpec("string", (1,))
    for name, size in spec.cameras.items():
        if cameras == "video" and (size[0] % 2 or size[1] % 2):
            raise DatasetError(
                f"camera {name}: {size[0]} x {size[1]}: videos need even sizes; use --replay.cameras image"
            )
    pictures = {
        f"observation.images.{name}": FeatureSpec(cameras, (*size, 3)) for name, size in spec.cameras.items()
    }
    action = FeatureSpec("float32", (len(spec.action_names),), spec.action_names)
    return pictures | {
        "observation.state": FeatureSpec("float32", (len(spec.state_names),), spec.state_names),
        "action": action,
        "next.reward": FeatureSpec("float32", (1,)),
        **dict.fromkeys(("next.success", "next.done", "next.terminated", "next.truncated"), flag),
        "complementary_info.is_intervention": flag,  # LeRobot's name; `LabelRule.human_key` reads it
        "complementary_info.is_held": flag,
        "complementary_info.proposed_action": action,
        "complementary_info.policy_version": number,
        ACTOR_KEY: text,
        EPISODE_KEY: text,
    }


def episode_columns(steps: Sequence[StepRecord]) -> dict[str, np.ndarray]:
    """The steps of one episode by feature, each [T, ...]."""

    def column(values: list, dtype: str) -> np.ndarray:
        return np.array(values, dtype)

    pictures = {
        f"observation.images.{name}": np.stack([step.images[name] for step in steps])
        for name in steps[0].images
    }
    return pictures | {
        "observation.state": np.stack([step.state for step in steps]),
        "action": np.stack([step.executed_action for step in steps]),
        "next.reward": column([step.reward for step in steps], "float64"),
        "next.success": column([step.success for step in steps], "bool"),
        "next.done": column([step.done for step in steps], "bool"),
        "next.terminated": column([step.terminated for step in steps], "bool"),
        "next.truncated": column([step.truncated for step in steps], "bool"),
        "complementary_info.is_intervention": column([step.human for step in steps], "bool"),
        "complementary_info.is_held": column([step.held for step in steps], "bool"),
        "complementary_info.proposed_action": np.stack([step.proposed_action for step in steps]),
        "complementary_info.policy_version": column([step.policy_version for step in steps], "int64"),
        ACTOR_KEY: column([step.actor_id for step in steps], "object"),
        EPISODE_KEY: column([step.episode_id for step in steps], "object"),
    }


class Replay:
    """Appends episodes to the newest shard under `root`; one process, one call at a time.

    Attributes:
        episode_ids: of all episodes in the shards.

    Raises:
        DatasetError: another process appends, the shards have other columns than `spec`, the disk is full.
    """

    def __init__(self, root: str | Path, spec: StreamSpec, config: ReplayConfig = ReplayConfig()) -> None:
        self.root = Path(root)
        self._spec, self._config = spec, config
        self._features = replay_features(spec, config.cameras)
        self._reading = filelock.FileLock(self.root / _READING_LOCK, thread_local=False)
        self._writer: DatasetWriter | None = (
            None  # none before the first episode: a shard without is no data set
        )
        self._steps_of: dict[Path, Counter[str]] = {}  # each actor's, of each shard
        self._closed = False
        self.root.mkdir(parents=True, exist_ok=True)
        with self._reading:
            for path in self.root.glob(f"{_EVICTED}*"):  # a kill came while they were deleted
                _delete(path)
            self._shards = {path: _totals(path) for path in _shard_paths(self.root)}
            if self._shards:
                self._open_shard(_shard_number(max(self._shards)))
        self.episode_ids: set[str] = set()
        for path in self._shards:
            identities, self._steps_of[path] = _contents(path)
            self.episode_ids |= identities
        self._forgotten = _forgotten(self.root / _FORGOTTEN)

    @property
    def sizes(self) -> dict[Path, tuple[int, int]]:
        """Episodes and steps of each shard."""
        return dict(self._shards)

    @property
    def totals(self) -> tuple[int, int]:
        """Episodes and steps that were ever added, those of dropped shards too."""
        here = {path.name for path in self._shards}
        gone = (n for name, n in self._forgotten.items() if name not in here)
        counts = [*self._shards.values(), *((n.episodes, n.steps) for n in gone)]
        return sum(episodes for episodes, _ in counts), sum(steps for _, steps in counts)

    @property
    def steps_by_actor(self) -> dict[str, int]:
        """The part of the steps of `totals`, each actor's; less where a shard was dropped before this was noted."""
        here = {path.name for path in self._shards}
        total: Counter[str] = sum(self._steps_of.values(), Counter())
        for name, counts in self._forgotten.items():
            if name not in here:
                total.update(counts.by_actor)
        return dict(total)

    @property
    def num_steps(self) -> int:
        """Steps in all shards."""
        return sum(steps for _, steps in self._shards.values())

    def add(
        self, steps: Sequence[StepRecord], images: Mapping[str, np.ndarray] | None = None
    ) -> StoredEpisode | None:
        """Appends one whole episode; when this returns it is on the disk and visible. None where it is there
        already (its learner was killed before it could say so).

        images: camera -> uint8 [T, height, width, 3], where the steps have none (a long episode's, on the disk).

        Raises:
            RecordError: the steps are not one episode in order, or not of the declared columns.
            DatasetError: the disk is full, ...; the shards keep their episodes and the call may be repeated.
        """
        _check_episode(steps)
        if steps[0].episode_id in self.episode_ids:
            return None
        columns = episode_columns(steps)
        columns |= {f"observation.images.{name}": pictures for name, pictures in (images or {}).items()}
        try:
            check_columns(self._features, columns, len(self.episode_ids))
        except DatasetError as error:
            raise RecordError(f"episode {steps[0].episode_id}: {error}") from error
        with self._reading:
            writer = self._writer_with_room()
            index = writer.num_episodes
            try:
                writer.add_episode(columns, [step.task for step in steps])
            finally:
                if writer.num_episodes > index:  # also where the disk was full afterwards, for a merge
                    self._shards[writer.root] = (writer.num_episodes, writer.num_frames)
                    self.episode_ids.add(steps[0].episode_id)
                    self._steps_of[writer.root][steps[0].actor_id] += len(steps)
            self._evict()
        success = any(step.success for step in steps)
        return StoredEpisode(steps[0].episode_id, writer.root, index, len(steps), success)

    def close(self) -> None:
        """Merges the newest shard's files and lets other processes append."""
        if self._writer:
            with self._reading:
                self._writer.close()
            self._writer = None
        self._closed = True

    def _writer_with_room(self) -> DatasetWriter:
        if self._closed:
            raise DatasetError(f"{self.root}: the replay is closed; open a new one")
        if self._writer is None:
            return self._open_shard(0)
        if self._writer.num_episodes >= self._config.shard_episodes:
            number = _shard_number(self._writer.root)
            self._writer.close()
            return self._open_shard(number + 1)
        return self._writer

    def _open_shard(self, number: int) -> DatasetWriter:
        path = self.root / f"{_SHARD}{number:06d}"
        self._writer = DatasetWriter(
            path, fps=self._spec.fps, features=self._features, robot_type=self._spec.robot_type or None
        )
        self._shards[path] = (self._writer.num_episodes, self._writer.num_frames)
        self._steps_of.setdefault(path, Counter())
        return self._writer

    def _evict(self) -> None:
        capacity = self._config.capacity_steps
        while capacity and len(self._shards) > 1:
            oldest = min(self._shards)
            if self.num_steps - self._shards[oldest][1] < capacity:
                return
            gone = oldest.with_name(_EVICTED + oldest.name)
            self.episode_ids -= _contents(oldest)[0]
            self._forgotten[oldest.name] = _Forgotten(*self._shards[oldest], dict(self._steps_of[oldest]))
            noted = {name: list(vars(counts).values()) for name, counts in self._forgotten.items()}
            write_text(self.root / _FORGOTTEN, json.dumps(noted, indent=1) + "\n")
            oldest.rename(gone)  # a reader sees all of it or nothing
            del self._shards[oldest], self._steps_of[oldest]
            _delete(gone)


@contextmanager
def reading(root: str | Path) -> Iterator[tuple[Path, ...]]:
    """The shards that hold episodes, oldest first; nothing is added, merged or dropped inside the block. Open the
    data sets in it and leave it: their columns and decoded images stay as they were."""
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root} is no folder: the learner makes it when the first actor comes")
    with filelock.FileLock(root / _READING_LOCK, thread_local=False):
        yield tuple(path for path in _shard_paths(root) if _totals(path)[0])


@dataclass(frozen=True)
class _Forgotten:
    """A dropped shard. by_actor: steps, {} where it was dropped before they were noted."""

    episodes: int
    steps: int
    by_actor: Mapping[str, int]


def _forgotten(path: Path) -> dict[str, _Forgotten]:
    """Dropped shards by name."""
    if not path.exists():
        return {}
    cure = "restore it, or delete it to count again"
    found = read_json(path, dict, DatasetError, cure)
    for name, counts in found.items():
        whole = isinstance(counts, list) and [type(n) for n in counts] in ([int, int], [int, int, dict])
        if not whole or not all(type(n) is int and 0 <= n < 2**62 for n in _numbers(counts)):
            raise DatasetError(
                f"{path} is damaged ('{name}' is {counts!r}, expected two counts, and steps by actor): {cure}"
            )
    return {
        name: _Forgotten(counts[0], counts[1], counts[2] if len(counts) > 2 else {})
        for name, counts in found.items()
    }


def _numbers(counts: list) -> list:
    """All of them."""
    return [*counts[:2], *(counts[2].values() if len(counts) > 2 else ())]


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise DatasetError(f"cannot delete {folder}: {error.strerror or error}; delete it by hand") from error


def _check_episode(steps: Sequence[StepRecord]) -> None:
    if not steps:
        raise RecordError("an episode without steps")
    first = steps[0]
    for number, step in enumerate(steps):
        if (step.episode_id, step.actor_id, step.step_index) != (first.episode_id, first.actor_id, number):
            raise RecordError(
                f"episode {first.episode_id} of {first.actor_id}: step {step.step_index} of {step.episode_id} of "
                f"{step.actor_id} stands where its step {number} belongs"
            )
        if step.done != (number == len(steps) - 1):
            raise RecordError(
                f"episode {first.episode_id}: step {number} of {len(steps)} is {'' if step.done else 'not '}marked "
                "as its last (terminated or truncated)"
            )


def _shard_paths(root: Path) -> list[Path]:
    """Shards in order; a folder without info.json is one that a kill left before it began."""
    return sorted(path for path in root.glob(f"{_SHARD}{'[0-9]' * 6}") if (path / _INFO).exists())


def _shard_number(path: Path) -> int:
    return int(path.name.removeprefix(_SHARD))


def _totals(path: Path) -> tuple[int, int]:
    """Episodes and steps of a shard."""
    info = read_json(path / _INFO, dict, DatasetError, "restore it, or move the shard away")
    return integer(info, "total_episodes", str(path / _INFO)), integer(
        info, "total_frames", str(path / _INFO)
    )


def _contents(path: Path) -> tuple[set[str], Counter[str]]:
    """Ids of the episodes that the shard has, and the steps of each actor (files may hold one episode more that a
    kill left unfinished)."""
    episodes = _totals(path)[0]
    found: set[str] = set()
    steps: Counter[str] = Counter()
    for file in path.glob("data/*/*.parquet"):
        table = pq.read_table(file, columns=["episode_index", EPISODE_KEY, ACTOR_KEY])
        rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        for index, identity, actor in rows:
            if index < episodes:
                found.add(identity)
                steps[actor] += 1
    return found, steps
