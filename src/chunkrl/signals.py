"""Work ends in order on SIGINT, SIGTERM, and SIGHUP, which says that the terminal is gone; a second SIGINT or
SIGTERM ends it at once. What is printed to a terminal that is gone ends nothing."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on Windows


def _ignores_hangup() -> bool:
    """Whether the work is to outlive its terminal, as under nohup."""
    return _HANGUP is None or signal.getsignal(_HANGUP) is signal.SIG_IGN


@contextmanager
def handled(stop: Callable[[], None], *, kill: bool = False, same_s: float = 0.0) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP calls `stop`; the next one does what it did before, or, with `kill`, ends
    the process then and there. Only the main thread gets signals: elsewhere nothing changes.

    A SIGHUP is never the next one, and once it came it is ignored from then on, afterwards too: a dropped connection
    sends it more than once (a shell passes it on, and the kernel sends it when the shell ends), and nobody is there
    who wants an end at once. Where it is ignored already (nohup) it stays so.

    same_s: seconds in which further signals count as the first one: a terminal and a launcher may both send it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    hangup_before = None if _HANGUP is None or _ignores_hangup() else signal.getsignal(_HANGUP)
    first: list[float] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def begin_to_stop() -> None:
        first.append(time.monotonic())
        if not same_s:
            _prepare_for_next()
        stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if not first:
            begin_to_stop()
        elif time.monotonic() - first[0] >= same_s:
            _prepare_for_next()
            os.kill(os.getpid(), number)

    def hang_up(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        if not first:
            begin_to_stop()

    def _prepare_for_next() -> None:
        if not kill:
            restore()
            return
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    for number in _SIGNALS:
        signal.signal(number, handle)
    if _HANGUP is not None and hangup_before is not None:
        signal.signal(_HANGUP, hang_up)
    try:
        yield
    finally:
        restore()
        if _HANGUP is not None and hangup_before is not None and not _ignores_hangup():
            signal.signal(_HANGUP, hangup_before)


class _Terminal(io.FileIO):
    """A terminal for writing that drops what it is given once it is gone."""

    def write(self, data) -> int | None:
        """See `io.RawIOBase`."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(data).nbytes


@contextmanager
def outliving_terminal() -> Iterator[None]:
    """What is printed meanwhile to a terminal that is gone, as where an ssh connection drops, is dropped: an error
    would end what there is to be put in order. Files, pipes and consoles of Windows are as ever."""
    with contextlib.ExitStack() as replaced:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if _HANGUP is None or not isinstance(stream, io.TextIOWrapper) or not stream.isatty():
                continue
            raw = _Terminal(stream.fileno(), "w", closefd=False)
            lasting = io.TextIOWrapper(
                # unbuffered where it was: python -u
                raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),  # type: ignore[arg-type]
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)
            replaced.callback(setattr, sys, name, stream)
            replaced.callback(lasting.flush)
        yield
