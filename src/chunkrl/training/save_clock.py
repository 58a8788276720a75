"""When a checkpoint is due by time, beside those that are due by updates."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_S = 120.0
"""Seconds until the first one: a run of minutes has one, too."""
MOST_OF_TIME = 0.05
"""Largest share of the time that they may take."""


class SaveClock:
    """The clock of one run's training loop.

    minutes: between two checkpoints of any kind; 0: none is due by time. now: seconds.
    """

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._now = 60.0 * minutes, now
        self._wait, self._last = min(FIRST_S, self._interval), now()

    @property
    def is_due(self) -> bool:
        """Whether the last one, or the start, is long enough ago."""
        return self._interval > 0 and self._now() - self._last >= self._wait

    def saved(self, began: float) -> None:
        """A checkpoint was made, for which training has waited since `began`."""
        self._last = self._now()
        self._wait = max(self._interval, (self._last - began) / MOST_OF_TIME)
