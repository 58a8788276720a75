"""Weights that somebody else made: a parquet file with one number for every frame of a data set.

The rows are named by `episode_index` and `frame_index`, or by `index`, LeRobot's number of the frame in the data set;
the number stands in the column `weight`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import DatasetError

COLUMN = "weight"


def read_sample_weights(path: str | Path, dataset: ChunkDataset) -> np.ndarray:
    """The weight of every start of `dataset`, float32 [len], none negative.

    Raises:
        DatasetError: the file is missing or damaged, lacks a column, has not exactly one row for each frame, or a
            weight is negative, not finite, or all of them are 0.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(
            f"--sample-weights {path} is no file: name a parquet file with a weight for every frame"
        )
    try:
        stored = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"--sample-weights {path} cannot be read as parquet: {error}") from error
    rows = _rows(path, stored, dataset)
    weight = _column(path, stored, COLUMN).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(weight) | (weight < 0))
    if len(bad):
        raise DatasetError(
            f"{path}: '{COLUMN}' is {weight[bad[0]]} in row {bad[0]}; weights are finite and not negative"
        )
    found = np.zeros(dataset.num_frames, np.float32)
    found[rows] = weight
    if not found.any():
        raise DatasetError(f"{path}: every '{COLUMN}' is 0, so that nothing would be trained on")
    return found[dataset.starts]


def _rows(path: Path, stored: pa.Table, dataset: ChunkDataset) -> np.ndarray:
    """The frame, int64 [n], that each row of the file is of."""
    table = dataset.table
    if {"episode_index", "frame_index"} <= set(stored.schema.names):
        episode, frame = (_numbers(path, stored, name) for name in ("episode_index", "frame_index"))
        order = np.argsort(table.episode_ids)
        place = np.clip(np.searchsorted(table.episode_ids[order], episode), 0, len(order) - 1)
        number = order[place]
        known = table.episode_ids[number] == episode
        known &= (frame >= 0) & (frame < table.episode_length[number])
        rows = table.episode_start[number] + frame
    elif "index" in stored.schema.names:
        rows = _numbers(path, stored, "index")
        known = (rows >= 0) & (rows < dataset.num_frames)
    else:
        raise DatasetError(
            f"{path} names its rows neither by episode_index and frame_index nor by index; it has "
            f"{', '.join(stored.schema.names)}"
        )
    if not known.all() or len(rows) != dataset.num_frames or len(np.unique(rows)) != len(rows):
        raise DatasetError(
            f"{path} has {len(rows)} rows, {int(known.sum())} of them of frames of {dataset.name}, which has "
            f"{dataset.num_frames}: it needs exactly one row for each frame"
        )
    return rows


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
