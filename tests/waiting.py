"""Waiting in tests: for a condition, and never without an end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 240.0, pause_s: float = 0.01) -> T:
    """What `condition` gives once it is true; fails the test when that takes longer than `seconds`: far beyond what
    it takes on a busy machine, where a process alone may need half a minute to start."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(pause_s)
    return found


class HangError(Exception):
    """A test that goes on far beyond what any of them takes."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises HangError in the main thread after `seconds`, wherever it is: no call of a test waits for ever."""

    def ring(*_: Any) -> None:
        raise HangError(f"still running after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
