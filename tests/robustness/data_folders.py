"""Whole data sets of every version to be damaged: four episodes of about twelve frames, with recorded statistics."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from chunk_data import image_episodes, write_dataset
from lerobot_folder import LeRobotFolder, write_lerobot_folder
from PIL import Image

LENGTHS = (12, 9, 13, 11)
SIZE = (32, 32)


def statistics(values: np.ndarray) -> dict[str, list]:
    """Of a column [n] or [n, D], as LeRobot records them."""
    values = values.reshape(len(values), -1).astype(np.float64)
    found = {name: getattr(np, name)(values, axis=0).tolist() for name in ("min", "max", "mean", "std")}
    return found | {"count": [len(values)]}


def _with_statistics(folder: LeRobotFolder, version: str) -> LeRobotFolder:
    """Writes the statistics where this version has them."""
    meta, ends = folder.root / "meta", np.cumsum(folder.lengths)
    episodes = [
        {name: statistics(values[end - length : end]) for name, values in folder.columns.items()}
        for length, end in zip(folder.lengths, ends, strict=True)
    ]
    whole = {name: statistics(values) for name, values in folder.columns.items()}
    if version == "v2.1":
        lines = (json.dumps({"episode_index": i, "stats": stats}) for i, stats in enumerate(episodes))
        (meta / "episodes_stats.jsonl").write_text("\n".join(lines) + "\n")
        return folder
    (meta / "stats.json").write_text(json.dumps(whole, indent=1))
    if version == "v3.0":
        for file in sorted(meta.glob("episodes/*/*.parquet")):
            rows = pq.read_table(file).to_pylist()
            for row in rows:
                for key in [key for key in row if key.startswith("stats/")]:
                    del row[key]
                for name, stats in episodes[row["episode_index"]].items():
                    row |= {f"stats/{name}/{key}": value for key, value in stats.items()}
            pq.write_table(pa.Table.from_pylist(rows), file)
    return folder


def _without_checksums(root: Path) -> None:
    """Parquet pages as LeRobot writes them."""
    for file in root.glob("data/**/*.parquet"):
        pq.write_table(pq.read_table(file), file)


def _smooth(folder_images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Images that differ from frame to frame and compress well."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    return {
        name: np.stack(
            [
                np.stack([x * 4 + 3 * i, y * 4 + 90 * number, (x + y) * 2 + 5 * i], -1) % 256
                for i in range(len(pictures))
            ]
        ).astype(np.uint8)
        for number, (name, pictures) in enumerate(folder_images.items())
    }


def _lerobot(version: Any, camera: Any = None, checksums: bool = True, **more: Any) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        folder = write_lerobot_folder(root, version, camera=camera, size=SIZE, lengths=LENGTHS, **more)
        _with_statistics(folder, version)
        if not checksums:
            _without_checksums(root)

    return write


def _jpeg(root: Path) -> None:
    """PNG files made JPEG, which carries no checksum."""
    _lerobot("v2.1", "image", checksums=False)(root)
    for file in root.glob("data/**/*.parquet"):
        table = pq.read_table(file)
        for name in [n for n in table.schema.names if "images" in n]:
            cells = [{"bytes": as_jpeg(c["bytes"]), "path": c["path"]} for c in table[name].to_pylist()]
            column = pa.array(cells, type=table.schema.field(name).type)
            table = table.set_column(table.schema.get_field_index(name), name, column)
        pq.write_table(table, file)


def as_jpeg(data: bytes) -> bytes:
    """An image file as JPEG."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _written(root: Path) -> None:
    """By our own writer."""
    write_dataset(root, image_episodes(4))


DATA_FOLDERS: Mapping[str, Callable[[Path], None]] = {
    "v2.0-png": _lerobot("v2.0", "image", checksums=False),
    "v2.1-jpeg": _jpeg,
    "v2.1-video": _lerobot("v2.1", "video"),
    "v2.1-state": _lerobot("v2.1"),
    "v3.0-png": _lerobot("v3.0", "image", row_group_size=10),
    "v3.0-video": _lerobot("v3.0", "video"),
    "v3.0-state": _lerobot("v3.0", checksums=False, naming="document"),
    "v3.0-written": _written,
}


def write_data_folder(name: str, root: Path) -> Path:
    """The whole folder of this name."""
    shutil.rmtree(root, ignore_errors=True)
    DATA_FOLDERS[name](root)
    return root
