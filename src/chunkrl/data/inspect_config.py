"""What `chunkrl inspect` looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.label_rules import LabelRule
from chunkrl.options import BrowserConfig


@dataclass(frozen=True)
class InspectCommand:
    """What a LeRobot data set holds, and every problem in it. Exit status 1 where there is a problem."""

    dataset: Annotated[str, tyro.conf.Positional] = ""
    """Folder or Hub repository id."""
    json: bool = False
    """Print JSON instead of text."""
    images: bool = True
    """Decode every image, to find those that are damaged."""
    horizon: int = 10
    """Actions per chunk, for the number of chunks that carry reward."""
    labels: Annotated[LabelRule, tyro.conf.OmitArgPrefixes] = field(default_factory=LabelRule)
    """How success, reward and sub-goals are read from the data."""
    mapping: Annotated[ColumnMapping, tyro.conf.OmitArgPrefixes] = field(default_factory=ColumnMapping)
    """Columns with other names than LeRobot's, openpi's or the document's."""
    revision: str | None = None
    """Hub revision of the data set."""
    others: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """More data sets, with --browser."""
    page: Annotated[BrowserConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=BrowserConfig)
    """The episodes in a browser, which changes nothing."""
