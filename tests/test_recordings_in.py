"""What `lerobot-rollout` and openpi's runtime record goes straight into train and iterate."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import iterate_fakes
import numpy as np
import pyarrow as pa
import pytest
from chunk_data import settings
from lerobot_folder import Version, edit_json, edit_parquet, write_lerobot_folder
from strange_sets import data_files, opened, set_column

from chunkrl import ChunkLevelOfflineRL
from chunkrl.cli import main
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import label_frames
from chunkrl.errors import DatasetError
from chunkrl.files.json_files import read_json
from chunkrl.iterate.command import iterate
from chunkrl.iterate.config import RolloutSource, SelectionRule
from chunkrl.report.load_run import load_run

LENGTHS = (5, 3, 4, 6)
NUM = sum(LENGTHS)
LAST = np.cumsum(LENGTHS) - 1
HUMAN = np.isin(np.arange(NUM), [2, 3, 8, 9])
# as LeRobot 0.6.1 declares them (datasets/language.py); an event has no time of its own
EVENT = pa.struct(
    [
        *(pa.field("role", pa.string()), pa.field("content", pa.string()), pa.field("style", pa.string())),
        *(pa.field("camera", pa.string()), pa.field("tool_calls", pa.list_(pa.string()))),
    ]
)
PERSISTENT = pa.struct([*EVENT, pa.field("timestamp", pa.float32())])


def add_rollout_columns(root: Path, human: np.ndarray) -> None:
    """The columns of a DAgger session that `lerobot-annotate` has been over; human: bool [N]."""
    set_column(root, "intervention", pa.array(human), dtype="bool", shape=[1])
    told = {"role": "user", "content": "left a bit", "style": None, "camera": None, "tool_calls": None}
    rows = [[told] if number % 4 == 0 else [] for number in range(len(human))]
    set_column(root, "language_events", pa.array(rows, pa.list_(EVENT)), dtype="language", shape=[1])
    lasting = [[told | {"timestamp": 0.0}] for _ in human]
    set_column(
        root, "language_persistent", pa.array(lasting, pa.list_(PERSISTENT)), dtype="language", shape=[1]
    )
    edit_json(root / "meta/info.json", codebase_version="v3.1", robot_type="so101_follower", tools=[])


@pytest.fixture
def dagger(tmp_path: Path) -> Path:
    """Four episodes with cameras and motors' names, in two of which a human took over; it says no outcome."""
    root = tmp_path / "rollout_push_20261129_190000"
    write_lerobot_folder(root, camera="video", lengths=LENGTHS)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features["observation.state"]["names"] = ["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"]
    features["action"]["names"] = ["shoulder_pan.pos", "gripper.pos"]
    without = ("next.reward", "next.done")
    edit_json(root / "meta/info.json", features={k: v for k, v in features.items() if k not in without})
    for file in data_files(root):
        edit_parquet(file, **dict.fromkeys(without))
    add_rollout_columns(root, HUMAN)
    return root


def test_a_dagger_session_trains(dagger: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"chunkrl label with one of these keeps it beside the data"):
        label_frames(opened(dagger))
    listed = tmp_path / "good.csv"
    listed.write_text("episode_index,success\n0,1\n1,0\n2,1\n3,0\n")
    rule = LabelRule(success_file=str(listed))
    labels = label_frames(opened(dagger), rule)
    assert labels.rule.human_key == "intervention"
    np.testing.assert_array_equal(labels.human, HUMAN)
    assert labels.success.tolist() == [True, False, True, False]
    ChunkLevelOfflineRL(**settings(dagger, tmp_path / "run", labels=rule, cameras=())).train()
    assert (tmp_path / "run/policy").is_dir()


def test_next_success_on_the_last_frame_alone(dagger: Path, tmp_path: Path) -> None:
    success = np.zeros(NUM, bool)
    success[LAST[[0, 3]]] = True
    set_column(dagger, "next.success", pa.array(success), dtype="bool", shape=[1])
    labels = label_frames(opened(dagger))
    assert labels.success.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(labels.terminated, success)
    ChunkLevelOfflineRL(**settings(dagger, tmp_path / "run", cameras=())).train()


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_what_openpi_records(tmp_path: Path, version: Version) -> None:
    folder = write_lerobot_folder(
        tmp_path / "data", version, naming="openpi", camera="image", lengths=LENGTHS
    )
    rule = LabelRule(success="episodes", success_episodes=(1, 3))
    ChunkLevelOfflineRL(**settings(folder.root, tmp_path / "run", labels=rule, cameras=())).train()
    table = opened(folder.root)
    np.testing.assert_array_equal(table.action, folder.columns["actions"])
    assert table.description.cameras == ("image", "wrist_image")


def test_rounds_of_dagger_sessions(tmp_path: Path) -> None:
    from test_iterate import settings as iteration

    pretrained = iterate_fakes.pretrain(tmp_path / "pretrained")
    data = iterate_fakes.write_walks(tmp_path / "brought/round-000", 8, seed=1)
    human = np.zeros(opened(data).num_frames, bool)
    human[:3] = True
    add_rollout_columns(data, human)
    config = iteration(
        pretrained,
        tmp_path / "run",
        rounds=1,
        rollouts=RolloutSource(folder=str(tmp_path / "brought")),
        selection=SelectionRule(by="rollouts"),
    )
    iterate_fakes.write_walks(tmp_path / "brought/round-001", 8, seed=2)
    (run,) = iterate(config).arms
    assert len(run.rounds) == 2
    found = read_json(tmp_path / "run/round-000/label.done.json", dict, DatasetError, "")
    assert found["found"]["num_human"] == 3


def test_a_learner_begins_with_a_dagger_session(tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="needs chunkrl[online]")
    from online_records import SPEC, episode
    from started import free_address
    from test_learner_start import first_answer
    from test_online_learner import learner_arguments
    from waiting import until

    from chunkrl.online.learner.replay import Replay
    from chunkrl.online.link.config import ReplayConfig
    from chunkrl.online.link.records import StepRecord
    from chunkrl.online.link.spool import Spool

    replay = Replay(tmp_path / "first", SPEC, ReplayConfig(cameras="image"))
    for number in range(6):
        items = episode(100 + number, 6, "success" if number % 2 else "failure")
        replay.add([item for item in items if isinstance(item, StepRecord)])
    replay.close()
    data = tmp_path / "rollout_cup"
    (tmp_path / "first/shard-000000").rename(data)
    human = np.arange(opened(data).num_frames) < 4
    add_rollout_columns(data, human)
    run, address = tmp_path / "run", free_address()
    more = ["--dataset-dir", str(data), "--human-key", "intervention", "--num-updates", "20", "--cameras"]
    thread = threading.Thread(target=main, args=(learner_arguments(run, address, *more),), daemon=True)
    thread.start()
    with Spool(tmp_path / "spool") as spool:
        assert first_answer(address, spool).weights_version >= 1
    until(lambda: not thread.is_alive())
    np.testing.assert_array_equal(load_run(run).data[0].dataset.frame_labels.human, human)
