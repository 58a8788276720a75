"""A second, plain reader of LeRobot folders: reference libraries alone, and every second record is asked.

It says whether a difference could be known: where it reads a damaged folder without complaint, to the values that we
read, then no checksum and no redundant record of the folder speaks against them. It complains where any does: totals,
lengths, indices, times against the rate, texts of tasks in two places, declared types and shapes, recorded
statistics, places and lengths of videos, checksums of parquet pages and PNG files.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


class ContradictionError(Exception):
    """The folder speaks against itself."""


@dataclass(frozen=True)
class Content:
    """What a data set says.

    tasks: of every frame. columns: name -> [N, ...]. images: camera -> uint8 [N, 3, H, W].
    """

    fps: float
    ids: list[int]
    lengths: list[int]
    tasks: list[str]
    columns: Mapping[str, np.ndarray]
    images: Mapping[str, np.ndarray]

    def episodes(self, kept: list[int]) -> Content:
        """Those of these ids alone."""
        ends = np.cumsum(self.lengths)
        places = [self.ids.index(i) for i in kept]
        spans = [range(int(ends[p]) - self.lengths[p], int(ends[p])) for p in places]
        rows = np.array([row for span in spans for row in span], np.int64)
        return Content(
            self.fps,
            kept,
            [self.lengths[p] for p in places],
            [self.tasks[row] for row in rows],
            {name: values[rows] for name, values in self.columns.items()},
            {name: values[rows] for name, values in self.images.items()},
        )


def agree(holds: Any, what: str) -> None:
    """Complains unless it holds."""
    if not holds:
        raise ContradictionError(what)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _table(path: Path) -> pa.Table:
    return pq.read_table(path, page_checksum_verification=True)


def read_plain(root: Path) -> Content:
    """What the folder says, read plainly. Raises anything where it cannot be read or contradicts itself."""
    info = json.loads((root / "meta/info.json").read_text(encoding="utf-8"))
    features, third = info["features"], info["codebase_version"] == "v3.0"
    if third:
        tasks = {row["task_index"]: _text(row) for row in _table(root / "meta/tasks.parquet").to_pylist()}
        files = sorted(root.glob("meta/episodes/*/*.parquet"))
        rows = [row for file in files for row in _table(file).to_pylist()]
    else:
        tasks = {row["task_index"]: row["task"] for row in _lines(root / "meta/tasks.jsonl")}
        rows = _lines(root / "meta/episodes.jsonl")
    agree(len({row["episode_index"] for row in rows}) == len(rows), "an episode twice")
    rows = sorted(rows, key=lambda row: row["episode_index"])
    agree(info["total_episodes"] == len(rows), "total_episodes")
    agree(info["total_frames"] == sum(row["length"] for row in rows), "total_frames")
    parts, start = [], 0
    tables: dict[Path, pa.Table] = {}
    for row in rows:
        parts.append(_episode(root, info, row, start, tables))
        start += row["length"]
        _check_tasks(parts[-1], row, tasks)
    used = {row for part in parts for row in part["task_index"].tolist()}
    agree(used <= set(tasks), "a task without text")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    _check_statistics(root, info, rows, parts, columns)
    images = {}
    for name, feature in features.items():
        if feature["dtype"] == "image":
            images[name] = _pictures(name, feature, rows, tables, info, root)
        elif feature["dtype"] == "video":
            images[name] = _video(name, feature, rows, columns["timestamp"], info, root)
    return Content(
        float(info["fps"]),
        [row["episode_index"] for row in rows],
        [row["length"] for row in rows],
        [tasks[index] for index in columns["task_index"].tolist()],
        columns,
        images,
    )


def _text(row: Mapping[str, Any]) -> str:
    return row.get("task") or row["__index_level_0__"]


def _places(info: Mapping[str, Any], row: Mapping[str, Any], prefix: str) -> dict[str, int]:
    if info["codebase_version"] == "v3.0":
        return {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}
    index = row["episode_index"]
    return {"episode_index": index, "episode_chunk": index // info["chunks_size"]}


def _episode(
    root: Path, info: Mapping[str, Any], row: Mapping[str, Any], start: int, tables: dict[Path, pa.Table]
) -> dict[str, np.ndarray]:
    """Its numeric columns, from the rows that say they are its own."""
    path = root / info["data_path"].format(**_places(info, row, "data"))
    table = tables.setdefault(path, _table(path) if path not in tables else tables[path])
    agree(len(set(table.schema.names)) == len(table.schema.names), "a column twice")
    own = np.flatnonzero(np.array(table["episode_index"].to_pylist()) == row["episode_index"])
    length = row["length"]
    agree(len(own) == length > 0 and own[-1] - own[0] == length - 1, "rows of the episode")
    if info["codebase_version"] == "v3.0":
        agree(row["dataset_to_index"] - row["dataset_from_index"] == length, "dataset_to_index")
        agree(row["dataset_from_index"] == start, "dataset_from_index")
    else:
        agree(table.num_rows == length, "rows of the file")
    found = {}
    for name, feature in info["features"].items():
        if feature["dtype"] in ("image", "video", "string"):
            continue
        values = np.array(table[name].slice(int(own[0]), length).to_pylist())
        shape = () if feature["shape"] == [1] else tuple(feature["shape"])
        declared = np.dtype(feature["dtype"])
        agree(values.dtype.kind == declared.kind and values.shape == (length, *shape), f"type of {name}")
        found[name] = values.astype(declared)
        agree((found[name] == values).all() or declared == np.float32 or values.dtype.kind == "f", name)
    agree(np.array_equal(found["frame_index"], np.arange(length)), "frame_index")
    agree(np.array_equal(found["index"], start + np.arange(length)), "index")
    times = found["timestamp"].astype(np.float64)
    agree(np.allclose(times * info["fps"], np.arange(length), rtol=0.05, atol=0.05), "timestamp")
    return found


def _check_tasks(part: Mapping[str, np.ndarray], row: Mapping[str, Any], tasks: Mapping[int, str]) -> None:
    texts = {tasks[index] for index in part["task_index"].tolist()}
    agree(texts <= set(row["tasks"]), "tasks of the episode")


def _check_statistics(
    root: Path,
    info: Mapping[str, Any],
    rows: list[dict[str, Any]],
    parts: list[dict[str, np.ndarray]],
    columns: Mapping[str, np.ndarray],
) -> None:
    """All that are recorded: of the whole, and of each episode."""
    file = root / "meta/stats.json"
    if file.exists():
        _within(columns, json.loads(file.read_text(encoding="utf-8")))
    file = root / "meta/episodes_stats.jsonl"
    if file.exists():
        for line in _lines(file):
            _within(parts[[row["episode_index"] for row in rows].index(line["episode_index"])], line["stats"])
    for row, part in zip(rows, parts, strict=True):
        stats: dict[str, dict[str, Any]] = {}
        for key, value in row.items():
            if key.startswith("stats/"):
                name, kind = key.removeprefix("stats/").rsplit("/", 1)
                stats.setdefault(name, {})[kind] = value
        _within(part, stats)


def _within(columns: Mapping[str, np.ndarray], stats: Mapping[str, Mapping[str, Any]]) -> None:
    for name, found in stats.items():
        if name not in columns or name in INDEX_COLUMNS:
            continue
        values = columns[name].reshape(len(columns[name]), -1).astype(np.float64)
        agree(np.isfinite(values).all(), f"{name} is not finite")
        low, high = (np.array(found[kind], np.float64).reshape(-1) for kind in ("min", "max"))
        agree(len(low) == values.shape[1], f"statistics of {name}")
        slack = 1e-4 * np.maximum(np.abs(low), np.abs(high)) + 1e-6
        agree((values >= low - slack).all() and (values <= high + slack).all(), f"{name} and its statistics")


def _pictures(
    name: str,
    feature: Mapping[str, Any],
    rows: list[dict[str, Any]],
    tables: Mapping[Path, pa.Table],
    info: Mapping[str, Any],
    root: Path,
) -> np.ndarray:
    found = []
    for row in rows:
        table = tables[root / info["data_path"].format(**_places(info, row, "data"))]
        own = np.flatnonzero(np.array(table["episode_index"].to_pylist()) == row["episode_index"])
        for cell in table[name].slice(int(own[0]), row["length"]).to_pylist():
            Image.open(io.BytesIO(cell["bytes"])).verify()
            found.append(_pixels(np.asarray(Image.open(io.BytesIO(cell["bytes"]))), feature))
    return np.stack(found)


def _pixels(picture: np.ndarray, feature: Mapping[str, Any]) -> np.ndarray:
    agree(list(picture.shape) == feature["shape"] and picture.dtype == np.uint8, "shape of an image")
    return picture.transpose(2, 0, 1)


def _video(
    name: str,
    feature: Mapping[str, Any],
    rows: list[dict[str, Any]],
    timestamp: np.ndarray,
    info: Mapping[str, Any],
    root: Path,
) -> np.ndarray:
    decoded: dict[Path, tuple[np.ndarray, list[np.ndarray]]] = {}
    ends: dict[Path, float] = {}
    found, start = [], 0
    for row in rows:
        places = _places(info, row, f"videos/{name}") | {"video_key": name}
        path = root / info["video_path"].format(**places)
        if path not in decoded:
            decoded[path] = _decode(path)
        begin, end = 0.0, row["length"] / info["fps"]
        if info["codebase_version"] == "v3.0":
            begin, end = (row[f"videos/{name}/{side}_timestamp"] for side in ("from", "to"))
        agree(abs(end - begin - row["length"] / info["fps"]) < 0.5 / info["fps"], "length of the span")
        agree(abs(begin - ends.get(path, 0.0)) < 0.5 / info["fps"], "spans leave a gap or overlap")
        ends[path] = end
        times, pictures = decoded[path]
        for wanted in begin + timestamp[start : start + row["length"]].astype(np.float64):
            nearest = int(np.abs(times - wanted).argmin())
            agree(abs(times[nearest] - wanted) <= 0.5 / info["fps"], "a frame of the video")
            found.append(_pixels(pictures[nearest], feature))
        start += row["length"]
    for path, end in ends.items():
        agree(decoded[path][0][-1] < end + 0.45 / info["fps"], "frames after the last span")
    return np.stack(found)


def _decode(path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    times, pictures = [], []
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"err_detect": "explode"}
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            agree(
                not frame.is_corrupt and frame.pts is not None and stream.time_base is not None,
                "a corrupt frame",
            )
            times.append(float(frame.pts * stream.time_base))  # type: ignore[operator]
            pictures.append(frame.to_ndarray(format="rgb24"))
    return np.array(times), pictures
