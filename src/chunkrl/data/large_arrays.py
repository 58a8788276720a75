"""Arrays with one value per frame: in memory while small, in the cache's files where they would fill it.

From `MAPPED_BYTES` on an array is a map of a file without a name, which is gone with the array. Its pages are the
system's to write back and to drop, so a process's own memory does not grow with the data set, provided that nothing
computes whole columns at once: `by_blocks`.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chunkrl.data.cache import reserve

MAPPED_BYTES = 1 << 24
BLOCK_ROWS = 1 << 18


def blocks(num_rows: int) -> Iterator[slice]:
    """Rows 0 .. `num_rows` in order, `BLOCK_ROWS` at a time."""
    for begin in range(0, num_rows, BLOCK_ROWS):
        yield slice(begin, min(begin + BLOCK_ROWS, num_rows))


def zeros(folder: Path, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """An array of zeros; a large one lies in a file in `folder`, which must exist.

    Raises:
        ChunkRLError: the disk has not enough space.
    """
    shape, dtype = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < MAPPED_BYTES:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        reserve(file, size, folder)
        return np.memmap(file, dtype, "w+", shape=shape).view(np.ndarray)


def by_blocks(
    folder: Path, num_rows: int, dtype: npt.DTypeLike, compute: Callable[[slice], npt.ArrayLike]
) -> np.ndarray:
    """`compute(rows)` of every block of rows, laid end to end: [num_rows].

    Raises:
        ChunkRLError: the disk has not enough space.
    """
    result = zeros(folder, num_rows, dtype)
    for rows in blocks(num_rows):
        result[rows] = compute(rows)
    return result


def keep(folder: Path, values: np.ndarray) -> np.ndarray:
    """The values as they are kept: themselves, or a copy in a file where they are large and in memory.

    Raises:
        ChunkRLError: the disk has not enough space.
    """
    if values.nbytes < MAPPED_BYTES or _is_mapped(values):
        return values
    kept = zeros(folder, values.shape, values.dtype)
    kept[...] = values
    return kept


def _is_mapped(values: np.ndarray) -> bool:
    owner: object = values
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner, mmap.mmap)
