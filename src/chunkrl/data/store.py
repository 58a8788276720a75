"""The numeric columns of a data set as memory-mapped arrays, read and checked once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from chunkrl.data.cache import create_array, ensure, file_name, load_array, sync_array
from chunkrl.data.checks import check_episode, first_not_finite
from chunkrl.data.formats import DatasetDescription, Episode, Feature
from chunkrl.data.parquet import group_starts, numeric_values, reading, row_batches
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
            sync_array(converted)

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
    """Runs of consecutive episodes that share a parquet file.

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


def episode_parts(
    file: Path, episodes: Sequence[Episode], columns: Sequence[str], batch_rows: int
) -> Iterator[tuple[Episode, int, pa.RecordBatch]]:
    """The rows of a parquet file's episodes in order, a few at a time; other rows of the file are passed over.

    Row groups without a row of these episodes are not read: they may be damaged.

    Args:
        episodes: the file's episodes to read, in order.
        batch_rows: most rows a part.

    Yields:
        An episode, the frame in it where the part begins, and the part.

    Raises:
        DatasetError: the file is missing or damaged, or lacks a column.
    """
    starts = group_starts(file)
    position = 0
    for groups in _consecutive(_groups_of(episodes, starts)):
        row = int(starts[groups[0]])
        for batch in row_batches(file, columns, batch_rows, groups):
            end = row + len(batch)
            while position < len(episodes) and episodes[position].offset < end:
                episode = episodes[position]
                first, last = max(episode.offset, row), min(episode.offset + episode.length, end)
                yield episode, first - episode.offset, batch.slice(first - row, last - first)
                if last < episode.offset + episode.length:
                    break
                position += 1
            row = end
        if row != starts[groups[-1] + 1]:
            raise DatasetError(
                f"{file} is damaged (row groups have other lengths than it says): write it again"
            )


def _groups_of(episodes: Sequence[Episode], starts: np.ndarray) -> np.ndarray:
    """The row groups, int [n], that hold rows of the episodes, which are in order. starts: see `group_starts`."""
    begins = np.array([episode.offset for episode in episodes])
    ends = np.array([episode.offset + episode.length for episode in episodes])
    return np.flatnonzero(
        np.searchsorted(begins, starts[1:]) > np.searchsorted(ends, starts[:-1], side="right")
    )


def _consecutive(groups: np.ndarray) -> list[list[int]]:
    """Runs of numbers that follow each other."""
    parts = np.split(groups, np.flatnonzero(np.diff(groups) > 1) + 1)
    return [part.tolist() for part in parts if len(part)]


def unreadable_groups(
    file: Path, episodes: Sequence[Episode], columns: Sequence[str], batch_rows: int
) -> Iterator[tuple[DatasetError, tuple[int, ...]]]:
    """What is wrong with each damaged row group of a parquet file, and the `episode_index` of those it spoils.

    Raises:
        DatasetError: the file as a whole cannot be read.
    """
    starts = group_starts(file)
    for group in _groups_of(episodes, starts).tolist():
        begin, end = starts[group], starts[group + 1]
        try:
            num_rows = sum(map(len, row_batches(file, columns, batch_rows, [group])))
            if num_rows != end - begin:
                raise DatasetError(f"{file} is damaged (a row group has {num_rows} rows): write it again")
        except DatasetError as error:
            spoilt = [e.index for e in episodes if e.offset < end and e.offset + e.length > begin]
            yield DatasetError(f"{error}; its rows {begin} to {end - 1} cannot be read"), tuple(spoilt)


