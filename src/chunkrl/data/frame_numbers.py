"""Numbers that somebody else made: a parquet file with one for every frame of a data set.

Rows are named by `episode_index` and `frame_index`, or by `index`, LeRobot's number of the frame in the data set.
Those of episodes that are left out (bad ones set aside, held out, without a label) are passed over.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chunkrl.data.frames import FrameTable
from chunkrl.errors import DatasetError


def read_frame_numbers(path: Path, table: FrameTable, column: str, flag: str) -> np.ndarray:
    """The numbers of the column, one for each frame of the table, [N]; NaN as it stands there.

    flag: that named the file, with what it should name, for messages.

    Raises:
        DatasetError: the file is missing or damaged, lacks a column, or has not exactly one row for each frame.
    """
    if not path.is_file():
        raise DatasetError(f"{flag} {path} is no file: name a parquet file with a '{column}' for every frame")
    try:
        stored = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{flag} {path} cannot be read as parquet: {error}") from error
    kept, rows = _rows(path, stored, table)
    values = _column(path, stored, column)
    found = np.empty(table.num_frames, values.dtype)
    found[rows] = values[kept]
    return found


def _rows(path: Path, stored: pa.Table, table: FrameTable) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of the file are used, bool [n], and the frame, int64, that each of them is of."""
    kept = np.ones(stored.num_rows, bool)
    if {"episode_index", "frame_index"} <= set(stored.schema.names):
        episode, frame = (_numbers(path, stored, name) for name in ("episode_index", "frame_index"))
        kept = ~np.isin(episode, list(table.description.left_out_episodes))
        episode, frame = episode[kept], frame[kept]
        order = np.argsort(table.episode_ids)
        place = np.clip(np.searchsorted(table.episode_ids[order], episode), 0, len(order) - 1)
        number = order[place]
        known = table.episode_ids[number] == episode
        known &= (frame >= 0) & (frame < table.episode_length[number])
        rows = table.episode_start[number] + frame
    elif "index" in stored.schema.names:
        if left_out := table.description.left_out_episodes:
            raise DatasetError(
                f"{path} names its rows by index alone, which counts the frames of all episodes, and {len(left_out)} "
                f"of {table.description.root} are left out: write episode_index and frame_index into it"
            )
        rows = _numbers(path, stored, "index")
        known = (rows >= 0) & (rows < table.num_frames)
    else:
        raise DatasetError(
            f"{path} names its rows neither by episode_index and frame_index nor by index; it has "
            f"{', '.join(stored.schema.names)}"
        )
    if not known.all() or len(rows) != table.num_frames or len(np.unique(rows)) != len(rows):
        raise DatasetError(
            f"{path} has {len(rows)} rows, {int(known.sum())} of them of frames of {table.description.root}, which "
            f"has {table.num_frames}: it needs exactly one row for each frame"
        )
    return kept, rows


def _numbers(path: Path, stored: pa.Table, name: str) -> np.ndarray:
    """A column of whole numbers, int64 [n]."""
    values = _column(path, stored, name)
    with np.errstate(invalid="ignore"):
        numbers = values.astype(np.int64)
    if (bad := np.flatnonzero(numbers != values)).size:
        raise DatasetError(f"{path}: '{name}' is {values[bad[0]]} in row {bad[0]}; it must be a whole number")
    return numbers


def _column(path: Path, stored: pa.Table, name: str) -> np.ndarray:
    if name not in stored.schema.names:
        raise DatasetError(f"{path} has no column '{name}'; it has {', '.join(stored.schema.names)}")
    kind = stored.schema.field(name).type
    if stored[name].null_count or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DatasetError(
            f"{path}: '{name}' is {kind} with {stored[name].null_count} missing: it must be numbers"
        )
    return stored[name].to_numpy()
