"""Settings of `chunkrl report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

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


ValuesFormat = Literal["rabc", "weights", "rabc_weights"]


@dataclass(frozen=True)
class ExportValuesCommand:
    """A run's values for other trainers: the files that LeRobot's sample weighting reads, or a table of weights."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """The run's folder (--output-dir of chunkrl train or learner)."""
    format: ValuesFormat = "rabc"
    """rabc: V as progress, which `lerobot-train --sample_weighting.type=rabc` weights by; rabc_weights: progress from
    which it makes this run's own weights, at one chunk length; weights: those weights as a table."""
    dataset: str | None = None
    """One of the run's data sets, by its number (0 is --dataset-dir) or its folder; default: all of them."""
    output: str | None = None
    """The file, of one data set; default: FORMAT.parquet in the run's folder, FORMAT-1.parquet of the second one."""
    overwrite: bool = False
    """A file that is there and holds something else is replaced."""
    chunk_size: int | None = None
    """Actions a chunk of the policy that LeRobot trains (--policy.chunk_size there); default: action_horizon."""
    kappa: float | None = None
    """Rise of progress above which a chunk counts in full; default: the one that a quarter of the frames exceed."""
