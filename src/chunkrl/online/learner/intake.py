"""Episodes out of recorded items: into the replay, or into a data set without a learner.

From actors' streams to the replay: whole episodes go in, once; unfinished ones wait or are set aside.

An actor's spool is acknowledged after an episode only when the replay has it (or it was set aside or
discarded), so a learner killed at any moment reads the episode again, and the replay knows it by its id.

An actor's own spool as a data set, where no learner takes its records: `chunkrl actor --offline`.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

from chunkrl.config import record_of
from chunkrl.errors import RecordError, SpoolError
from chunkrl.files.atomic import replace_file, write_text
from chunkrl.files.json_files import read_json
from chunkrl.online.learner.replay import Replay, StoredEpisode
from chunkrl.online.learner.unfinished import Unfinished
from chunkrl.online.link import spool_files as sf
from chunkrl.online.link.config import ReplayConfig
from chunkrl.online.link.records import EpisodeSummary, Item, StepRecord, StreamSpec
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import STREAM_FILE, read_actor_stream
from chunkrl.online.link.wire import decode_item, encode_item

_LOG = logging.getLogger(__name__)
LOCAL_BYTES = 2**30
"""Memory of an episode while an actor's own spool is stored; the images of a longer one wait on the disk."""


class SpoolOfStream(Protocol):
    """What is read of a `Spool`."""

    @property
    def acknowledged(self) -> int:
        """See `Spool`."""
        ...

    @property
    def durable_sequence(self) -> int:
        """See `Spool`."""
        ...

    def read(self, first: int, max_bytes: int, end: int | None = None) -> list[bytes]:
        """See `Spool`."""
        ...

    def acknowledge(self, next_sequence: int) -> None:
        """See `Spool`."""
        ...


class Streams(Protocol):
    """Spools of actors by name: what a learner received (`ReceivedStreams`), or an actor's own."""

    @property
    def actors(self) -> tuple[str, ...]:
        """Their names."""
        ...

    def spool(self, actor_id: str) -> SpoolOfStream:
        """An actor's spool, to read from and to acknowledge."""
        ...


class EpisodeIntake:
    """Reads what came into `streams` and puts finished episodes into `replay`; for one thread.

    set_aside: folder for episodes that cannot be used: those whose actor ended half way and began another one,
        too long ones and damaged ones; `read_set_aside` reads them.
    max_episode_bytes: memory of an actor's unfinished episode. One that is longer is set aside in parts of this size,
        or, with `scratch`, its images wait in files in that folder until it ends.

    Attributes:
        num_stored, num_discarded, num_set_aside: episodes since this was made. discarded: at the human's wish.
    """

    def __init__(
        self,
        streams: Streams,
        replay: Replay,
        set_aside: str | Path,
        max_episode_bytes: int = 4 * 2**30,
        scratch: Path | None = None,
    ) -> None:
        self._max_episode_bytes, self._scratch = max_episode_bytes, scratch
        self.num_stored = self.num_discarded = self.num_set_aside = 0
        self._streams, self._replay, self._folder = streams, replay, Path(set_aside)
        self._unfinished: dict[str, Unfinished] = {}
        self._turn = 0  # which actor the next call begins with

    def poll(
        self, read_bytes: int = 2**20, enough: Callable[[], bool] = lambda: False
    ) -> list[StoredEpisode]:
        """Takes in everything that has come; returns the episodes that became visible.

        read_bytes: of an actor at a time, actors take turns. enough: asked after each record; where it says so, what
            else has come waits for the next call.

        Raises:
            DatasetError, SpoolError: the disk is full, ...: nothing is lost, call again later.
        """
        stored: list[StoredEpisode] = []
        waiting = deque(self._streams.actors)
        waiting.rotate(-self._turn)
        finished = False
        while waiting and not finished:
            actor = waiting.popleft()
            self._turn += 1
            spool = self._streams.spool(actor)
            state = self._unfinished.pop(actor, None) or Unfinished(spool.acknowledged)
            try:
                payloads = spool.read(state.position, read_bytes, spool.durable_sequence)
                for payload in payloads:
                    self._take(decode_item(payload), spool, state, stored)
                    if finished := enough():
                        break
            except BaseException:
                state.clear()  # it is read again from the watermark
                raise
            self._unfinished[actor] = state
            if payloads:
                waiting.append(actor)
        return stored

    def close(self) -> None:
        """Lets go of what is unfinished: it stays in the streams."""
        for state in self._unfinished.values():
            state.clear()
        self._unfinished.clear()

    def _take(self, item: Item, spool: SpoolOfStream, state: Unfinished, stored: list[StoredEpisode]) -> None:
        if state.steps and item.episode_id != state.steps[0].episode_id:
            self._put_aside(state, spool, [], "its actor began another episode")
        state.position += 1
        if isinstance(item, StepRecord):
            self._take_step(item, spool, state)
            return
        try:
            _check_summary(item, state.steps)
            if item.outcome == "discarded":
                self.num_discarded += 1
                _LOG.info(
                    "episode %s of %s discarded, %d steps", item.episode_id, item.actor_id, item.num_steps
                )
            elif episode := self._add(state):
                self.num_stored += 1
                stored.append(episode)
        except RecordError as error:
            self._put_aside(state, spool, [item], str(error))
        spool.acknowledge(state.position)
        state.clear()

    def _take_step(self, step: StepRecord, spool: SpoolOfStream, state: Unfinished) -> None:
        state.add(step)
        if state.num_bytes <= self._max_episode_bytes:
            return
        if self._scratch is None:
            reason = (
                f"it is longer than {self._max_episode_bytes} bytes of memory; end episodes sooner (the actor's "
                "--max-steps), or raise --replay.max-episode-bytes"
            )
            self._put_aside(state, spool, [], reason)
            return
        try:
            state.spill(self._scratch)
        except RecordError as error:
            self._put_aside(state, spool, [], f"{step.episode_id}: {error}")

    def _add(self, state: Unfinished) -> StoredEpisode | None:
        if state.images is None:
            return self._replay.add(state.steps)
        assert self._scratch is not None
        state.spill(self._scratch)  # the rest
        return self._replay.add(state.steps, state.images.columns())

    def _put_aside(self, state: Unfinished, spool: SpoolOfStream, rest: Sequence[Item], reason: str) -> None:
        known: Item = [*state.steps, *rest][0]
        path = self._folder / f"{known.actor_id}-{spool.acknowledged:020d}-{known.episode_id}.segment"
        with replace_file(path) as temporary, temporary.open("wb") as file:
            file.write(sf.MAGIC)
            for number, item in enumerate(chain(state.whole_steps(), rest)):
                file.write(sf.encode_frame(number, encode_item(item)))
        _LOG.warning("episode %s set aside in %s: %s", known.episode_id, path, reason)
        self.num_set_aside += 1
        spool.acknowledge(state.position)
        state.clear()


