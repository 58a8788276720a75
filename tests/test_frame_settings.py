"""Images at another size, decoded on demand, and data sets with bad episodes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lerobot_folder import TASKS, LeRobotFolder, Version, edit_json, edit_parquet, write_lerobot_folder

from chunkrl.data import images, on_demand
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.frames import FrameTable
from chunkrl.data.resize import Resize
from chunkrl.errors import DatasetError
from chunkrl.models.pi.images import prepare_images
from chunkrl.progress import silent

VERSIONS: tuple[Version, ...] = ("v2.0", "v2.1", "v3.0")
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
SKIP = FrameSettings(skip_bad_episodes=True)


def opened(root: Path, cache: Path, settings: FrameSettings = FrameSettings()) -> FrameTable:
    return FrameTable.open(root, cache_dir=cache, progress=silent, settings=settings)


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(4, 24), st.booleans(), st.integers(0, 99))
@example(2, 9, 4, True, 0)  # in shape it would have no row at all
@example(2, 9, 4, False, 0)
def test_resized_pictures_are_those_of_the_pi_models(
    height: int, width: int, size: int, antialias: bool, seed: int
):
    height = min(height, 2 * width)  # beyond it Pillow may resize the columns first
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    got = Resize(size, size, antialias)(picture)
    mode = "antialias" if antialias else "bilinear"
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None]
    expected = (prepare_images(batch, size, mode, "x")[0].permute(1, 2, 0).numpy() + 1) * 127.5
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3 if antialias else 0.501)


def test_resizing_keeps_the_shape_and_pads_with_black():
    picture = np.full((10, 20, 3), 200, np.uint8)
    got = Resize(8, 8)(picture)
    assert (got[2:6] == 200).all()
    assert not got[:2].any()
    assert not got[6:].any()
    with pytest.raises(DatasetError, match="at least 1"):
        Resize(0, 8)


@pytest.mark.parametrize("camera", ["image", "video"])
@pytest.mark.parametrize("version", VERSIONS)
def test_resized_while_decoding(tmp_path: Path, version: Version, camera: Literal["image", "video"]):
    folder = write_lerobot_folder(tmp_path / "set", version, camera=camera, size=(12, 16))
    rows = np.array([7, 0, 11, 0])
    kinds = (FrameSettings(resize=(8, 8)), FrameSettings(resize=(8, 8), antialias=False), FrameSettings())
    expected = []
    for kind in kinds:
        resize = Resize(8, 8, kind.antialias)
        pictures = [resize(p) if kind.resize else p for p in folder.images[FRONT][rows]]
        expected.append(np.stack(pictures).transpose(0, 3, 1, 2))
    # One store a size and filter, each read with and without the cache.
    for kind, pictures in zip(kinds, expected, strict=True):
        np.testing.assert_array_equal(opened(folder.root, tmp_path / "c", kind).images(FRONT, rows), pictures)
        direct = FrameSettings(cache=False, resize=kind.resize, antialias=kind.antialias)
        np.testing.assert_array_equal(
            opened(folder.root, tmp_path / "c", direct).images(FRONT, rows), pictures
        )
    assert len([path for path in (tmp_path / "c").glob("*/cameras/*") if path.is_dir()]) == 3


@pytest.mark.parametrize("camera", ["image", "video"])
@pytest.mark.parametrize("version", VERSIONS)
def test_decoded_on_demand(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: Version,
    camera: Literal["image", "video"],
):
    monkeypatch.setattr(on_demand, "MAX_OPEN_VIDEOS", 2)
    monkeypatch.setattr(on_demand, "MAX_MAPPED_FILES", 2)
    monkeypatch.setattr(on_demand, "MAX_ENCODED_BYTES", 4000)
    monkeypatch.setattr(on_demand, "SEEK_FRAMES", 1)
    folder = write_lerobot_folder(
        tmp_path / "set", version, camera=camera, lengths=(5, 3, 9, 1, 7), row_group_size=4
    )
    table = opened(folder.root, tmp_path / "cache", FrameSettings(cache=False))
    rng = np.random.default_rng(0)
    for table_now in (table, pickle.loads(pickle.dumps(table))):
        for _ in range(5):
            rows = rng.integers(0, table.num_frames, 6)
            for name in (FRONT, WRIST):
                expected = folder.images[name][rows].transpose(0, 3, 1, 2)
                np.testing.assert_array_equal(table_now.images(name, rows), expected, strict=True)
    assert not list((tmp_path / "cache").glob("*/cameras"))


def test_cameras_share_a_data_sets_files_which_need_no_file_handle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="image", lengths=(4,) * 20)
    table = opened(folder.root, tmp_path / "cache", FrameSettings(cache=False))
    rows = np.random.default_rng(0).permutation(80)
    table.images(FRONT, rows)
    handles = list(Path("/proc/self/fd").glob("*"))  # none on macOS
    assert not any(handle.resolve().suffix == ".parquet" for handle in handles)
    monkeypatch.setattr(on_demand, "BinaryPages", None)
    np.testing.assert_array_equal(table.images(WRIST, rows), folder.images[WRIST][rows].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("size", [0, 7, 300])
def test_on_demand_a_file_that_was_cut_off_is_damaged(tmp_path: Path, size: int):
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="image")
    table = opened(folder.root, tmp_path / "cache", FrameSettings(cache=False))
    file = folder.root / "data/chunk-000/episode_000001.parquet"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DatasetError, match=r"episode_000001\.parquet is damaged"):
        table.images(FRONT, np.arange(8))
    table.images(FRONT, np.arange(4))


def test_on_demand_names_what_is_damaged(tmp_path: Path):
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="video")
    table = opened(folder.root, tmp_path / "cache", FrameSettings(cache=False))
    file = folder.root / f"videos/chunk-000/{FRONT}/episode_000001.mp4"
    file.write_bytes(file.read_bytes()[:200])
    table.images(FRONT, np.array([0]))
    with pytest.raises(DatasetError, match=r"episode_000001\.mp4 is damaged"):
        table.images(FRONT, np.array([5]))


def damaged(root: Path, version: Version) -> LeRobotFolder:
    """Eight episodes of which six are bad, each in another way; 0 and 7 are good."""
    folder = write_lerobot_folder(
        root, version, camera="video", lengths=(4, 3, 5, 3, 2, 4, 3, 6), episodes_per_file=1
    )

    def data(index: int) -> Path:
        v3 = root / f"data/chunk-000/file-{index:03d}.parquet"
        return v3 if version == "v3.0" else root / f"data/chunk-000/episode_{index:06d}.parquet"

    def video(index: int) -> Path:
        v3 = root / f"videos/{FRONT}/chunk-000/file-{index:03d}.mp4"
        return v3 if version == "v3.0" else root / f"videos/chunk-000/{FRONT}/episode_{index:06d}.mp4"

    data(1).unlink()
    data(2).write_bytes(data(2).read_bytes()[:100])
    edit_parquet(data(3), action=[[0.0, np.nan]] * 3)
    edit_parquet(data(4), task_index=[9, 9])
    video(5).write_bytes(video(5).read_bytes()[:300])
    video(6).unlink()
    return folder


@pytest.mark.parametrize("version", VERSIONS)
def test_bad_episodes_are_set_aside_and_listed(tmp_path: Path, version: Version):
    folder = damaged(tmp_path / "set", version)
    with pytest.raises(DatasetError):
        opened(folder.root, tmp_path / "cache")
    for _ in range(2):  # found, then remembered
        table = opened(folder.root, tmp_path / "cache", SKIP)
        assert table.episode_ids.tolist() == [0, 7]
        rows = np.r_[0:4, 24:30]
        np.testing.assert_array_equal(table.action, folder.columns["action"][rows])
        assert [table.task_text(row) for row in range(10)] == [TASKS[0]] * 4 + [TASKS[1]] * 6
        for name, pictures in folder.images.items():
            np.testing.assert_array_equal(
                table.images(name, np.arange(10)), pictures[rows].transpose(0, 3, 1, 2)
            )
        assert {index for problem in table.problems for index in problem.episodes} == set(range(1, 7))
        for index, word in zip(
            range(1, 7), ("missing", "damaged", "NaN", "task_index 9", "", "missing"), strict=True
        ):
            messages = [p.message for p in table.problems if index in p.episodes]
            assert any(word in message for message in messages)


def test_bad_episodes_inside_a_shared_file(tmp_path: Path):
    folder = write_lerobot_folder(
        tmp_path / "set", "v3.0", camera="image", lengths=(4, 3, 5), episodes_per_file=3
    )
    actions = folder.columns["action"].copy()
    actions[5, 0] = np.inf
    edit_parquet(folder.root / "data/chunk-000/file-000.parquet", action=actions.tolist())
    table = opened(folder.root, tmp_path / "cache", SKIP)
    rows = np.r_[0:4, 7:12]
    np.testing.assert_array_equal(table.action, actions[rows])
    expected = folder.images[FRONT][rows].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(table.images(FRONT, np.arange(9)), expected)
    direct = opened(folder.root, tmp_path / "cache", FrameSettings(cache=False, skip_bad_episodes=True))
    np.testing.assert_array_equal(direct.images(FRONT, np.arange(9)), expected)
    (problem,) = table.problems
    assert problem.episodes == (1,)
    assert "frame 1" in problem.message


def test_of_a_damaged_parquet_only_the_episodes_in_damaged_row_groups_are_set_aside(tmp_path: Path):
    lengths, size = (4, 3, 5, 2, 6, 4), 4
    whole = write_lerobot_folder(
        tmp_path / "set",
        "v3.0",
        camera="image",
        size=(6, 6),
        lengths=lengths,
        episodes_per_file=6,
        row_group_size=size,
    )
    file = whole.root / "data/chunk-000/file-000.parquet"
    content, ends = file.read_bytes(), np.cumsum(lengths)
    metadata = pq.ParquetFile(file).metadata
    for number, group in enumerate([0, 1, 2, 3, 4, 5] * 3):
        columns = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
        columns = [c for c in columns if not c.path_in_schema.endswith(".path")]  # nobody reads it
        column = columns[(7 * number) % len(columns)]
        begin = column.dictionary_page_offset or column.data_page_offset
        damaged = bytearray(content)
        damaged[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
        file.write_bytes(damaged)
        skip = SKIP if (number + number // 6) % 2 else FrameSettings(cache=False, skip_bad_episodes=True)
        table = opened(whole.root, tmp_path / f"cache-{number}", skip)
        first, last = size * group, min(size * (group + 1), int(ends[-1]))
        bad = [i for i, end in enumerate(ends) if end > first and end - lengths[i] < last]
        assert table.episode_ids.tolist() == [i for i in range(len(lengths)) if i not in bad], column
        assert sorted({i for problem in table.problems for i in problem.episodes}) == bad
        assert any(f"rows {first} to {last - 1}" in problem.message for problem in table.problems)
        rows = np.concatenate([np.arange(lengths[i]) + ends[i] - lengths[i] for i in table.episode_ids])
        np.testing.assert_array_equal(table.action, whole.columns["action"][rows])
        for name, pictures in whole.images.items():
            got = table.images(name, np.arange(len(rows)))
            np.testing.assert_array_equal(got, pictures[rows].transpose(0, 3, 1, 2))


def test_what_concerns_the_whole_data_set_is_not_skipped(tmp_path: Path):
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", lengths=(4, 3))
    edit_json(folder.root / "meta/info.json", total_frames=8)
    with pytest.raises(DatasetError, match="8 frames"):
        opened(folder.root, tmp_path / "cache", SKIP)
    edit_json(folder.root / "meta/info.json", total_frames=7)
    for index in range(2):
        (folder.root / f"data/chunk-000/episode_{index:06d}.parquet").unlink()
    with pytest.raises(DatasetError, match="no episode without a problem"):
        opened(folder.root, tmp_path / "cache", SKIP)


def test_a_missing_row_spoils_the_episodes_behind_it(tmp_path: Path):
    folder = write_lerobot_folder(tmp_path / "set", "v3.0", lengths=(4, 3, 5), episodes_per_file=2)
    file = folder.root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table.slice(0, 2), table.slice(3)]), file)
    assert opened(folder.root, tmp_path / "cache", SKIP).episode_ids.tolist() == [2]


def test_the_disk_it_will_take_is_told(tmp_path: Path):
    folder = write_lerobot_folder(tmp_path / "set", camera="image", size=(16, 16))
    stages: set[str] = set()
    table = FrameTable.open(
        folder.root, cache_dir=tmp_path / "cache", progress=lambda stage, done, total: stages.add(stage)
    )
    table.images(FRONT, np.array([0]))
    assert stages == {"reading columns", f"decoding {FRONT} (0.00 GB)"}
    assert images.store_bytes(table.camera(FRONT)) == 12 * 3 * 16 * 16


@pytest.mark.parametrize("camera", ["image", "video"])
def test_pictures_are_decoded_on_demand_in_forked_loaders_too(
    tmp_path: Path, camera: Literal["image", "video"]
):
    folder = write_lerobot_folder(tmp_path / "set", "v3.0", camera=camera, lengths=(5, 3, 9))
    table = opened(folder.root, tmp_path / "cache", FrameSettings(cache=False))
    rows = np.random.default_rng(0).permutation(17)
    expected = folder.images[FRONT].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(table.images(FRONT, rows), expected[rows])  # files and threads are in use

    class Rows(torch.utils.data.Dataset[torch.Tensor]):
        def __getitem__(self, row: int) -> torch.Tensor:
            return torch.from_numpy(table.images(FRONT, np.array([row]))[0])

    loader = torch.utils.data.DataLoader(
        Rows(), batch_size=4, sampler=rows.tolist(), num_workers=2, multiprocessing_context="fork"
    )
    np.testing.assert_array_equal(torch.cat(list(loader)).numpy(), expected[rows])


def test_a_damaged_picture_stops_what_was_begun_together(tmp_path: Path):
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="video")
    table = opened(folder.root, tmp_path / "cache", FrameSettings(cache=False))
    file = folder.root / f"videos/chunk-000/{FRONT}/episode_000001.mp4"
    file.write_bytes(file.read_bytes()[:200])
    begun = {name: table.start_images(name, np.arange(8)) for name in (FRONT, WRIST)}
    with pytest.raises(DatasetError, match=r"episode_000001\.mp4 is damaged"):
        begun[FRONT]()
    np.testing.assert_array_equal(begun[WRIST](), folder.images[WRIST][:8].transpose(0, 3, 1, 2))
