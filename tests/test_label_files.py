"""Labels beside a data set lead somewhere: found, said, recorded; lists of successes from files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_data import episode, image_episodes, open_chunks, random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.frames import FrameTable
from chunkrl.data.inspect import make_report, to_text
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import label_frames
from chunkrl.data.sidecar import save_sidecar
from chunkrl.errors import CheckpointError, ChunkRLError, DatasetError
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand, ReturnRule
from chunkrl.progress import silent
from chunkrl.report.commands import report
from chunkrl.report.config import ReportCommand
from chunkrl.run import command as commands
from chunkrl.run.config import TrainConfig
from chunkrl.run.folder import run_config

FIRST, OTHERS = (
    (1,),
    (0, 2, 4),
)  # of the file, and of the columns, which say that every second episode succeeds
SUCCESSES = LabelRule(success="episodes", success_episodes=FIRST)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", random_episodes(6))


def label(root: Path, rule: LabelRule = SUCCESSES, **more: Any) -> Path:
    """The file that `chunkrl label` wrote."""
    before = set((root / "labels").glob("*.parquet"))
    label_dataset(LabelCommand(dataset=str(root), rule=rule, **more), silent)
    (new,) = set((root / "labels").glob("*.parquet")) - before
    return new


def successes(root: Path, **rule: Any) -> tuple[int, ...]:
    labels = open_chunks(root, labels=LabelRule(**rule)).frame_labels
    return tuple(np.flatnonzero(labels.success).tolist())


def config(root: Path, output: Path, **changes: Any) -> TrainConfig:
    own = {"objective": "behaviour_cloning", "num_updates": 2}
    return TrainConfig(**settings(root, output, **(own | changes)))


def test_labels_in_a_file_are_those_of_the_rule_that_made_them(root: Path) -> None:
    rules = (
        SUCCESSES,
        LabelRule(success="all", step_reward="cost", failure_penalty=7.0),
        LabelRule(success="next.success", subgoal="success", step_reward="cost", failure_terminal=True),
    )
    for rule in rules:
        by_rule = label_frames(open_chunks(root, labels=rule).table, rule)
        name = f"labels/{label(root, rule).name}"
        by_file = open_chunks(root, labels=LabelRule(labels=name)).frame_labels
        assert by_file.file == name and by_file.rule.success == by_rule.rule.success
        for part in ("reward", "subgoal", "terminated", "truncated", "after_success", "human", "success"):
            ours, theirs = getattr(by_file, part), getattr(by_rule, part)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs, err_msg=part)


def test_the_file_beside_the_data_is_found_and_can_be_declined(root: Path) -> None:
    assert successes(root) == OTHERS
    file = label(root)
    assert successes(root) == FIRST
    assert successes(root, labels="none") == OTHERS
    assert successes(root, labels=str(file)) == successes(root, labels=f"labels/{file.name}") == FIRST
    assert successes(root, success="next.success") == OTHERS  # what is given explicitly wins
    assert successes(root, human_key="none") == FIRST  # and says nothing of success
    elsewhere = file.rename(root.parent / "mine.parquet")
    assert successes(root) == OTHERS and successes(root, labels=str(elsewhere)) == FIRST


def test_several_files_are_named_and_none_is_guessed(root: Path) -> None:
    names = sorted(f"labels/{label(root, rule).name}" for rule in (SUCCESSES, LabelRule(success="all")))
    with pytest.raises(DatasetError) as error:
        successes(root)
    for part in (*names, "success by episodes", "success by all", f"--labels {names[0]}", "--labels none"):
        assert part in str(error.value)
    assert {successes(root, labels=name) for name in names} == {FIRST, tuple(range(6))}
    assert successes(root, labels="none") == OTHERS


def test_other_files_are_no_labels(root: Path) -> None:
    file = label(root)
    write_dataset(root.parent / "other", random_episodes(2))
    shutil.copy(next((root.parent / "other").rglob("data/**/*.parquet")), root / "labels" / "theirs.parquet")
    assert successes(root) == FIRST
    with pytest.raises(DatasetError, match=r"theirs\.parquet is no file of labels of this project"):
        successes(root, labels="labels/theirs.parquet")
    with pytest.raises(DatasetError, match=rf"--labels mine: no such file.*labels there: labels/{file.name}"):
        successes(root, labels="mine")
    rules: list[dict[str, Any]] = [{"success": "all"}, {"step_reward": "cost"}, {"success_file": "x.txt"}]
    for rule in rules:
        with pytest.raises(
            DatasetError, match=r"--labels mine and --success.* both say|--step-reward both say"
        ):
            LabelRule(labels="mine", **rule)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DatasetError, match=rf"{file.name} cannot be read"):
        successes(root)


def test_labels_of_other_data_are_refused(root: Path) -> None:
    file = label(root)
    changed = write_dataset(root.parent / "changed", random_episodes(7))
    (changed / "labels").mkdir()
    shutil.copy(file, changed / "labels")
    with pytest.raises(
        DatasetError, match=r"made for another data set, or .*again.*, or .* with --labels none"
    ):
        successes(changed)
    assert successes(changed, labels="none") == (0, 2, 4, 6)


def test_files_that_hold_no_labels_of_success_are_refused(root: Path) -> None:
    table = open_chunks(root).table
    values = {"value": np.zeros(table.num_frames, np.float32)}
    (root / "labels").mkdir()
    save_sidecar(root / "labels" / "values.parquet", table, values, {"objective": "value"})
    with pytest.raises(DatasetError, match=r"values\.parquet.* no column 'success' of labels"):
        successes(root)
    labels = label_frames(table, LabelRule(labels="none"))
    arrays = {"success": np.repeat(labels.success, table.episode_length), "reward": labels.reward}
    arrays |= {name: getattr(labels, name).copy() for name in ("terminated", "truncated", "subgoal")}
    arrays["success"][table.episode_start[0]] ^= True
    save_sidecar(root / "labels" / "values.parquet", table, arrays, {"version": 1, "rule": {}})
    with pytest.raises(DatasetError, match=r"episodes 0 have no one outcome: make the labels again"):
        successes(root)


def test_bad_episodes_that_are_set_aside_have_no_part_in_the_file(tmp_path: Path) -> None:
    """The labels were made of all; `chunkrl label` looks at no image."""
    root = write_dataset(tmp_path / "data", image_episodes(4))
    label(root, LabelRule(success="episodes", success_episodes=(1, 3)))
    whole = FrameTable.open(root, settings=FrameSettings(cache=False))
    file = next(root.glob("data/**/*.parquet"))
    stored = pq.read_table(file)
    pictures = stored["observation.images.front"].to_pylist()
    row = int(whole.episode_start[1])
    pictures[row] = pictures[row] | {"bytes": pictures[row]["bytes"][:40]}
    column = stored.schema.get_field_index("observation.images.front")
    damaged = stored.set_column(
        column, stored.schema.field(column), pa.array(pictures, stored.schema.field(column).type)
    )
    pq.write_table(damaged, file)
    label_file = next((root / "labels").glob("*.parquet"))
    label_file.unlink()
    label(root, LabelRule(success="episodes", success_episodes=(1, 3)))
    opened = open_chunks(root, frames=FrameSettings(cache=False, skip_bad_episodes=True))
    assert opened.table.episode_ids.tolist() == [0, 2, 3]
    assert opened.frame_labels.file and opened.frame_labels.success.tolist() == [False, False, True]
    found = make_report(InspectCommand(str(root)), silent)
    assert found.rewards is not None and found.rewards.success_rate == pytest.approx(1 / 3)


# ---- commands


def test_training_says_uses_and_records_them(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = label(root)
    commands.train(config(root, tmp_path / "run"), silent)
    said = capsys.readouterr().out
    assert (
        f"note: labels are those of labels/{file.name} (success by episodes" in said
        and "17% successful" in said
    )
    assert run_config(tmp_path / "run" / "config.json").labels == LabelRule(labels=f"labels/{file.name}")
    commands.train(config(root, tmp_path / "explicit", labels=LabelRule(success="next.success")), silent)
    said = capsys.readouterr().out
    assert f"not used, as other rules are given: labels/{file.name}" in said and "50% successful" in said
    assert run_config(tmp_path / "explicit" / "config.json").labels.labels == "none"


def test_a_report_is_of_the_labels_that_were_trained_on(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ChunkLevelOfflineRL(config(root, tmp_path / "before")).train()
    file = label(root)
    ChunkLevelOfflineRL(config(root, tmp_path / "after")).train()
    label(root, LabelRule(success="all"))  # a second one confuses neither
    capsys.readouterr()
    for name, share in (("before", "50%"), ("after", "16.7%")):
        report(ReportCommand(str(tmp_path / name)), silent)
        page = (tmp_path / name / "report.html").read_text().replace("\u2009", "").replace("\u00a0", "")
        assert share in page.replace(" %", "%")
        assert (f"by labels/{file.name}" in page) == (name == "after")
        assert (f"labels are those of labels/{file.name}" in capsys.readouterr().out) == (name == "after")
    old = json.loads((tmp_path / "before" / "config.json").read_text())
    del old["labels"]["labels"], old["labels"]["success_file"], old["additional_labels"]
    (tmp_path / "before" / "config.json").write_text(json.dumps(old))  # as an earlier release wrote it
    report(ReportCommand(str(tmp_path / "before")), silent)
    assert "labels are those" not in capsys.readouterr().out


def test_a_run_goes_on_with_the_same_labels_alone(root: Path, tmp_path: Path) -> None:
    file = label(root)
    run = config(root, tmp_path / "run", num_updates=4, save_updates=2)
    ChunkLevelOfflineRL(run).train()
    again = replace(run, resume=str(tmp_path / "run" / "checkpoints" / "0000002"))
    ChunkLevelOfflineRL(again).train()
    moved = file.rename(tmp_path / "moved.parquet")
    ChunkLevelOfflineRL(replace(again, labels=LabelRule(labels=str(moved)))).train()
    with pytest.raises(CheckpointError, match="data"):
        ChunkLevelOfflineRL(again).train()


def test_values_of_other_labels_are_refused(root: Path, tmp_path: Path) -> None:
    values = TrainConfig(**settings(root, tmp_path / "values", objective="value"))
    ChunkLevelOfflineRL(values).train()
    label(root)
    user = TrainConfig(**settings(root, tmp_path / "run", values=str(tmp_path / "values")))
    with pytest.raises(ChunkRLError, match="values of other returns"):
        ChunkLevelOfflineRL(user)
    ChunkLevelOfflineRL(replace(user, labels=LabelRule(labels="none")))


def test_inspect_finds_them(root: Path) -> None:
    file = label(root)
    found = make_report(InspectCommand(str(root)), silent)
    assert found.rewards is not None and found.rewards.success_rate == pytest.approx(1 / 6)
    assert f"labels are those of labels/{file.name}" in to_text(found)
    declined = make_report(InspectCommand(str(root), labels=LabelRule(labels="none")), silent)
    assert declined.rewards is not None and declined.rewards.success_rate == 0.5


def test_each_data_set_has_its_own(root: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", random_episodes(4, seed=1))
    label(root)
    theirs = label(other, LabelRule(success="all"))
    both = config(root, tmp_path / "run", additional_offline_dataset_paths=(str(other),))
    run = ChunkLevelOfflineRL(both)
    assert [tuple(np.flatnonzero(d.frame_labels.success)) for d in run.dataset.datasets] == [
        FIRST,
        (0, 1, 2, 3),
    ]
    assert run.config.additional_labels == (f"labels/{theirs.name}",)
    declined = ChunkLevelOfflineRL(replace(both, additional_labels=("none",)))
    assert [tuple(np.flatnonzero(d.frame_labels.success)) for d in declined.dataset.datasets] == [
        FIRST,
        (0, 2),
    ]
    with pytest.raises(ChunkRLError, match="--additional-labels names 2 files for 1 data sets"):
        ChunkLevelOfflineRL(replace(both, additional_labels=("none", "none")))
    theirs.unlink()
    label(other, LabelRule(step_reward="cost"))
    with pytest.raises(DatasetError, match=r"differ in meaning .*: rewards by labels/.*: costs by labels/"):
        ChunkLevelOfflineRL(both)


@pytest.mark.parametrize("time_out", ["failure", "bootstrap"])
def test_recorded_costs_and_rewards_do_not_mix(root: Path, tmp_path: Path, time_out: Any) -> None:
    """An export's costs, which its columns say, beside demonstrations that all succeed: returns of -5 and of 1."""
    costs = tmp_path / "costs"
    rule = LabelRule(step_reward="cost", failure_penalty=5.0)
    label_dataset(LabelCommand(str(root), rule, export=str(costs)), silent)
    rng = np.random.default_rng(2)
    demonstrations = write_dataset(tmp_path / "other", [episode(6, True, rng) for _ in range(3)])
    both = config(
        costs,
        tmp_path / "run",
        objective="cross_fitted",
        reward="sum",
        additional_offline_dataset_paths=(str(demonstrations),),
        fit=ValueFit(time_out=time_out),
    )
    with pytest.raises(
        DatasetError, match=r"costs: costs by its columns; \S*other: rewards by .*--step-reward"
    ):
        ChunkLevelOfflineRL(both)
    ChunkLevelOfflineRL(replace(both, labels=LabelRule(step_reward="success")))
    ChunkLevelOfflineRL(replace(both, reward="any"))  # no reward of a step is read


