"""A control loop's clock: ticks at absolute deadlines, so that delays do not add up, with their jitter measured."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from chunkrl.errors import ChunkRLError

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
        """As `time.sleep`."""
        time.sleep(seconds)


@dataclass(frozen=True)
class JitterStatistics:
    """How well a loop kept its rate.

    num_ticks: ticks waited for. num_missed: of these, the ones whose deadline had passed before the wait began:
        the work between two ticks took too long. num_skipped: deadlines that went by without a tick.
    p50_s, p99_s, max_s: how late ticks were (seconds after their deadlines); of the last 100,000 ticks, and 0
        before the first one.
    rate_hz: ticks a second, without the time between two starts; 0 before the first tick.
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
        """As `statistics`, the lateness of the last 1000 ticks only: cheap enough while the loop runs, and from
        another thread."""
        return self._summarize(np.asarray(list(self._lateness)[-1000:] or [0.0]))

    @property
    def rate_hz(self) -> float:
        """Ticks a second over all starts, 0 before the first tick."""
        running_s = self._running_s + (0.0 if self._origin is None else self._last - self._origin)
        return self._num_ticks / running_s if running_s > 0 else 0.0

    def statistics(self) -> JitterStatistics:
        """Of all ticks so far, over all starts."""
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
