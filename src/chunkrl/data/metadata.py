"""The metadata files of a LeRobot folder in versions 2.0 to 3.1: meta/info.json and the tasks.

`episode_metadata` reads the episodes.

Layouts (LeRobot's own, checked against data that LeRobot 0.3.3 and 0.4.4 wrote):

- v2.0, v2.1: `meta/{info.json, episodes.jsonl, tasks.jsonl}`, one parquet file an episode, one mp4 an
  episode and camera.
- v3.0, v3.1: `meta/info.json`, `meta/tasks.parquet`, `meta/episodes/chunk-*/file-*.parquet`, many episodes a
  parquet file and an mp4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chunkrl.data.parquet import all_rows
from chunkrl.errors import DatasetError
from chunkrl.files.json_files import json_lines, read_json

CURE = "fetch or write this file again"
VERSIONS = ("v2.0", "v2.1", "v3.0", "v3.1")
SHARED_FILES = ("v3.0", "v3.1")  # many episodes per file; v3.1 adds columns of texts, and no other layout
CAMERA_DTYPES = ("image", "video")
TEXT_DTYPES = ("string", "language")
NUMERIC_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


@dataclass(frozen=True)
class Feature:
    """A column as info.json declares it.

    dtype: `image`, `video`, a numpy type name, `string`, `language` (not read), or an unknown one.
    shape: of one frame, () never occurs: scalars are (1,).
    names: of the entries along the last axis (of the axes, for cameras), or None.
    fault: why nobody can use the column ("has ..."), or None.
    record: its entry in info.json.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None
    fault: str | None = None
    record: Any = field(default=None, compare=False)

    @property
    def is_camera(self) -> bool:
        """Whether the column holds images."""
        return self.fault is None and self.dtype in CAMERA_DTYPES

    @property
    def is_numeric(self) -> bool:
        """Whether the column holds numbers or booleans."""
        return self.fault is None and self.dtype in NUMERIC_DTYPES


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode lies in an mp4 file, in seconds; to_timestamp None: to the file's end."""

    file: Path
    from_timestamp: float
    to_timestamp: float | None


@dataclass(frozen=True)
class Episode:
    """One episode.

    index: the data set's `episode_index`.
    length: frames.
    start: row of its first frame in the whole data set (episodes in order of index, without gaps).
    offset: row of its first frame in `data_file`.
    tasks: the texts its metadata names.
    data_file: the parquet file with its frames.
    videos: video column -> span.
    """

    index: int
    length: int
    start: int
    offset: int
    tasks: tuple[str, ...]
    data_file: Path
    videos: Mapping[str, VideoSpan]


@dataclass(frozen=True)
class Info:
    """The part of info.json that reading needs. fps: frames per second."""

    file: Path
    version: str
    fps: float
    robot_type: str | None
    features: Mapping[str, Feature]
    data_path: str
    video_path: str | None
    chunks_size: int
    num_episodes: int
    num_frames: int

    @property
    def shares_files(self) -> bool:
        """Whether several episodes stand in one file."""
        return self.version in SHARED_FILES


