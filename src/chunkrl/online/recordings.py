"""An actor's own spool as a data set, where no learner takes its records: `chunkrl actor --offline`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chunkrl.config import record_of
from chunkrl.errors import SpoolError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.online.config import ReplayConfig
from chunkrl.online.intake import EpisodeIntake, SpoolOfStream
from chunkrl.online.records import StepRecord, StreamSpec
from chunkrl.online.replay import Replay
from chunkrl.online.spool import Spool
from chunkrl.online.streams import STREAM_FILE, read_actor_stream
from chunkrl.online.wire import decode_item

_EXPORTED = "exported.json"
_CURE = "delete it: all that the spool has is then read again, and what is stored is not stored twice"


def never() -> bool:
    """Goes on to the end."""
    return False


class _OwnStream:
    """One actor's spool (`chunkrl.online.intake.Streams`)."""

    def __init__(self, actor_id: str, spool: SpoolOfStream) -> None:
        self.actors: tuple[str, ...] = (actor_id,)
        self._spool = spool

    def spool(self, actor_id: str) -> SpoolOfStream:
        """It."""
        return self._spool


@dataclass(frozen=True)
class _Exported:
    """All entries of the spool below next_sequence are done with."""

    spool_id: str
    next_sequence: int


class _Kept:
    """A spool that is read and keeps all: how far is noted in `root`, so that the next time goes on from there."""

    def __init__(self, spool: Spool, root: Path) -> None:
        self._spool, self._path = spool, root / _EXPORTED
        self.acknowledged = spool.acknowledged
        if self._path.exists():
            noted = record_of(
                _Exported, read_json(self._path, dict, SpoolError, _CURE), str(self._path), SpoolError, _CURE
            )
            if noted.spool_id == spool.spool_id and self.acknowledged <= noted.next_sequence:
                self.acknowledged = noted.next_sequence
        self._skip_what_was_begun()

    def _skip_what_was_begun(self) -> None:
        """A learner has the beginning of the first episode that is still here: it is none that could be whole."""
        while payloads := self._spool.read(self.acknowledged, 1):
            item = decode_item(payloads[0])
            if isinstance(item, StepRecord) and item.step_index == 0:
                return
            self.acknowledged += 1

    @property
    def durable_sequence(self) -> int:
        """See `Spool`."""
        return self._spool.durable_sequence

    def read(self, first: int, max_bytes: int, end: int | None = None) -> list[bytes]:
        """See `Spool`."""
        return self._spool.read(first, max_bytes, end)

    def acknowledge(self, next_sequence: int) -> None:
        """Notes it; the spool keeps all."""
        write_text(
            self._path, json.dumps({"spool_id": self._spool.spool_id, "next_sequence": next_sequence}) + "\n"
        )
        self.acknowledged = next_sequence


@dataclass(frozen=True)
class Stored:
    """What the data set has now. folder: the data set, there if num_episodes > 0. num_set_aside: episodes that could
    not be used, by this call. is_whole: it was not stopped before the end."""

    folder: Path
    num_episodes: int
    num_steps: int
    num_set_aside: int = 0
    is_whole: bool = True


def _config(spec: StreamSpec) -> ReplayConfig:
    """One data set; videos where the pictures' sides are even, as their colours need."""
    even = all(side % 2 == 0 for size in spec.cameras.values() for side in size)
    return ReplayConfig(shard_episodes=2**31, cameras="video" if even else "image")


def store_recordings(
    spool: Path, root: Path, keep: bool = False, stopped: Callable[[], bool] = never
) -> Stored:
    """Finished episodes of an actor's spool become the one data set under `root`, `shard-000000`. An episode that was
    cut off stays in the spool; one that is damaged is set aside in `root`.

    keep: the spool keeps its records, for a learner; else what is stored leaves it. stopped: ends it before its end.
    A kill loses nothing and stores nothing twice: episodes are known by their ids.

    Raises SpoolError, DatasetError: the spool is in use or damaged, the data set cannot be written.
    """
    stream, folder = spool / STREAM_FILE, root / "shard-000000"
    if not stream.is_file():  # no session began
        return Stored(folder, 0, 0)
    actor_id, spec = read_actor_stream(stream)
    with Spool(spool) as opened:
        replay = Replay(root, spec, _config(spec))
        try:
            read = _Kept(opened, root) if keep else opened
            intake = EpisodeIntake(_OwnStream(actor_id, read), replay, root / "set_aside")
            intake.poll(enough=stopped)
            return Stored(folder, *replay.totals, intake.num_set_aside, not stopped())
        finally:
            replay.close()