def read_set_aside(path: str | Path) -> list[Item]:
    """The items of an episode that was set aside; SpoolError where the file is damaged."""
    path = Path(path)
    reader = sf.SegmentReader(path, 0)
    try:
        items = []
        while reader.offset < path.stat().st_size:
            items.append(decode_item(reader.next()))
        return items
    finally:
        reader.close()


def _check_summary(summary: EpisodeSummary, steps: Sequence[StepRecord]) -> None:
    """Raise RecordError where the end of the episode does not fit its steps."""
    where = f"episode {summary.episode_id} of {summary.actor_id}"
    if summary.num_steps != len(steps):
        raise RecordError(f"{where}: {len(steps)} steps came, its end speaks of {summary.num_steps}")
    if summary.outcome == "discarded":
        return
    last = steps[-1]
    ended = "success" if last.success else "failure" if last.terminated else "timeout"
    if ended != summary.outcome:
        raise RecordError(f"{where}: outcome {summary.outcome}, but its last step says {ended}")


_EXPORTED = "exported.json"
_CURE = "delete it: all that the spool has is then read again, and what is stored is not stored twice"


def never() -> bool:
    """Goes on to the end."""
    return False


class _OwnStream:
    """One actor's spool (`chunkrl.online.learner.intake.Streams`)."""

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
    """One data set; videos where the images' sides are even, as their colours need."""
    even = all(side % 2 == 0 for size in spec.cameras.values() for side in size)
    return ReplayConfig(shard_episodes=2**31, cameras="video" if even else "image")


def store_recordings(
    spool: Path,
    root: Path,
    keep: bool = False,
    stopped: Callable[[], bool] = never,
    memory_bytes: int = LOCAL_BYTES,
) -> Stored:
    """Finished episodes of an actor's spool, however long, become the one data set under `root`, `shard-000000`. An
    episode that was cut off stays in the spool; one that is damaged is set aside in `root`.

    keep: the spool keeps its records, for a learner; else what is stored leaves it. stopped: ends it before its end.
    memory_bytes: of an episode until it is stored; raw images of a longer one wait in files without names in `root`.
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
            own = _OwnStream(actor_id, read)
            intake = EpisodeIntake(own, replay, root / "set_aside", memory_bytes, scratch=root)
            with contextlib.closing(intake):
                intake.poll(enough=stopped)
            return Stored(folder, *replay.totals, intake.num_set_aside, not stopped())
        finally:
            replay.close()