def whole(value: Any) -> Any:
    """12.0 as 12: tables that went through pandas with missing values have floats. All else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def integer(record: Mapping[str, Any], key: str, where: str, minimum: int = 0) -> int:
    """The record's integer of this name, which may stand as 12.0.

    Raises:
        DatasetError: it is none, or smaller than `minimum`.
    """
    value = whole(record.get(key))
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value < 2**62:
        raise DatasetError(f"{where}: '{key}' is {value!r}, expected an integer >= {minimum}: correct it")
    return value


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, Mapping):  # {"motors": [...]} or {"x": 0, "y": 1}, both in use
        places = list(value.values())
        lists = [item for item in places if isinstance(item, Sequence) and not isinstance(item, str)]
        if all(isinstance(place, int) for place in places):
            value = sorted(value, key=value.__getitem__)
        else:
            value = [name for item in lists for name in item] if lists else list(value)
    return tuple(str(name) for name in value) if isinstance(value, list) else None


def _feature(name: str, record: Any) -> Feature:
    """What cannot be read has a `fault`: it stops only those who ask for the column."""
    dtype = record.get("dtype") if isinstance(record, Mapping) else None
    if not isinstance(dtype, str):
        return Feature(name, str(dtype), (), None, "has no 'dtype'", record)
    shape, names = record.get("shape"), _names(record.get("names"))
    sizes = [whole(size) for size in shape] if isinstance(shape, list) else None
    fault = None
    if dtype not in (*CAMERA_DTYPES, *NUMERIC_DTYPES, *TEXT_DTYPES):
        fault = f"has the unknown dtype {dtype!r}"
    elif sizes is None or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        fault = f"has shape {shape!r}, expected a list of positive integers"
    return Feature(name, dtype, () if fault else tuple(sizes or ()) or (1,), names, fault, record)


def read_info(root: Path) -> Info:
    """meta/info.json of the data set at `root`.

    Raises:
        DatasetError: the file is missing, damaged, of an unknown version or lacks an entry.
    """
    file = root / "meta" / "info.json"
    if not file.exists():
        raise DatasetError(
            f"{root} is not a LeRobot data set, it has no meta/info.json: name the folder above meta/"
        )
    record = read_json(file, dict, DatasetError, CURE)
    version = record.get("codebase_version")
    if version not in VERSIONS:
        raise DatasetError(
            f"{file}: codebase_version is {version!r}, readable are {', '.join(VERSIONS)}: "
            "convert the data set"
        )
    fps = record.get("fps")
    if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not (0 < fps < math.inf):
        raise DatasetError(f"{file}: 'fps' is {fps!r}, expected a positive number: correct it")
    features = record.get("features")
    if not isinstance(features, Mapping) or not features:
        raise DatasetError(f"{file}: 'features' is missing or empty: fetch or write this file again")
    data_path, video_path = record.get("data_path"), record.get("video_path")
    if not isinstance(data_path, str):
        raise DatasetError(f"{file}: 'data_path' is {data_path!r}, expected a path template: correct it")
    robot_type = record.get("robot_type")
    return Info(
        file=file,
        version=version,
        fps=float(fps),
        robot_type=robot_type if isinstance(robot_type, str) else None,
        features={name: _feature(name, item) for name, item in features.items()},
        data_path=data_path,
        video_path=video_path if isinstance(video_path, str) else None,
        chunks_size=1 if version in SHARED_FILES else integer(record, "chunks_size", str(file), 1),
        num_episodes=integer(record, "total_episodes", str(file)),
        num_frames=integer(record, "total_frames", str(file)),
    )


def metadata_files(root: Path, version: str) -> list[Path]:
    """The metadata files that tasks and episodes are read from, info.json first."""
    meta = root / "meta"
    if version in SHARED_FILES:
        return [
            meta / "info.json",
            meta / "tasks.parquet",
            *sorted(meta.glob("episodes/chunk-*/file-*.parquet")),
        ]
    return [meta / "info.json", meta / "tasks.jsonl", meta / "episodes.jsonl"]


def read_tasks(root: Path, version: str) -> dict[int, str]:
    """Task index -> text, from meta/tasks.jsonl or meta/tasks.parquet.

    Raises:
        DatasetError: the file is missing or damaged, or gives an index or a text twice.
    """
    file = metadata_files(root, version)[1]
    if version in SHARED_FILES:
        rows = [(str(file), row) for row in all_rows(file)]
        # LeRobot writes the text as an unnamed pandas index.
        rows = [(where, {"task": row.get("__index_level_0__"), **row}) for where, row in rows]
    else:
        rows = list(json_lines(file, DatasetError, CURE))
    tasks: dict[int, str] = {}
    for where, row in rows:
        index, text = integer(row, "task_index", where), row.get("task")
        if not isinstance(text, str):
            raise DatasetError(f"{where}: task {index} has no text: write 'task' for it")
        if index in tasks:
            raise DatasetError(f"{where}: task index {index} occurs twice: keep one")
        tasks[index] = text
    return tasks
