"""Collection on LIBERO: the expert, goals, replays (mark `libero`; skipped without the package or its assets)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chunk_data import policy_of_one_update, write_dataset
from test_libero import pytestmark  # noqa: F401  # mark and reasons to skip

from chunkrl.cli import main
from chunkrl.collect.command import RECORD, CollectConfig, collect_dataset
from chunkrl.collect.config import CONTROLLER, SUBGOAL_KINDS, plan
from chunkrl.collect.episode import EpisodeMaker
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import label_frames
from chunkrl.envs.libero import STATES
from chunkrl.envs.libero_replay import ReplayConfig
from chunkrl.envs.offscreen import choose_backend
from chunkrl.envs.registry import asset_fingerprint
from chunkrl.envs.scripted import POLICY, MixtureConfig
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand
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
    assert (description.state_keys, description.action_keys) == (("state",), ("actions",))
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


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small policy on the privileged state, after one update on noise."""
    root, rng = tmp_path_factory.mktemp("policy"), np.random.default_rng(0)
    columns = {"observation.state": rng.normal(size=(12, 24)), "action": rng.uniform(-1, 1, (12, 7))}
    episode = {name: values.astype(np.float32) for name, values in columns.items()}
    write_dataset(root / "data", [episode | {"next.success": np.arange(12) == 11}] * 2)
    return policy_of_one_update(root / "data", root / "run", 7)


def test_a_privileged_policy_collects_pictures_with_openpis_names(policy: Path, tmp_path: Path) -> None:
    """Of a task of libero_90 whose text another one has as well: its data say which they are of."""
    root = tmp_path / "d"
    collect = (
        f"collect --env libero_90/30 --policy {policy} --mixture.policy-share 1 --state privileged --fps 10"
    )
    collect += f" --naming openpi --camera-size 32 --rendering fast --output-dir {root} --max-steps 4"
    main([*collect.split(), *["--num-episodes", "1", "--num-workers", "1", "--exec-steps", "2"]])
    table = FrameTable.open(root, progress=silent)
    description = table.description
    assert (description.fps, description.cameras) == (10, ("image", "wrist_image"))
    features = json.loads((root / "meta/info.json").read_text())["features"]
    assert features["state"]["names"] == list(STATES["privileged"]) and table.action.shape == (4, 7)
    outer, wrist = (table.images(camera, np.arange(4)) for camera in ("image", "wrist_image"))
    assert outer.shape == wrist.shape == (4, 3, 32, 32)
    assert min(outer.std(), wrist.std()) > 10 and not np.array_equal(outer, wrist)
    assert np.asarray(table.column(CONTROLLER)).reshape(-1).tolist() == [POLICY] * 4
    assert table.column("timestamp").reshape(-1).tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    record = json.loads((root / RECORD).read_text())
    assert record["opengl"] == choose_backend() and len(record["policy_fingerprint"]) == 32
    label_dataset(LabelCommand(str(root), replay=ReplayConfig("libero_90", num_workers=1)), silent)
    (report,) = (root / "labels").glob("replay-*.json")
    assert json.loads(report.read_text())["drift_m"] == {"median": 0, "max": 0}


def test_the_privileged_state_is_of_pick_and_place_alone(policy: Path) -> None:
    mixture = MixtureConfig(policy_share=1)
    config = CollectConfig("libero_goal/0", mixture, 1, num_workers=0, state="privileged", policy=str(policy))
    with pytest.raises(ChunkRLError, match=r"^the state 'privileged' is of one object .*goal is \(open "):
        EpisodeMaker(plan(config)).make(0)
