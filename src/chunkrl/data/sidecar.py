"""Labels kept beside a data set: one parquet file keyed by (episode_index, frame_index), bound to its data
set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chunkrl.data.atomic import replace_file
from chunkrl.data.frames import FrameTable
from chunkrl.errors import DatasetError

_KEY = b"chunkrl.sidecar"
_VERSION = 1
_KEYS = ("episode_index", "frame_index")


@dataclass(frozen=True)
class Sidecar:
    """arrays: name -> [N], one value a frame of the table. metadata: what the maker said of them (the rule,
    ...)."""

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any]


def _keys(table: FrameTable) -> tuple[np.ndarray, np.ndarray]:
    episode = np.repeat(table.episode_ids, table.episode_length)
    return episode, np.arange(table.num_frames) - np.repeat(table.episode_start, table.episode_length)


def save_sidecar(
    path: str | Path, table: FrameTable, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
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


def load_sidecar(path: str | Path, table: FrameTable) -> Sidecar:
    """Labels of the table's frames, in its order.

    Raises:
        DatasetError: the file is missing or damaged, was made for another data set, or misses frames.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path} is missing: make the labels again (chunkrl label)")
    try:
        stored = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}): make the labels again (chunkrl label)"
        ) from error
    raw = (stored.schema.metadata or {}).get(_KEY)
    if raw is None or set(_KEYS) - set(stored.schema.names):
        raise DatasetError(f"{path} is no file of labels of this project: make the labels with chunkrl label")
    header = json.loads(raw)
    if header["version"] != _VERSION:
        raise DatasetError(
            f"{path}: label format {header['version']}, this release reads {_VERSION}: make it again"
        )
    if header["fingerprint"] != table.description.fingerprint:
        raise DatasetError(
            f"{path} was made for another data set, or {table.description.root} has changed since: "
            "make the labels again (chunkrl label)"
        )
    episode, frame = (stored[name].to_numpy() for name in _KEYS)
    order = np.lexsort((frame, episode))
    expected_episode, expected_frame = _keys(table)
    position = np.lexsort((expected_frame, expected_episode))
    matches = (
        len(order) == table.num_frames
        and np.array_equal(episode[order], expected_episode[position])
        and np.array_equal(frame[order], expected_frame[position])
    )
    if not matches:
        raise DatasetError(f"{path} does not have exactly one row for each frame: make the labels again")
    source = np.empty_like(order)
    source[position] = order
    names = [name for name in stored.schema.names if name not in _KEYS]
    return Sidecar({name: stored[name].to_numpy()[source] for name in names}, header["metadata"])
