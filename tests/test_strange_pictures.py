"""Images of strangers' data sets: depth cameras, other formats, other sizes, raw bytes. Right, or a clear word."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from lerobot_folder import LeRobotFolder, write_lerobot_folder
from PIL import Image
from strange_sets import (
    ALL_SUCCEED,
    FRONT,
    decoded,
    edit_info,
    inspected,
    problems,
    says,
    set_column,
    trained,
)

from chunkrl.cli import main
from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.formats import describe
from chunkrl.errors import DatasetError

N = 12
DEPTH = "observation.images.depth"
_KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(picture: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()


def structs(pictures: Sequence[bytes | None]) -> pa.Array:
    return pa.array([{"bytes": data, "path": "x.png"} for data in pictures], _KIND)


@pytest.fixture
def folder(tmp_path: Path) -> LeRobotFolder:
    return write_lerobot_folder(tmp_path / "set", camera="image", episodes_per_file=9)


def depth_camera(folder: LeRobotFolder, shape: list[int]) -> None:
    values = structs([encoded(np.full((16, 16), 500 + row, np.uint16)) for row in range(N)])
    set_column(folder.root, DEPTH, values, dtype="image", shape=shape)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([16, 16, 1], ("[16, 16, 1]", "1 channel")),
        ([1, 16, 16], ("[1, 16, 16]", "1 channel")),
        ([16, 16, 4], ("[16, 16, 4]", "4 channels")),
        ([16, 16], ("[16, 16]",)),
    ],
)
def test_cameras_that_are_not_rgb_are_named(
    folder: LeRobotFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: list[int],
    words: tuple[str, ...],
) -> None:
    depth_camera(folder, shape)
    report = inspected(folder.root)
    assert report.problems == () and len(report.cameras) == 2
    said = (f"camera '{DEPTH}' is left out", *words)
    says(" ".join(report.notes), *said)
    says(trained(folder.root, tmp_path / "run", capsys, labels=ALL_SUCCEED), *said)
    with pytest.raises(DatasetError, match="--image-keys"):
        describe(folder.root, ColumnMapping(image_keys=(DEPTH,)))


def test_a_depth_video_is_named(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", camera="video")
    wrist = "observation.images.wrist"
    edit_info(
        folder.root, **{wrist: {"dtype": "video", "shape": [16, 16, 1], "info": {"is_depth_map": True}}}
    )
    report = inspected(folder.root)
    assert report.problems == () and [camera.name for camera in report.cameras] == [FRONT]
    says(" ".join(report.notes), f"camera '{wrist}' is left out", "1 channel")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_are_exact(folder: LeRobotFolder, kind: str, options: dict[str, Any]) -> None:
    pictures = folder.images[FRONT]
    set_column(folder.root, FRONT, structs([encoded(picture, kind, **options) for picture in pictures]))
    for cache in (True, False):
        table = decoded(folder.root, cache)
        np.testing.assert_array_equal(table.images(FRONT, np.arange(N)), pictures.transpose(0, 3, 1, 2))


def test_jpeg_is_what_pillow_reads(folder: LeRobotFolder) -> None:
    files = [encoded(picture, "JPEG", quality=90) for picture in folder.images[FRONT]]
    set_column(folder.root, FRONT, structs(files))
    expected = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in files])
    np.testing.assert_array_equal(
        decoded(folder.root).images(FRONT, np.arange(N)), expected.transpose(0, 3, 1, 2)
    )


RED = np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(RED, "GIF"), ("GIF", "PNG, JPEG and WebP are read")),
        (encoded(RED, "BMP"), ("BMP", "PNG, JPEG and WebP are read")),
        (encoded(RED, "TIFF"), ("TIFF", "PNG, JPEG and WebP are read")),
        (b"\0\0\0\x1cftypavif" + bytes(40), ("AVIF", "PNG, JPEG and WebP are read")),
        (b"\x93NUMPY" + bytes(40), ("NumPy", "PNG, JPEG and WebP are read")),
        (bytes(range(64)), ("unknown format", "00 01 02", "PNG, JPEG and WebP are read")),
        (b"", ("damaged", "empty")),
        (b"\xff\xd8\xff" + bytes(40), ("damaged", "JPEG")),
        (b"RIFF" + bytes(40), ("damaged", "WebP")),
        (encoded(RED[..., 0], "JPEG"), ("16 x 16 L", "16 x 16 RGB")),
        (encoded(np.zeros((16, 16, 4), np.uint8)), ("16 x 16 RGBA",)),
        (encoded(np.zeros((16, 16, 4), np.uint8), "WEBP", lossless=True), ("16 x 16 RGBA",)),
        (encoded(np.zeros((24, 16, 3), np.uint8), "WEBP"), ("24 x 16", "16 x 16")),
        (None, ("not in the parquet file", "embed")),
    ],
)
def test_other_pictures_are_named_once_an_episode(
    folder: LeRobotFolder, data: bytes | None, words: tuple[str, ...]
) -> None:
    whole = [encoded(picture) for picture in folder.images[FRONT]]
    set_column(folder.root, FRONT, structs([*whole[:6], data, data, *whole[8:]]))  # episode 1 is rows 5 to 7
    report = inspected(folder.root)
    assert [problem.episodes for problem in report.problems] == [(1,)]
    says(report.problems[0].message, "episode 1, frame 1", FRONT, *words)
    with pytest.raises(DatasetError, match="episode 1, frame 1"):
        decoded(folder.root)


def test_a_video_is_no_image(folder: LeRobotFolder) -> None:
    stream = io.BytesIO()
    frames = [Image.fromarray(RED + 40 * i) for i in range(3)]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    whole = [encoded(picture) for picture in folder.images[FRONT]]
    set_column(folder.root, FRONT, structs([*whole[:11], stream.getvalue()]))
    says(problems(folder.root), "episode 2, frame 3", "video of 3 frames")


def test_raw_bytes_name_every_episode_once(folder: LeRobotFolder, capsys: pytest.CaptureFixture[str]) -> None:
    set_column(
        folder.root, FRONT, pa.array([encoded(picture) for picture in folder.images[FRONT]], pa.binary())
    )
    report = inspected(folder.root)
    assert [problem.episodes for problem in report.problems] == [(0, 1, 2)]
    assert report.num_bad_episodes == 3
    with pytest.raises(SystemExit):
        main(["inspect", str(folder.root)])
    says(
        capsys.readouterr().out,
        "episodes 0 to 2: ",
        FRONT,
        "binary",
        "struct<bytes, path>",
        "PNG, JPEG and WebP",
    )


def test_pictures_of_another_size_are_named_once_an_episode(folder: LeRobotFolder) -> None:
    pictures = [encoded(np.zeros((24, 16, 3) if row >= 5 else (16, 16, 3), np.uint8)) for row in range(N)]
    set_column(folder.root, FRONT, structs(pictures))
    report = inspected(folder.root)
    assert [problem.episodes for problem in report.problems] == [(1,), (2,)]
    assert report.num_bad_episodes == 2


def test_cameras_of_two_sizes(folder: LeRobotFolder) -> None:
    wrist = "observation.images.wrist"
    small = np.random.default_rng(0).integers(0, 256, (N, 8, 12, 3), np.uint8)
    set_column(
        folder.root, wrist, structs([encoded(picture) for picture in small]), dtype="image", shape=[8, 12, 3]
    )
    table = decoded(folder.root)
    np.testing.assert_array_equal(table.images(wrist, np.arange(N)), small.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(
        table.images(FRONT, np.arange(N)), folder.images[FRONT].transpose(0, 3, 1, 2)
    )


@pytest.mark.parametrize(
    "shape", [[100_000, 100_000, 3], [20_000, 16, 3], [3, 12_000, 12_000], [16, 10**12, 3]]
)
def test_sizes_that_no_camera_has_are_refused(folder: LeRobotFolder, shape: list[int]) -> None:
    edit_info(folder.root, **{FRONT: {"dtype": "image", "shape": shape}})
    with pytest.raises(DatasetError, match=rf"{FRONT}.*no camera has"):
        describe(folder.root)
    assert len(describe(folder.root, ColumnMapping(image_keys=("observation.images.wrist",))).cameras) == 1
