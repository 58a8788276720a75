"""Videos of the actors' newest episode with its values: when they are due, what they show, what goes wrong."""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs chunkrl[online]")

from growing_data import HORIZON, add, settings
from online_records import SPEC, episode, episode_id
from test_online_learner import Process, TestActor, free_address, learner_arguments
from test_value_videos import Renderers, decoded, near
from waiting import until

from chunkrl.errors import ChunkRLError
from chunkrl.online.learner.config import LearnerConfig
from chunkrl.online.learner.data import Generation, LearnerData
from chunkrl.online.learner.replay import Replay
from chunkrl.online.learner.videos import EpisodeVideos
from chunkrl.online.link.config import ReplayConfig
from chunkrl.online.link.records import StepRecord
from chunkrl.report.beside_learner import write_episode_video
from chunkrl.report.value_video import HUMAN
from chunkrl.run.checks import check_config
from chunkrl.run.config import TrainConfig
from chunkrl.training.config import ValueVideoConfig
from chunkrl.training.value_videos import FOLDER

EVERY_TWO = ValueVideoConfig(every_episodes=2)
CONFIG = TrainConfig(action_horizon=HORIZON, action_dim=2)


class Growing:
    """A replay with shards of two episodes, and the data opened from it."""

    def __init__(self, root: Path, spec=SPEC) -> None:
        self.replay = Replay(
            root / "replay", spec, ReplayConfig(shard_episodes=2, capacity_steps=14, cameras="image")
        )
        self.data = LearnerData([], (), settings(cameras=()), root / "cache", 0.5)

    def more(self, *numbers: int) -> Generation:
        """The data with these episodes, of 6 + number steps."""
        for number in numbers:
            add(self.replay, number, 6 + number, "success" if number % 2 else "failure")
        return self.data.open(self.replay)


def labels(generation: Generation) -> dict[str, np.ndarray]:
    """A value that says which frame of all data it is of."""
    assert generation.data is not None
    value = np.arange(len(generation.data), dtype=np.float32)
    return {"value": value, "advantage": value - 3}


def test_the_newest_episode_is_on_video_with_its_own_values(tmp_path, monkeypatch):
    renderers = Renderers(monkeypatch, "")
    growing = Growing(tmp_path)
    videos = EpisodeVideos(EVERY_TWO, tmp_path, growing.more())
    one = growing.more(0)
    videos.begin_if_due(one, labels(one))
    three = growing.more(1, 2)
    videos.begin_if_due(three, {})  # values are not there yet
    assert not renderers.started
    videos.begin_if_due(three, labels(three))
    videos.begin_if_due(three, labels(three))  # no second time
    videos.close(finish=True)
    (arguments,) = renderers.started
    folder = Path(arguments[-1])
    assert folder == tmp_path / FOLDER / "episodes-000000003"
    job = json.loads((folder / "episode.json").read_text())
    assert job["episode"] == episode_id(2) and job["value"] == list(range(13, 21))
    assert job["advantage"] == list(range(10, 18))

    growing.more(3)  # the shard is another one by the time the renderer reads it
    path = write_episode_video(CONFIG, folder)
    assert path.stem == "episode-000000-failure"
    assert videos.newest == path
    pictures = decoded(path.read_bytes())
    assert len(pictures) == 8 + 15
    # of the 8 steps, 1, 4 and 7 are a human's; the curves' image is 150 high and they are 83 below its top
    band = pictures[0, -150 + 83 : -150 + 87, 44:-10]
    marked = near(band, HUMAN, 70).any(0)
    middles = ((np.arange(8) + 0.5) / 8 * len(marked)).astype(int)
    assert marked[middles].tolist() == [False, True, False, False, True, False, False, True]
    growing.replay.close()


