"""Settings of `chunkrl report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class ReportCommand:
    """One HTML page of a training run: data, curves, values, advantages, frames."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """The run's folder (--output-dir of chunkrl train)."""
    output: str | None = None
    """The page; default: report.html in the run's folder, which is made again. Another file is not written over."""
    overwrite: bool = False
    """A file that --output names is replaced."""
    videos: int = 0
    """Episodes of --dataset-dir to show as videos with their value, successes and failures in turn."""
