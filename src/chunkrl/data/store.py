"""Numeric columns of a data set as memory-mapped arrays in a cache folder, checked once when they are built.

The cache: `$CHUNKRL_CACHE` or `~/.cache/chunkrl`, a folder a fingerprint. Whatever appears in it under its
final name is whole: it is built beside it, under a lock, and renamed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from chunkrl.data.formats import DatasetDescription
from chunkrl.data.metadata import Episode, Feature, open_parquet, reading
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.progress import Progress

BATCH_ROWS = 4096
_MANIFEST = "columns.json"
_DTYPES = ("float16", "float32", "float64", "bool") + tuple(
    f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)
)


def cache_folder(description: DatasetDescription, cache_dir: Path | None) -> Path:
    """The data set's folder in the cache; it need not exist."""
    chosen = cache_dir or os.environ.get("CHUNKRL_CACHE") or Path.home() / ".cache" / "chunkrl"
    return Path(chosen).expanduser().resolve() / description.fingerprint


def file_name(column: str) -> str:
    """A file name for a column, whose own name may hold a slash."""
    return quote(column, safe="")


def ensure(target: Path, build: Callable[[Path], None], resume: bool = False) -> None:
    """Makes sure that the folder `target` exists and is whole; one process builds, others wait for it.

    Args:
        target: the folder.
        build: fills the folder it is given, which becomes `target` when it returns.
        resume: `build` is given what a killed build left, rather than an empty folder.
    """
    if target.is_dir():
        return
    building = target.with_name(target.name + ".building")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if target.is_dir():
                return
            if building.exists() and not resume:
                shutil.rmtree(building)
            building.mkdir(exist_ok=True)
            build(building)
            building.replace(target)
    except PermissionError as error:
        raise ChunkRLError(
            f"{error.filename}: the cache cannot be written: set CHUNKRL_CACHE elsewhere"
        ) from error


