"""The numeric columns of a data set as memory-mapped arrays, read and checked once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from chunkrl.config import record_of
from chunkrl.data.cache import create_array, ensure, file_name, load_array, sync_array
from chunkrl.data.checks import check_episode, first_not_finite, not_finite
from chunkrl.data.episode_rows import BATCH_ROWS, by_data_file, read_episode, readable, whole_episodes
from chunkrl.data.formats import DatasetDescription, Feature
from chunkrl.data.roles import REQUIRED_NAMES
from chunkrl.data.row_checks import MisplacedRowsError, check_rows, explain
from chunkrl.errors import DatasetError
from chunkrl.files.json_files import read_json
from chunkrl.progress import Progress

WIDE = 256  # values per frame; wider columns are read when they are asked for
_MANIFEST = "columns.json"


@dataclass(frozen=True)
class _Entry:
    """What is known of a column: the first row with a NaN or an infinite value, and what is wrong with all of it."""

    not_finite: int | None = None
    fault: str | None = None


class Columns:
    """The numeric columns of a data set: memory-mapped, [N] or [N, ...], rows in order of the episodes.

    What is wrong with a column is an error for those who ask for it: one that nobody uses stops nobody.
    """

    def __init__(self, description: DatasetDescription, folder: Path, progress: Progress) -> None:
        """Use `open_columns`. folder: the data set's folder in the cache."""
        self._description, self._folder, self._progress = description, folder, progress
        self._entries = _load_manifest(folder / "columns")

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that info.json declares."""
        return tuple(name for name, feature in self._description.features.items() if feature.is_numeric)

    @property
    def faults(self) -> dict[str, str]:
        """Columns that were read and cannot be used -> why."""
        return {name: entry.fault for name, entry in self._entries.items() if entry.fault is not None}

    def is_finite(self, name: str) -> bool:
        """Whether the column can be read, and holds no NaN or infinite value."""
        try:
            return self._find(name)[1].not_finite is None
        except DatasetError:
            return False

    def read(self, name: str, dtype: type[np.generic] | None = None) -> np.ndarray:
        """The column, read-only; as `dtype` where given (converted once, into the cache).

        Raises:
            DatasetError: its values are missing, or others than info.json declares.
        """
        folder, _ = self._find(name)
        array = load_array(folder / f"{file_name(name)}.npy")
        return array if dtype is None or array.dtype == dtype else self._made([name], dtype, array.shape)

    def vectors(self, names: Sequence[str]) -> np.ndarray:
        """Columns of vectors or numbers joined in this order, float32 [N, D], read-only and finite.

        Raises:
            DatasetError: as `read`, or a value is NaN or infinite.
        """
        for name in names:
            row = self._find(name)[1].not_finite
            if row is not None:
                episode = next(e for e in self._description.episodes if row < e.start + e.length)
                raise not_finite(episode, name, row - episode.start)
        if len(names) == 1:
            values = self.read(names[0], np.float32)
            return values.reshape(len(values), -1)
        width = sum(self._description.features[name].shape[0] for name in names)
        return self._made(names, np.float32, (self._description.num_frames, width))

    def _find(self, name: str) -> tuple[Path, _Entry]:
        """The folder with the column, which is read now where it is wide, and its entry."""
        folder = self._folder / "columns"
        if name not in self._entries:
            folder = self._folder / f"columns-{file_name(name)}"
            ensure(folder, lambda building: _build(self._description, [name], building, self._progress))
            self._entries[name] = _load_manifest(folder)[name]
        elif _is_wide(self._description.features[name]):
            folder = self._folder / f"columns-{file_name(name)}"
        entry = self._entries[name]
        if entry.fault is not None:
            raise DatasetError(entry.fault)
        return folder, entry

    def _made(self, names: Sequence[str], dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
        """Columns as `dtype`, joined along their last axis; made once, into the cache."""
        key = "+".join(map(file_name, names))
        key = key if len(names) == 1 else hashlib.sha256(key.encode()).hexdigest()[:16]
        target = self._folder / "columns" / f"{key}.{np.dtype(dtype).name}"

        def convert(folder: Path) -> None:
            sources = [self.read(name) for name in names]
            made = create_array(folder / "values.npy", np.dtype(dtype), shape)
            for start in range(0, len(made), BATCH_ROWS):
                rows = [source[start : start + BATCH_ROWS] for source in sources]
                if len(rows) > 1:
                    rows = [np.concatenate([part.reshape(len(part), -1) for part in rows], 1, dtype=dtype)]
                made[start : start + BATCH_ROWS] = rows[0]
            sync_array(made)

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
    names = list(narrow(description))
    ensure(folder / "columns", lambda building: _build(description, names, building, progress))
    return Columns(description, folder, progress)


def narrow(description: DatasetDescription) -> dict[str, Feature]:
    """The numeric columns that are read together, on first use."""
    features = description.features.items()
    return {name: feature for name, feature in features if feature.is_numeric and not _is_wide(feature)}


def _is_wide(feature: Feature) -> bool:
    return math.prod(feature.shape) > WIDE


def _load_manifest(folder: Path) -> dict[str, _Entry]:
    file, cure = folder / _MANIFEST, f"delete the folder {folder}: it is made again"
    return {
        name: record_of(_Entry, entry, f"{file}: '{name}'", DatasetError, cure)
        for name, entry in read_json(file, dict, DatasetError, cure).items()
    }


def _build(description: DatasetDescription, names: Sequence[str], folder: Path, progress: Progress) -> None:
    """Reads these columns of every episode into `folder`; the required ones are read along, and checked."""
    features = {name: description.features[name] for name in dict.fromkeys([*REQUIRED_NAMES, *names])}
    files = {episode.index: episode.data_file for episode in description.episodes}
    arrays: dict[str, np.memmap] = {}
    for name in names:
        shape = () if features[name].shape == (1,) else features[name].shape
        file = folder / f"{file_name(name)}.npy"
        arrays[name] = create_array(file, np.dtype(features[name].dtype), (description.num_frames, *shape))
    entries = {name: _Entry() for name in names}
    done = 0
    for file, episodes in list(by_data_file(description.episodes)):
        wanted = {name: f for name, f in features.items() if name not in entries or not entries[name].fault}
        found, faults = readable(file, wanted, REQUIRED_NAMES, description.total_frames)
        entries |= {name: _Entry(fault=fault) for name, fault in faults.items()}
        try:
            # Where the file is too short or too long, the first episode that fails says where.
            for episode, parts in whole_episodes(file, episodes, list(found)):
                columns, faults = read_episode(episode, parts, found, REQUIRED_NAMES)
                check_episode(description, episode, columns)
                entries |= {name: _Entry(fault=fault) for name, fault in faults.items()}
                found = {name: feature for name, feature in found.items() if name not in faults}
                rows = slice(episode.start, episode.start + episode.length)
                _store(arrays, entries, columns, rows)
            check_rows(file, episodes, closed=not description.shares_files)
        except MisplacedRowsError as error:
            raise explain(error, file, episodes, files).error from error
        done += len(episodes)
        progress("reading columns", done, len(description.episodes))
    for name, array in arrays.items():
        sync_array(array)
        if entries[name].fault is not None:
            (folder / f"{file_name(name)}.npy").unlink()
    manifest = {name: asdict(entry) for name, entry in entries.items()}
    (folder / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _store(
    arrays: Mapping[str, np.ndarray],
    entries: dict[str, _Entry],
    columns: Mapping[str, np.ndarray],
    rows: slice,
) -> None:
    """Puts an episode's columns into the arrays at these rows."""
    for name in arrays.keys() & columns.keys():
        arrays[name][rows] = columns[name]
        if entries[name].not_finite is None and (frame := first_not_finite(columns[name])) is not None:
            entries[name] = _Entry(not_finite=rows.start + frame)
