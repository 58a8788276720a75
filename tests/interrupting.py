"""A process that ends, as it were, wherever it is."""

from __future__ import annotations

from chunkrl.progress import Progress


class Interrupted(BaseException):
    """What no code of ours catches, as a kill."""


def interrupt_after(count: int) -> Progress:
    """A progress that ends the process, as it were, at its `count`-th call."""
    calls = 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            raise Interrupted

    return progress
