"""Which frames a human chose the action of: a column that says so, by its name."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from chunkrl.data.frames import FrameTable
from chunkrl.data.label_columns import flag_column
from chunkrl.data.label_rules import NO_COLUMN
from chunkrl.data.large_arrays import zeros
from chunkrl.errors import DatasetError

LEROBOT_NAME = "complementary_info.is_intervention"
_NAMES = (
    "is_intervention",
    "intervention",
    "is_human_intervention",
    "human_intervention",
    "intervention_flag",
)
_LIKELY = re.compile(r"interven|human|teleop|take_?over|dagger|expert|correction|override", re.IGNORECASE)


def human_frames(table: FrameTable, key: str) -> tuple[str, np.ndarray]:
    """The column that is read, "none" for none, and bool [N], the frames that it says are a human's.

    key: a column; "auto": LeRobot's, else one whose name ends in `intervention` and the like, where it holds flags
    (`likely_interventions` says what is passed over); "none": no frame is a human's.

    Raises:
        DatasetError: the column is missing or no flag; several could be meant.
    """
    if key == "auto":
        key = LEROBOT_NAME if table.has_column(LEROBOT_NAME) else _recognised(table)
    if key == NO_COLUMN:
        return NO_COLUMN, zeros(table.cache_dir, table.num_frames, bool)
    return key, flag_column(table, key, f"--human-key (or --human-key {NO_COLUMN})")


def likely_interventions(table: FrameTable, used: str) -> dict[str, str]:
    """Columns that look like interventions and are not read -> what they hold. used: the column that is."""
    return {
        name: "is a flag" if fault is None else f"is no flag: {fault}"
        for name, fault in _flags(table, _LIKELY.search).items()
        if name != used and not (fault and not _has_known_name(name))
    }


def _recognised(table: FrameTable) -> str:
    found = [name for name, fault in _flags(table, _has_known_name).items() if fault is None]
    if len(found) > 1:
        raise DatasetError(
            f"{table.description.root}: {' and '.join(found)} could both say where a human acted: name one with "
            f"--human-key, or none with --human-key {NO_COLUMN}"
        )
    return found[0] if found else NO_COLUMN


def _last_part(name: str) -> str:
    return re.split(r"[./]", name)[-1]


def _has_known_name(name: str) -> bool:
    return _last_part(name).lower() in _NAMES


def _flags(table: FrameTable, is_wanted: Callable[[str], object]) -> dict[str, str | None]:
    """Columns of one number per frame with such a name -> why they hold no flags, None where they do."""
    found: dict[str, str | None] = {}
    for name, feature in table.description.features.items():
        if feature.is_numeric and feature.shape == (1,) and is_wanted(_last_part(name)):
            try:
                flag_column(table, name, "--human-key")
                found[name] = None
            except DatasetError as error:
                found[name] = str(error)
    return found
