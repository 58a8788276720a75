"""Progress of long work: one callback type, and its terminal bars with ETA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from tqdm import tqdm


class Progress(Protocol):
    """Called as progress(stage, done, total); a stage is over when done == total."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """stage: what is being done; done and total: units of work of this stage."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


class ProgressBars:
    """Terminal bars, one a stage, with rate and ETA; a line every 10 % where stderr is no terminal."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._bars: dict[str, tqdm] = {}
        self._write = write

    def __call__(self, stage: str, done: int, total: int) -> None:
        bar = self._bars.get(stage)
        if bar is None:
            interactive = sys.stderr.isatty()
            bar = tqdm(
                total=total,
                initial=done,  # what was there before: rate and ETA are of what is done from here on
                desc=stage,
                dynamic_ncols=interactive,
                ncols=None if interactive else 100,
                mininterval=0.2 if interactive else 15.0,
                maxinterval=0.2 if interactive else 15.0,
            )
            self._bars[stage] = bar
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
            del self._bars[stage]
