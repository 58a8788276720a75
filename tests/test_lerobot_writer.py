"""The v3.0 writer and LeRobot on one data set: each reads what the other wrote, and goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_writer import H264, _check, _episode, _features, _read, _write

from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.frames import FrameTable
from chunkrl.data.writer import DatasetWriter
from chunkrl.progress import silent

pytestmark = pytest.mark.lerobot


@pytest.fixture
def lerobot() -> Any:
    """LeRobot's data set, of whichever release."""
    module = pytest.importorskip(
        "lerobot.datasets.lerobot_dataset", reason="needs LeRobot (make test-lerobot)"
    )
    return module.LeRobotDataset


def opened(lerobot: Any, root: Path) -> Any:
    """The data set for reading. PyAV: 0.4.4 takes torchcodec, which wants FFmpeg's libraries, without trying it."""
    return lerobot("local/set", root=root, video_backend="pyav")


def goes_on(lerobot: Any, root: Path) -> Any:
    """The data set opened for more episodes: 0.4 has one class for reading and writing, 0.6 `resume`."""
    return getattr(lerobot, "resume", lerobot)("local/set", root=root)


def records(data: Any, episodes: list[dict[str, np.ndarray]], first: int) -> None:
    """LeRobot's own loop: a frame at a time."""
    for number, columns in enumerate(episodes, first):
        for frame in range(len(columns["action"])):
            values = {k: v[frame] if v.ndim > 1 else v[frame : frame + 1] for k, v in columns.items()}
            data.add_frame(values | {"task": f"task {number % 2}"})
        data.save_episode()
    data.finalize()


def seen(item: dict[str, Any], camera: str) -> np.ndarray:
    """A frame's picture as LeRobot gives it, as uint8 [height, width, 3]."""
    return np.round(item[camera].numpy() * 255).transpose(1, 2, 0)


@pytest.mark.parametrize("kind", [None, "image", "video"])
def test_lerobot_reads_every_value(tmp_path, kind, lerobot):
    _write(tmp_path / "set", range(12), kind)
    data = opened(lerobot, tmp_path / "set")
    camera = f"observation.images.{kind}" if kind else None
    row = 0
    for i in range(12):
        columns = _episode(i, 3 + i % 3, camera)
        for frame in range(3 + i % 3):
            item = data[row]
            for key, values in columns.items():
                if key == camera:
                    assert np.abs(seen(item, key) - values[frame]).max() <= (3 if kind == "video" else 0)
                else:
                    np.testing.assert_array_equal(item[key].numpy(), values[frame])
            assert item["task"] == f"task {i % 2}"
            assert (int(item["episode_index"]), int(item["frame_index"])) == (i, frame)
            assert int(item["index"]) == row
            assert float(item["timestamp"]) == pytest.approx(frame / 10)
            row += 1
    assert len(data) == row
    assert data.num_episodes == 12
    np.testing.assert_allclose(
        data.meta.stats["action"]["mean"],
        np.concatenate([_episode(i, 3 + i % 3)["action"] for i in range(12)]).mean(axis=0),
        rtol=1e-5,
    )


@pytest.mark.parametrize("kind", [None, "image", "video"])
@pytest.mark.parametrize("first", ["ours", "lerobot"])
def test_lerobot_and_the_writer_take_turns(tmp_path, first, kind, lerobot):
    """Three episodes a turn, six turns, whoever begins: with the `intervention` column of a DAgger session."""
    root = tmp_path / "set"
    camera = f"observation.images.{kind}" if kind else None
    human = FeatureSpec("bool", (1,))
    features = _features(kind) | {"grid": FeatureSpec("float32", (2, 3)), "intervention": human}

    def episode(i: int) -> dict[str, np.ndarray]:
        length = 3 + i % 3
        more = {
            "grid": np.full((length, 2, 3), i, np.float32),
            "intervention": np.arange(length) % 3 == i % 2,
        }
        return _episode(i, length, camera) | more

    def ours(numbers: range) -> None:
        with DatasetWriter(root, fps=10, features=features, video=H264) as writer:
            for i in numbers:
                assert writer.add_episode(episode(i), f"task {i % 2}") == i

    def theirs(numbers: range) -> None:
        if numbers.start:
            data = goes_on(lerobot, root)
        else:
            told = {key: spec.to_json() | {"shape": spec.shape} for key, spec in features.items()}
            data = lerobot.create("local/set", 10, told, root=root, use_videos=kind == "video")
        records(data, [episode(i) for i in numbers], numbers.start)

    writers = (ours, theirs) if first == "ours" else (theirs, ours)
    for turn in range(6):
        writers[turn % 2](range(3 * turn, 3 * turn + 3))
    episodes = [episode(i) for i in range(18)]
    data = opened(lerobot, root)
    actions, humans = (np.concatenate([e[key] for e in episodes]) for key in ("action", "intervention"))
    grids = np.concatenate([e["grid"] for e in episodes])
    assert (len(data), data.num_episodes) == (len(actions), 18)
    for row in range(len(data)):
        item = data[row]
        np.testing.assert_array_equal(item["action"].numpy(), actions[row])
        np.testing.assert_array_equal(item["grid"].numpy(), grids[row])
        assert bool(item["intervention"]) == humans[row]
        if camera:
            shown = episodes[int(item["episode_index"])][camera][int(item["frame_index"])]
            assert np.abs(seen(item, camera) - shown).max() <= (6 if kind == "video" else 0)
    for key in ("min", "max", "mean", "count"):
        whole = {"min": 0, "max": 1, "mean": humans.mean(), "count": len(humans)}
        assert np.ravel(data.meta.stats["intervention"][key])[0] == pytest.approx(whole[key])
    # LeRobot's own encoder is coarser than the tests'
    _check(_read(root), camera, 6 if kind == "video" else 0)
    table = FrameTable.open(root, cache_dir=tmp_path / "cache", progress=silent)
    np.testing.assert_array_equal(table.action, actions)
    np.testing.assert_array_equal(table.column("intervention"), humans)
    assert table.task_text(0) == "task 0"
