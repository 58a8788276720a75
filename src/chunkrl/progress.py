"""Progress of long work: one callback type, and its terminal bars with ETA.

Library considered: tqdm, which draws the bars; what is written here is the callback that keeps it out of the
library's code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol, cast

from tqdm import tqdm


class Progress(Protocol):
    """Called as progress(stage, done, total); a stage is over when done == total."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """stage: what is being done; done and total: units of work of this stage."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


class DescribedProgress(Progress, Protocol):
    """A progress that shows more of a stage than how far it is."""

    def describe(self, stage: str, place: str, note: str) -> None:
        """Called before the stage goes on. place: of the stage among others, as `phase 1 of 2`. note: how it goes."""
        ...


def describe(progress: Progress, stage: str, place: str, note: str) -> None:
    """Tells a progress that shows them."""
    if hasattr(progress, "describe"):
        cast(DescribedProgress, progress).describe(stage, place, note)


class ProgressBars:
    """Terminal bars, one a stage, with rate and ETA; a line every 10 % where stderr is no terminal."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._bars: dict[str, tqdm] = {}
        self._places: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._write = write

    def describe(self, stage: str, place: str, note: str) -> None:
        """See `DescribedProgress`."""
        self._places[stage], self._notes[stage] = place, note

    def __call__(self, stage: str, done: int, total: int) -> None:
        bar = self._bars.get(stage)
        if bar is None:
            interactive = sys.stderr.isatty()
            bar = tqdm(
                total=total,
                initial=done,  # what was there before: rate and ETA are of what is done from here on
                desc=f"{self._places[stage]}: {stage}" if stage in self._places else stage,
                dynamic_ncols=interactive,
                ncols=None if interactive else 140,
                mininterval=0.2 if interactive else 15.0,
                maxinterval=0.2 if interactive else 15.0,
            )
            self._bars[stage] = bar
        if note := self._notes.get(stage):
            bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
            del self._bars[stage]
