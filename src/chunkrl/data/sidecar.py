"""Labels kept beside a data set: one parquet file keyed by (episode_index, frame_index), bound to its data
set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chunkrl.data.formats import DatasetDescription, part_fingerprint
from chunkrl.data.parquet import open_parquet
from chunkrl.errors import DatasetError
from chunkrl.files.atomic import replace_file
from chunkrl.files.json_files import parse_json
from chunkrl.files.regular_files import check_regular

_KEY = b"chunkrl.sidecar"
_VERSION = 1
_KEYS = ("episode_index", "frame_index")
_CURE = "make the labels again (chunkrl label)"


@dataclass(frozen=True)
class Sidecar:
    """arrays: name -> [N], one value per frame of the table. metadata: what the maker said of them (the rule,
    ...)."""

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any]


class FrameRows(Protocol):
    """Which episodes of a data set the rows of arrays [N] are of, as a `FrameTable` says it."""

    @property
    def description(self) -> DatasetDescription: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def episode_ids(self) -> np.ndarray: ...
    @property
    def episode_start(self) -> np.ndarray: ...
    @property
    def episode_length(self) -> np.ndarray: ...


def _keys(table: FrameRows) -> tuple[np.ndarray, np.ndarray]:
    episode = np.repeat(table.episode_ids, table.episode_length)
    return episode, np.arange(table.num_frames) - np.repeat(table.episode_start, table.episode_length)


def save_sidecar(
    path: str | Path, table: FrameRows, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """Write arrays [N] of labels of the table's frames, whole or not at all.

    metadata: anything JSON can hold: the rule that made the labels, discount, folds, network version.

    Raises:
        DatasetError: an array of another length or a taken name; the file cannot be written.
    """
    for name, values in arrays.items():
        if values.shape != (table.num_frames,) or name in _KEYS:
            raise DatasetError(
                f"{path}: label '{name}' has shape {values.shape}, expected [{table.num_frames}]"
            )
    header = {"version": _VERSION, "fingerprint": table.description.fingerprint, "metadata": dict(metadata)}
    columns = dict(zip(_KEYS, _keys(table), strict=True)) | dict(arrays)
    stored = pa.table({name: pa.array(values) for name, values in columns.items()})
    with replace_file(Path(path)) as temporary:
        pq.write_table(stored.replace_schema_metadata({_KEY: json.dumps(header)}), temporary)


def is_sidecar(path: Path) -> bool:
    """Whether a parquet file is one of labels of this project. Raises DatasetError where it is damaged."""
    return _KEY in (_schema(path).metadata or {})


def read_metadata(path: Path) -> dict[str, Any]:
    """What the maker said of the labels, whatever data set they are of. Raises DatasetError: no whole file."""
    return _read_header(path, _schema(path))["metadata"]


def _schema(path: Path) -> pa.Schema:
    check_regular(path, DatasetError, _CURE)
    try:
        with open_parquet(path) as file:
            return file.schema_arrow
    except (pa.ArrowException, OSError, MemoryError, ValueError, OverflowError) as error:
        raise DatasetError(f"{path} cannot be read ({error}): delete it, or {_CURE}") from error


def load_sidecar(
    path: str | Path, table: FrameRows, of_whole: bool = False, rewritten: bool = False
) -> Sidecar:
    """Labels of the table's frames, in its order.

    of_whole: the file may be of more episodes of the data set than the table has.
    rewritten: the data set is known to be the file's, though its own files may have been merged since.

    Raises:
        DatasetError: the file is missing or damaged, was made for another data set, misses frames, or holds other
            things than one number or boolean a frame.
    """
    path = Path(path)
    header, columns = _read(path, table)
    found, own = header.get("fingerprint"), table.description.fingerprint
    if of_whole and found != own and found in _fingerprints(table.description, columns):
        kept = np.isin(columns[_KEYS[0]], table.episode_ids)
        columns = {name: values[kept] for name, values in columns.items()}
    elif found != own and not rewritten:
        of_part = found in _fingerprints(table.description, columns)
        raise DatasetError((_of_other_episodes if of_part else _of_others)(path, table))
    episode, frame = (columns.pop(name) for name in _KEYS)
    order = np.lexsort((frame, episode))
    expected_episode, expected_frame = _keys(table)
    position = np.lexsort((expected_frame, expected_episode))
    matches = (
        len(order) == table.num_frames
        and np.array_equal(episode[order], expected_episode[position])
        and np.array_equal(frame[order], expected_frame[position])
    )
    if not matches:
        raise DatasetError(_rows_differ(path))
    source = np.empty_like(order)
    source[position] = order
    return Sidecar({name: values[source] for name, values in columns.items()}, header["metadata"])


def is_of(path: Path, table: FrameRows) -> bool:
    """Whether a file is of the table's data set, or of a part of it. Raises DatasetError where it is damaged."""
    header, columns = _read(path, table, _KEYS[:1])
    return header.get("fingerprint") in _fingerprints(table.description, columns)


