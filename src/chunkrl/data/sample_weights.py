"""Weights that somebody else made: a parquet file with a column `weight` (`frame_numbers`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.frame_numbers import read_frame_numbers
from chunkrl.errors import DatasetError

COLUMN = "weight"


def read_sample_weights(path: str | Path, dataset: ChunkDataset) -> np.ndarray:
    """The weight of every start of `dataset`, float32 [len], none negative.

    Raises:
        DatasetError: as `read_frame_numbers`; a weight is negative, not finite, or all of them are 0.
    """
    found = read_frame_numbers(Path(path), dataset.table, COLUMN, "--sample-weights").astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(found) | (found < 0))
    if len(bad):
        raise DatasetError(
            f"{path}: '{COLUMN}' is {found[bad[0]]} in row {bad[0]}; weights are finite and not negative"
        )
    if not found.any():
        raise DatasetError(f"{path}: every '{COLUMN}' is 0, so that nothing would be trained on")
    return found[dataset.starts]