def test_the_next_start_goes_on_counting_and_a_dropped_episode_is_said(tmp_path, monkeypatch):
    renderers = Renderers(monkeypatch, "")
    growing = Growing(tmp_path)
    two = growing.more(0, 1)
    videos = EpisodeVideos(EVERY_TWO, tmp_path, two)
    videos.begin_if_due(two, labels(two))
    videos.close(finish=True)
    folder = Path(renderers.started[0][-1])
    write_episode_video(CONFIG, folder)
    again = EpisodeVideos(EVERY_TWO, tmp_path, two)
    again.begin_if_due(two, labels(two))
    assert len(renderers.started) == 1
    growing.more(2, 3, 4, 5)
    with pytest.raises(
        ChunkRLError, match=r"shard-000000 was dropped before .* raise --replay.capacity-steps"
    ):
        write_episode_video(CONFIG, folder)
    growing.replay.close()


def test_training_neither_waits_nor_ends_for_a_video(tmp_path, monkeypatch, caplog):
    renderers = Renderers(monkeypatch, "import sys; sys.exit('no space left')")
    growing = Growing(tmp_path)
    data = growing.more(0, 1)
    videos = EpisodeVideos(EVERY_TWO, tmp_path, data)
    with caplog.at_level(logging.WARNING):
        videos.begin_if_due(data, labels(data))
        videos.close(finish=True)
    assert "episodes-000000002 failed (exit status 1): no space left" in caplog.text

    monkeypatch.undo()
    slow = Renderers(monkeypatch, "import signal; signal.pause()")
    data = growing.more(2, 3)
    videos.begin_if_due(data, labels(data))
    data = growing.more(4, 5)
    videos.begin_if_due(data, labels(data))  # the last one is still at it
    assert (len(renderers.started), len(slow.started)) == (1, 1)
    caplog.clear()
    videos.close(finish=False)
    assert not caplog.text
    growing.replay.close()


def test_data_without_cameras_and_settings_without_meaning_are_refused(tmp_path, caplog):
    blind = Growing(tmp_path, replace(SPEC, cameras={}))
    items = [item for item in episode(0, 6) if isinstance(item, StepRecord)]
    blind.replay.add([replace(item, images={}) for item in items])
    with pytest.raises(ChunkRLError, match=r"no cameras to show .* leave --value-videos.every-episodes out"):
        EpisodeVideos(EVERY_TWO, tmp_path, blind.more())
    late = EpisodeVideos(ValueVideoConfig(every_episodes=1), tmp_path, Generation(None))
    late.begin_if_due(blind.more(), labels(blind.more()))
    assert "no cameras to show" in caplog.text
    blind.replay.close()

    with pytest.raises(ChunkRLError, match=r"every-episodes records .* use --value-videos.num-episodes"):
        check_config(replace(CONFIG, dataset_dir="d", value_videos=EVERY_TWO))
    with pytest.raises(ChunkRLError, match=r"does not read .*--value-videos.every-episodes"):
        check_config(replace(CONFIG, objective="success_cloning", value_videos=EVERY_TWO), has_data=True)
    with pytest.raises(ChunkRLError, match=r"use --value-videos.every-episodes"):
        LearnerConfig(train=replace(CONFIG, value_videos=ValueVideoConfig(num_episodes=1))).check()


@pytest.mark.slow  # learner and renderer are processes that import everything
def test_a_learner_records_videos_of_what_an_actor_sends(tmp_path):
    run, address, log = tmp_path / "run", free_address(), tmp_path / "log"
    more = ["--online.start-episodes", "4", "--value-videos.every-episodes", "4", "--cameras"]
    learner = Process(learner_arguments(run, address, *more), log)
    actor = TestActor(tmp_path / "spool", address)
    try:
        actor.record(range(4))
        (first,) = until(lambda: list(run.glob(f"{FOLDER}/episodes-000000004/episode-000003-success.*")))
        actor.record(range(4, 10))
        until(lambda: len(list(run.glob(f"{FOLDER}/episodes-*/episode-*-*"))) > 1)
        assert learner.end(signal.SIGTERM) == 0
    finally:
        actor.close()
        learner.process.kill()
    job = json.loads((first.parent / "episode.json").read_text())
    assert job["episode"] == episode_id(3) and len(job["value"]) == 8
    assert np.isfinite(job["value"]).all() and len(decoded(first.read_bytes())) == 8 + 15
    said = log.read_text()
    assert f"video {run / FOLDER}/episodes-0000000" in said and "Traceback" not in said
