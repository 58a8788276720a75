"""Small LeRobot data sets of every version, written without LeRobot, and what stands in them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Version = Literal["v2.0", "v2.1", "v3.0"]
TASKS = ("open the drawer", "close the drawer")
# naming -> state, action, cameras, further columns
NAMING: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "lerobot": (
        "observation.state",
        "action",
        ("observation.images.front", "observation.images.wrist"),
        ("next.reward", "next.done"),
    ),
    "openpi": ("state", "actions", ("image", "wrist_image"), ()),
    "document": ("observation/state", "action", ("observation/image",), ("reward", "subgoal")),
}
_DTYPES = {"next.done": "bool", "subgoal": "int64"}
_INDEX_DTYPES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


@dataclass(frozen=True)
class LeRobotFolder:
    """A data set on disk and its content.

    columns: name -> [N] or [N, D]. images: camera -> uint8 [N, height, width, 3]. lengths: of the episodes.
    """

    root: Path
    lengths: tuple[int, ...]
    columns: Mapping[str, np.ndarray]
    images: Mapping[str, np.ndarray]
    fps: int

    @property
    def task_texts(self) -> list[str]:
        """The task of every frame."""
        return [TASKS[index] for index in self.columns["task_index"]]


def write_lerobot_folder(
    root: Path,
    version: Version = "v3.0",
    *,
    naming: str = "lerobot",
    camera: Literal["image", "video"] | None = None,
    size: tuple[int, int] = (16, 16),
    lengths: Sequence[int] = (5, 3, 4),
    episodes_per_file: int = 2,
    row_group_size: int = 1000,
    fps: int = 10,
    seed: int = 0,
) -> LeRobotFolder:
    """Writes a data set of random numbers and images; episodes_per_file is for v3.0.

    Pages carry check sums, videos are lossless: what is read back is exact or an error.
    """
    rng = np.random.default_rng(seed)
    num = sum(lengths)
    state, action, cameras, further = NAMING[naming]
    columns: dict[str, np.ndarray] = {
        state: rng.normal(size=(num, 3)).astype(np.float32),
        action: rng.normal(size=(num, 2)).astype(np.float32),
    }
    for name in further:
        columns[name] = rng.integers(0, 2, num).astype(_DTYPES.get(name, "float32"))
    frame = np.concatenate([np.arange(length) for length in lengths])
    episode = np.repeat(np.arange(len(lengths)), lengths)
    values = (frame / fps, frame, episode, np.arange(num), episode % len(TASKS))
    for (name, dtype), value in zip(_INDEX_DTYPES.items(), values, strict=True):
        columns[name] = value.astype(dtype)
    images = {name: rng.integers(0, 256, (num, *size, 3), dtype=np.uint8) for name in cameras if camera}
    folder = LeRobotFolder(root, tuple(lengths), columns, images, fps)
    ends = np.cumsum(lengths)
    if version == "v3.0":
        _write_v3(folder, camera, episodes_per_file, row_group_size)
    else:
        for index, (length, end) in enumerate(zip(lengths, ends, strict=True)):
            rows = slice(int(end) - length, int(end))
            _write_data(
                folder, camera, root / f"data/chunk-000/episode_{index:06d}.parquet", rows, row_group_size
            )
            if camera == "video":
                for name, pictures in images.items():
                    file = root / f"videos/chunk-000/{name}/episode_{index:06d}.mp4"
                    write_video(file, pictures[rows], fps)
        _write_lines(
            root / "meta/episodes.jsonl",
            [
                {"episode_index": index, "tasks": [TASKS[index % len(TASKS)]], "length": length}
                for index, length in enumerate(lengths)
            ],
        )
        _write_lines(
            root / "meta/tasks.jsonl",
            [{"task_index": index, "task": text} for index, text in enumerate(TASKS)],
        )
    _write_info(folder, version, camera)
    return folder


def write_video(file: Path, pictures: np.ndarray, fps: int | Fraction) -> None:
    """A lossless H.264 video of uint8 RGB [n, height, width, 3], with a key frame every 4 frames."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264rgb", rate=Fraction(fps))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "rgb24"
        stream.options = {"qp": "0", "g": "4"}
        for picture in pictures:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
            )
        container.mux(stream.encode())


