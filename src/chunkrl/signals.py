"""Work ends in order on SIGINT and SIGTERM; a second signal ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled(stop: Callable[[], None], *, kill: bool = False, same_s: float = 0.0) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls `stop`; the next one does what it did before, or, with `kill`, ends the
    process then and there. Only the main thread gets signals: elsewhere nothing changes.

    same_s: seconds in which further signals count as the first one: a terminal and a launcher may both send it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    first: list[float] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            if not same_s:
                _prepare_for_next()
            stop()
        elif now - first[0] >= same_s:
            _prepare_for_next()
            os.kill(os.getpid(), number)

    def _prepare_for_next() -> None:
        if not kill:
            restore()
            return
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
