"""What `chunkrl label` does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.label_rules import LabelRule, Others, TimeOut
from chunkrl.envs.libero_replay import ReplayConfig
from chunkrl.errors import DatasetError
from chunkrl.options import BrowserConfig


@dataclass(frozen=True)
class ReturnRule:
    """How rewards become returns."""

    gamma: float = 0.99
    """Discount factor a step."""
    time_out: TimeOut = "failure"
    """What follows an unfinished recording: nothing (not succeeding in time is failing), or its last value."""
    n_step: int | None = None
    """Also N-step returns, on the values of --values."""
    values: str | None = None
    """File of labels with a `value` per frame, as `chunkrl train` writes (values.parquet)."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise DatasetError(f"--gamma {self.gamma}: a discount lies between 0 and 1")
        if self.n_step is not None and self.n_step < 1:
            raise DatasetError(f"--n-step {self.n_step}: at least 1")
        if self.values is None and (self.n_step is not None or self.time_out == "bootstrap"):
            raise DatasetError("--n-step and --time-out bootstrap need values: give --values FILE")


@dataclass(frozen=True)
class LabelCommand:
    """Labels of a LeRobot data set by rule, or by hand with --browser, in a file beside the data."""

    dataset: Annotated[str, tyro.conf.Positional] = ""
    """Folder or Hub repository id."""
    rule: Annotated[LabelRule, tyro.conf.OmitArgPrefixes] = field(default_factory=LabelRule)
    """Success, sub-goals and rewards."""
    returns: Annotated[ReturnRule, tyro.conf.OmitArgPrefixes] = field(default_factory=ReturnRule)
    """Returns."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """Sub-goals by replaying LIBERO episodes in the simulator."""
    output: str | None = None
    """The file; default: labels/<digest of the rule>.parquet in the data set's folder, with --browser
    labels/by_hand.parquet."""
    export: str | None = None
    """Also write a new LeRobot v3.0 data set with the labels as `next.*` columns, into this new folder. With --labels
    FILE those of the file, by rule or by hand, without the episodes that it leaves out; no file is written then."""
    overwrite: bool = False
    """Labels by another rule in --output are replaced, and a data set at --export is kept as NAME.replaced-001."""
    export_others: Others = "copy"
    """What becomes of columns and cameras that are not understood: copied as they are, or left out."""
    mapping: Annotated[ColumnMapping, tyro.conf.OmitArgPrefixes] = field(default_factory=ColumnMapping)
    """Columns with other names than LeRobot's, openpi's or the document's."""
    revision: str | None = None
    """Hub revision of the data set."""
    skip_bad_episodes: bool = False
    """Set episodes with a problem aside and list them, rather than stop at the first."""
    others: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """More data sets, with --browser."""
    page: Annotated[BrowserConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=BrowserConfig)
    """Labels by hand, in a browser."""
    blank: bool = False
    """With --browser: no episode has a label at first, whatever the columns say."""