def edit_json(file: Path, **changes: Any) -> None:
    """Sets entries of a JSON file; None removes one."""
    record = json.loads(file.read_text())
    record.update(changes)
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def edit_parquet(file: Path, **columns: Any) -> None:
    """Sets columns of a parquet file; None removes one."""
    table = pq.read_table(file)
    for name, value in columns.items():
        position = table.schema.get_field_index(name)
        table = table.drop_columns([name])
        if value is not None:
            table = table.add_column(position, name, pa.array(value))
    pq.write_table(table, file, write_page_checksum=True)


def _png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def _write_data(
    folder: LeRobotFolder, camera: str | None, file: Path, rows: slice, row_group_size: int
) -> None:
    columns: dict[str, pa.Array] = {}
    if camera == "image":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        for name, pictures in folder.images.items():
            records = [{"bytes": _png(p), "path": f"frame-{i:06d}.png"} for i, p in enumerate(pictures[rows])]
            columns[name] = pa.array(records, type=kind)
    for name, values in folder.columns.items():
        part = values[rows]
        if part.ndim == 2:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
        else:
            columns[name] = pa.array(part)
    _write_table(file, pa.table(columns), row_group_size)


def _write_table(file: Path, table: pa.Table, row_group_size: int = 1000) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=row_group_size, write_page_checksum=True)


def _write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def _write_v3(folder: LeRobotFolder, camera: str | None, episodes_per_file: int, row_group_size: int) -> None:
    root, starts = folder.root, np.concatenate([[0], np.cumsum(folder.lengths)])
    records: list[dict[str, Any]] = []
    for number, first in enumerate(range(0, len(folder.lengths), episodes_per_file)):
        last = min(first + episodes_per_file, len(folder.lengths))
        rows = slice(int(starts[first]), int(starts[last]))
        _write_data(folder, camera, root / f"data/chunk-000/file-{number:03d}.parquet", rows, row_group_size)
        if camera == "video":
            for name, pictures in folder.images.items():
                write_video(
                    root / f"videos/{name}/chunk-000/file-{number:03d}.mp4", pictures[rows], folder.fps
                )
        for index in range(first, last):
            record: dict[str, Any] = {
                "episode_index": index,
                "tasks": [TASKS[index % len(TASKS)]],
                "length": folder.lengths[index],
                "dataset_from_index": int(starts[index]),
                "dataset_to_index": int(starts[index + 1]),
                "data/chunk_index": 0,
                "data/file_index": number,
            }
            for name in folder.images if camera == "video" else ():
                record[f"videos/{name}/chunk_index"] = 0
                record[f"videos/{name}/file_index"] = number
                record[f"videos/{name}/from_timestamp"] = float(starts[index] - starts[first]) / folder.fps
                record[f"videos/{name}/to_timestamp"] = float(starts[index + 1] - starts[first]) / folder.fps
            record["stats/action/min"] = [0.0]
            records.append(record)
    _write_table(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(records))
    tasks = pa.table({"task_index": list(range(len(TASKS))), "__index_level_0__": list(TASKS)})
    _write_table(root / "meta/tasks.parquet", tasks)


def _write_info(folder: LeRobotFolder, version: Version, camera: str | None) -> None:
    features: dict[str, Any] = {}
    for name, pictures in folder.images.items():
        features[name] = {
            "dtype": camera,
            "shape": list(pictures.shape[1:]),
            "names": ["height", "width", "channel"],
        }
    for name, values in folder.columns.items():
        features[name] = {"dtype": values.dtype.name, "shape": list(values.shape[1:]) or [1], "names": None}
    if version == "v3.0":
        data_path = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        video_path = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    else:
        data_path = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        video_path = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    info = {
        "codebase_version": version,
        "robot_type": "panda",
        "total_episodes": len(folder.lengths),
        "total_frames": sum(folder.lengths),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "fps": folder.fps,
        "splits": {"train": f"0:{len(folder.lengths)}"},
        "data_path": data_path,
        "video_path": video_path if camera == "video" else None,
        "features": features,
    }
    (folder.root / "meta/info.json").write_text(json.dumps(info, indent=2))
