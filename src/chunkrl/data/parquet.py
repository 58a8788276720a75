"""Parquet files read in bounded memory, their damage turned into one clear error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chunkrl.errors import DatasetError


@contextmanager
def reading(file: Path, *also: type[Exception]) -> Iterator[None]:
    """Turns what pyarrow, the file system and `also` raise about `file` into a DatasetError."""
    try:
        yield
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"{file} is missing: fetch the data set again") from error
    except (pa.ArrowException, OSError, MemoryError, ValueError, OverflowError, *also) as error:
        reason = str(error).strip().split("\n")[0]
        raise DatasetError(f"{file} is damaged ({reason}): fetch or write it again") from error


def open_parquet(source: Path | pa.NativeFile) -> pq.ParquetFile:
    """Through a small buffer, whatever a row group's size; pages that carry a checksum are verified."""
    return pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)


def group_starts(file: Path) -> np.ndarray:
    """int64 [G + 1]: the first row of every row group of a parquet file, and the number of its rows.

    Raises:
        DatasetError: the file is missing, or its footer is damaged.
    """
    with reading(file), open_parquet(file) as parquet:
        metadata = parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return np.cumsum([0, *sizes], dtype=np.int64)


def row_batches(
    file: Path, columns: Sequence[str], batch_rows: int, groups: Sequence[int]
) -> Iterator[pa.RecordBatch]:
    """The columns of a parquet file's row groups (positions) in batches of rows.

    Raises:
        DatasetError: the file is missing or damaged, or lacks a column.
    """
    with reading(file), open_parquet(file) as parquet:
        names = parquet.schema_arrow.names
        for column in columns:
            if names.count(column) != 1:
                raise DatasetError(
                    f"{file}: has {names.count(column)} columns '{column}', meta/info.json declares one: "
                    f"write the file again; columns: {', '.join(names)}"
                )
        for batch in parquet.iter_batches(batch_rows, list(groups), columns=list(columns), use_threads=False):
            yield batch.select(list(columns))  # `columns` matches nested paths too


def all_rows(file: Path, skip_prefix: str | None = None) -> list[dict[str, Any]]:
    """All rows of a small parquet file, without the columns whose names start with the prefix.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    with reading(file), open_parquet(file) as parquet:
        names = parquet.schema_arrow.names
        names = [name for name in names if not (skip_prefix and name.startswith(skip_prefix))]
        return parquet.read(columns=names, use_threads=False).select(names).to_pylist()


def numeric_values(array: pa.Array, dtype: str, shape: Sequence[int], where: str) -> np.ndarray:
    """Rows of a column as numpy.

    Args:
        array: scalars, or nested lists as deep as `shape` says.
        dtype: the numpy type that info.json declares; another width of the same kind is converted.
        shape: of one row; (1,) also stands for scalars.
        where: file and column, for the message.

    Returns:
        [rows, *shape] of `dtype`.

    Raises:
        DatasetError: values of another kind or shape, or missing values.
    """
    rows = len(array)
    for size in shape:
        while isinstance(array, pa.ExtensionArray):
            array = array.storage
        kind = array.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            break
        lengths = pc.call_function("list_value_length", [array])
        if array.null_count or not (lengths.to_numpy(zero_copy_only=False) == size).all():
            raise DatasetError(
                f"{where}: a row has not the shape {list(shape)} of meta/info.json: correct one"
            )
        array = array.flatten()
    target = pa.from_numpy_dtype(np.dtype(dtype))
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    if not any(kind(array.type) and kind(target) for kind in kinds):
        raise DatasetError(f"{where}: holds {array.type}, meta/info.json says {dtype}: correct one")
    if array.null_count:
        raise DatasetError(f"{where}: has missing values: write the file again")
    if len(array) != rows * math.prod(shape):
        raise DatasetError(f"{where}: a row has not the shape {list(shape)} of meta/info.json: correct one")
    return array.cast(target).to_numpy(zero_copy_only=False).reshape(rows, *shape)
