"""`chunkrl label`: the file beside the data, and the exported data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from chunk_data import write_dataset
from lerobot_folder import NAMING, edit_parquet, write_lerobot_folder
from PIL import Image

from chunkrl.cli import main
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.file_segments import encode_video
from chunkrl.data.frames import FrameTable
from chunkrl.data.labels import label_frames
from chunkrl.data.sidecar import load_sidecar, save_sidecar
from chunkrl.data.writer import DatasetWriter, VideoEncoding
from chunkrl.progress import silent


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two tasks; episode 0 succeeds at frame 2, episode 1 fails after 3 frames, episode 2 succeeds at frame 0."""
    episodes = []
    for length, success in ((3, 2), (3, None), (1, 0)):
        flags = np.arange(length) == (-1 if success is None else success)
        actions = np.arange(2 * length, dtype=np.float32).reshape(length, 2)
        episodes.append({"action": actions, "observation.state": actions, "next.success": flags})
    return write_dataset(tmp_path / "set", episodes, ("push", "push", "pull"))


def label(*arguments: object) -> None:
    main(["label", *map(str, arguments)])


def test_a_cost_a_step(dataset: Path) -> None:
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    label(dataset, "--step-reward", "cost", "--failure-penalty", 5, "--gamma", 1)
    assert {path: path.read_bytes() for path in before} == before
    (file,) = (dataset / "labels").iterdir()
    table = FrameTable.open(dataset, progress=silent)
    sidecar = load_sidecar(file, table)
    arrays = sidecar.arrays
    assert arrays["reward"].tolist() == [-1, -1, 0, -1, -1, -5, 0]
    assert arrays["return"].tolist() == [-2, -1, 0, -7, -6, -5, 0]
    # Of the task "push", the worst return is -7; "pull" has one return alone.
    np.testing.assert_allclose(arrays["return_normalized"], [-2 / 7, -1 / 7, 0, -1, -6 / 7, -5 / 7, 0])
    assert arrays["success"].tolist() == [True] * 3 + [False] * 3 + [True]
    assert arrays["truncated"].tolist() == [False] * 5 + [True, False]
    assert sidecar.metadata["rule"]["step_reward"] == "cost"