def test_label_makes_labels_and_reads_none(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = label(root)
    assert "train, learner, inspect and report find it beside the data" in capsys.readouterr().out
    second = label(root, LabelRule())  # of the columns, whatever file is there
    assert (
        f"which of the 2 files of labels there to use: --labels labels/{second.name}"
        in capsys.readouterr().out
    )
    label_dataset(LabelCommand(str(root), SUCCESSES, output=str(root.parent / "mine.parquet")), silent)
    assert f"use it with --labels {root.parent / 'mine.parquet'}" in capsys.readouterr().out
    assert second != first and successes(root, labels=f"labels/{second.name}") == OTHERS
    with pytest.raises(ChunkRLError, match="label makes labels"):
        label_dataset(LabelCommand(str(root), LabelRule(labels=str(first))), silent)
    again = label_dataset(LabelCommand(str(root), SUCCESSES, ReturnRule()), silent)
    assert again[1].success.sum() == 1 and len(list((root / "labels").glob("*.parquet"))) == 2


# ---- lists of successes

LISTS = {
    "plain.txt": "1\n\n# a comment\n 3 # pushed off\n",
    "table.csv": "episode_index\n3\n1\n",
    "outcomes.csv": "\ufeffsuccess, episode_index, note\n1,1,good\nFalse,0,\nTRUE,3,\n",
    "list.json": "[3, 1]",
    "outcomes.json": '{"0": false, "1": true, "3": true}',
}


@pytest.mark.parametrize("name", LISTS)
def test_successes_are_read_from_a_list(root: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LISTS[name])
    assert successes(root, success_file=str(tmp_path / name)) == (1, 3)
    listed, named = (
        LabelRule(success_file=str(tmp_path / name)),
        LabelRule(success="episodes", success_episodes=(1, 3)),
    )
    assert label(root, listed) == root / "labels" / label_digest(root, named)
    run = ChunkLevelOfflineRL(config(root, tmp_path / "run", labels=listed))
    assert run.config.labels == replace(named, labels="none")  # what the list said then


def label_digest(root: Path, rule: LabelRule) -> str:
    """The name of the file that the rule gets."""
    (file,) = (root / "labels").glob("*.parquet")
    label_dataset(LabelCommand(str(root), rule), silent)
    (again,) = (root / "labels").glob("*.parquet")
    assert again == file  # the same rule, the same file
    return again.name


WRONG_LISTS = {
    "unknown.txt": ("1\n9\n", r"lists episodes 9, and .* has none of these: it has 6 episodes, 0 to 5"),
    "twice.txt": ("1\n3\n1\n", r"lists episodes 1 more than once"),
    "words.txt": ("1\nthree\n", r"line 2: 'three' is no episode's index"),
    "negative.txt": ("-1\n", r"line 1: '-1' is no episode's index"),
    "half.txt": ("1.5\n", r"line 1: '1.5' is no"),
    "empty.txt": ("# nothing\n", r"names no successful episode"),
    "headless.csv": ("1\n3\n", r"its first line is '1'; it must name the column episode_index"),
    "other.csv": ("episode,success\n1,1\n", r"must name the column episode_index"),
    "double.csv": ("episode_index,episode_index\n1,1\n", r"each once"),
    "long.csv": ("episode_index,success\n1,1,1\n", r"line 2: expected 2 values"),
    "short.csv": ("episode_index,success\n1\n", r"line 2: expected 2 values"),
    "outcome.csv": ("episode_index,success\n1,yes\n", r"line 2: success is 'yes', expected 1 or 0"),
    "twice.csv": ("episode_index,success\n1,1\n1,0\n", r"lists episodes 1 more than once"),
    "failures.csv": ("episode_index,success\n1,0\n", r"names no successful episode"),
    "numbers.json": ('{"1": 1}', r"expected a list of episodes"),
    "truths.json": ("[true]", r"expected a list of episodes"),
    "floats.json": ("[1.0]", r"expected a list of episodes"),
    "below.json": ("[-1]", r"expected a list of episodes"),
    "names.json": ('{"one": true}', r"'one' is no episode's index"),
    "cut.json": ("[1, 3", r"cut\.json is damaged"),
    "text.json": ('"1"', r"text\.json holds a text, expected an object"),
    "list.yaml": ("- 1\n", r"its name must end in \.txt, \.csv, \.json"),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_lists_that_say_no_successes_are_refused(root: Path, tmp_path: Path, name: str) -> None:
    text, message = WRONG_LISTS[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        successes(root, success_file=str(tmp_path / name))


def test_lists_and_other_rules(tmp_path: Path) -> None:
    assert LabelRule(success_file="x.txt").success == "episodes"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"success": "all"}, "give both or neither"),
        ({"success": "episodes", "success_episodes": (1,)}, "both list the successes"),
    ]
    for wrong, message in refused:
        with pytest.raises(DatasetError, match=message):
            LabelRule(success_file="x.txt", **wrong)
    several = TrainConfig(
        "a", additional_offline_dataset_paths=("b",), labels=LabelRule(success_file="x.txt")
    )
    with pytest.raises(ChunkRLError, match="lists episodes of one data set"):
        ChunkLevelOfflineRL(several)
    with pytest.raises(DatasetError, match="name a list of episodes with --success-file"):
        successes(
            write_dataset(tmp_path / "data", random_episodes(4)), success_file=str(tmp_path / "none.txt")
        )


