"""Labels by hand are computed for the edited episode alone, and are those that all episodes would have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunk_data import episode, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_label_by_hand import EXCLUDE, FAILURE, LENGTH, SUCCESS, begin, do, edits, table_of
from test_progress_files import write as write_progress

from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import FrameLabels
from chunkrl.data.outcomes import OutcomeRule
from chunkrl.data.returns import normalize_per_task
from chunkrl.data.sidecar import load_sidecar
from chunkrl.label import edited
from chunkrl.label.base import BaseLabels, base_labels, editable
from chunkrl.label.by_hand import HandLabels
from chunkrl.label.command import label_arrays
from chunkrl.label.config import ReturnRule
from chunkrl.label.edited import EditedLabels
from chunkrl.label.marks import Edit, EpisodeMarks, apply

LENGTHS = (LENGTH, LENGTH + 3, LENGTH, LENGTH + 1)
RETURNS = ReturnRule(gamma=0.9)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of two tasks, of which the even ones succeed; the last one failed for good. A human was there."""
    rng = np.random.default_rng(0)
    episodes = [
        episode(
            length,
            number % 2 == 0,
            rng,
            **{
                "next.terminated": (np.arange(length) == length - 1) & (number == 3),
                "intervention": np.arange(length) == 2,
            },
        )
        for number, length in enumerate(LENGTHS)
    ]
    made = write_dataset(tmp_path_factory.mktemp("edited") / "data", episodes, ("push", "pull"))
    write_progress(made / "progress", rng.uniform(size=sum(LENGTHS)).astype(np.float32), LENGTHS)
    return made


def all_again(
    table: FrameTable, base: BaseLabels, marks: Sequence[EpisodeMarks], used: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of the episodes that are used, everything computed for all episodes."""
    steps = [one.success_step for one in marks]
    first = np.array(
        [table.num_frames if t is None else b + t for t, b in zip(steps, table.episode_start, strict=True)]
    )
    outcomes = OutcomeRule.read(table, base.rule).outcomes(first)
    before = [base.marks(table, position) for position in range(table.num_episodes)]
    is_same = [
        (a.success, a.success_step) == (b.success, b.success_step) for a, b in zip(marks, before, strict=True)
    ]
    as_it_was = np.repeat(is_same, table.episode_length)
    ends = {
        name: np.where(as_it_was, base.frames[name], getattr(outcomes, name))
        for name in ("terminated", "truncated", "reward")
    }
    flags = {name: np.zeros(table.num_frames, bool) for name in ("subgoal", "human")}
    for one, begins in zip(marks, table.episode_start, strict=True):
        flags["subgoal"][begins + np.array(one.subgoals, int)] = True
        for begin_step, end_step in one.human:
            flags["human"][begins + begin_step : begins + end_step + 1] = True
    labels = FrameLabels(
        reward=ends["reward"],
        terminated=ends["terminated"],
        truncated=ends["truncated"],
        subgoal=flags["subgoal"],
        human=flags["human"],
        after_success=outcomes.after_success,
        success=np.array([one.success_step is not None for one in marks]),
        rule=base.rule,
    )
    rows = np.repeat(used, table.episode_length)
    columns = {**label_arrays(table, labels, RETURNS), "human": labels.human}
    found = {name: values[rows] for name, values in columns.items()}
    return found | {"return_normalized": normalize_per_task(found["return"], table.task_index[rows])}


RULES = [
    LabelRule(),
    LabelRule(success="all", step_reward="cost", failure_penalty=7.0),
    LabelRule(success="episodes", success_episodes=(1,), subgoal="episode_end", failure_terminal=True),
    LabelRule(step_reward="progress", progress="progress"),
]


@pytest.mark.parametrize("rule", RULES, ids=["columns", "cost", "terminal", "progress"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), edits | st.none()), min_size=1, max_size=10))
def test_an_edit_gives_what_all_episodes_computed_again_give(
    root: Path, rule: LabelRule, done: list[tuple[int, Edit | None]]
) -> None:
    table = table_of(root)
    base = editable(table, base_labels(table, rule))
    before = [base.marks(table, position) for position in range(4)]
    labels, marks = EditedLabels(table, base, RETURNS), list(before)
    for position, edit in done:  # None: everything is taken back
        marks[position] = (
            before[position] if edit is None else apply(marks[position], edit, LENGTHS[position], "success")
        )
        labels.put(position, marks[position], before[position])
    used = np.array([one.is_used for one in marks])
    if not used.any():
        return
    found, expected = labels.file_columns(used), all_again(table, base, marks, used)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_the_file_is_that_of_the_marks_also_after_a_restart(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    root = write_dataset(tmp_path / "data", [episode(LENGTH, i == 0, rng) for i in range(3)])

    def check(labels: HandLabels) -> None:
        marks = [labels.marks(position) for position in range(3)]
        everyone = np.ones(3, bool)
        assert all(one.is_used for one in marks)
        found = load_sidecar(labels.path, labels.table).arrays
        for name, values in all_again(labels.table, labels.base, marks, everyone).items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)

    labels = begin(root, returns=RETURNS)
    do(labels, 1, Edit("success", 2), Edit("human", 1, 3))
    check(labels)
    do(labels, 0, FAILURE, EXCLUDE, Edit("exclude", on=False))
    check(labels)
    labels.close()
    again = begin(root)
    do(again, 2, SUCCESS)
    check(again)
    again.step(1, 2, "undo")
    again.step(1, 3, "undo")
    check(again)
    again.close()


def test_returns_of_other_episodes_are_not_computed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    real = edited.lambda_returns

    def counting(value: np.ndarray, reward: np.ndarray, *more: Any) -> np.ndarray:
        counted.append(len(reward))
        return real(value, reward, *more)

    monkeypatch.setattr(edited, "lambda_returns", counting)
    labels = begin(root, output=str(tmp_path / "mine.parquet"))
    assert counted == []
    do(labels, 0, FAILURE)
    counted.clear()
    do(labels, 1, SUCCESS, Edit("subgoal", 1))
    do(labels, 3, EXCLUDE)
    labels.step(1, 2, "undo")
    labels.close()
    assert counted == [LENGTHS[1], LENGTHS[1], LENGTHS[3], LENGTHS[1]]
