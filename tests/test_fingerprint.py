"""The fingerprint is of a data set's contents: a copy has the same, a change another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from lerobot_folder import write_lerobot_folder

from chunkrl.data.fingerprint import BLOCK, ENDS, INNER_BLOCKS
from chunkrl.data.formats import describe
from chunkrl.data.frames import FrameTable
from chunkrl.progress import silent

FILES = ["data/chunk-000/file-001.parquet", "meta/info.json", "meta/tasks.parquet"]


@pytest.mark.parametrize("part", FILES)
def test_a_copy_keeps_it_whatever_its_place_and_times(tmp_path: Path, part: str):
    root = write_lerobot_folder(tmp_path / "set").root
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / part, ns=(1, 1))
    assert describe(tmp_path / "copy").fingerprint == describe(root).fingerprint


def flip(file: Path, place: int) -> None:
    """Changes one bit and nothing else: the file's length and times stay."""
    times, content = file.stat(), bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_change_in_place_changes_it(tmp_path: Path):
    root = write_lerobot_folder(tmp_path / "set").root
    first = describe(root).fingerprint
    flip(root / FILES[0], 20)
    assert describe(root).fingerprint != first


def test_of_a_long_file_its_ends_and_blocks_between_count(tmp_path: Path):
    """What lies between the blocks does not: the price of not reading the data set whole."""
    root = write_lerobot_folder(tmp_path / "set", camera="video").root
    video = next(root.rglob("*.mp4"))
    size = 2 * ENDS + 40 * BLOCK
    # What follows the index of an mp4 is not looked at by describe.
    video.write_bytes(np.random.default_rng(0).bytes(size))
    first = describe(root).fingerprint
    inner = (size - 2 * ENDS - BLOCK) // (INNER_BLOCKS - 1)
    for place in (0, ENDS - 1, ENDS, ENDS + inner + 5, size - ENDS - 1, size - 1):
        flip(video, place)
        assert describe(root).fingerprint != first, place
        flip(video, place)
    assert describe(root).fingerprint == first
    flip(video, ENDS + BLOCK + 1)
    assert describe(root).fingerprint == first
    video.write_bytes(video.read_bytes() + b"\0")
    assert describe(root).fingerprint != first


def test_a_copied_set_is_not_decoded_again(tmp_path: Path):
    root = write_lerobot_folder(tmp_path / "set", camera="image").root
    rows = np.arange(3)
    first = FrameTable.open(root, cache_dir=tmp_path / "cache", progress=silent)
    pictures = np.array(first.images(first.description.cameras[0], rows))
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(root)
    seen: list[str] = []
    copy = FrameTable.open(
        tmp_path / "copy",
        cache_dir=tmp_path / "cache",
        progress=lambda stage, done, total: seen.append(stage),
    )
    assert np.array_equal(copy.images(copy.description.cameras[0], rows), pictures)
    assert seen == []