def check_rows(file: Path, episodes: Sequence[Episode], closed: bool) -> None:
    """Checks that a parquet file has every row of its episodes, and outside their places none.

    closed: the file holds these episodes alone (v2.x). Behind its episodes a v3.0 file may have others, which
        a killed merge left (`chunkrl.data.writer`), and between them such as were set aside.

    Raises:
        DatasetError: rows are missing or too many.
    """
    starts = group_starts(file)
    num_rows = int(starts[-1])
    expected = sum(episode.length for episode in episodes)
    outside = np.ones(num_rows, dtype=bool)
    for episode in episodes:
        outside[episode.offset : episode.offset + episode.length] = False
    misplaced = outside.any() and (closed or _claimed(file, episodes, outside, starts))
    if episodes[-1].offset + episodes[-1].length > num_rows or misplaced:
        raise DatasetError(
            f"{file}: has {num_rows} rows, the metadata gives its episodes {episodes[0].index} to "
            f"{episodes[-1].index} {expected} frames: fetch the file again or correct the metadata"
        )


def _claimed(file: Path, episodes: Sequence[Episode], outside: np.ndarray, starts: np.ndarray) -> bool:
    """Whether a row of `outside`, bool [rows], says by its `episode_index` that it belongs to one of the episodes.

    Row groups that hold no row of theirs may be damaged: then those are of episodes that were set aside.
    """
    own = [episode.index for episode in episodes]
    needed = set(_groups_of(episodes, starts).tolist())
    for group, (begin, end) in enumerate(pairwise(starts)):
        if not outside[begin:end].any():
            continue
        try:
            batches = row_batches(file, ["episode_index"], BATCH_ROWS, [group])
            found = np.concatenate([batch.column(0).to_numpy(zero_copy_only=False) for batch in batches])
        except DatasetError:
            if group in needed:
                raise
            continue
        if len(found) != end - begin or np.isin(found[outside[begin:end]], own).any():
            return True
    return False


def read_episode(
    episode: Episode, parts: Sequence[pa.RecordBatch], features: Mapping[str, Feature]
) -> dict[str, np.ndarray]:
    """The numeric columns of an episode: [T], or [T, ...] where a frame has several values.

    Raises:
        DatasetError: values of another type or shape than info.json declares, or missing ones.
    """
    table = pa.Table.from_batches(parts)
    columns = {}
    for name, feature in features.items():
        where = f"{episode.data_file}, column '{name}', episode {episode.index}"
        with reading(episode.data_file):
            values = table.column(name).combine_chunks()
            columns[name] = numeric_values(values, feature.dtype, feature.shape, where)
        if feature.shape == (1,):  # info.json writes scalars as [1]
            columns[name] = columns[name].reshape(len(table))
    return columns


def whole_episodes(
    file: Path, episodes: Sequence[Episode], columns: Sequence[str]
) -> Iterator[tuple[Episode, list[pa.RecordBatch]]]:
    """Every episode of a parquet file that is there in full, with its rows; see `episode_parts`."""
    parts: list[pa.RecordBatch] = []
    for episode, frame, part in episode_parts(file, episodes, columns, BATCH_ROWS):
        parts.append(part)
        if frame + len(part) == episode.length:
            yield episode, parts
            parts = []


def _build(description: DatasetDescription, folder: Path, progress: Progress) -> None:
    features = {name: feature for name, feature in description.features.items() if feature.is_numeric}
    arrays: dict[str, np.memmap] = {}
    for name, feature in features.items():
        shape = () if feature.shape == (1,) else feature.shape
        file = folder / f"{file_name(name)}.npy"
        arrays[name] = create_array(file, np.dtype(feature.dtype), (description.num_frames, *shape))
    not_finite: dict[str, int | None] = dict.fromkeys(features)
    done = 0
    for file, episodes in by_data_file(description.episodes):
        # Where the file is too short or too long, the first episode that fails says where.
        for episode, parts in whole_episodes(file, episodes, list(features)):
            columns = read_episode(episode, parts, features)
            check_episode(description, episode, columns)
            for name, values in columns.items():
                arrays[name][episode.start : episode.start + episode.length] = values
                if not_finite[name] is None and (frame := first_not_finite(values)) is not None:
                    not_finite[name] = episode.start + frame
        check_rows(file, episodes, closed=description.version != "v3.0")
        done += len(episodes)
        progress("reading columns", done, len(description.episodes))
    for array in arrays.values():
        sync_array(array)
    (folder / _MANIFEST).write_text(json.dumps(not_finite), encoding="utf-8")
