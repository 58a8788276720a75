"""Labels by hand: what training reads of them, durable at every edit, taken back, never two at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunk_data import FPS, episode, open_chunks, random_episodes, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.formats import describe, without
from chunkrl.data.frames import FrameTable
from chunkrl.data.inspect import make_report
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import label_frames
from chunkrl.data.notes import label_notes
from chunkrl.data.sidecar import load_part, load_sidecar, save_sidecar
from chunkrl.errors import DatasetError, LabelError, OutputFolderError
from chunkrl.label import by_hand
from chunkrl.label.by_hand import HandLabels, StaleEditError
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand, ReturnRule
from chunkrl.label.journal import History
from chunkrl.label.marks import Edit, EpisodeMarks, apply, spans_of
from chunkrl.progress import silent

LENGTH = 6


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six episodes, of which the even ones succeed, by the column."""
    return write_dataset(tmp_path / "data", random_episodes(6))


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """Four episodes of six frames that do not say who succeeded."""
    rng = np.random.default_rng(0)
    episodes = [episode(LENGTH, False, rng) for _ in range(4)]
    for columns in episodes:
        del columns["next.success"]
    return write_dataset(tmp_path / "data", episodes)


def table_of(root: Path) -> FrameTable:
    return FrameTable.open(root, progress=silent, settings=FrameSettings(cache=False))


def begin(root: Path, rule: LabelRule = LabelRule(), **more: Any) -> HandLabels:
    table = table_of(root)
    return HandLabels(table, by_hand.hand_file(root, more.pop("output", None)), rule, **more)


def do(labels: HandLabels, position: int, *edits: Edit) -> History:
    for edit in edits:
        labels.edit(position, labels.history(position).version, edit)
    return labels.history(position)


SUCCESS, FAILURE, EXCLUDE = Edit("success"), Edit("failure"), Edit("exclude")


def test_training_reads_the_edits_and_nothing_else(unlabelled: Path) -> None:
    with pytest.raises(DatasetError, match="does not say which episodes succeeded"):
        open_chunks(unlabelled)
    labels = begin(unlabelled)
    do(labels, 0, Edit("success", 3), Edit("subgoal", 1), Edit("human", 4, 2))
    do(labels, 2, FAILURE)
    do(labels, 3, SUCCESS, EXCLUDE)
    labels.close()
    chunks = open_chunks(unlabelled)
    found, table = chunks.frame_labels, chunks.table
    assert table.episode_ids.tolist() == [0, 2]  # 1 has no label, 3 is excluded
    assert found.success.tolist() == [True, False]
    assert np.flatnonzero(found.terminated).tolist() == [3]
    assert np.flatnonzero(found.truncated).tolist() == [11]
    assert np.flatnonzero(found.after_success).tolist() == [4, 5]
    assert np.flatnonzero(found.subgoal).tolist() == [1, 3]  # the success is one by the rule
    assert np.flatnonzero(found.human).tolist() == [2, 3, 4]
    assert found.reward.tolist() == [0, 0, 0, 1, 0, 0] + [0] * 6
    notes = " ".join(label_notes(table, found))
    assert "success by hand" in notes and "1 excluded left out" in notes and "1 unlabelled left out" in notes
    np.testing.assert_array_equal(table.action[:LENGTH], table_of(unlabelled).action[:LENGTH])
    np.testing.assert_array_equal(table.action[LENGTH:], table_of(unlabelled).action[12:18])


@pytest.mark.parametrize("rule", ["gripper", "csv", "column", "auto"])
def test_without_outcomes_the_rules_sub_goals_are_there(tmp_path: Path, rule: str) -> None:
    """A rule that needs no outcome holds from the start, and is what the same rule says with outcomes."""
    rng, there = np.random.default_rng(0), np.isin(np.arange(LENGTH), (2, 4))
    own = {"subgoal": there} if rule in ("column", "auto") else {}
    episodes = [episode(LENGTH, True, rng, **own) for _ in range(3)]
    file = tmp_path / "s.csv"
    file.write_text("episode_index,frame_index\n0,1\n2,3\n")
    asked = LabelRule(subgoal=rule, subgoal_csv=str(file) if rule == "csv" else "")  # type: ignore[arg-type]
    known = label_frames(table_of(write_dataset(tmp_path / "known", episodes)), asked)
    for columns in episodes:
        del columns["next.success"]
    if rule == "auto":  # a column that is no success: its last frame is none
        assert not there[-1]
    root = write_dataset(tmp_path / "data", episodes)
    labels = begin(root, replace(asked, success="auto") if rule != "auto" else asked)
    assert "no outcomes yet, sub-goals by" in labels.base.told or rule in ("column", "auto")
    for position in range(3):
        rows = slice(position * LENGTH, (position + 1) * LENGTH)
        assert labels.marks(position).subgoals == tuple(np.flatnonzero(known.subgoal[rows]))
    assert known.subgoal.any()
    do(labels, 0, Edit("success", 3))
    labels.close()
    found = open_chunks(root).frame_labels
    np.testing.assert_array_equal(found.subgoal, known.subgoal[: len(found.subgoal)])


