"""Video files of several episodes that have fewer frames than those."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lerobot_folder import write_lerobot_folder, write_video

from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.frames import FrameTable
from chunkrl.errors import DatasetError
from chunkrl.progress import silent

CAMERA = "observation.images.front"


@pytest.mark.parametrize("missing", [0, 3, 7])
def test_a_lost_frame_spoils_every_episode_of_its_file(tmp_path: Path, missing: int) -> None:
    """What follows it stands a frame early: images of other frames, and nothing in them says so."""
    folder = write_lerobot_folder(tmp_path / "d", "v3.0", camera="video", lengths=(5, 3, 4))
    pictures = np.delete(folder.images[CAMERA][:8], missing, axis=0)
    write_video(tmp_path / f"d/videos/{CAMERA}/chunk-000/file-000.mp4", pictures, folder.fps)
    with pytest.raises(DatasetError, match=r"file-000.mp4: has 7 frames, its episodes 0 to 1 have 8"):
        FrameTable.open(folder.root, cache_dir=tmp_path / "a", progress=silent).open_cameras([CAMERA])
    skipping = FrameSettings(skip_bad_episodes=True)
    table = FrameTable.open(folder.root, cache_dir=tmp_path / "b", progress=silent, settings=skipping)
    assert table.episode_ids.tolist() == [2]
    found = table.images(CAMERA, np.arange(4))
    np.testing.assert_array_equal(found, folder.images[CAMERA][8:].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("change", ["first missing", "last missing", "one more"])
def test_single_frames_of_a_video_that_has_not_its_episodes_are_refused(tmp_path: Path, change: str) -> None:
    """Read one by one they may all be there, and be others."""
    folder = write_lerobot_folder(tmp_path / "d", "v2.1", camera="video", lengths=(5, 3, 4))
    whole = folder.images[CAMERA]
    pictures = {"first missing": whole[6:8], "last missing": whole[5:7], "one more": whole[[5, 5, 6, 7]]}[
        change
    ]
    write_video(tmp_path / f"d/videos/chunk-000/{CAMERA}/episode_000001.mp4", pictures, folder.fps)
    on_demand = FrameSettings(cache=False)
    table = FrameTable.open(folder.root, cache_dir=tmp_path / "a", progress=silent, settings=on_demand)
    for row in (0, 4, 8, 11):
        np.testing.assert_array_equal(table.images(CAMERA, np.array([row]))[0], whole[row].transpose(2, 0, 1))
    for row in (5, 6):
        with pytest.raises(DatasetError, match=rf"episode 1.*has {len(pictures)} frames.*the episode has 3"):
            table.images(CAMERA, np.array([row]))


def test_single_frames_of_a_video_of_twice_the_rate(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "d", "v2.1", camera="video", lengths=(5, 3, 4))
    whole = folder.images[CAMERA]
    write_video(tmp_path / f"d/videos/chunk-000/{CAMERA}/episode_000001.mp4", whole[5:8].repeat(2, 0), 20)
    on_demand = FrameSettings(cache=False)
    table = FrameTable.open(folder.root, cache_dir=tmp_path / "a", progress=silent, settings=on_demand)
    found = table.images(CAMERA, np.arange(12))
    np.testing.assert_array_equal(found, whole.transpose(0, 3, 1, 2))
