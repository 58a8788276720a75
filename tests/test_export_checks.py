"""`label --export`: all is checked before anything is written, and what is not understood is copied or left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_folder import LeRobotFolder, edit_parquet, write_lerobot_folder, write_video
from PIL import Image
from strange_sets import FRONT, data_files, edit_info, inspected, opened, says, set_column
from test_cli import refused

from chunkrl.cli import main
from chunkrl.data.file_segments import VideoEncoding, encode_video

WRIST = "observation.images.wrist"
N = 12


def export(folder: LeRobotFolder, target: Path, *more: object) -> None:
    labels = target.with_name(f"{target.name}.parquet")
    main(
        [
            "label",
            str(folder.root),
            "--success",
            "all",
            "--output",
            str(labels),
            "--export",
            str(target),
            *map(str, more),
        ]
    )


def refused_and_gone(
    folder: LeRobotFolder, target: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> None:
    before = sorted(target.parent.iterdir())
    labels = target.with_name("labels.parquet")
    arguments = [
        "label",
        str(folder.root),
        "--success",
        "all",
        "--output",
        str(labels),
        "--export",
        str(target),
    ]
    says(refused(arguments, capsys), *words)
    assert sorted(target.parent.iterdir()) == before


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_task_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    for name in ("tasks", "episodes"):
        file = folder.root / f"meta/{name}.jsonl"
        file.write_text(file.read_text().replace('"close the drawer"', json.dumps(text)))
    assert inspected(folder.root).problems == ()
    refused_and_gone(folder, tmp_path / "new", capsys, "task 1 has an empty text", "meta/tasks")


def test_task_texts_of_all_kinds(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    texts = ["引き出し \U0001f34e\nthen", '<b>push</b> & "pull"' + 3000 * "x"]
    for name in ("tasks", "episodes"):
        file = folder.root / f"meta/{name}.jsonl"
        written = file.read_text()
        for old, new in zip(("open the drawer", "close the drawer"), texts, strict=True):
            written = written.replace(json.dumps(old), json.dumps(new))
        file.write_text(written)
    export(folder, tmp_path / "new")
    new = opened(tmp_path / "new")
    assert [new.task_text(row) for row in range(N)] == [texts[i] for i in folder.columns["task_index"]]


def test_a_damaged_picture_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="image")
    file = data_files(folder.root)[2]
    pictures = pq.read_table(file)[FRONT].to_pylist()
    pictures[1]["bytes"] = pictures[1]["bytes"][:-30]
    edit_parquet(file, **{FRONT: pa.array(pictures)})
    refused_and_gone(folder, tmp_path / "new", capsys, "episode 2, frame 1", "damaged")


MESSAGE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
STRANGE: dict[str, tuple[pa.Array, dict[str, Any]]] = {
    "language_events": (
        pa.array([[{"role": "user", "content": "go"}] if row % 4 == 0 else [] for row in range(N)], MESSAGE),
        {"dtype": "language", "shape": [1]},
    ),
    "observation.force": (
        pa.array([None if row < 5 else row / 2 for row in range(N)], pa.float32()),
        {"dtype": "float32", "shape": [1]},
    ),
    "observation.nan": (pa.array([[np.nan, 1.0]] * N), {"dtype": "float64", "shape": [2]}),
    "note": (pa.array([None, *"abcdefghijk"]), {"dtype": "string", "shape": [1]}),
    "observation.images.depth": (
        pa.array([{"bytes": bytes([row]), "path": None} for row in range(N)]),
        {"dtype": "image", "shape": [16, 16, 1]},
    ),
    "exterior/left": (
        pa.array([{"bytes": bytes([row] * 9), "path": f"{row}"} for row in range(N)]),
        {"dtype": "image", "shape": [16, 16, 3]},
    ),
}


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> LeRobotFolder:
    folder = write_lerobot_folder(tmp_path_factory.mktemp("strange") / "set", camera="image")
    for name, (values, record) in STRANGE.items():
        set_column(folder.root, name, values, **record)
    return folder


def written(root: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in data_files(root)])


def test_what_is_not_understood_is_copied_as_it_is(
    strange: LeRobotFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(strange, tmp_path / "new")
    said = capsys.readouterr().out
    table = written(tmp_path / "new")
    features = json.loads((tmp_path / "new/meta/info.json").read_text())["features"]
    for name, (values, record) in STRANGE.items():
        says(said, f"{name}: copied as it is")
        new = name.replace("/", ".")
        assert str(table[new].to_pylist()) == str(values.to_pylist())  # NaN is not NaN, but prints so
        assert table[new].type == values.type
        assert features[new] == {"names": None, **record}
    new = opened(tmp_path / "new")
    np.testing.assert_array_equal(new.action, strange.columns["action"])
    for camera, pictures in strange.images.items():
        np.testing.assert_array_equal(new.images(camera, np.arange(N)), pictures.transpose(0, 3, 1, 2))
    assert inspected(tmp_path / "new").problems == ()
    # The copy is a data set like the other: it is exported again.
    export(LeRobotFolder(tmp_path / "new", (), {}, {}, 10), tmp_path / "again")
    assert str(written(tmp_path / "again").to_pydict()) == str(table.to_pydict())


def test_what_is_not_understood_is_left_out(
    strange: LeRobotFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(strange, tmp_path / "new", "--export-others", "leave_out")
    said = capsys.readouterr().out
    for name in STRANGE:
        says(said, f"{name}: left out")
    names = set(written(tmp_path / "new").schema.names)
    assert not names & {name.replace("/", ".") for name in STRANGE}
    assert {"action", FRONT, WRIST} <= names


def depth_video(root: Path) -> LeRobotFolder:
    folder = write_lerobot_folder(root, "v2.1", camera="video")
    edit_info(folder.root, **{WRIST: {"dtype": "video", "shape": [16, 16, 1], "names": None}})
    return folder


def test_a_depth_video_is_copied_packet_by_packet(tmp_path: Path) -> None:
    folder = depth_video(tmp_path / "set")
    export(folder, tmp_path / "new")
    root = tmp_path / "new"
    features = json.loads((root / "meta/info.json").read_text())["features"]
    assert features[WRIST] == {"dtype": "video", "shape": [16, 16, 1], "names": None}
    # Read as what it was, its images are the same.
    edit_info(root, **{WRIST: {"dtype": "video", "shape": [16, 16, 3], "names": None}})
    got = opened(root).images(WRIST, np.arange(N))
    np.testing.assert_array_equal(got, folder.images[WRIST].transpose(0, 3, 1, 2))


def test_a_depth_video_that_cannot_be_copied_says_how_to_leave_it_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v3.0", camera="video", episodes_per_file=3)
    edit_info(folder.root, **{WRIST: {"dtype": "video", "shape": [16, 16, 1], "names": None}})
    grey = [Image.new("RGB", (16, 16), (8 * i, 8 * i, 8 * i)) for i in range(N)]
    (file,) = folder.root.glob(f"videos/{WRIST}/*/*.mp4")
    encode_video(grey, file, 10, VideoEncoding("libx264", gop=100))
    refused_and_gone(folder, tmp_path / "new", capsys, WRIST, "key frame", "--export-others leave_out")
    file.unlink()
    refused_and_gone(folder, tmp_path / "new", capsys, WRIST, "missing", "--export-others leave_out")
    export(folder, tmp_path / "new", "--export-others", "leave_out")
    assert opened(tmp_path / "new").description.cameras == (FRONT,)


def test_columns_of_two_types_say_how_to_leave_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    set_column(folder.root, "extra", pa.array([1] * N), dtype="language", shape=[1])
    edit_parquet(data_files(folder.root)[1], extra=["a", "b", "c"])
    refused_and_gone(
        folder, tmp_path / "new", capsys, "'extra' holds int64 and string", "--export-others leave_out"
    )
    edit_parquet(data_files(folder.root)[1], extra=None)
    refused_and_gone(folder, tmp_path / "new", capsys, "0 columns 'extra'", "--export-others leave_out")


def test_a_video_that_ends_early_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="video")
    write_video(folder.root / f"videos/chunk-000/{FRONT}/episode_000002.mp4", folder.images[FRONT][8:11], 10)
    refused_and_gone(folder, tmp_path / "new", capsys, "episode 2", FRONT)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_videos_of_several_codecs_are_copied_too(tmp_path: Path, version: Any) -> None:
    """Recordings of several LeRobot versions in one data set: no image changes, and an mp4 has one codec."""
    folder = write_lerobot_folder(
        tmp_path / "set", version, camera="video", lengths=(5,) * 20, episodes_per_file=1
    )
    for number in (1, 4, 5):
        file = sorted(folder.root.glob(f"videos/**/*{WRIST}*/**/*.mp4"))[number]
        with av.open(str(file)) as container:
            pictures = [frame.to_image() for frame in container.decode(video=0)]
        encode_video(pictures, file, 10, VideoEncoding("libx264", gop=1 if number == 1 else 2))
    before = opened(folder.root)
    export(folder, tmp_path / "new")
    after = opened(tmp_path / "new")
    for camera in (FRONT, WRIST):
        rows = np.arange(before.num_frames)
        np.testing.assert_array_equal(after.images(camera, rows), before.images(camera, rows))
    files = sorted((tmp_path / "new").glob(f"videos/{WRIST}/*/*.mp4"))
    assert 2 <= len(files) < 20
    assert {codec(file) for file in files} == {
        codec(f) for f in folder.root.glob(f"videos/**/*{WRIST}*/**/*.mp4")
    }
    assert inspected(tmp_path / "new").problems == ()


def codec(file: Path) -> str:
    with av.open(str(file)) as container:
        return container.streams.video[0].codec_context.codec.canonical_name


def test_times_that_move_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An export writes frame / fps, as LeRobot does; its tolerance is 1e-4 s."""
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    times = folder.columns["timestamp"].copy()
    times[3] += 0.00005
    for moved, said in ((0.0, False), (0.01, True)):
        times[4] += moved
        for file, (start, end) in zip(data_files(folder.root), ((0, 5), (5, 8), (8, 12)), strict=True):
            edit_parquet(file, timestamp=times[start:end].tolist())
        export(folder, tmp_path / f"new{said}")
        assert ("moves times by up to 0.01 s" in capsys.readouterr().out) == said
        even = (folder.columns["frame_index"] / 10).astype(np.float32)
        np.testing.assert_array_equal(opened(tmp_path / f"new{said}").timestamp, even)