def test_the_learner_finds_them(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("grpc", reason="needs chunkrl[online]")
    from started import free_address

    from chunkrl.online.learner.config import LearnerConfig
    from chunkrl.online.learner.data import replay_settings
    from chunkrl.online.learner.learner import run_learner
    from chunkrl.online.link.config import ListenConfig

    rule = LabelRule(success="all", step_reward="cost", failure_penalty=0.0)
    file = label(root, rule)
    learner = LearnerConfig(config(root, tmp_path / "run"), ListenConfig(free_address()), live=False)
    run_learner(learner)
    said = capsys.readouterr().out
    assert f"note: labels are those of labels/{file.name} (success by all" in said
    assert run_config(tmp_path / "run" / "config.json").labels.labels == f"labels/{file.name}"
    # actors' rewards mean the same as those in the file
    chunks = learner.train.chunk_settings()
    assert replay_settings(chunks, replace(rule, labels="none")).labels.step_reward == "cost"
    costly = LabelRule(success="all", step_reward="cost")
    file.unlink()
    label(root, costly)
    own = {"output_dir": str(tmp_path / "other"), "fit": ValueFit(target="bootstrap")}
    train = replace(learner.train.with_objective("cross_fitted"), **own)
    fails = replace(learner, train=train)
    with pytest.raises(ChunkRLError, match="bootstrapped values do not see a penalty"):
        run_learner(fails)
