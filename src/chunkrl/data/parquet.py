"""Parquet files read in bounded memory, their damage turned into one clear error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chunkrl.errors import DatasetError
from chunkrl.files.regular_files import check_regular

MORE_ROWS = 1000


@contextmanager
def reading(file: Path, *also: type[Exception]) -> Iterator[None]:
    """Turns what pyarrow, the file system and `also` raise about `file` into a DatasetError; it must be a file."""
    check_regular(file, DatasetError, "fetch the data set again")
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


def check_footer(file: Path, total_frames: int) -> Counter[str]:
    """How often a parquet file has each column, by its footer, which must not count far more rows than the data set
    has frames (as info.json says). A few more than its episodes have may stand there, of a writer that was killed.

    Raises:
        DatasetError: too many rows, the file is missing, or its footer is damaged.
    """
    with reading(file), open_parquet(file) as parquet:
        metadata, names = parquet.metadata, Counter(parquet.schema_arrow.names)
        num_rows = sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    if num_rows > 2 * total_frames + MORE_ROWS:
        raise DatasetError(
            f"{file} is damaged (its footer counts {num_rows} rows, the data set has {total_frames} frames in all): "
            "fetch or write it again"
        )
    return names


def column_count(file: Path, column: str, names: Counter[str]) -> DatasetError:
    """The error for a column that a file does not have once. names: of `check_footer`."""
    return DatasetError(
        f"{file}: has {names[column]} columns '{column}', meta/info.json declares one: "
        f"write the file again; columns: {', '.join(names)}"
    )


def row_batches(
    file: Path, columns: Sequence[str], batch_rows: int, groups: Sequence[int]
) -> Iterator[pa.RecordBatch]:
    """The columns of a parquet file's row groups (positions) in batches of rows.

    Raises:
        DatasetError: the file is missing or damaged, or lacks a column.
    """
    with reading(file), open_parquet(file) as parquet:
        names = Counter(parquet.schema_arrow.names)
        for column in columns:
            if names[column] != 1:
                raise column_count(file, column, names)
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
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise DatasetError(f"{file}: has several columns '{twice}': write the file again")
        return parquet.read(columns=names, use_threads=False).select(names).to_pylist()


def numeric_values(array: pa.Array, dtype: str, shape: Sequence[int], where: str) -> np.ndarray:
    """Rows of a column as numpy.

    Args:
        array: scalars, or nested lists as deep as `shape` says.
        dtype: the numpy type that info.json declares. Numbers of another type are converted where nothing is lost:
            12.0 is 12, and 0 and 1 are booleans; floats are rounded to narrower ones.
        shape: of one row; (1,) also stands for scalars.
        where: file and column, for the message.

    Returns:
        [rows, *shape] of `dtype`.

    Raises:
        DatasetError: values of another kind or shape, or missing values.
    """
    rows = len(array)
    wrong_shape = DatasetError(
        f"{where}: a row has not the shape {list(shape)} of meta/info.json: correct one"
    )
    for size in shape:
        array = _plain(array)
        kind = array.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            break
        _check_no_null(array, where)
        lengths = pc.call_function("list_value_length", [array])
        if not (lengths.to_numpy(zero_copy_only=False) == size).all():
            raise wrong_shape
        array = array.flatten()
    array = _plain(array)
    _check_no_null(array, where)
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    if not any(kind(array.type) for kind in kinds):
        raise DatasetError(f"{where}: holds {array.type}, meta/info.json says {dtype}: correct one")
    if len(array) != rows * math.prod(shape):
        raise wrong_shape
    values = array.to_numpy(zero_copy_only=False)
    return _converted(values, np.dtype(dtype), where).reshape(rows, *shape)


def _plain(array: pa.Array) -> pa.Array:
    """The values of an array of an extension type or of a dictionary."""
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _check_no_null(array: pa.Array, where: str) -> None:
    if array.null_count:
        raise DatasetError(f"{where}: has missing values: write the file again")


def _converted(values: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """Values as `dtype`. Raises DatasetError where one of them would be another."""
    if values.dtype == dtype:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        converted = values.astype(dtype)
        if values.dtype.kind == dtype.kind == "f":
            same = np.isfinite(converted) | ~np.isfinite(values)
        else:
            same = (converted.astype(values.dtype) == values) & ((converted < 0) == (values < 0))
    if not same.all():
        first = values[np.argmin(same)]
        raise DatasetError(
            f"{where}: holds {first} ({values.dtype}), meta/info.json says {dtype}: correct one"
        )
    return converted
