"""The metadata files of a LeRobot folder: meta/info.json, tasks and episodes, in versions 2.0, 2.1 and 3.0.

Layouts (LeRobot's own, checked against data that LeRobot 0.3.3 and 0.4.4 wrote):

- v2.0, v2.1: `meta/{info.json, episodes.jsonl, tasks.jsonl}`, one parquet file an episode, one mp4 an
  episode and camera.
- v3.0: `meta/info.json`, `meta/tasks.parquet`, `meta/episodes/chunk-*/file-*.parquet`, many episodes a
  parquet file and an mp4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chunkrl.data.parquet import all_rows, reading
from chunkrl.data.problems import Report
from chunkrl.errors import DatasetError

VERSIONS = ("v2.0", "v2.1", "v3.0")
CAMERA_DTYPES = ("image", "video")
NUMERIC_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


@dataclass(frozen=True)
class Feature:
    """A column as info.json declares it.

    dtype: `image`, `video`, a numpy type name, or `string`.
    shape: of one frame, () never occurs: scalars are (1,).
    names: of the entries along the last axis (of the axes, for cameras), or None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None

    @property
    def is_camera(self) -> bool:
        """Whether the column holds pictures."""
        return self.dtype in CAMERA_DTYPES

    @property
    def is_numeric(self) -> bool:
        """Whether the column holds numbers or booleans."""
        return self.dtype in NUMERIC_DTYPES


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
    """The part of info.json that reading needs. fps: frames a second."""

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


def _integer(record: Mapping[str, Any], key: str, where: str, minimum: int = 0) -> int:
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value < 2**62:
        raise DatasetError(f"{where}: '{key}' is {value!r}, expected an integer >= {minimum}: correct it")
    return value


def _load_json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{where}: not valid JSON ({error}): fetch or write this file again") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: expected a JSON object: fetch or write this file again")
    return value


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, Mapping):  # {"motors": [...]} or {"x": 0, "y": 1}, both in use
        lists = [item for item in value.values() if isinstance(item, Sequence) and not isinstance(item, str)]
        value = [name for item in lists for name in item] if lists else list(value)
    return tuple(str(name) for name in value) if isinstance(value, list) else None


def _feature(name: str, record: Any, file: Path) -> Feature:
    where = f"{file}: feature '{name}'"
    if not isinstance(record, Mapping) or not isinstance(record.get("dtype"), str):
        raise DatasetError(f"{where} has no 'dtype': correct info.json")
    if record["dtype"] not in (*CAMERA_DTYPES, *NUMERIC_DTYPES, "string"):
        raise DatasetError(f"{where} has the unknown dtype {record['dtype']!r}: correct info.json")
    shape = record.get("shape")
    sizes = shape if isinstance(shape, list) else None
    if sizes is None or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise DatasetError(
            f"{where} has shape {shape!r}, expected a list of positive integers: correct info.json"
        )
    return Feature(name, record["dtype"], tuple(sizes) or (1,), _names(record.get("names")))


def read_info(root: Path) -> Info:
    """meta/info.json of the data set at `root`.

    Raises:
        DatasetError: the file is missing, damaged, of an unknown version or lacks an entry.
    """
    file = root / "meta" / "info.json"
    if not file.is_file():
        raise DatasetError(
            f"{root} is not a LeRobot data set, it has no meta/info.json: name the folder above meta/"
        )
    with reading(file):
        text = file.read_text(encoding="utf-8")
    record = _load_json(text, str(file))
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
        features={name: _feature(name, item, file) for name, item in features.items()},
        data_path=data_path,
        video_path=video_path if isinstance(video_path, str) else None,
        chunks_size=_integer(record, "chunks_size", str(file), 1) if version != "v3.0" else 1,
        num_episodes=_integer(record, "total_episodes", str(file)),
        num_frames=_integer(record, "total_frames", str(file)),
    )


def metadata_files(root: Path, version: str) -> list[Path]:
    """The metadata files that tasks and episodes are read from, info.json first."""
    meta = root / "meta"
    if version == "v3.0":
        return [
            meta / "info.json",
            meta / "tasks.parquet",
            *sorted(meta.glob("episodes/chunk-*/file-*.parquet")),
        ]
    return [meta / "info.json", meta / "tasks.jsonl", meta / "episodes.jsonl"]


def _json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with reading(file):
        text = file.read_text(encoding="utf-8")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file}, line {number}", _load_json(line, f"{file}, line {number}")


def read_tasks(root: Path, version: str) -> dict[int, str]:
    """Task index -> text, from meta/tasks.jsonl or meta/tasks.parquet.

    Raises:
        DatasetError: the file is missing or damaged, or gives an index or a text twice.
    """
    file = metadata_files(root, version)[1]
    if version == "v3.0":
        rows = [(str(file), row) for row in all_rows(file)]
        # LeRobot writes the text as an unnamed pandas index.
        rows = [(where, {"task": row.get("__index_level_0__"), **row}) for where, row in rows]
    else:
        rows = list(_json_lines(file))
    tasks: dict[int, str] = {}
    for where, row in rows:
        index, text = _integer(row, "task_index", where), row.get("task")
        if not isinstance(text, str):
            raise DatasetError(f"{where}: task {index} has no text: write 'task' for it")
        if index in tasks:
            raise DatasetError(f"{where}: task index {index} occurs twice: keep one")
        tasks[index] = text
    return tasks


