"""The rows of a data set's parquet files, episode by episode."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from chunkrl.data.metadata import Episode, Feature
from chunkrl.data.parquet import (
    check_footer,
    column_count,
    group_starts,
    numeric_values,
    reading,
    row_batches,
)
from chunkrl.errors import DatasetError

BATCH_ROWS = 4096


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
                f"{file}: the metadata puts episode {run[0].index} there, apart from the file's others: correct its "
                "data/chunk_index and data/file_index, or write the data set in order"
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
    for groups in _consecutive(groups_of(episodes, starts)):
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


def groups_of(episodes: Sequence[Episode], starts: np.ndarray) -> np.ndarray:
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
    for group in groups_of(episodes, starts).tolist():
        begin, end = starts[group], starts[group + 1]
        try:
            num_rows = sum(map(len, row_batches(file, columns, batch_rows, [group])))
            if num_rows != end - begin:
                raise DatasetError(f"{file} is damaged (a row group has {num_rows} rows): write it again")
        except DatasetError as error:
            spoilt = [e.index for e in episodes if e.offset < end and e.offset + e.length > begin]
            yield DatasetError(f"{error}; its rows {begin} to {end - 1} cannot be read"), tuple(spoilt)


def readable(
    file: Path, features: Mapping[str, Feature], needed: Collection[str], total_frames: int
) -> tuple[dict[str, Feature], dict[str, str]]:
    """The columns that a parquet file has, and what is wrong with the others.

    Raises:
        DatasetError: a needed one is not there once; the file is missing or damaged (see `check_footer`).
    """
    names = check_footer(file, total_frames)
    faults = {name: column_count(file, name, names) for name in features if names[name] != 1}
    for name in needed:
        if name in faults:
            raise faults[name]
    found = {name: feature for name, feature in features.items() if name not in faults}
    return found, {name: str(fault) for name, fault in faults.items()}


def read_episode(
    episode: Episode,
    parts: Sequence[pa.RecordBatch],
    features: Mapping[str, Feature],
    needed: Collection[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The numeric columns of an episode: [T], or [T, ...] where a frame has several values; and what is wrong with
    those that cannot be read.

    Raises:
        DatasetError: a needed one has values of another type or shape than info.json declares, or missing ones.
    """
    table = pa.Table.from_batches(parts)
    columns: dict[str, np.ndarray] = {}
    faults: dict[str, str] = {}
    for name, feature in features.items():
        where = f"{episode.data_file}, column '{name}', episode {episode.index}"
        try:
            with reading(episode.data_file):
                values = table.column(name).combine_chunks()
                columns[name] = numeric_values(values, feature.dtype, feature.shape, where)
        except DatasetError as error:
            if name in needed:
                raise
            faults[name] = str(error)
            continue
        if feature.shape == (1,):  # info.json writes scalars as [1]
            columns[name] = columns[name].reshape(len(table))
    return columns, faults


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