def create_array(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped .npy file whose blocks are reserved: writing it later cannot hit a full disk.

    Raises:
        ChunkRLError: the disk has not enough space.
    """
    needed = math.prod(shape) * dtype.itemsize
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise ChunkRLError(
            f"{file.parent}: the cache needs {needed / 1e9:.2f} GB more, {free / 1e9:.2f} GB are free: "
            "free some, or set CHUNKRL_CACHE to a larger disk"
        )
    array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with file.open("r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
            except OSError as error:
                raise ChunkRLError(
                    f"{file}: cannot reserve {needed / 1e9:.2f} GB ({error}): free some"
                ) from error
    return array


def by_data_file(episodes: Sequence[Episode]) -> Iterator[tuple[Path, list[Episode]]]:
    """Runs of consecutive episodes that share a parquet file, which holds them and nothing else."""
    seen: set[Path] = set()
    for file, group in groupby(episodes, key=lambda episode: episode.data_file):
        run = list(group)
        if file in seen:
            raise DatasetError(
                f"{file}: episode {run[0].index} stands apart from its neighbours: write in order"
            )
        seen.add(file)
        yield file, run


def row_batches(file: Path, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The columns of a parquet file in batches of rows, row group by row group.

    Raises:
        DatasetError: the file is missing or damaged, or lacks a column.
    """
    with reading(file), open_parquet(file) as parquet:
        names = parquet.schema_arrow.names
        for column in columns:
            if names.count(column) != 1:
                raise DatasetError(
                    f"{file}: column '{column}', which meta/info.json declares, occurs {names.count(column)} times: "
                    "write the file again"
                )
        for batch in parquet.iter_batches(batch_rows, columns=list(columns), use_threads=False):
            yield batch.select(list(columns))


def _values(array: pa.Array, feature: Feature, where: str) -> np.ndarray:
    """Rows of a column as numpy [rows, *shape]."""
    rows = len(array)
    for size in feature.shape:
        while isinstance(array, pa.ExtensionArray):
            array = array.storage
        if (
            not hasattr(array, "flatten")
            or pa.types.is_struct(array.type)
            or not pa.types.is_nested(array.type)
        ):
            break
        if array.null_count or not pc.all(pc.equal(pc.list_value_length(array), size)).as_py():
            raise DatasetError(
                f"{where}: a row has not the shape {list(feature.shape)} of meta/info.json: correct it"
            )
        array = array.flatten()
    target = pa.from_numpy_dtype(np.dtype(feature.dtype))
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    if pa.types.is_nested(array.type) or not any(kind(array.type) and kind(target) for kind in kinds):
        raise DatasetError(f"{where}: holds {array.type}, meta/info.json says {feature.dtype}: correct one")
    if array.null_count or len(array) != rows * math.prod(feature.shape):
        raise DatasetError(
            f"{where}: empty values, or not {list(feature.shape)} in each row: write the file again"
        )
    values = array.cast(target).to_numpy(zero_copy_only=False)
    return values.reshape(rows, *feature.shape)


class Columns:
    """The numeric columns of a data set: memory-mapped, [N] or [N, ...], rows in order of the episodes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest: dict[str, int | None] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self._manifest)

    def first_not_finite(self, name: str) -> int | None:
        """The first row of the column with a NaN or an infinite value."""
        return self._manifest[name]

    def read(self, name: str, dtype: type[np.generic] | None = None) -> np.ndarray:
        """The column, read-only; as `dtype` where given (converted once, into the cache)."""
        array = np.load(self._folder / f"{file_name(name)}.npy", mmap_mode="r")
        if dtype is None or array.dtype == dtype:
            return array
        target = self._folder / f"{file_name(name)}.{np.dtype(dtype).name}"

        def convert(folder: Path) -> None:
            converted = create_array(folder / "values.npy", np.dtype(dtype), array.shape)
            for start in range(0, len(array), BATCH_ROWS):
                converted[start : start + BATCH_ROWS] = array[start : start + BATCH_ROWS]
            converted.flush()

        ensure(target, convert)
        return np.load(target / "values.npy", mmap_mode="r")


def open_columns(description: DatasetDescription, folder: Path, progress: Progress) -> Columns:
    """The data set's columns, read and checked on first use.

    Raises:
        DatasetError: a file is missing, damaged or disagrees with the metadata.
        ChunkRLError: the cache has no space or cannot be written.
    """
    target = folder / "columns"
    ensure(target, lambda building: _build(description, building, progress))
    return Columns(target)


def _build(description: DatasetDescription, folder: Path, progress: Progress) -> None:
    features = {name: f for name, f in description.features.items() if f.dtype in _DTYPES}
    arrays = {}
    for name, feature in features.items():
        shape = () if feature.shape == (1,) else feature.shape  # info.json writes scalars as [1]
        file = folder / f"{file_name(name)}.npy"
        arrays[name] = create_array(file, np.dtype(feature.dtype), (description.num_frames, *shape))
    not_finite: dict[str, int | None] = dict.fromkeys(features)
    done = 0
    for file, episodes in by_data_file(description.episodes):
        _fill(file, episodes, features, arrays, not_finite)
        for episode in episodes:
            _check_episode(description, episode, arrays)
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
) -> None:
    """Copies the file's rows to the rows of its episodes."""
    first, expected = episodes[0].start, sum(episode.length for episode in episodes)
    row = 0
    for batch in row_batches(file, list(features), BATCH_ROWS):
        if row + len(batch) > expected:
            row += len(batch)
            continue  # counted on, for the message
        for name, feature in features.items():
            with reading(file):
                values = _values(batch.column(name), feature, f"{file}, column '{name}'")
            target = arrays[name][first + row : first + row + len(batch)]
            target[...] = values.reshape(target.shape)
            if not_finite[name] is None and values.dtype.kind == "f":
                finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
                if not finite.all():
                    not_finite[name] = first + row + int(np.argmin(finite))
        row += len(batch)
    if row != expected:
        names = f"episode {episodes[0].index}" + (f" to {episodes[-1].index}" if len(episodes) > 1 else "")
        raise DatasetError(
            f"{file}: has {row} rows, the metadata gives {names} {expected} frames: "
            "fetch the file again or correct the metadata"
        )


def _check_episode(
    description: DatasetDescription, episode: Episode, arrays: Mapping[str, np.memmap]
) -> None:
    """Checks the columns that every data set has, for one episode."""
    rows = slice(episode.start, episode.start + episode.length)
    where = f"{episode.data_file}, episode {episode.index}"

    def frame(good: np.ndarray) -> int:
        return int(np.argmin(good))

    def column(name: str) -> np.ndarray:
        return arrays[name][rows]

    good = column("episode_index") == episode.index
    if not good.all():
        raise DatasetError(
            f"{where}, frame {frame(good)}: belongs to episode {column('episode_index')[frame(good)]} by its "
            "episode_index: correct the lengths in the metadata or the column"
        )
    good = column("frame_index") == np.arange(episode.length)
    if not good.all():
        raise DatasetError(
            f"{where}, frame {frame(good)}: frame_index is {column('frame_index')[frame(good)]}: "
            "frames must stand in order without gaps; write the file again"
        )
    times = column("timestamp").astype(np.float64)
    good = np.isfinite(times) & (np.diff(times, prepend=-np.inf) > 0)
    if not good.all():
        raise DatasetError(
            f"{where}, frame {frame(good)}: timestamp {times[frame(good)]} s does not grow: "
            "timestamps must increase from frame to frame; write the file again"
        )
    step = (times[-1] - times[0]) / max(1, episode.length - 1)
    if episode.length > 1 and not 0.75 < step * description.fps < 1.25:
        raise DatasetError(
            f"{where}: frames are {step:.4g} s apart, meta/info.json says {description.fps:g} a second: correct one"
        )
    texts = _check_tasks(description, column("task_index"), where)
    if episode.tasks and not texts <= set(episode.tasks):
        raise DatasetError(
            f"{where}: its frames say {sorted(texts)}, the episode's metadata {sorted(episode.tasks)}: correct one"
        )


def _check_tasks(description: DatasetDescription, indices: np.ndarray, where: str) -> set[str]:
    """The texts of the tasks, which must all be known."""
    for index in np.unique(indices).tolist():
        if index not in description.tasks:
            known = ", ".join(map(str, sorted(description.tasks)[:20])) or "none"
            raise DatasetError(
                f"{where}, frame {int(np.argmax(indices == index))}: task_index {index} is unknown (known: {known}): "
                "add it to meta/tasks or correct the column"
            )
    return {description.tasks[index] for index in np.unique(indices).tolist()}
