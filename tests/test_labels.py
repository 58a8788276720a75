"""Label rules, returns and sidecars against closed forms."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from chunkrl.data.formats import Feature
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import label_frames
from chunkrl.data.sidecar import load_sidecar, save_sidecar
from chunkrl.errors import DatasetError


@dataclass(frozen=True)
class _Table:
    """What label_frames and the sidecars use of a FrameTable."""

    lengths: tuple[int, ...]
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    action: Any = None
    fingerprint: str = "abc"
    cache_dir: Path = Path("set")

    @property
    def description(self) -> Any:
        features = {name: Feature(name, values.dtype.name, (1,)) for name, values in self.columns.items()}
        whole = {"left_out_episodes": frozenset(), "total_frames": self.num_frames, "whole_fingerprint": ""}
        return SimpleNamespace(root=Path("set"), fingerprint=self.fingerprint, features=features, **whole)

    @property
    def num_frames(self) -> int:
        return sum(self.lengths)

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @property
    def episode_length(self) -> np.ndarray:
        return np.array(self.lengths, np.int64)

    @property
    def episode_start(self) -> np.ndarray:
        return np.cumsum(self.episode_length) - self.episode_length

    @property
    def episode_ids(self) -> np.ndarray:
        return np.array(self.ids or range(len(self.lengths)), np.int64)

    def episode_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.episode_start, rows, side="right") - 1

    def has_column(self, name: str) -> bool:
        return name in self.columns

    def column(self, name: str) -> np.ndarray:
        return self.columns[name]


def _table(*lengths: int, ids: tuple[int, ...] = (), action: Any = None, **columns: list) -> FrameTable:
    """Columns by keyword, `next_` standing for `next.`."""
    arrays = {name.replace("next_", "next."): np.array(values) for name, values in columns.items()}
    return cast(FrameTable, _Table(lengths, arrays, ids, action))


def _rows(flags: np.ndarray) -> list[int]:
    return np.flatnonzero(flags).tolist()


def test_next_success_ends_the_task_at_its_first_frame():
    table = _table(4, 3, next_success=[0, 1, 0, 1, 0, 0, 0])
    labels = label_frames(table)
    assert labels.rule.success == "next.success"
    assert labels.success.tolist() == [True, False]
    assert _rows(labels.terminated) == [1]
    assert _rows(labels.after_success) == [2, 3]
    assert _rows(labels.truncated) == [6]
    assert labels.reward.tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert labels.reward.dtype == np.float32
    assert _rows(labels.subgoal) == [1]


def test_auto_prefers_success_then_next_reward_then_reward_then_subgoal():
    columns = {
        "subgoal": [0, 0, 1],
        "reward": [0, 0, 1],
        "next_reward": [0.0, 1.0, 0.0],
        "next_success": [True, False, False],
    }
    found = []
    for name in ("next_success", "next_reward", "reward", "subgoal"):
        labels = label_frames(_table(3, **columns))
        found.append((labels.rule.success, _rows(labels.terminated)))
        del columns[name]
    assert found == [("next.success", [0]), ("next.reward", [1]), ("reward", [2]), ("subgoal_last", [2])]


def test_next_done_alone_says_nothing_of_success():
    with pytest.raises(DatasetError, match=r"--success all .*--success-episodes .*--subgoal-key"):
        label_frames(_table(3, next_done=[0, 0, 1]))


@pytest.mark.parametrize(
    ("reward", "terminated"),
    [([0, 1, 1, 0, 0], [1]), ([-1, -1, 0, -1, -1], [2]), ([-1, -1, -1, -1, -1], []), ([0, 0, 0, 0, 0], [])],
)
def test_success_from_rewards(reward, terminated):
    labels = label_frames(_table(3, 2, reward=reward))
    assert _rows(labels.terminated) == terminated
    assert labels.reward.tolist() == reward


def test_a_dense_reward_is_no_success_flag():
    with pytest.raises(DatasetError, match=r"episode 7, frame 1: 'reward' is 0.5, .*another --success"):
        label_frames(_table(2, 3, ids=(4, 7), reward=[0, 0, 0, 0.5, 1]))
    labels = label_frames(_table(2, 3, reward=[0, 0, 0, 0.5, 1]), LabelRule(success="all"))
    assert labels.reward.tolist() == [0, 0, 0, 0.5, 1]
    assert _rows(labels.terminated) == [1, 4]


def test_subgoal_last_needs_the_flag_on_the_last_frame():
    labels = label_frames(_table(3, 3, subgoal=[0, 1, 1, 1, 1, 0]))
    assert labels.rule == LabelRule(success="subgoal_last", subgoal="column", human_key="none")
    assert labels.success.tolist() == [True, False]
    assert _rows(labels.terminated) == [2]
    assert _rows(labels.subgoal) == [1, 3]


def test_chosen_episodes_succeed_at_their_last_frame():
    table = _table(2, 3, 1, ids=(5, 6, 9))
    labels = label_frames(table, LabelRule(success="episodes", success_episodes=(9, 6)))
    assert labels.success.tolist() == [False, True, True]
    assert _rows(labels.terminated) == [4, 5]
    assert _rows(labels.truncated) == [1]
    with pytest.raises(DatasetError, match=r"no episodes \[7\]"):
        label_frames(table, LabelRule(success="episodes", success_episodes=(7,)))


def test_terminal_failures_end_the_task_without_success():
    labels = label_frames(_table(2, 2, next_success=[0, 1, 0, 0]), LabelRule(failure_terminal=True))
    assert _rows(labels.terminated) == [1, 3]
    assert not labels.truncated.any()
    assert labels.success.tolist() == [True, False]


def test_a_failure_that_was_declared_ends_the_task_and_a_time_out_does_not():
    success, terminated = [0, 1, 0, 0, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0, 0, 1]
    labels = label_frames(_table(2, 2, 2, 2, next_success=success, next_terminated=terminated))
    assert _rows(labels.terminated) == [1, 3, 6]
    assert _rows(labels.truncated) == [5]
    assert _rows(labels.after_success) == [7]
    assert labels.success.tolist() == [True, False, False, True]
    with pytest.raises(DatasetError, match=r"'next.terminated' is 2"):
        label_frames(_table(2, next_success=[0, 0], next_terminated=[0, 2]))


def test_an_episode_that_goes_on_after_success_is_not_truncated():
    labels = label_frames(_table(3, next_success=[1, 0, 0]))
    assert _rows(labels.terminated) == [0]
    assert not labels.truncated.any()
    assert _rows(labels.after_success) == [1, 2]


def test_flags_of_observations_belong_to_the_action_before():
    rule = LabelRule(flag_at="observation")
    labels = label_frames(_table(3, 3, reward=[0, 0, 1, 0, 1, 0], subgoal=[0, 1, 1, 1, 0, 1]), rule)
    assert _rows(labels.terminated) == [1, 3]
    assert labels.reward.tolist() == [0, 1, 0, 1, 0, 0]
    # The second episode's first observation has the flag: no action reached it.
    assert _rows(labels.subgoal) == [0, 4]
    # next.* columns follow their action whatever flag_at says.
    assert _rows(label_frames(_table(3, next_success=[0, 1, 0]), rule).terminated) == [1]


def test_success_before_any_action_is_an_error():
    rule = LabelRule(flag_at="observation")
    with pytest.raises(DatasetError, match=r"episode 1, frame 0: successful before any action"):
        label_frames(_table(2, 2, reward=[0, 1, 1, 0]), rule)
    with pytest.raises(DatasetError, match="before any action"):
        label_frames(_table(1, subgoal=[1]), replace(rule, success="subgoal_last"))


def test_subgoal_rules():
    def subgoals(rule: LabelRule) -> list[int]:
        command = [[0, -1], [0, -1], [0, 1], [0, 1], [0, 1], [0, -1]]
        table = _table(
            4, 2, next_success=[0, 1, 0, 0, 0, 0], flag=[1, 1, 0, 1, 1, 0], action=np.array(command)
        )
        return _rows(label_frames(table, rule).subgoal)

    assert subgoals(LabelRule(subgoal="success")) == [1]
    assert subgoals(LabelRule(subgoal="episode_end")) == [3]
    assert subgoals(LabelRule(subgoal="gripper")) == [2, 5]
    assert subgoals(LabelRule(subgoal="column", subgoal_key="flag")) == [0, 3, 4]
    assert subgoals(LabelRule(subgoal_key="flag")) == [0, 3, 4]
    with pytest.raises(DatasetError, match="no column 'subgoal'"):
        subgoals(LabelRule(subgoal="column"))
    with pytest.raises(DatasetError, match="action 0 never moves"):
        subgoals(LabelRule(subgoal="gripper", gripper_index=0))
    with pytest.raises(DatasetError, match="--gripper-index 2"):
        subgoals(LabelRule(subgoal="gripper", gripper_index=2))


def test_subgoals_from_a_csv_file(tmp_path):
    file = tmp_path / "subgoals.csv"

    def subgoals(text: str, **rule: Any) -> list[int]:
        file.write_text(text)
        table = _table(4, 3, ids=(5, 8), next_success=[0, 0, 0, 1, 0, 0, 0])
        return _rows(label_frames(table, LabelRule(subgoal="csv", subgoal_csv=str(file), **rule)).subgoal)

    header = "frame_index,episode_index,note\n"
    assert subgoals(header + "2,8,grasped\n0,5,\n1,5,\n") == [0, 1, 6]
    assert subgoals("\ufeff" + header) == []
    # Flags of observations: the action before reached them.
    assert subgoals(header + "2,8,\n1,5,\n", flag_at="observation") == [0, 5]
    for text, message in {
        "episode_index\n5\n": "lacks frame_index",
        header + "1,6,\n": "line 2: .* no episode 6",
        header + "1,5,\n4,5,\n": "line 3: episode 5 has frames 0 to 3",
        header + "x,5,\n": "line 2: .*two integers",
        header + "1\n": "line 2: .*two integers",
    }.items():
        with pytest.raises(DatasetError, match=message):
            subgoals(text)
    with pytest.raises(DatasetError, match="frames 1 to 3"):
        subgoals(header + "0,5,\n", flag_at="observation")
    with pytest.raises(DatasetError, match="--subgoal-csv"):
        label_frames(
            _table(1, next_success=[1]), LabelRule(subgoal="csv", subgoal_csv=str(tmp_path / "none"))
        )


def test_reward_rules():
    # A success with a frame after it, then a failure; the data's own rewards are others.
    table = _table(4, 3, next_success=[0, 0, 1, 0, 0, 0, 0], next_reward=[0.5] * 7)

    def reward(**rule: Any) -> list[float]:
        return label_frames(table, LabelRule(**rule)).reward.tolist()

    assert reward() == [0.5] * 7
    assert reward(step_reward="success") == [0, 0, 1, 0, 0, 0, 0]
    assert reward(step_reward="cost") == [-1, -1, 0, 0, -1, -1, -100]
    assert reward(step_reward="cost", failure_penalty=7.5)[-1] == -7.5


def test_flags_must_be_flags():
    with pytest.raises(DatasetError, match=r"frame 1: 'next.success' is 2, which is not a flag"):
        label_frames(_table(2, next_success=[0, 2]))
    with pytest.raises(DatasetError, match="2 values per frame"):
        label_frames(_table(1, next_success=[[0, 1]]))


@pytest.mark.parametrize(
    "values",
    [
        {"step_reward": "x"},
        {"failure_penalty": -1.0},
        {"subgoal": "csv"},
        {"success": "maybe"},
        {"subgoal": "x"},
        {"success": "episodes"},
        {"success_episodes": (1,)},
    ],
)
def test_rules_are_checked_when_made(values):
    with pytest.raises(DatasetError, match=r"--success|--subgoal|--step-reward|--failure-penalty"):
        LabelRule(**values)


def test_sidecar_comes_back_in_the_order_of_the_table(tmp_path):
    table = _table(2, 3, ids=(4, 2))
    advantage, good = np.arange(5, dtype=np.float32), np.array([1, 0, 1, 1, 0], bool)
    path = tmp_path / "labels.parquet"
    save_sidecar(
        path, table, {"advantage": advantage, "good": good}, {"gamma": 0.9, "rule": {"success": "all"}}
    )
    stored = pq.read_table(path)
    assert stored["episode_index"].to_pylist() == [4, 4, 2, 2, 2]
    assert stored["frame_index"].to_pylist() == [0, 1, 0, 1, 2]
    pq.write_table(stored.take([3, 0, 4, 1, 2]), path)  # rows are found by key, not by place
    loaded = load_sidecar(path, table)
    np.testing.assert_array_equal(loaded.arrays["advantage"], advantage)
    np.testing.assert_array_equal(loaded.arrays["good"], good)
    assert loaded.arrays["advantage"].dtype == np.float32
    assert loaded.metadata == {"gamma": 0.9, "rule": {"success": "all"}}
    assert [p.name for p in tmp_path.iterdir()] == ["labels.parquet"]


def test_sidecar_of_another_data_set_is_refused(tmp_path):
    path = tmp_path / "labels.parquet"
    table = _table(2, 3)
    save_sidecar(path, table, {"value": np.zeros(5)}, {})
    with pytest.raises(DatasetError, match=r"labels.parquet was made for another data set.*again"):
        load_sidecar(path, cast(FrameTable, _Table((2, 3), fingerprint="other")))
    with pytest.raises(DatasetError, match="one row for each frame"):
        load_sidecar(path, _table(3, 2))
    with pytest.raises(DatasetError, match="missing"):
        load_sidecar(tmp_path / "none.parquet", table)
    with pytest.raises(DatasetError, match=r"shape \(4,\), expected \[5\]"):
        save_sidecar(path, table, {"value": np.zeros(4)}, {})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match="cannot be read"):
        load_sidecar(path, table)


def test_fixture_with_reward_and_subgoal_columns(tmp_path):
    """The labels of a data set in the document's naming are the truth it was made from."""
    import json

    source = Path(__file__).parents[2] / "shared/data/lerobot/chunk_v20_image"
    if not source.is_dir():
        pytest.skip("no ../shared/data/lerobot beside the repository")
    truth = json.loads((source / "TRUTH.json").read_text())
    table = FrameTable.open(source, cache_dir=tmp_path)
    for rule in (LabelRule(), LabelRule(success="subgoal_last")):
        labels = label_frames(table, rule)
        assert labels.success.tolist() == [episode["success"] for episode in truth]
        expected = [
            s + int(f) for f, e in zip(table.episode_start, truth, strict=True) for s in e["subgoals"]
        ]
        assert _rows(labels.subgoal) == expected
