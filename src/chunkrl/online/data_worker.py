"""The learner's thread for data: what actors sent becomes episodes, and these the trainer's next data."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from chunkrl.data.collection import ChunkCollection
from chunkrl.errors import ChunkRLError
from chunkrl.online.intake import EpisodeIntake
from chunkrl.online.learner_config import LearnerReplay, OnlineConfig
from chunkrl.online.learner_data import Generation, LearnerData
from chunkrl.online.replay import Replay
from chunkrl.online.streams import ReceivedStreams

_LOG = logging.getLogger(__name__)
_POLL_S = 0.05
_STORE_S = 5.0
"""How long episodes are stored before those that are there are opened: actors may bring many at once."""


@dataclass(frozen=True)
class DataState:
    """num_episodes, num_steps: ever stored. num_set_aside, num_discarded: since the start. num_waiting: records that
    came and are in no stored episode yet. problem: why storing fails at the moment; "" where it does not."""

    num_episodes: int = 0
    num_steps: int = 0
    num_set_aside: int = 0
    num_discarded: int = 0
    num_waiting: int = 0
    problem: str = ""


class DataWorker:
    """Stores and opens, in a thread of its own, until it is closed.

    changed: set whenever there is something to look at: newer data, or a failure.

    Attributes:
        failure: what ended it for good, None while it works.
    """

    def __init__(
        self,
        streams: ReceivedStreams,
        place: LearnerReplay,
        root: Path,
        data: LearnerData,
        online: OnlineConfig,
        changed: threading.Condition,
    ) -> None:
        self.failure: Exception | None = None
        self.state = DataState()
        self._streams, self._place, self._root, self._data = streams, place, root, data
        self._online, self._changed = online, changed
        self._newest = data.offline_only()
        self._replay: Replay | None = None
        self._intake: EpisodeIntake | None = None
        self._opened: object = None
        self._used: ChunkCollection | None = None
        self._dropped: ChunkCollection | None = None
        self._failing_since: float | None = None
        self._closing, self._looked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="learner-data")

    def start(self) -> None:
        """Begins, and returns when what is on the disk has been looked at once."""
        self._thread.start()
        self._looked.wait()

    @property
    def newest(self) -> Generation:
        """The newest data."""
        return self._newest

    def use(self, data: ChunkCollection) -> None:
        """Training draws from `data` from now: what was opened before may go."""
        self._used = data

    def close(self) -> None:
        """Ends the thread; what came in is kept and read by the next learner."""
        self._closing.set()
        self._thread.join()
        if self._replay is not None:
            self._replay.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._once()
                self._failing_since = None
            except ChunkRLError as error:
                self._note(error)
            except Exception as error:  # handed to training, which ends with it
                _LOG.exception("storing episodes failed")
                self._fail(error)
            self._looked.set()
            if self.failure is not None:
                return
            self._closing.wait(_POLL_S)

    def _once(self) -> None:
        if self._replay is None and self._streams.spec is not None:
            self._replay = Replay(self._root, self._streams.spec, self._place)
            self._intake = EpisodeIntake(
                self._streams, self._replay, self._root / "set_aside", self._place.max_episode_bytes
            )
        if self._replay is None or self._intake is None:
            return
        until = time.monotonic() + _STORE_S
        self._intake.poll(enough=lambda: self._closing.is_set() or time.monotonic() > until)
        self._count(self.state.problem)  # before training can have them: it is never ahead of what is counted
        sizes = self._replay.sizes
        if sizes != self._opened:
            self._open(self._replay)
            self._opened = sizes
        if self._used is not None and self._used is not self._dropped:
            self._data.drop_unused(self._used)
            self._dropped = self._used
        self._count("")

    def _open(self, replay: Replay) -> None:
        episodes, steps = replay.totals
        if episodes < self._online.start_episodes or steps < self._online.start_steps:
            newest = Generation(self._newest.data, episodes, steps, steps_by_actor=replay.steps_by_actor)
        else:
            newest = self._data.open(replay)
        with self._changed:
            self._newest = newest
            self._changed.notify_all()

    def _count(self, problem: str) -> None:
        episodes, steps = self._replay.totals if self._replay else (0, 0)
        waiting = 0
        for actor in self._streams.actors:
            spool = self._streams.spool(actor)
            waiting += spool.next_sequence - spool.acknowledged
        aside, discarded = (
            (self._intake.num_set_aside, self._intake.num_discarded) if self._intake else (0, 0)
        )
        self.state = DataState(episodes, steps, aside, discarded, waiting, problem)

    def _note(self, error: ChunkRLError) -> None:
        """Goes on for a while: a disk may have room again, and what came in is safe."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            _LOG.error("episodes cannot be stored, they wait in %s: %s", self._streams.root, error)
        self._count(str(error))
        if now - self._failing_since >= self._online.patience_s:
            self._fail(error)
        self._closing.wait(1.0)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self.failure = error
            self._changed.notify_all()