def test_sub_goals_that_hang_on_outcomes_or_contradict_blank_are_refused(unlabelled: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"placements of --subgoal pick_place .* --subgoal-events grasp lift"
    ):
        begin(unlabelled, LabelRule(subgoal="pick_place"))
    with pytest.raises(DatasetError, match="--blank begins without labels, and --subgoal gripper is a rule"):
        begin(unlabelled, LabelRule(subgoal="gripper"), blank=True)
    labels = begin(unlabelled, LabelRule(subgoal="episode_end"), blank=True)
    do(labels, 0, Edit("success", 3))
    assert labels.marks(0).subgoals == (LENGTH - 1,)
    labels.close()


def test_labels_by_a_file_of_sub_goals_can_be_edited_and_the_file_may_go(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    file.write_text("episode_index,frame_index\n0,1\n")
    rule = LabelRule(subgoal="csv", subgoal_csv=str(file))
    label_dataset(LabelCommand(str(root), rule), silent)
    own = begin(root, rule, output=str(tmp_path / "own.parquet"))  # begun with the file itself
    file.unlink()
    beside = begin(root)  # from the labels by rule
    for labels in (own, beside):
        assert labels.marks(0).subgoals == (1,)
        do(labels, 0, Edit("subgoal", 2))
        labels.close()
    for path in (own.path, beside.path):
        found = load_sidecar(path, table_of(root))
        assert np.flatnonzero(found.arrays["subgoal"])[:2].tolist() == [1, 2]
        assert len(found.metadata["rule"]["subgoal_csv"]) == 64
    again = begin(root)
    do(again, 0, Edit("subgoal", 3))
    again.close()


def test_what_was_never_edited_may_begin_from_something_else(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first edit could not be written, and left what it would have begun from."""
    labels = begin(root)

    def full(*_: Any) -> None:
        raise DatasetError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(by_hand, "save_sidecar", full)
        with pytest.raises(DatasetError, match="no space left"):
            labels.edit(0, 0, FAILURE)
    labels.close()
    other = begin(root, LabelRule(step_reward="cost"))
    do(other, 1, SUCCESS)
    other.close()
    assert begin(root).base.rule.step_reward == "cost"


@pytest.mark.parametrize(
    "rule",
    [
        LabelRule(success="episodes", success_episodes=(1, 2)),
        LabelRule(success="episodes", success_episodes=(1, 2), step_reward="cost", failure_penalty=7.0),
        LabelRule(success="episodes", success_episodes=(1, 2), subgoal="episode_end", failure_terminal=True),
    ],
)
def test_by_hand_is_what_the_rule_would_have_said(root: Path, rule: LabelRule) -> None:
    """The same outcomes give the same file, column by column, whoever said them."""
    table, _ = label_dataset(LabelCommand(str(root), rule, output=str(root.parent / "rule.parquet")), silent)
    start = LabelRule(
        success="all",
        subgoal=rule.subgoal,
        step_reward=rule.step_reward,
        failure_penalty=rule.failure_penalty,
        failure_terminal=rule.failure_terminal,
    )
    labels = begin(root, start)
    for position in range(6):
        do(labels, position, SUCCESS if position in rule.success_episodes else FAILURE)
    labels.close()
    ours, theirs = (load_sidecar(file, table).arrays for file in (labels.path, root.parent / "rule.parquet"))
    assert ours.keys() == theirs.keys() | {"human"}
    for name, values in theirs.items():
        assert ours[name].dtype == values.dtype
        np.testing.assert_array_equal(ours[name], values, err_msg=name)


def test_what_is_not_touched_stays_as_it_was(root: Path) -> None:
    before = label_frames(table_of(root))
    labels = begin(root)
    do(labels, 1, Edit("subgoal", 2))
    labels.close()
    after = open_chunks(root, labels=LabelRule(labels="labels/by_hand.parquet")).frame_labels
    assert np.flatnonzero(after.subgoal != before.subgoal).tolist() == [
        int(table_of(root).episode_start[1]) + 2
    ]
    for name in ("reward", "terminated", "truncated", "after_success", "human", "success"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)


def test_every_edit_is_there_for_whoever_opens_the_folder_next(root: Path) -> None:
    labels = begin(root)
    assert labels.is_new and not labels.path.exists()
    do(labels, 1, SUCCESS)
    assert open_chunks(root).frame_labels.success.tolist() == [True, True, True, False, True, False]
    labels.step(1, 1, "undo")
    assert open_chunks(root).frame_labels.success.tolist() == [True, False, True, False, True, False]
    labels.step(1, 2, "redo")
    labels.close()
    again = begin(root)
    history = again.history(1)
    assert (history.version, history.can_undo, history.can_redo) == (3, True, False)
    assert again.step(1, 3, "undo").marks == EpisodeMarks(success=False)
    with pytest.raises(LabelError, match="nothing to undo"):
        again.step(1, 4, "undo")
    again.close()


edits = st.one_of(
    st.builds(Edit, st.just("success"), st.none() | st.integers(0, LENGTH - 1)),
    st.just(FAILURE),
    st.builds(Edit, st.just("subgoal"), st.integers(0, LENGTH - 1), on=st.booleans()),
    st.builds(
        Edit, st.just("human"), st.integers(0, LENGTH - 1), st.integers(0, LENGTH - 1), on=st.booleans()
    ),
    st.builds(Edit, st.just("exclude"), on=st.booleans()),
)


@given(st.lists(edits, max_size=12))
def test_undo_goes_back_through_every_state_and_redo_forward(done: list[Edit]) -> None:
    states = [EpisodeMarks()]
    for edit in done:
        states.append(apply(states[-1], edit, LENGTH, "success"))
        marks = states[-1]
        assert spans_of(sorted({t for a, b in marks.human for t in range(a, b + 1)})) == marks.human
        if marks.success:  # the succeeding action is a sub-goal until a person says that it is none
            assert marks.success_step is not None
    history = History([states[0]])
    from chunkrl.label.journal import Entry

    def add(step: Any, marks: EpisodeMarks) -> None:
        history.add(Entry(0, history.version + 1, step, "", marks))

    for marks in states[1:]:
        add("edit", marks)
    for marks in reversed(states[:-1]):
        add("undo", marks)
    assert not history.can_undo and history.marks == states[0]
    for marks in states[1:]:
        add("redo", marks)
    assert not history.can_redo and history.marks == states[-1]


def test_a_success_takes_its_sub_goal_along() -> None:
    marks = apply(EpisodeMarks(subgoals=(1,)), Edit("success", 3), LENGTH, "success")
    assert marks.subgoals == (1, 3)
    assert apply(marks, Edit("success", 5), LENGTH, "success").subgoals == (1, 5)
    confirmed = apply(replace(marks, by_hand=False), SUCCESS, LENGTH, "success")
    assert confirmed == marks and confirmed.by_hand  # a success that is confirmed stays where it was
    assert apply(EpisodeMarks(subgoals=(1,)), SUCCESS, LENGTH, "success").subgoals == (1, 5)
    assert apply(marks, FAILURE, LENGTH, "success").subgoals == (1,)
    assert apply(EpisodeMarks(), Edit("success", 3), LENGTH, "end").subgoals == (5,)
    assert apply(EpisodeMarks(), Edit("success", 3), LENGTH, "").subgoals == ()


@pytest.mark.parametrize("edit", [Edit("success", 6), Edit("subgoal"), Edit("human", 2), Edit("subgoal", -1)])
def test_a_step_that_is_not_there_is_refused(unlabelled: Path, edit: Edit) -> None:
    labels = begin(unlabelled)
    with pytest.raises(LabelError, match="the episode has steps 0 to 5"):
        labels.edit(0, 0, edit)
    assert labels.is_new
    labels.close()
    assert not (unlabelled / "labels").exists()  # nothing was edited, nothing is left


def test_of_two_edits_of_the_same_state_the_second_is_told(root: Path) -> None:
    labels = begin(root)
    labels.edit(1, 0, SUCCESS, by="first")
    with pytest.raises(StaleEditError, match=r"changed meanwhile .*success.*not applied") as stale:
        labels.edit(1, 0, FAILURE, by="second")
    assert [entry.by for entry in stale.value.entries] == ["first"]
    assert labels.marks(1).success
    labels.edit(2, 0, FAILURE)  # of another episode
    labels.close()


def test_a_kill_between_journal_and_labels_loses_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = begin(root)
    do(labels, 1, SUCCESS)
    with monkeypatch.context() as patch:
        patch.setattr(by_hand, "save_sidecar", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            do(labels, 3, SUCCESS)
    labels.close()
    begin(root).close()
    assert open_chunks(root).frame_labels.success.tolist() == [True, True, True, True, True, False]


def test_an_edit_whose_labels_cannot_be_written_changes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = begin(root)
    do(labels, 1, SUCCESS)
    with monkeypatch.context() as patch:
        patch.setattr(by_hand, "save_sidecar", lambda *_: (_ for _ in ()).throw(DatasetError("disk full")))
        for position in (1, 3):
            with pytest.raises(DatasetError, match="disk full"):
                do(labels, position, FAILURE if position == 1 else SUCCESS)
    assert [labels.history(position).version for position in (1, 3)] == [1, 0]
    assert labels.marks(1).success and not labels.marks(3).success
    labels.edit(3, 0, SUCCESS)  # whoever was told tries again
    labels.close()
    assert open_chunks(root).frame_labels.success.tolist() == [True, True, True, True, True, False]
    again = begin(root)
    assert [len(again.history(position).entries) for position in (1, 3)] == [1, 1]
    again.close()


def test_after_closing_nothing_is_written(root: Path) -> None:
    labels = begin(root)
    do(labels, 1, SUCCESS)
    labels.close()
    with pytest.raises(DatasetError, match="is closed"):
        labels.edit(1, 1, FAILURE)
    again = begin(root)
    assert again.history(1).version == 1
    again.close()


def test_half_a_line_is_of_an_edit_that_nobody_was_told_of(root: Path) -> None:
    labels = begin(root)
    do(labels, 1, SUCCESS)
    labels.close()
    journal = root / "labels" / "by_hand" / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[: len(whole) // 2])
    again = begin(root)
    assert again.history(1).version == 1
    do(again, 3, SUCCESS)
    again.close()
    assert [json.loads(line)["episode"] for line in journal.read_text().splitlines()] == [1, 3]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 5}, "version 5 of episode 1 follows on 0"),
        ({"episode": 77}, "has no episode 77"),
        ({"step": "undo"}, "undo of episode 1 gives other marks"),
        ({"more": 1}, "unknown configuration key"),
    ],
)
def test_a_damaged_journal_is_named_with_its_line(root: Path, change: dict[str, Any], told: str) -> None:
    labels = begin(root)
    do(labels, 1, SUCCESS)
    labels.close()
    journal = root / "labels" / "by_hand" / "journal.jsonl"
    journal.write_text(json.dumps(json.loads(journal.read_text()) | change) + "\n")
    with pytest.raises(DatasetError, match=rf"journal.jsonl, line 1.*{told}"):
        begin(root)


def test_where_nothing_can_be_written_it_is_said_before_the_first_edit(root: Path) -> None:
    (root / "labels").write_text("in the way")
    with pytest.raises(DatasetError, match=r"cannot write in .*--output FILE.*chunkrl inspect --browser"):
        begin(root)
    labels = begin(root, output=str(root.parent / "mine.parquet"))
    do(labels, 1, SUCCESS)
    labels.close()
    mine = LabelRule(labels=str(root.parent / "mine.parquet"))
    assert open_chunks(root, labels=mine).frame_labels.success[1]


def test_one_process_at_a_time(root: Path) -> None:
    labels = begin(root)
    with pytest.raises(DatasetError, match="in use by another chunkrl label --browser"):
        begin(root)
    labels.close()
    begin(root).close()


def test_labels_of_others_are_never_written_over(root: Path) -> None:
    table = table_of(root)
    (root / "labels").mkdir()
    save_sidecar(root / "labels" / "by_hand.parquet", table, {"value": np.zeros(table.num_frames)}, {})
    with pytest.raises(OutputFolderError, match="never written over"):
        begin(root, LabelRule(labels="none"))


def test_labels_go_on_with_the_settings_that_they_began_with(root: Path) -> None:
    costs = LabelRule(success="all", step_reward="cost")
    labels = begin(root, costs, returns=ReturnRule(gamma=0.5))
    do(labels, 1, FAILURE)
    labels.close()
    with pytest.raises(DatasetError, match="begun with other settings"):
        begin(root, LabelRule(success="all"))
    for rule, returns in ((costs, ReturnRule(gamma=0.5)), (LabelRule(), ReturnRule())):
        again = begin(root, rule, returns=returns)
        assert (again.base.rule.step_reward, again.returns.gamma) == ("cost", 0.5)
        again.close()


def test_recorded_rewards_that_would_contradict_a_label_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def reward(dense: float) -> list[dict[str, np.ndarray]]:
        return [
            episode(4, good, rng, **{"next.reward": np.array([0, dense, 0, good], np.float32)})
            for good in (True, False)
        ]

    sparse = begin(write_dataset(tmp_path / "sparse", reward(0.0)))
    do(sparse, 1, SUCCESS)
    sparse.close()
    assert open_chunks(tmp_path / "sparse").frame_labels.reward.tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    dense = write_dataset(tmp_path / "dense", reward(0.5))
    with pytest.raises(
        DatasetError, match=r"'next.reward' says more than who succeeded.*--step-reward success"
    ):
        begin(dense)
    labels = begin(dense, LabelRule(step_reward="cost", failure_penalty=2.0))
    do(labels, 0, FAILURE)
    labels.close()
    assert open_chunks(dense).frame_labels.reward.tolist() == [-1, -1, -1, -2] * 2


def test_begins_with_labels_of_a_file_and_of_labels_by_hand(root: Path) -> None:
    label_dataset(LabelCommand(str(root), LabelRule(success="episodes", success_episodes=(1,))), silent)
    labels = begin(root)  # of the file beside the data
    do(labels, 0, EXCLUDE)
    do(labels, 2, SUCCESS)
    labels.close()
    with pytest.raises(DatasetError, match="labels by 2 rules"):
        open_chunks(root)
    other = begin(root, LabelRule(labels="labels/by_hand.parquet"), output=str(root.parent / "o.parquet"))
    marks = [other.marks(position) for position in range(6)]
    other.close()
    assert [one.success for one in marks] == [None, True, True, False, False, False]
    assert marks[0].excluded and not marks[1].excluded


def test_who_acted_in_episodes_that_a_file_leaves_out_is_what_the_column_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    acted = {"intervention": np.array([0, 1, 1, 0], bool)}
    root = write_dataset(tmp_path / "data", [episode(4, good, rng, **acted) for good in (True, False)])
    labels = begin(root)
    do(labels, 0, Edit("human", 1, 1, on=False))
    do(labels, 1, EXCLUDE)
    labels.close()
    other = begin(root, output=str(tmp_path / "other.parquet"))
    assert [other.marks(position).human for position in (0, 1)] == [((2, 2),), ((1, 2),)]
    other.close()


def test_blank_begins_without_labels(root: Path) -> None:
    labels = begin(root, blank=True)
    assert {labels.marks(position).success for position in range(6)} == {None}
    do(labels, 5, FAILURE)
    labels.close()
    assert open_chunks(root).table.episode_ids.tolist() == [5]


def test_when_nothing_is_left_there_are_no_labels(root: Path) -> None:
    labels = begin(root, blank=True)
    do(labels, 0, SUCCESS)
    assert labels.path.exists()
    do(labels, 0, EXCLUDE)
    assert not labels.path.exists()
    labels.close()
    begin(root).close()


def test_inspect_counts_what_the_labels_use(root: Path) -> None:
    labels = begin(root)
    do(labels, 0, EXCLUDE)
    labels.close()
    report = make_report(InspectCommand(str(root)), silent)
    assert report.rewards is not None and report.rewards.success_rate == pytest.approx(2 / 5)
    assert report.num_episodes == 6 and not report.problems
    assert any("1 excluded left out" in note for note in report.notes)


def test_values_of_a_part_are_those_of_its_frames(root: Path) -> None:
    table = table_of(root)
    part = FrameTable(without(table.description, frozenset([0, 3])), table.cache_dir.parent / "part", silent)
    (root.parent / "v").mkdir()
    value = np.arange(part.num_frames, dtype=np.float32)
    save_sidecar(root.parent / "v" / "values.parquet", part, {"value": value}, {"made": "by"})
    sidecar, known = load_part(root.parent / "v" / "values.parquet", table)
    assert sidecar.metadata == {"made": "by"}
    assert np.unique(np.repeat(table.episode_ids, table.episode_length)[known]).tolist() == [1, 2, 4, 5]
    np.testing.assert_array_equal(sidecar.arrays["value"][known], value)
    other = write_dataset(root.parent / "other", random_episodes(6, seed=1))
    with pytest.raises(DatasetError, match="made for another data set"):
        load_part(root.parent / "v" / "values.parquet", table_of(other))


def test_episodes_left_out_in_two_steps_are_the_same_part(root: Path) -> None:
    whole = describe(root)
    once = without(whole, frozenset([1, 4]))
    twice = without(without(whole, frozenset([4])), frozenset([1]))
    assert once.fingerprint == twice.fingerprint != whole.fingerprint
    assert twice.whole_fingerprint == whole.fingerprint and whole.fps == FPS
