"""`chunkrl label --export`: whoever reads the new data set has the labels that went in, by rule or by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_data import episode, open_chunks, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot_folder import write_lerobot_folder
from strange_sets import data_files, set_column
from test_cli import refused
from test_label_by_hand import EXCLUDE, FAILURE, LENGTH, begin, do, edits, table_of

from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import FrameLabels, label_frames
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand
from chunkrl.label.marks import Edit
from chunkrl.progress import silent

BY_HAND = LabelRule(labels="labels/by_hand.parquet")
STALE = {  # columns that say something else than the labels: they stay, and are not read
    "subgoal": np.arange(LENGTH) == 0,
    "intervention": np.arange(LENGTH) == 1,
    "next.terminated": np.arange(LENGTH) == LENGTH - 1,
}


def written(root: Path, num_episodes: int = 3, **columns: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    return write_dataset(
        root, [episode(LENGTH, number == 0, rng, **columns) for number in range(num_episodes)]
    )


def export(root: Path, rule: LabelRule, **more: Any) -> tuple[FrameTable, FrameLabels]:
    """Exports into `root`-new; what was exported."""
    return label_dataset(LabelCommand(str(root), rule, export=f"{root}-new", **more), silent)


def same(table: FrameTable, labels: FrameLabels, new: Path) -> None:
    """Whoever reads the new data set by no rule has these frames and labels."""
    read = table_of(new)
    found = label_frames(read)
    np.testing.assert_array_equal(read.action, table.action)
    for name in ("reward", "subgoal", "terminated", "truncated", "after_success", "human", "success"):
        ours, theirs = getattr(labels, name), getattr(found, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(theirs, ours, err_msg=name)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 2), edits), max_size=5),
    st.sampled_from(["success", "cost"]),
    st.booleans(),
)
def test_labels_by_hand_are_read_again_as_they_were(
    done: list[tuple[int, Edit]], step_reward: Any, failure_terminal: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = written(Path(folder) / "data", **STALE)
        rule = LabelRule(step_reward=step_reward, failure_terminal=failure_terminal)
        labels = begin(root, rule)
        do(labels, 0, Edit("subgoal", 2), Edit("subgoal", 3), Edit("exclude", on=False))
        for position, edit in done:
            do(labels, position, edit)
        labels.close()
        if any(labels.marks(position).is_used for position in range(3)):
            table, exported = export(root, BY_HAND)
            same(table, exported, Path(f"{root}-new"))


def test_what_a_person_said_has_these_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = written(tmp_path / "data", 4)
    labels = begin(root)
    do(labels, 1, Edit("success", 3), Edit("subgoal", 1), Edit("subgoal", 2), Edit("human", 4, 2))
    do(labels, 2, FAILURE)
    do(labels, 3, EXCLUDE)
    labels.close()
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    export(root, BY_HAND)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    said = capsys.readouterr().out
    assert "3 episodes with next.* columns, by labels/by_hand.parquet (success by" in said
    assert "episodes left out: 3 (excluded); the others are numbered from 0" in said
    new = table_of(tmp_path / "data-new")
    rows = {
        name: np.flatnonzero(new.column(name)).tolist()
        for name in ("next.success", "next.reward", "next.done", "next.terminated", "next.truncated")
    }
    assert rows == {
        "next.success": [5, 9],
        "next.reward": [5, 9],
        "next.done": [5, 9, 11, 17],
        "next.terminated": [5, 9],
        "next.truncated": [17],
    }
    assert np.flatnonzero(new.column("next.subgoal")).tolist() == [5, 7, 8, 9]
    assert np.flatnonzero(new.column("complementary_info.is_intervention")).tolist() == [8, 9, 10]
    chunks = open_chunks(tmp_path / "data-new")
    assert chunks.frame_labels.success.tolist() == [True, True, False]
    assert chunks.frame_labels.rule.subgoal_key == "next.subgoal"


@pytest.mark.parametrize(
    "rule",
    [
        LabelRule(success="all", subgoal="gripper", human_key="none"),
        LabelRule(success="episodes", success_episodes=(1,), subgoal="episode_end", human_key="intervention"),
        LabelRule(step_reward="cost", failure_penalty=7.0, failure_terminal=True),
        LabelRule(subgoal="column", flag_at="observation"),
    ],
)
def test_labels_by_rule_are_read_again_as_they_were(tmp_path: Path, rule: LabelRule) -> None:
    table, labels = export(written(tmp_path / "data", **STALE), rule)
    same(table, labels, tmp_path / "data-new")


def test_a_copy_of_a_copy_has_the_same_labels(tmp_path: Path) -> None:
    table, labels = export(written(tmp_path / "data", **STALE), LabelRule(subgoal="gripper"))
    export(tmp_path / "data-new", LabelRule())
    same(table, labels, tmp_path / "data-new-new")


def test_another_column_of_sub_goals_is_read_where_it_is_named(tmp_path: Path) -> None:
    export(written(tmp_path / "data", **STALE), LabelRule(subgoal="gripper"))
    new = table_of(tmp_path / "data-new")
    own = label_frames(new, LabelRule(subgoal="column")).subgoal
    assert np.flatnonzero(own).tolist() == [0, LENGTH, 2 * LENGTH]
    last = label_frames(new, LabelRule(success="subgoal_last"))
    assert last.rule.subgoal_key == "subgoal" and not last.success.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("has labels by hand", "--labels labels/by_hand.parquet exports them", "--labels none")),
        (("--labels", "labels/by_hand.parquet", "--output", "o.parquet"), ("--output", "as they are")),
        (("--labels", "labels/by_hand.parquet", "--gamma", "0.5"), ("--gamma", "as they are")),
        (("--labels", "other.parquet"), ("--labels other.parquet", "labels/by_hand.parquet")),
    ],
)
def test_which_labels_are_exported_is_never_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    root = written(tmp_path / "data")
    labels = begin(root)
    do(labels, 1, FAILURE)
    labels.close()
    told = refused(["label", str(root), "--export", str(tmp_path / "new"), *arguments], capsys)
    assert all(word in told for word in words)
    assert not (tmp_path / "new").exists()


def test_the_columns_are_exported_where_that_is_said(tmp_path: Path) -> None:
    root = written(tmp_path / "data")
    labels = begin(root)
    do(labels, 0, FAILURE)
    labels.close()
    export(root, LabelRule(labels="none"))
    assert label_frames(table_of(tmp_path / "data-new")).success.tolist() == [True, False, False]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_pictures_and_texts_of_the_other_episodes_stay_theirs(tmp_path: Path, version: Any) -> None:
    """Episodes of 5, 3 and 4 frames, of which the second is left out; several may share a file."""
    folder = write_lerobot_folder(tmp_path / "data", version, camera="video")
    texts = [f"row {row}" for row in range(12)]
    set_column(folder.root, "note", pa.array(texts), dtype="string", shape=[1])
    labels = begin(folder.root, LabelRule(success="all", step_reward="success"))
    do(labels, 1, EXCLUDE)
    labels.close()
    table, exported = export(folder.root, BY_HAND)
    same(table, exported, tmp_path / "data-new")
    old, new = table_of(folder.root), table_of(tmp_path / "data-new")
    kept = np.r_[0:5, 8:12]
    assert new.episode_length.tolist() == [5, 4]
    for name in old.description.cameras:
        np.testing.assert_array_equal(
            new.images(name.replace("/", "."), np.arange(9)), old.images(name, kept)
        )
    notes = [
        row for file in data_files(tmp_path / "data-new") for row in pq.read_table(file)["note"].to_pylist()
    ]
    assert notes == [texts[row] for row in kept]


def test_texts_of_sub_tasks_go_with_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LeRobot's meta/subtasks.parquet; another file there is named, and so is the table whose column is left out."""
    root = written(tmp_path / "data", subtask_index=np.arange(LENGTH) // 3)
    table = pa.table({"subtask_index": [0, 1], "subtask": ["reach", "push"]})
    pq.write_table(table, root / "meta/subtasks.parquet")
    (root / "meta/modality.json").write_text("{}")
    (root / "meta/.DS_Store").write_text("")
    export(root, LabelRule())
    new = Path(f"{root}-new")
    assert pq.read_table(new / "meta/subtasks.parquet").equals(table)
    assert table_of(new).column("subtask_index")[:LENGTH].tolist() == [0, 0, 0, 1, 1, 1]
    said = capsys.readouterr().out
    assert "meta/subtasks.parquet: copied" in said and "meta/modality.json: left out" in said
    assert ".DS_Store" not in said and "meta/info" not in said and "meta/stats" not in said
    bare = written(tmp_path / "bare")
    pq.write_table(table, bare / "meta/subtasks.parquet")
    export(bare, LabelRule())
    assert not Path(f"{bare}-new/meta/subtasks.parquet").exists()
    assert "meta/subtasks.parquet: left out" in capsys.readouterr().out
