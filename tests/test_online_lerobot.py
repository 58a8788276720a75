"""LeRobot reads the replay's shards."""

from dataclasses import replace

import numpy as np
import pytest
from online_records import SPEC, episode

from chunkrl.online.learner.replay import EPISODE_KEY, Replay
from chunkrl.online.link.config import ReplayConfig
from chunkrl.online.link.records import StepRecord


@pytest.mark.lerobot
@pytest.mark.parametrize("cameras", ["video", "image"])
def test_lerobot_reads_a_shard(tmp_path, cameras):
    lerobot_dataset = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    spec = replace(SPEC, cameras={"front": (64, 64)})
    picture = {"front": np.full((64, 64, 3), 90, np.uint8)}
    ours = []
    replay = Replay(tmp_path, spec, ReplayConfig(cameras=cameras))
    for number in range(3):
        steps = [replace(item, images=picture) for item in episode(number, 4) if isinstance(item, StepRecord)]
        replay.add(steps)
        ours += steps
        data = lerobot_dataset.LeRobotDataset(
            # torchcodec, which 0.4 takes untried, wants FFmpeg's libraries
            "local/replay",
            root=tmp_path / "shard-000000",
            video_backend="pyav",
        )
        assert len(data) == len(ours) and data.num_episodes == number + 1
        for row, step in zip(data, ours, strict=True):
            np.testing.assert_array_equal(row["action"], step.executed_action)
            np.testing.assert_array_equal(row["complementary_info.proposed_action"], step.proposed_action)
            assert bool(row["complementary_info.is_intervention"]) == step.human
            assert row[EPISODE_KEY] == step.episode_id and row["task"] == "push"
            assert abs(float(row["observation.images.front"].mean()) - 90 / 255) < 0.02
    replay.close()
