"""The numeric columns of a data set as memory-mapped arrays, read and checked once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from chunkrl.data.cache import create_array, ensure, file_name, load_array
from chunkrl.data.checks import check_episode
from chunkrl.data.formats import DatasetDescription, Episode, Feature
from chunkrl.data.parquet import numeric_values, reading, row_batches
from chunkrl.errors import DatasetError
from chunkrl.progress import Progress

BATCH_ROWS = 4096
_MANIFEST = "columns.json"


class Columns:
    """The numeric columns of a data set: memory-mapped, [N] or [N, ...], rows in order of the episodes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first_not_finite: dict[str, int | None] = json.loads((folder / _MANIFEST).read_text("utf-8"))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self._first_not_finite)

    def first_not_finite(self, name: str) -> int | None:
        """The first row of the column with a NaN or an infinite value."""
        return self._first_not_finite[name]

    def read(self, name: str, dtype: type[np.generic] | None = None) -> np.ndarray:
        """The column, read-only; as `dtype` where given (converted once, into the cache)."""
        array = load_array(self._folder / f"{file_name(name)}.npy")
        if dtype is None or array.dtype == dtype:
            return array
        target = self._folder / f"{file_name(name)}.{np.dtype(dtype).name}"

        def convert(folder: Path) -> None:
            converted = create_array(folder / "values.npy", np.dtype(dtype), array.shape)
            for start in range(0, len(array), BATCH_ROWS):
                converted[start : start + BATCH_ROWS] = array[start : start + BATCH_ROWS]
            converted.flush()

        ensure(target, convert)
        return load_array(target / "values.npy")


def open_columns(description: DatasetDescription, folder: Path, progress: Progress) -> Columns:
    """The data set's columns, read and checked on first use.

    Args:
        folder: the data set's folder in the cache.

    Raises:
        DatasetError: a file is missing, damaged or disagrees with the metadata.
        ChunkRLError: the cache has no space or cannot be written.
    """
    target = folder / "columns"
    ensure(target, lambda building: _build(description, building, progress))
    return Columns(target)


def by_data_file(episodes: Sequence[Episode]) -> Iterator[tuple[Path, list[Episode]]]:
    """Runs of consecutive episodes that share a parquet file, which holds them and nothing else.

    Raises:
        DatasetError: other episodes lie between those of one file.
    """
    seen: set[Path] = set()
    for file, group in groupby(episodes, key=lambda episode: episode.data_file):
        run = list(group)
        if file in seen:
            raise DatasetError(
                f"{file}: episode {run[0].index} stands apart from the file's others: write in order"
            )
        seen.add(file)
        yield file, run


def _build(description: DatasetDescription, folder: Path, progress: Progress) -> None:
    features = {name: feature for name, feature in description.features.items() if feature.is_numeric}
    arrays: dict[str, np.memmap] = {}
    for name, feature in features.items():
        shape = () if feature.shape == (1,) else feature.shape  # info.json writes scalars as [1]
        file = folder / f"{file_name(name)}.npy"
        arrays[name] = create_array(file, np.dtype(feature.dtype), (description.num_frames, *shape))
    not_finite: dict[str, int | None] = dict.fromkeys(features)
    done = 0
    for file, episodes in by_data_file(description.episodes):
        num_rows = _fill(file, episodes, features, arrays, not_finite)
        expected = sum(episode.length for episode in episodes)
        end = episodes[0].start + num_rows
        for episode in episodes:
            # Where the file is too short or too long, the first episode that fails says where.
            if episode.start + episode.length <= end:
                check_episode(description, episode, arrays)
        if num_rows != expected:
            raise DatasetError(
                f"{file}: has {num_rows} rows, the metadata gives its episodes {episodes[0].index} to "
                f"{episodes[-1].index} {expected} frames: fetch the file again or correct the metadata"
            )
        done += len(episodes)
        progress("reading columns", done, len(description.episodes))
    for array in arrays.values():
        array.flush()
    (folder / _MANIFEST).write_text(json.dumps(not_finite), encoding="utf-8")


def _fill(
    file: Path,
    episodes: Sequence[Episode],
    features: Mapping[str, Feature],
    arrays: Mapping[str, np.memmap],
    not_finite: dict[str, int | None],
) -> int:
    """Copies the file's rows to the rows of its episodes, no further; returns how many rows it has."""
    first, end = episodes[0].start, episodes[-1].start + episodes[-1].length
    row = first
    for batch in row_batches(file, list(features), BATCH_ROWS):
        for name, feature in features.items():
            with reading(file):
                where = f"{file}, column '{name}', near episode {_episode_at(episodes, row).index}"
                values = numeric_values(batch.column(name), feature.dtype, feature.shape, where)
            target = arrays[name][row : min(row + len(batch), end)]
            target[...] = values[: len(target)].reshape(target.shape)
            if not_finite[name] is None and values.dtype.kind == "f":
                finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
                if not finite.all():
                    not_finite[name] = row + int(np.argmin(finite))
        row += len(batch)
    return row - first


def _episode_at(episodes: Sequence[Episode], row: int) -> Episode:
    """The episode with this row of the data set, the last one for rows beyond."""
    return next((e for e in episodes if row < e.start + e.length), episodes[-1])
