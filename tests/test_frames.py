"""FrameTable: exact columns and images of every version, and its cache."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from lerobot_folder import NAMING, Version, edit_json, edit_parquet, write_lerobot_folder, write_video

from chunkrl.data import cache, episode_rows, images
from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.formats import RECOGNISE
from chunkrl.data.frames import FrameTable
from chunkrl.data.observations import read_observations
from chunkrl.errors import ChunkRLError
from chunkrl.progress import silent

VERSIONS: tuple[Version, ...] = ("v2.0", "v2.1", "v3.0")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "lerobot"
FRONT, WRIST = "observation.images.front", "observation.images.wrist"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder that FrameTable.open uses by default."""
    monkeypatch.setenv("CHUNKRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(root: Path, mapping: ColumnMapping = RECOGNISE) -> FrameTable:
    return FrameTable.open(root, mapping, progress=silent)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("camera", [None, "image", "video"])
@pytest.mark.parametrize("naming", NAMING)
def test_reads_exactly_what_was_written(
    tmp_path: Path, cached: Path, version: Version, camera: Literal["image", "video"] | None, naming: str
):
    # The document's images are 256 x 256; row groups and batches cut episodes anywhere.
    size = (256, 256) if naming == "document" else (12, 16)
    lengths = (3, 2) if naming == "document" else (5, 3, 40, 1, 7)
    folder = write_lerobot_folder(
        tmp_path / "set", version, naming=naming, camera=camera, size=size, lengths=lengths, row_group_size=4
    )
    table = opened(folder.root)
    state, action, cameras, _ = NAMING[naming]
    assert (table.num_frames, table.num_episodes) == (sum(lengths), len(lengths))
    np.testing.assert_array_equal(table.episode_length, lengths)
    np.testing.assert_array_equal(table.episode_start, np.cumsum([0, *lengths[:-1]]))
    np.testing.assert_array_equal(table.episode_ids, np.arange(len(lengths)))
    for name, values in folder.columns.items():
        assert table.has_column(name)
        np.testing.assert_array_equal(table.column(name), values, strict=True)
    assert table.state is not None
    np.testing.assert_array_equal(table.state, folder.columns[state], strict=True)
    np.testing.assert_array_equal(table.action, folder.columns[action], strict=True)
    np.testing.assert_array_equal(table.timestamp, folder.columns["timestamp"], strict=True)
    np.testing.assert_array_equal(table.task_index, folder.columns["task_index"], strict=True)
    assert [table.task_text(row) for row in range(table.num_frames)] == folder.task_texts
    assert table.description.cameras == (cameras if camera else ())
    rows = np.random.default_rng(0).permutation(table.num_frames)
    for name, pictures in folder.images.items():
        expected = pictures[rows].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(table.images(name, rows), expected, strict=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/lerobot, data that LeRobot wrote")
@pytest.mark.parametrize(
    "name",
    ["chunk_v20_image", "lerobot_v21_video", "lerobot_v30_image", "lerobot_v30_video", "openpi_v21_image"],
)
def test_agrees_with_lerobot(cached: Path, name: str):
    table = opened(SHARED / name)
    recorded = np.load(SHARED / name / "LEROBOT.npz")
    cameras = {key.removeprefix("img.") for key in recorded if key.startswith("img.")}
    assert cameras == set(table.description.cameras)
    assert set(table._columns.names) == {key for key in recorded if key != "tasks" and "img." not in key}
    for key, values in recorded.items():
        if key == "tasks":
            assert [table.task_text(row) for row in range(table.num_frames)] == values.tolist()
        elif key.startswith("img."):
            pictures = table.images(key.removeprefix("img."), np.arange(table.num_frames))
            n, _, height, width = pictures.shape
            means = pictures.reshape(n, 3, 8, height // 8, 8, width // 8).mean(axis=(3, 5)) / 255
            # float16 near 1 is 2**-11 coarse; its rounding is half of that.
            np.testing.assert_allclose(means, values.astype(np.float64), rtol=0, atol=2**-12 + 1e-6)
        else:
            np.testing.assert_array_equal(table.column(key), values, strict=True)
    truth = json.loads((SHARED / name / "TRUTH.json").read_text())
    for episode, start, length in zip(truth, table.episode_start, table.episode_length, strict=True):
        rows = slice(start, start + length)
        assert length == episode["length"]
        assert {table.task_text(row) for row in range(start, start + length)} == {episode["task"]}
        if table.has_column("reward"):
            assert table.column("reward")[rows].any() == episode["success"]
        if table.has_column("subgoal"):
            assert np.flatnonzero(table.column("subgoal")[rows]).tolist() == episode["subgoals"]
        if table.has_column("next.success"):
            assert table.column("next.success")[rows].any() == episode["success"]


@pytest.mark.lerobot
@pytest.mark.parametrize("naming", NAMING)
def test_lerobot_reads_the_same(tmp_path: Path, cached: Path, naming: str):
    """Every naming, the document's `observation/image` too: values and images are LeRobot's for the same index."""
    lerobot_dataset = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    root = write_lerobot_folder(
        tmp_path / "set", "v3.0", naming=naming, camera="image", lengths=(5, 3, 7)
    ).root
    data = lerobot_dataset.LeRobotDataset("local/set", root=root, video_backend="pyav")
    table = opened(root)
    assert len(data) == table.num_frames
    for row in range(table.num_frames):
        item = data[row]
        for name in table._columns.names:
            np.testing.assert_array_equal(item[name].numpy(), table.column(name)[row])
        for name in table.description.cameras:
            pictures = (item[name].numpy() * 255).round().astype(np.uint8)
            np.testing.assert_array_equal(pictures, table.images(name, np.array([row]))[0])


def test_columns_keep_their_types_and_shapes(tmp_path: Path, cached: Path):
    folder = write_lerobot_folder(tmp_path / "set", "v3.0", lengths=(3, 2), naming="document")
    file = folder.root / "data/chunk-000/file-000.parquet"
    values = {
        "observation/state": [[float(i)] for i in range(5)],
        "reward": np.arange(5, dtype=np.float64) / 3,
        "subgoal": [[[i, 1, 2], [3, 4, 5]] for i in range(5)],
    }
    edit_parquet(file, **values)
    info = json.loads((folder.root / "meta/info.json").read_text())
    changes = {
        "observation/state": ("float64", [1]),
        "reward": ("float64", [1]),
        "subgoal": ("int64", [2, 3]),
    }
    for name, (dtype, shape) in changes.items():
        info["features"][name] |= {"dtype": dtype, "shape": shape}
    (folder.root / "meta/info.json").write_text(json.dumps(info))
    table = opened(folder.root)
    np.testing.assert_array_equal(table.column("reward"), values["reward"], strict=True)
    np.testing.assert_array_equal(table.column("subgoal"), np.array(values["subgoal"]), strict=True)
    np.testing.assert_array_equal(table.column("observation/state"), np.arange(5.0), strict=True)
    assert table.state is not None
    np.testing.assert_array_equal(table.state, np.arange(5, dtype=np.float32)[:, None], strict=True)


def test_arrays_are_maps_of_the_cache(tmp_path: Path, cached: Path):
    table = opened(write_lerobot_folder(tmp_path / "set", camera="image").root)
    state = table.state
    for array in (state, table.action, table.task_index, table.timestamp, table.column("next.done")):
        base = array
        while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap)
        assert not base.flags.writeable


def test_the_disk_is_waited_for_without_the_interpreters_lock(
    tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
):
    """CPython holds it in `memmap.flush`, and training stood still while the learner opened new data."""
    synced = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.delattr(np.memmap, "flush")
    monkeypatch.setattr(os, "fsync", note)
    table = opened(write_lerobot_folder(tmp_path / "set", "v3.0", camera="image").root)
    table.images(table.description.cameras[0], np.arange(2))
    made = {file.stat().st_ino for file in cached.rglob("*.npy")}
    assert made and made <= set(synced)


def test_reads_each_file_once(tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_lerobot_folder(tmp_path / "set", camera="image")
    rows = np.array([3, 0])
    first = opened(folder.root)
    expected = first.images(FRONT, rows)

    def never(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(episode_rows, "row_batches", never)
    monkeypatch.setattr(images, "episode_parts", never)
    again = opened(folder.root, ColumnMapping(image_keys=(FRONT,)))
    np.testing.assert_array_equal(again.images(FRONT, rows), expected)
    np.testing.assert_array_equal(again.action, first.action)
    other = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(other.images(FRONT, rows), expected)


def test_decodes_a_camera_only_when_asked(tmp_path: Path, cached: Path):
    folder = write_lerobot_folder(tmp_path / "set", camera="image")
    table = opened(folder.root)
    (target,) = cached.iterdir()
    assert sorted(path.name for path in target.iterdir()) == ["columns", "columns.lock"]
    table.images(FRONT, np.array([0]))
    assert [path.name for path in (target / "cameras").iterdir() if path.is_dir()] == [FRONT]


def test_changed_data_is_read_again(tmp_path: Path, cached: Path):
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    before = np.array(opened(folder.root).action)
    edit_parquet(folder.root / "data/chunk-000/episode_000001.parquet", action=[[1.0, 2.0]] * 3)
    after = opened(folder.root).action
    np.testing.assert_array_equal(after[5:8], [[1.0, 2.0]] * 3)
    np.testing.assert_array_equal(after[:5], before[:5])


@pytest.mark.parametrize("camera", ["image", "video"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kill_at", [1, 3, 6])
def test_decoding_resumes_after_a_kill(
    tmp_path: Path,
    cached: Path,
    monkeypatch: pytest.MonkeyPatch,
    camera: Literal["image", "video"],
    version: Version,
    kill_at: int,
):
    folder = write_lerobot_folder(
        tmp_path / "set", version, camera=camera, lengths=(4, 7, 1, 5, 6, 3), episodes_per_file=4
    )
    monkeypatch.setattr(images, "FLUSH_EPISODES", 1)
    monkeypatch.setattr(images, "BATCH_PICTURES", 2)

    class Killed(BaseException):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if stage.startswith("decoding") and done >= kill_at:
            raise Killed

    with pytest.raises(Killed):
        FrameTable.open(folder.root, progress=kill).images(FRONT, np.array([0]))
    target = next(cached.iterdir()) / "cameras"
    assert not (target / FRONT).exists()
    reported: list[int] = []
    if kill_at < 6:  # what was decoded is not decoded again: mark one image of the first episode
        pictures = cache.load_array(target / f"{FRONT}.building" / "pictures.npy", writable=True)
        pictures[0] = 7

    def note(stage: str, done: int, total: int) -> None:
        reported.append(done)
        assert total == 6

    got = FrameTable.open(folder.root, progress=note).images(FRONT, np.arange(26))
    expected = folder.images[FRONT].transpose(0, 3, 1, 2).copy()
    if kill_at < 6:
        expected[0] = 7
    np.testing.assert_array_equal(got, expected)
    assert reported[0] >= kill_at
    assert reported[-1] == 6


def test_a_killed_reading_of_columns_is_not_taken_for_whole(tmp_path: Path, cached: Path):
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")

    class Killed(BaseException):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        FrameTable.open(folder.root, progress=kill)
    (target,) = cached.iterdir()
    assert not (target / "columns").exists()
    np.testing.assert_array_equal(opened(folder.root).action, folder.columns["action"])
    assert not list(target.glob("*.building"))


def test_one_builds_and_the_others_wait(tmp_path: Path):
    folder = write_lerobot_folder(tmp_path / "set", camera="image")
    together = threading.Barrier(4)

    def build(_: int) -> tuple[int, set[str]]:
        built: set[str] = set()
        together.wait(timeout=240)

        def note(stage: str, done: int, total: int) -> None:
            built.add(stage)

        # Tables of their own share nothing but the cache and its locks, as processes do.
        table = FrameTable.open(folder.root, cache_dir=tmp_path / "cache", progress=note)
        return int(table.images(FRONT, np.arange(12)).sum()), built

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(build, range(4)))
    assert {total for total, _ in got} == {int(folder.images[FRONT].sum())}
    assert sorted(stage for _, built in got for stage in built) == [
        f"decoding {FRONT} (0.00 GB)",
        "reading columns",
    ]


def test_a_full_disk_is_said_before_writing(tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_lerobot_folder(tmp_path / "set", camera="image")
    table = opened(folder.root)
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 16 * 16 * 3 * 12 - 1))
    with pytest.raises(ChunkRLError, match=r"GB more.*CHUNKRL_CACHE"):
        table.images(FRONT, np.array([0]))


def test_a_disk_that_is_too_small_for_all_cameras_is_said_before_one_is_built(
    tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_lerobot_folder(tmp_path / "set", camera="image")
    table, store = opened(folder.root), 16 * 16 * 3 * 12
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 2 * store - 1))
    with pytest.raises(ChunkRLError, match=r"GB more.*CHUNKRL_CACHE"):
        read_observations(table, [FRONT, WRIST], np.array([0]))
    assert not list(cached.glob("*/cameras/*"))
    table.images(FRONT, np.array([0]))  # alone it has space, and counts no more
    read_observations(opened(folder.root), [FRONT, WRIST], np.array([0]))


def test_a_damaged_cache_names_itself(tmp_path: Path, cached: Path):
    folder = write_lerobot_folder(tmp_path / "set")
    opened(folder.root)
    (file,) = cached.glob("*/columns/action.npy")
    os.truncate(file, 130)
    with pytest.raises(ChunkRLError, match=r"action\.npy.*delete the folder"):
        opened(folder.root)


def test_a_video_may_have_more_frames_a_second(tmp_path: Path, cached: Path):
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="video", lengths=(5, 3, 4))
    pictures = np.random.default_rng(1).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    write_video(folder.root / f"videos/chunk-000/{FRONT}/episode_000001.mp4", pictures, 30)
    got = opened(folder.root).images(FRONT, np.arange(5, 8))
    np.testing.assert_array_equal(got, pictures[::3].transpose(0, 3, 1, 2))


def test_totals_follow_the_metadata(tmp_path: Path, cached: Path):
    root = write_lerobot_folder(tmp_path / "set", "v2.1", lengths=(5, 3, 4)).root
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    (root / "meta/episodes.jsonl").write_text("\n".join([lines[0], lines[2]]))
    edit_json(root / "meta/info.json", total_episodes=2, total_frames=9)
    table = opened(root)
    np.testing.assert_array_equal(table.episode_ids, [0, 2])
    np.testing.assert_array_equal(table.column("episode_index"), [0] * 5 + [2] * 4)
