"""Chunks executed action by action, and the clock that times them.

A control loop's clock: ticks at absolute deadlines, so that delays do not add up, with their jitter measured.

Executes a policy's chunks action by action; the next chunk is made in a thread while the current one runs.

Which observation a chunk belongs to. With prefetch_steps p > 0 the next chunk is asked for when p actions are left,
from what is seen then, x_s. Its actions speak of the steps from s on, of which the first p are executed by the
chunk before it: so it is executed from its action p. Where it comes late, position is held; a robot at rest is
where the chunk expects it, so held steps skip none of its actions.

What that means for Q(x, A), which speaks of a chunk executed whole from where it was asked for: what follows x_s is
p actions of the earlier chunk and then A[p : p + n]. Records hold executed actions, so that what is learned from
them is right for any p; a choice among candidates by Q(x_s, A) judges p actions that are not executed, and
H - p - n that may not be. With p = 0 and n = H chunks are executed as Q speaks of them.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.online.actor.policy_runner import ChunkSource, PolicyChunk

DEFAULT_SPIN_S = 0.0005
_KEPT_TICKS = 100_000  # 55 minutes at 30 Hz


class Clock(Protocol):
    """Time and sleep; tests bring their own."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Gives the core away for at least about `seconds`."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Sleeps as `time.sleep` does."""
        time.sleep(seconds)


@dataclass(frozen=True)
class JitterStatistics:
    """How well a loop kept its rate.

    num_ticks: ticks waited for. num_missed: of these, the ones whose deadline had passed before the wait began:
        the work between two ticks took too long. num_skipped: deadlines that went by without a tick.
    p50_s, p99_s, max_s: how late ticks were (seconds after their deadlines); of the last 100,000 ticks, and 0
        before the first one.
    rate_hz: ticks per second, without the time between two starts; 0 before the first tick.
    """

    num_ticks: int
    num_missed: int
    num_skipped: int
    p50_s: float
    p99_s: float
    max_s: float
    rate_hz: float


class ControlRate:
    """Waits for the ticks of a fixed rate.

    Deadlines are start + n * period whatever happened before, so a late tick does not shift the following ones.
    A loop that falls behind by whole periods skips their deadlines (counted) instead of hurrying after them: a
    robot must not get two actions in a rush.

    A wait sleeps until `spin_s` before the deadline and polls the clock from there: on Linux a sleep ends about
    0.1 ms late, and what is polled costs at most spin_s * rate of one core (1.5 % at 30 Hz).
    """

    def __init__(self, rate_hz: float, spin_s: float = DEFAULT_SPIN_S, clock: Clock | None = None) -> None:
        """Raises ChunkRLError for a rate that is not positive or a negative spin."""
        if not (np.isfinite(rate_hz) and rate_hz > 0):
            raise ChunkRLError(f"control rate is {rate_hz} Hz; it must be positive")
        if spin_s < 0:
            raise ChunkRLError(f"spin_s is {spin_s}; it must be 0 (sleep alone) or a short time in seconds")
        self.period_s = 1.0 / rate_hz
        self._spin_s = spin_s
        self._clock: Clock = SystemClock() if clock is None else clock
        self._origin: float | None = None  # of the deadlines since `start`
        self._tick = 0  # number of the last deadline since `start`
        self._running_s = 0.0  # of earlier starts
        self._lateness: deque[float] = deque(maxlen=_KEPT_TICKS)
        self._num_ticks = self._num_missed = self._num_skipped = 0
        self._last = 0.0

    def start(self) -> None:
        """Begins a stretch of ticks now, the first deadline one period away. Statistics go on."""
        if self._origin is not None:
            self._running_s += self._last - self._origin
        self._origin = self._last = self._clock.now()
        self._tick = 0

    def wait(self) -> float:
        """Waits for the next deadline; returns how late the tick is, seconds >= 0."""
        assert self._origin is not None, "start the rate before waiting for its ticks"
        now = self._clock.now()
        self._tick += 1
        behind = int((now - self._origin) / self.period_s) - self._tick
        if behind > 0:  # the next deadline is the last one that passed
            self._tick += behind
            self._num_skipped += behind
        deadline = self._origin + self._tick * self.period_s
        self._num_missed += now > deadline
        while (remaining := deadline - now) > 0:
            if remaining > self._spin_s:
                self._clock.sleep(remaining - self._spin_s)
            now = self._clock.now()
        self._num_ticks += 1
        self._last = now
        self._lateness.append(now - deadline)
        return now - deadline

    def recent(self) -> JitterStatistics:
        """The same as `statistics`, of the lateness of the last 1000 ticks only: cheap enough while the loop runs,
        and from another thread."""
        return self._summarize(np.asarray(list(self._lateness)[-1000:] or [0.0]))

    @property
    def rate_hz(self) -> float:
        """Ticks per second over all starts, 0 before the first tick."""
        running_s = self._running_s + (0.0 if self._origin is None else self._last - self._origin)
        return self._num_ticks / running_s if running_s > 0 else 0.0

    def statistics(self) -> JitterStatistics:
        """The jitter of all ticks so far, over all starts."""
        return self._summarize(np.asarray(list(self._lateness) or [0.0]))

    def _summarize(self, late: np.ndarray) -> JitterStatistics:
        return JitterStatistics(
            num_ticks=self._num_ticks,
            num_missed=self._num_missed,
            num_skipped=self._num_skipped,
            p50_s=float(np.percentile(late, 50)),
            p99_s=float(np.percentile(late, 99)),
            max_s=float(late.max()),
            rate_hz=self.rate_hz,
        )


WhenDry = Literal["hold", "wait"]


@dataclass(frozen=True)
class ExecutionConfig:
    """How chunks are executed."""

    exec_steps: int = 10
    """n, actions executed of each chunk."""
    prefetch_steps: int = 0
    """p, actions left when the next chunk is asked for. 0: after the last one."""
    when_dry: WhenDry = "hold"
    """What to do where the next chunk is not ready. hold: hold position, a robot's clock goes on; wait: wait for
    it, for simulators, whose time stops meanwhile."""

    def __post_init__(self) -> None:
        if self.exec_steps < 1:
            raise ChunkRLError(f"exec_steps is {self.exec_steps}; a chunk is executed for at least 1")
        if not 0 <= self.prefetch_steps <= self.exec_steps:
            raise ChunkRLError(
                f"prefetch_steps is {self.prefetch_steps}; it must be 0 to exec_steps ({self.exec_steps})"
            )
        if self.when_dry not in get_args(WhenDry):
            raise ChunkRLError(f"when_dry is {self.when_dry!r}; it must be one of {get_args(WhenDry)}")


@dataclass(frozen=True)
class ProposedAction:
    """action: float32 [A], the policy's, unchecked. version: of the weights that made its chunk. chunk: number of
    the chunk since the executor was made. offset: the action's place in it."""

    action: np.ndarray
    version: int
    chunk: int
    offset: int


