"""What the trainer trains on, online: data that grow, updates that wait for steps, weights that go out meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from chunkrl.data.collection import ChunkCollection
from chunkrl.errors import ChunkRLError
from chunkrl.online.learner.config import OnlineConfig
from chunkrl.online.learner.data import DataWorker, Generation

_LOG = logging.getLogger(__name__)
_WAIT_S = 0.2


@dataclass(frozen=True)
class Taken:
    """What training draws from. update: the run's first one on it. taken_at: by `time.monotonic`."""

    generation: Generation
    update: int
    taken_at: float


class OnlineSource:
    """The trainer's `DataSource` over a `DataWorker`.

    offline_digest: of the data that stay.
    push: hands out the weights as they are: (num_steps they account for, of these each actor's own). None before
        there are networks.
    after_update: called after every policy update, with its number and the steps of actors that are accounted for.
    """

    def __init__(
        self, worker: DataWorker, config: OnlineConfig, changed: threading.Condition, offline_digest: str
    ) -> None:
        self._worker, self._config, self._changed, self._digest = worker, config, changed, offline_digest
        self._taken = Taken(worker.newest, 0, time.monotonic())
        self._stop = threading.Event()
        self._update = self._done = 0
        self._in_last_phase = False
        self._pushed: tuple[int, int] | None = None
        self._pushed_at = (0, 0.0)
        self.push: Callable[[int, Mapping[str, int]], None] | None = None
        self.after_update: Callable[[int, int], None] | None = None
        self.more_metrics: Callable[[], Mapping[str, float]] = dict
        self.waiting = ""
        self._needs_success = self._said_none = False

    @property
    def data(self) -> ChunkCollection:
        """See `DataSource`."""
        data = self._taken.generation.data
        assert data is not None, "wait_for_first comes before"
        return data

    @property
    def generation(self) -> Generation:
        """What training draws from, with its numbers."""
        return self._taken.generation

    @property
    def steps_behind(self) -> int:
        """Steps that are stored and not trained on yet."""
        trained = self.generation.num_steps  # first: what is taken meanwhile was counted before
        return self._worker.state.num_steps - trained

    @property
    def stopped(self) -> bool:
        """See `DataSource`."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Training ends after the current update; from any thread or a signal handler."""
        self._stop.set()

    def wait_for_first(self, needs_success: bool, say: Callable[[str], None]) -> bool:
        """Waits until there are data to begin with; False where it was stopped before.

        needs_success: some episode must have succeeded.
        """
        said, self._needs_success = "", needs_success
        while not self.stopped:
            self._raise_failure()
            newest = self._worker.newest
            if newest.data is not None and not self._lacks_success(newest):
                self._take(newest)
                return True
            wants = f"{self._config.start_episodes} episodes"
            if self._config.start_steps:
                wants += f" and {self._config.start_steps} steps"
            text = f"waiting for {wants} of actors; {newest.num_episodes} are here"
            if newest.data is not None:
                text = f"waiting for a first success; {newest.num_episodes} episodes without one are here"
            if text != said:
                say(text)
                said = text
            with self._changed:
                self._changed.wait(_WAIT_S)
        return False

    def begin(self, update: int, done: int, last_phase: bool) -> None:
        """Where training begins, or goes on: the run's `update`, of the phase's updates `done`."""
        self._update, self._done, self._in_last_phase = update, done, last_phase
        self._pushed_at = (update, time.monotonic())
        self._taken = replace(self._taken, update=update)

    def is_due(self, done: int, last_phase: bool) -> bool:
        """See `DataSource`."""
        self._done, self._in_last_phase = done, last_phase
        if self._worker.failure is not None:
            return False
        if (
            self._is_newer(self._worker.newest)
            and (self._update - self._taken.update) >= self._config.look_updates
        ):
            return False
        return self._is_owed(done, last_phase)

    def take(self, done: int, last_phase: bool) -> ChunkCollection | None:
        """See `DataSource`. Before it waits, actors get the weights that account for all that they recorded."""
        while True:
            self._raise_failure()
            newest = self._worker.newest
            if self._is_newer(newest):
                grown = newest.data is not self._taken.generation.data
                self._take(newest)
                if grown:
                    self.waiting = ""
                    return newest.data
            if self.stopped or self._is_owed(done, last_phase):
                self.waiting = ""
                return None
            if self._pushed != (self._update, newest.num_steps):
                self._push()
            self.waiting = f"made {done} updates for {newest.num_steps} steps; waiting for more"
            with self._changed:
                if not self._is_newer(self._worker.newest):
                    self._changed.wait(_WAIT_S)

    def updated(self, update: int) -> None:
        """See `DataSource`."""
        self._update = update
        self._done += 1
        config, (pushed_update, pushed_at) = self._config, self._pushed_at
        due = (
            update - pushed_update >= config.push_updates
            if config.push_updates
            else time.monotonic() - pushed_at >= config.push_s
        )
        if due:
            self._push()
        if self.after_update is not None and self._in_last_phase:
            self.after_update(self._done, self._accounted())

    def metrics(self) -> Mapping[str, float]:
        """See `DataSource`."""
        generation, state = self.generation, self._worker.state
        return {
            "online/episodes": state.num_episodes,
            "online/steps": state.num_steps,
            "online/episodes_trained_on": generation.online_episodes,
            "online/steps_trained_on": generation.online_steps,
            "online/records_waiting": state.num_waiting,
            "online/steps_behind": self.steps_behind,
            **self.more_metrics(),
        }

    def digest(self) -> str:
        """See `DataSource`: of the data that stay; what the actors sent may be more by then."""
        return self._digest

    def push_now(self) -> None:
        """Hands out the weights as they are."""
        self._push()

    def _push(self) -> None:
        if self.push is None:
            return
        self._pushed = (self._update, self.generation.num_steps)
        self._pushed_at = (self._update, time.monotonic())
        num_steps, generation = self._accounted(), self.generation
        # which ones are not accounted for is not known: each actor is told what holds whosever they are
        owed = generation.num_steps - num_steps
        own = {actor: max(0, steps - owed) for actor, steps in generation.steps_by_actor.items()}
        self.push(num_steps, own)

    def _accounted(self) -> int:
        """Steps of actors for which all updates are made that are owed for them."""
        rate, steps = self._config.updates_per_step, self.generation.num_steps
        if not rate:
            return steps
        if not self._in_last_phase:
            return 0
        return steps if self._done >= int(rate * steps) else int(self._done / rate)

    def _is_owed(self, done: int, last_phase: bool) -> bool:
        rate = self._config.updates_per_step
        return not rate or not last_phase or done < int(rate * self.generation.num_steps)

    def _is_newer(self, generation: Generation) -> bool:
        return generation is not self._taken.generation and not self._lacks_success(generation)

    def _lacks_success(self, generation: Generation) -> bool:
        """Whether nothing can be learned from it: training keeps what it had until a success comes."""
        data = generation.data
        lacks = self._needs_success and data is not None and not data.frame_labels.success.any()
        if lacks and self._taken.generation.data is not None and not self._said_none:
            _LOG.warning(
                "no episode of the newest data succeeds (older ones made room: --replay.capacity-steps): training "
                "keeps the data of before until one does"
            )
        self._said_none = lacks
        return lacks

    def _take(self, newest: Generation) -> None:
        self._taken = Taken(newest, self._update, time.monotonic())
        if newest.data is not None:
            self._worker.use(newest.data)

    def _raise_failure(self) -> None:
        failure = self._worker.failure
        if isinstance(failure, ChunkRLError):
            raise failure
        if failure is not None:
            raise RuntimeError("the learner's data thread failed") from failure
