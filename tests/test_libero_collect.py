"""Collection on LIBERO: the expert, goals, replays (mark `libero`; skipped without the package or its assets)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_libero import pytestmark  # noqa: F401  # mark and reasons to skip

from chunkrl.data.frames import FrameTable
from chunkrl.data.label_command import LabelCommand, label_dataset
from chunkrl.data.labels import LabelRule, label_frames
from chunkrl.envs.collect import CollectConfig, collect_dataset
from chunkrl.envs.collect_config import SUBGOAL_KINDS, plan
from chunkrl.envs.collect_episode import EpisodeMaker
from chunkrl.envs.libero_replay import ReplayConfig
from chunkrl.envs.registry import asset_fingerprint
from chunkrl.envs.scripted import MixtureConfig
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.progress import silent

EXPERT_ALONE = MixtureConfig("episodes", episode_controllers=(1, 0, 0, 0), noise_std=(0, 0))
CONFIG = CollectConfig(
    env="libero_spatial/4+libero_object/2",  # the bowl in the drawer; a bottle into the basket
    mixture=EXPERT_ALONE,
    num_episodes=2,
    num_workers=0,
    seed=777,
    naming="openpi",
    subgoals=("goal", "grasp", "lift"),
)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> FrameTable:
    """One noise-free episode of each task."""
    root = tmp_path_factory.mktemp("libero") / "d"
    assert collect_dataset(root, CONFIG) == 2  # both succeed
    return FrameTable.open(root, progress=silent)


def test_collected_episodes(collected: FrameTable) -> None:
    description = collected.description
    assert (description.state_key, description.action_key) == ("state", "actions")
    record = json.loads((description.root / "meta/collection.json").read_text())
    assert record["assets"] == asset_fingerprint(["libero_object/2"]) != "" and record["simulators_lost"] == 0
    assert description.fps == 20 and collected.state is not None and collected.state.shape[1] == 8
    assert len(description.tasks) == 2 and "pick up the salad dressing" in description.tasks[1]
    labels = label_frames(collected, LabelRule())
    assert labels.success.all() and labels.rule.subgoal == "column"
    kinds = np.asarray(collected.column(SUBGOAL_KINDS)).reshape(-1)
    for start, length in zip(collected.episode_start, collected.episode_length, strict=True):
        rows = kinds[start : start + length]
        goal, grasp, lift = (np.flatnonzero(rows & bit).tolist() for bit in (1, 2, 4))
        assert goal == [length - 1] and len(grasp) == len(lift) == 1 and 20 < grasp[0] < lift[0] < length - 1
        assert labels.subgoal[start : start + length].sum() == 3
    by_rule = np.flatnonzero(label_frames(collected, LabelRule(subgoal="pick_place")).subgoal)
    assert np.abs(by_rule - (collected.episode_start + collected.episode_length - 1)).max() <= 2


def test_a_replay_is_the_episode_again(collected: FrameTable, tmp_path: Path) -> None:
    root = str(collected.description.root)
    replay = ReplayConfig(suite="libero_object", num_workers=1)
    with pytest.raises(DatasetError, match=r"episode 0: .*is no task of libero_object"):
        label_dataset(LabelCommand(root, replay=replay), silent)
    one = tmp_path / "one"
    config = CollectConfig(
        env="libero_object/2", mixture=EXPERT_ALONE, num_episodes=1, num_workers=0, seed=777
    )
    collect_dataset(one, config)
    label_dataset(LabelCommand(str(one), replay=ReplayConfig("libero_object", num_workers=1)), silent)
    (report,) = (one / "labels").glob("replay-*.json")
    found = json.loads(report.read_text())
    assert found["drift_m"] == {"median": 0, "max": 0} and found["successful_replays"] == 1
    (file,) = (one / "labels").glob("replay-*.csv")
    truth = label_frames(FrameTable.open(one, progress=silent), LabelRule()).subgoal
    assert file.read_text().splitlines()[1:] == [f"0,{t},goal" for t in np.flatnonzero(truth)]


def test_an_episode_depends_on_seed_and_number_alone(collected: FrameTable) -> None:
    maker = EpisodeMaker(plan(CONFIG))
    second = maker.make(1)  # first in a new simulator
    maker.close()
    rows = slice(int(collected.episode_start[1]), None)
    assert np.array_equal(second.columns["actions"], collected.action[rows])
    assert collected.state is not None and np.array_equal(second.columns["state"], collected.state[rows])


def test_tasks_without_an_expert_are_refused() -> None:
    config = CollectConfig(env="libero_goal/0", num_episodes=1, num_workers=0)
    with pytest.raises(
        ChunkRLError, match=r"this task's goal is .*libero_spatial or libero_object.*--policy"
    ):
        EpisodeMaker(plan(config)).make(0)
    with pytest.raises(ChunkRLError, match="different simulators"):
        plan(CollectConfig(env="push-v3+libero_goal/0"))
