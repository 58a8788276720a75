"""A damaged data set gives its exact content or a DatasetError: never another exception, never wrong data."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot_folder import LeRobotFolder, Version, write_lerobot_folder

from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.frames import FrameTable
from chunkrl.errors import DatasetError
from chunkrl.progress import silent

KINDS: tuple[tuple[Version, Literal["image", "video"] | None], ...] = (
    ("v2.0", "image"),
    ("v2.1", "video"),
    ("v2.1", None),
    ("v3.0", "image"),
    ("v3.0", "video"),
    ("v3.0", None),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LeRobotFolder]]:
    base = tmp_path_factory.mktemp("whole")
    yield [
        write_lerobot_folder(
            base / str(i), version, camera=camera, size=(8, 8), lengths=(4, 3), row_group_size=3
        )
        for i, (version, camera) in enumerate(KINDS)
    ]


def damage(draw: st.DataObject, file: Path, others: list[Path]) -> None:
    """Damages a file in one way."""
    # An mp4 has no check sums: flipped bytes may decode to other images without any sign.
    ways = (
        ["truncate", "delete", "empty"] if file.suffix == ".mp4" else ["flip", "zero", "append", "swap"] * 2
    )
    way = draw.draw(st.sampled_from([*ways, "truncate", "delete", "empty"]), "way")
    data = bytearray(file.read_bytes())
    position = draw.draw(st.integers(0, len(data) - 1), "position")
    if way == "delete":
        file.unlink()
    elif way == "empty":
        file.write_bytes(b"")
    elif way == "truncate":
        file.write_bytes(data[:position])
    elif way == "flip":
        data[position] ^= 1 << draw.draw(st.integers(0, 7), "bit")
        file.write_bytes(data)
    elif way == "zero":
        end = min(len(data), position + draw.draw(st.sampled_from([1, 4, 64]), "bytes"))
        data[position:end] = bytes(end - position)
        file.write_bytes(data)
    elif way == "append":
        file.write_bytes(data + draw.draw(st.binary(min_size=1, max_size=16), "tail"))
    else:
        other = draw.draw(st.sampled_from(others), "other")
        file.write_bytes(other.read_bytes())
        other.write_bytes(data)


def assert_exact(table: FrameTable, folder: LeRobotFolder) -> None:
    assert table.description.fps == folder.fps
    for name, values in folder.columns.items():
        np.testing.assert_array_equal(table.column(name), values, strict=True)
    assert [table.task_text(row) for row in range(table.num_frames)] == folder.task_texts
    np.testing.assert_array_equal(table.state, folder.columns["observation.state"])
    np.testing.assert_array_equal(table.action, folder.columns["action"])
    for name, pictures in folder.images.items():
        got = table.images(name, np.arange(len(pictures)))
        np.testing.assert_array_equal(got, pictures.transpose(0, 3, 1, 2), strict=True)


@settings(max_examples=250, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_damage_is_an_error_or_harmless(folders: list[LeRobotFolder], draw: st.DataObject):
    folder = draw.draw(st.sampled_from(folders), "folder")
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / "set"
        shutil.copytree(folder.root, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        file = draw.draw(st.sampled_from(files), "file")
        damage(draw, file, [path for path in files if path.suffix != ".mp4"])
        try:
            table = FrameTable.open(copy, cache_dir=Path(temporary) / "cache", progress=silent)
            assert_exact(table, folder)
        except DatasetError as error:
            assert str(copy) in str(error)


@settings(max_examples=120, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_what_is_left_after_skipping_bad_episodes_is_exact(folders: list[LeRobotFolder], draw: st.DataObject):
    folder = draw.draw(st.sampled_from(folders), "folder")
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / "set"
        shutil.copytree(folder.root, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        file = draw.draw(st.sampled_from(files), "file")
        damage(draw, file, [path for path in files if path.suffix != ".mp4"])
        try:
            table = FrameTable.open(
                copy,
                cache_dir=Path(temporary) / "cache",
                progress=silent,
                settings=FrameSettings(skip_bad_episodes=True),
            )
        except DatasetError as error:
            assert str(copy) in str(error)
            return
        starts = np.cumsum([0, *folder.lengths])
        rows = np.concatenate([np.arange(int(starts[e]), int(starts[e + 1])) for e in table.episode_ids])
        for name, values in folder.columns.items():
            try:
                found = table.column(name)
            except DatasetError as error:  # a column that nobody uses stops only those who ask for it
                assert str(copy) in str(error)
                continue
            np.testing.assert_array_equal(found, values[rows], strict=True)
        for name, pictures in folder.images.items():
            got = table.images(name, np.arange(len(rows)))
            np.testing.assert_array_equal(got, pictures[rows].transpose(0, 3, 1, 2), strict=True)
        aside = set(range(len(folder.lengths))) - set(table.episode_ids.tolist())
        assert aside == {index for problem in table.problems for index in problem.episodes} & set(
            range(len(folder.lengths))
        )


def test_undamaged_sets_are_exact(folders: list[LeRobotFolder], tmp_path: Path):
    for folder in folders:
        assert_exact(FrameTable.open(folder.root, cache_dir=tmp_path, progress=silent), folder)