def test_each_rule_has_its_file_and_the_same_rule_the_same(dataset: Path, tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text("episode_index,frame_index\n1,1\n")
    label(dataset)
    label(dataset, "--subgoal", "csv", "--subgoal-csv", csv)
    assert len(list((dataset / "labels").iterdir())) == 2
    other = tmp_path / "b.csv"
    other.write_text(csv.read_text())
    label(dataset, "--subgoal", "csv", "--subgoal-csv", other)
    assert len(list((dataset / "labels").iterdir())) == 2
    csv.write_text("episode_index,frame_index\n1,2\n")
    label(dataset, "--subgoal", "csv", "--subgoal-csv", csv)
    assert len(list((dataset / "labels").iterdir())) == 3


def test_n_step_returns_need_values(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        label(dataset, "--n-step", 2)
    assert "--values" in capsys.readouterr().err
    table = FrameTable.open(dataset, progress=silent)
    save_sidecar(tmp_path / "values.parquet", table, {"value": np.arange(7.0)}, {})
    output = tmp_path / "out.parquet"
    label(dataset, "--n-step", 2, "--values", tmp_path / "values.parquet", "--gamma", 0.5, "--output", output)
    arrays = load_sidecar(output, table).arrays
    assert arrays["n_step_return"].tolist() == [0.25 * 2, 0.5, 1, 0.25 * 5, 0, 0, 1]
    with pytest.raises(SystemExit):
        label(dataset, "--n-step", 2, "--values", tmp_path / "none.parquet")
    assert "none.parquet is missing" in capsys.readouterr().err
    save_sidecar(tmp_path / "values.parquet", table, {"worth": np.arange(7.0)}, {})
    with pytest.raises(SystemExit):
        label(dataset, "--n-step", 2, "--values", tmp_path / "values.parquet")
    assert "no column 'value'" in capsys.readouterr().err


@pytest.mark.parametrize("naming", NAMING)
@pytest.mark.parametrize("camera", ["image", None])
def test_export_holds_everything_and_the_labels(tmp_path: Path, naming: str, camera) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.0", naming=naming, camera=camera)
    label(folder.root, "--success", "episodes", "--success-episodes", 1, "--export", tmp_path / "new")
    new = FrameTable.open(tmp_path / "new", progress=silent)
    assert new.description.version == "v3.0"
    for name, values in folder.columns.items():
        if not name.startswith("next."):
            np.testing.assert_array_equal(new.column(name.replace("/", ".")), values)
    assert [new.task_text(row) for row in range(12)] == folder.task_texts
    for name, pictures in folder.images.items():
        got = new.images(name.replace("/", "."), np.arange(12))
        np.testing.assert_array_equal(got, pictures.transpose(0, 3, 1, 2))
    # Episodes of 5, 3 and 4 frames, the second successful.
    assert np.flatnonzero(new.column("next.success")).tolist() == [7]
    assert np.flatnonzero(new.column("next.done")).tolist() == [4, 7, 11]
    assert np.flatnonzero(new.column("next.truncated")).tolist() == [4, 11]
    again = label_frames(new)
    assert again.rule.success == "next.success"
    assert np.flatnonzero(again.terminated).tolist() == [7]


@pytest.mark.parametrize("codec", ["libsvtav1", "libx264"])
def test_export_copies_the_packets_of_videos(
    tmp_path: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if codec == "libx264":  # one file an episode
        folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="video").root
    else:  # one file for all
        folder = tmp_path / "set"
        features = {
            "action": FeatureSpec("float32", (2,)),
            "observation.images.front": FeatureSpec("video", (48, 64, 3)),
        }
        rng = np.random.default_rng(0)
        with DatasetWriter(folder, fps=30, features=features, video=VideoEncoding(gop=3)) as writer:
            for length in (7, 4, 9):
                pictures = rng.integers(256, size=(length, 48, 64, 3), dtype=np.uint8)
                actions = np.zeros((length, 2), np.float32)
                writer.add_episode({"action": actions, "observation.images.front": pictures}, "push")
    label(folder, "--success", "all", "--export", tmp_path / "new")
    assert "encoded again" not in capsys.readouterr().out
    settings = FrameSettings(cache=False)
    old, new = (
        FrameTable.open(root, progress=silent, settings=settings) for root in (folder, tmp_path / "new")
    )
    rows = np.arange(old.num_frames)
    for name in old.description.cameras:
        np.testing.assert_array_equal(new.images(name, rows), old.images(name, rows))
        info = json.loads((tmp_path / "new/meta/info.json").read_text())["features"][name]["info"]
        assert info["video.codec"] == {"libsvtav1": "av1", "libx264": "h264"}[codec]
    assert len(list((tmp_path / "new").rglob("*.mp4"))) == len(old.description.cameras)


def test_export_encodes_again_what_does_not_begin_with_a_key_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v3.0", camera="video", episodes_per_file=3)
    grey = [Image.new("RGB", (16, 16), (8 * i, 8 * i, 8 * i)) for i in range(12)]
    for file in folder.root.rglob("*.mp4"):  # one key frame for all three episodes
        encode_video(grey, file, 10, VideoEncoding("libx264", gop=100))
    label(folder.root, "--success", "all", "--export", tmp_path / "new")
    assert "encoded again" in capsys.readouterr().out
    assert FrameTable.open(tmp_path / "new", progress=silent).num_frames == 12


def test_export_copies_columns_of_texts(tmp_path: Path) -> None:
    features = {"action": FeatureSpec("float32", (2,)), "note": FeatureSpec("string", (1,))}
    notes = [["a", "", "ä"], ["b", "c"]]
    with DatasetWriter(tmp_path / "set", fps=10, features=features) as writer:
        for texts in notes:
            actions = np.zeros((len(texts), 2), np.float32)
            writer.add_episode({"action": actions, "note": np.array(texts)}, "push")
    label(tmp_path / "set", "--success", "all", "--export", tmp_path / "new")
    written = pq.read_table(next((tmp_path / "new/data").rglob("*.parquet")))
    assert written["note"].to_pylist() == notes[0] + notes[1]
    assert written["next.success"].to_pylist() == [False, False, True, False, True]


def test_export_needs_a_new_folder(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        label(dataset, "--export", dataset)
    assert "not empty" in capsys.readouterr().err


def test_bad_episodes_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    edit_parquet(folder.root / "data/chunk-000/episode_000001.parquet", action=[[0.0, np.nan]] * 3)
    label(folder.root, "--success", "all", "--skip-bad-episodes", "--output", tmp_path / "l.parquet")
    assert "set aside  episodes [1]" in capsys.readouterr().out
    assert set(pq.read_table(tmp_path / "l.parquet")["episode_index"].to_pylist()) == {0, 2}