def _path(root: Path, info: Info, template: str | None, what: str, **values: Any) -> Path:
    if template is None:
        raise DatasetError(f"{info.file}: '{what}' is missing, but the data set has video columns: add it")
    try:
        relative = Path(template.format(**values))
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"{info.file}: '{what}' is {template!r}, which {info.version} cannot fill in ({error!r}): "
            "correct it"
        ) from error
    # A data set from elsewhere must not make us read files outside it.
    if relative.is_absolute() or ".." in relative.parts or "\0" in str(relative):
        raise DatasetError(
            f"{info.file}: '{what}' is {template!r}, which leaves the data set's folder: correct it"
        )
    return root / relative


def _episode_v2(root: Path, info: Info, row: dict[str, Any], videos: Sequence[str], where: str) -> Episode:
    index = _integer(row, "episode_index", where)
    values = {"episode_index": index, "episode_chunk": index // info.chunks_size}
    spans = {
        key: VideoSpan(_path(root, info, info.video_path, "video_path", video_key=key, **values), 0.0, None)
        for key in videos
    }
    return Episode(
        index=index,
        length=_integer(row, "length", f"{where}, episode {index}"),
        start=0,
        offset=0,
        tasks=_texts(row, f"{where}, episode {index}"),
        data_file=_path(root, info, info.data_path, "data_path", **values),
        videos=spans,
    )


def _texts(row: dict[str, Any], where: str) -> tuple[str, ...]:
    texts = row.get("tasks")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DatasetError(f"{where}: 'tasks' is {texts!r}, expected a list of texts: correct it")
    return tuple(texts)


def _episode_v3(root: Path, info: Info, row: dict[str, Any], videos: Sequence[str], where: str) -> Episode:
    index = _integer(row, "episode_index", where)
    where = f"{where}, episode {index}"
    length = _integer(row, "length", where)
    span = _integer(row, "dataset_to_index", where) - _integer(row, "dataset_from_index", where)
    if span != length:
        raise DatasetError(
            f"{where}: 'length' is {length}, but its rows in the data set are {span}: correct one"
        )

    def place(prefix: str) -> dict[str, int]:
        return {key: _integer(row, f"{prefix}/{key}", where) for key in ("chunk_index", "file_index")}

    spans = {}
    for key in videos:
        begin, end = (row.get(f"videos/{key}/{side}_timestamp") for side in ("from", "to"))
        # `not begin < end` is also true of NaN.
        if not isinstance(begin, float) or not isinstance(end, float) or not 0 <= begin < end < math.inf:
            raise DatasetError(
                f"{where}: '{key}' lies from {begin!r} to {end!r} s in its video: correct this"
            )
        file = _path(root, info, info.video_path, "video_path", video_key=key, **place(f"videos/{key}"))
        spans[key] = VideoSpan(file, begin, end)
    data_file = _path(root, info, info.data_path, "data_path", **place("data"))
    return Episode(index, length, 0, 0, _texts(row, where), data_file, spans)


def read_episodes(root: Path, info: Info, videos: Sequence[str], report: Report) -> tuple[list[Episode], int]:
    """All episodes in order of their index, `start` and `offset` still 0, and the number of their rows.

    v3.0: the first `total_episodes` rows in order of the files are the data set. What stands behind them is
    what a killed writer leaves (`chunkrl.data.writer`): episodes that do not exist yet, and copies.

    videos: the video columns to locate.
    report: is told what is wrong with single episodes, which are left out where it does not raise.

    Raises:
        DatasetError: a file is missing or damaged, an entry is missing, an index occurs twice.
    """
    files = metadata_files(root, info.version)[2:]
    if not files and info.num_episodes > 0:
        raise DatasetError(
            f"{root / 'meta' / 'episodes'} has no chunk-*/file-*.parquet: fetch the data set again"
        )
    episodes: dict[int, Episode] = {}
    num_rows = 0
    for file in files:
        if info.version == "v3.0":
            rows: Any = ((str(file), row) for row in all_rows(file, skip_prefix="stats/"))
            read = _episode_v3
        else:
            rows, read = _json_lines(file), _episode_v2
        for where, row in rows:
            if info.version == "v3.0" and num_rows == info.num_episodes:
                _check_leftover(row, episodes, where)
                continue
            num_rows += 1
            index = _integer(row, "episode_index", where)
            try:
                episode = read(root, info, row, videos, where)
            except DatasetError as error:
                report(error, (index,))
                continue
            if index in episodes:
                report(DatasetError(f"{where}: episode {index} occurs twice: keep one"), (index,))
            episodes[index] = episode
    return [episodes[index] for index in sorted(episodes)], num_rows


def _check_leftover(row: dict[str, Any], episodes: Mapping[int, Episode], where: str) -> None:
    """Refuses a row behind the last episode that no killed writer leaves: the totals must be wrong."""
    index = _integer(row, "episode_index", where)
    if index not in episodes and index < max(episodes, default=-1):
        raise DatasetError(
            f"{where}: episode {index} stands behind the {len(episodes)} episodes that meta/info.json counts: "
            "correct 'total_episodes' or the order of the rows"
        )