@dataclass(frozen=True)
class ExecutorStatistics:
    """num_chunks: taken into use. num_dry: steps for which no action was ready. inference_s: median and maximum
    time that a chunk took to make, seconds (0 before the first), of the last 1000."""

    num_chunks: int
    num_dry: int
    median_inference_s: float
    max_inference_s: float


@dataclass(frozen=True)
class _Request:
    """lead: actions of the chunk before that are executed first."""

    future: Future[PolicyChunk]
    lead: int


class ChunkExecutor:
    """A queue of the policy's next actions. One thread calls it; it makes chunks in another one."""

    def __init__(self, source: ChunkSource, config: ExecutionConfig) -> None:
        """Raises ChunkRLError where the policy's chunks are shorter than what is executed and prefetched."""
        needed = config.exec_steps + config.prefetch_steps
        if needed > source.action_horizon:
            raise ChunkRLError(
                f"exec_steps {config.exec_steps} + prefetch_steps {config.prefetch_steps} is more than the "
                f"policy's chunk of {source.action_horizon} actions: lower one of them"
            )
        self._source, self._config = source, config
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="chunk")
        self._queue: deque[ProposedAction] = deque()
        self._request: _Request | None = None
        self._seeds = np.random.default_rng(0)
        self._num_chunks = self._num_dry = 0
        self._inference_s: deque[float] = deque(maxlen=1000)

    @property
    def queue_length(self) -> int:
        """Actions that are ready."""
        return len(self._queue)

    @property
    def version(self) -> int:
        """The version of the weights that act now."""
        return self._source.version

    def begin_episode(self, step: EnvStep, seed: int) -> None:
        """Makes the first chunk, from `step`, and waits for it: the episode's clock does not run yet.

        `seed` determines the noise of the episode's chunks, one seed a request, so that it does not matter whether
        one that was dropped had been made.
        """
        self.interrupt()
        self._seeds = np.random.default_rng(seed)
        self._source.begin_episode()
        self._ask(step, lead=0)
        self._take(wait=True)

    def next_action(self, step: EnvStep) -> ProposedAction | None:
        """The action for this control step, on which `step` is seen; None: nothing is ready, hold position.

        Raises what the policy raised while it made the chunk.
        """
        if not self._queue:
            if self._request is None:
                self._ask(step, lead=0)
            self._take(wait=self._config.when_dry == "wait")
        if not self._queue:
            self._num_dry += 1
            return None
        if self._request is None and len(self._queue) <= self._config.prefetch_steps:
            self._ask(step, lead=len(self._queue))
        return self._queue.popleft()

    def interrupt(self) -> None:
        """Somebody else acts: what is queued or being made was meant for another course and is dropped."""
        self._queue.clear()
        if self._request is not None:
            self._request.future.cancel()
            self._request = None

    def close(self) -> None:
        """Ends the thread, after the chunk that it is making."""
        self.interrupt()
        self._worker.shutdown(wait=True)

    def statistics(self) -> ExecutorStatistics:
        """Since the executor was made."""
        times = np.asarray(self._inference_s) if self._inference_s else np.zeros(1)
        return ExecutorStatistics(
            self._num_chunks, self._num_dry, float(np.median(times)), float(times.max())
        )

    def _ask(self, step: EnvStep, lead: int) -> None:
        self._request = _Request(
            self._worker.submit(self._make, step, int(self._seeds.integers(2**63))), lead
        )

    def _make(self, step: EnvStep, seed: int) -> PolicyChunk:
        """Makes a chunk, in the thread."""
        began = time.perf_counter()
        chunk = self._source.act(step, seed)
        self._inference_s.append(time.perf_counter() - began)
        return chunk

    def _take(self, wait: bool) -> None:
        """Queues the chunk that was asked for, if it is ready."""
        request = self._request
        if request is None or not (wait or request.future.done()):
            return
        self._request = None
        chunk = request.future.result()
        expected = (self._source.action_horizon, self._source.action_dim)
        if chunk.actions.shape != expected:
            raise ChunkRLError(f"the policy made a chunk of shape {chunk.actions.shape}, expected {expected}")
        for offset in range(request.lead, request.lead + self._config.exec_steps):
            self._queue.append(ProposedAction(chunk.actions[offset], chunk.version, self._num_chunks, offset))
        self._num_chunks += 1