def load_part(path: Path, table: FrameRows) -> tuple[Sidecar, np.ndarray]:
    """What a file says of those episodes of the table that it has, and bool [N], their frames.

    The arrays are [N]: zeros where the file says nothing.

    Raises:
        DatasetError: as `load_sidecar`.
    """
    header, columns = _read(path, table)
    if header.get("fingerprint") not in _fingerprints(table.description, columns):
        raise DatasetError(_of_others(path, table))
    episode, frame = (columns.pop(name) for name in _KEYS)
    place = {int(index): position for position, index in enumerate(table.episode_ids)}
    known = np.isin(episode, table.episode_ids)
    position = np.array([place[int(index)] for index in episode[known]], np.int64)
    frame = frame[known]
    if (frame >= table.episode_length[position]).any() or (frame < 0).any():
        raise DatasetError(f"{path} has rows of frames that {table.description.root} has not: {_CURE}")
    rows, said = table.episode_start[position] + frame, np.zeros(table.num_frames, bool)
    said[rows] = True
    arrays = {name: np.zeros(table.num_frames, values.dtype) for name, values in columns.items()}
    for name, values in columns.items():
        arrays[name][rows] = values[known]
    return Sidecar(arrays, header["metadata"]), said


def _fingerprints(description: DatasetDescription, columns: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The whole data set's, and that of the part of it whose episodes the columns are of."""
    whole = description.whole_fingerprint or description.fingerprint
    return whole, part_fingerprint(whole, np.unique(columns[_KEYS[0]]).tolist())


def _of_other_episodes(path: Path, table: FrameRows) -> str:
    return (
        f"{path} is of {table.description.root}, but not of these {len(table.episode_ids)} episodes of it: some were "
        "left out (--held-out, labels by hand, bad ones) when it was made, or are left out here: leave the same "
        "ones out of both, or make it again"
    )


def _rows_differ(path: Path) -> str:
    return f"{path} does not have exactly one row for each frame: {_CURE}"


def _of_others(path: Path, table: FrameRows) -> str:
    return f"{path} was made for another data set, or {table.description.root} has changed since: {_CURE}"


def _read(
    path: Path, table: FrameRows, only: Sequence[str] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header, and the columns (`only` these): numbers or booleans. Raises DatasetError."""
    check_regular(path, DatasetError, _CURE)
    try:
        with open_parquet(path) as file:
            header = _read_header(path, file.schema_arrow)
            _check_kinds(path, file.schema_arrow)
            if only is None and file.metadata.num_rows > max(
                table.description.total_frames, table.num_frames
            ):
                raise DatasetError(_rows_differ(path))
            stored = file.read(None if only is None else list(only), use_threads=False)
    except DatasetError:
        raise
    except (pa.ArrowException, OSError, MemoryError, ValueError, OverflowError) as error:
        raise DatasetError(f"{path} cannot be read ({error}): {_CURE}") from error
    if missing := [name for name in stored.schema.names if stored[name].null_count]:
        raise DatasetError(f"{path}, column '{missing[0]}' has missing values: {_CURE}")
    return header, {name: stored[name].to_numpy() for name in stored.schema.names}


def _read_header(path: Path, schema: pa.Schema) -> dict[str, Any]:
    """What stands in the file's own key."""
    raw, names = (schema.metadata or {}).get(_KEY), schema.names
    if raw is None or set(_KEYS) - set(names) or len(set(names)) != len(names):
        raise DatasetError(f"{path} is no file of labels of this project: make the labels with chunkrl label")
    header = parse_json(raw, dict, f"{path}, its header", DatasetError, _CURE)
    if header.get("version") != _VERSION:
        raise DatasetError(
            f"{path}: label format {header.get('version')!r}, this release reads {_VERSION}: make it again"
        )
    if not isinstance(header.get("metadata"), dict):
        raise DatasetError(f"{path}, its header: 'metadata' is no object: {_CURE}")
    return header


def _check_kinds(path: Path, schema: pa.Schema) -> None:
    """Raises DatasetError where a column holds other things than its name promises."""
    for name, kind in zip(schema.names, schema.types, strict=True):
        whole = pa.types.is_integer(kind)
        if not (whole or (name not in _KEYS and (pa.types.is_floating(kind) or pa.types.is_boolean(kind)))):
            wanted = "integers" if name in _KEYS else "numbers or booleans"
            raise DatasetError(f"{path}, column '{name}' holds {kind}, expected {wanted}: {_CURE}")
