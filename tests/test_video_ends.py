"""Video files of several episodes that have fewer frames than those."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lerobot_folder import write_lerobot_folder, write_video

from chunkrl.data.frames import FrameSettings, FrameTable
from chunkrl.errors import DatasetError
from chunkrl.progress import silent

CAMERA = "observation.images.front"


@pytest.mark.parametrize("missing", [0, 3, 7])
def test_a_lost_frame_spoils_every_episode_of_its_file(tmp_path: Path, missing: int) -> None:
    """What follows it stands a frame early: pictures of other frames, and nothing in them says so."""
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
