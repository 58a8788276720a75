"""Who succeeded in a round's roll-outs: as training reads it, and what that is worth of the policy alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import iterate_fakes
import numpy as np
import pytest
from chunk_data import episode, write_dataset
from iterate_fakes import WalkEnv
from pages import Page
from test_iterate import refused, results, resumed, settings

from chunkrl.cli import main
from chunkrl.config import load_config
from chunkrl.data.frames import FrameTable
from chunkrl.data.interventions import LEROBOT_NAME
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import FrameLabels, label_frames
from chunkrl.envs import metaworld
from chunkrl.errors import ChunkRLError
from chunkrl.files.json_files import as_json
from chunkrl.iterate import rollouts
from chunkrl.iterate.command import iterate
from chunkrl.iterate.config import IterateConfig, RolloutSource, SelectionRule, StopRule
from chunkrl.iterate.plan import Plan
from chunkrl.iterate.records import Outcome, Rollouts
from chunkrl.iterate.rollouts import label, read_rollouts
from chunkrl.iterate.steps import read_step
from chunkrl.iterate.table import AUTONOMOUS
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand
from chunkrl.progress import Progress, silent
from chunkrl.run.build import label_rules, open_data
from chunkrl.run.config import TrainConfig


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return iterate_fakes.pretrain(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(autouse=True)
def _walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaworld, "MetaWorldEnv", WalkEnv)
    monkeypatch.setattr(metaworld, "check_task", lambda name: None)


def brought(pretrained: Path, tmp_path: Path, **changes: Any) -> IterateConfig:
    source = RolloutSource(folder=str(tmp_path / "brought"))
    by = SelectionRule(by="rollouts")
    return settings(pretrained, tmp_path / "run", rollouts=source, selection=by, rounds=1, **changes)


def label_by_hand(data: Path, *successes: int) -> None:
    for file in (data / "labels").glob("*"):
        file.unlink()
    main(["label", str(data), "--success", "episodes", "--success-episodes", *map(str, successes)])


def first_rollouts(config: IterateConfig) -> Rollouts:
    """Of a run that waits for the episodes of its second policy."""
    folder = Path(config.train.output_dir) / "round-000"
    return read_rollouts(read_step(folder / "label.done.json")["found"], folder)


def test_a_file_of_labels_counts_in_a_round_as_it_does_in_its_training(
    pretrained: Path, tmp_path: Path
) -> None:
    """The column says other successes than the file; and where there is no column, the file is enough."""
    successes = (0, 3, 7)
    for column in ("next.success", "reached"):
        root = tmp_path / column
        data = iterate_fakes.write_walks(root / "brought/round-000", 8, seed=1, success_column=column)
        label_by_hand(data, *successes)
        config = brought(pretrained, root)
        assert "brought/round-001 holds no episodes" in refused(config)
        (outcomes,) = first_rollouts(config).outcomes.values()
        assert [number for number, one in enumerate(outcomes) if one[0]] == list(successes)
        train = load_config(TrainConfig, root / "run/default/round-001/train.json")
        (trained,) = open_data(train, silent).datasets
        assert [one[0] for one in outcomes] == trained.frame_labels.success.tolist()


def test_no_file_of_labels_is_read_where_training_reads_none(pretrained: Path, tmp_path: Path) -> None:
    data = iterate_fakes.write_walks(tmp_path / "brought/round-000", 8, seed=1, speed=0.6)
    columns = iterate_fakes.write_walks(tmp_path / "again", 8, seed=1, speed=0.6)
    label_by_hand(data, 7)
    config = brought(pretrained, tmp_path, train={"labels": LabelRule(labels="none")})
    assert "brought/round-001 holds no episodes" in refused(config)
    (outcomes,) = first_rollouts(config).outcomes.values()
    expected = label_frames(FrameTable.open(columns, progress=silent)).success
    assert [one[0] for one in outcomes] == expected.tolist() and expected.sum() > 1


def test_labels_that_changed_since_a_round_was_labelled_are_refused(pretrained: Path, tmp_path: Path) -> None:
    data = iterate_fakes.write_walks(tmp_path / "brought/round-000", 8, seed=1)
    label_by_hand(data, 0, 3, 7)
    config = brought(pretrained, tmp_path)
    refused(config)
    label_by_hand(data, 0, 3)
    (tmp_path / "run/default/round-001/train.done.json").unlink()  # as if it had been cut off in its training
    assert f"the file of labels of {data} is not what it was when its round was labelled" in refused(
        resumed(config)
    )
    label_by_hand(data, 0, 3, 7)
    assert "brought/round-001 holds no episodes" in refused(resumed(config))


def test_a_named_file_of_labels_is_of_no_round(pretrained: Path, tmp_path: Path) -> None:
    config = brought(pretrained, tmp_path, train={"labels": LabelRule(labels="labels/x.parquet")})
    assert "--labels labels/x.parquet is a file of one data set, and each round has its own" in refused(
        config
    )


def test_the_rule_of_a_round_s_labels_is_that_of_every_training_on_it(pretrained: Path) -> None:
    """Whether the roll-outs are the first data set, one beside others, or beside ones with labels in named files."""
    own = {"dataset_dir": "d", "additional_offline_dataset_paths": ("e",)}
    labels = LabelRule(success="all")
    for train in (
        {},
        own,
        own | {"labels": LabelRule(labels="none")},
        own | {"labels": LabelRule(labels="l.parquet"), "additional_labels": ("m.parquet",)},
        {"dataset_dir": "d", "labels": labels, "additional_success": "next.success"},
    ):
        plan = Plan(settings(pretrained, Path("run"), train), pretrained)
        data = [Rollouts(str(plan.data("default", n)), "", {}, 1, 0) for n in range(3)]
        for number in range(3):
            config = plan.train("default", 3, data)
            assert plan.label("default", number).rule == label_rules(config)[number - 3]
    config = replace(TrainConfig(), dataset_dir="d", additional_offline_dataset_paths=("e",))
    assert label_rules(config) == (LabelRule(), LabelRule())


def test_an_episode_that_a_human_rescued_is_no_success_of_the_policy(
    pretrained: Path, tmp_path: Path
) -> None:
    """All succeed, each by a correction: nothing says that the policy does, and a round follows."""
    for number, corrected in enumerate((range(8), range(2))):
        folder = tmp_path / f"brought/round-{number:03d}"
        iterate_fakes.write_walks(folder, 8, seed=number, speed=3.0, corrected=corrected)
    (run,) = iterate(brought(pretrained, tmp_path, stop=StopRule())).arms
    assert len(run.rounds) == 2 and run.chosen == 1
    for one, alone in zip(run.rounds, (0, 6), strict=True):
        assert one.rollouts is not None and one.selection is not None
        assert one.selection == one.rollouts.autonomous.rate
        assert (one.rollouts.rate.num_success, one.selection.num_success) == (8, alone)
    found = results(tmp_path / "run")["arms"]["default"]["rounds"]
    assert [one["rollouts"]["num_success"] for one in found] == [8, 8]
    assert [one["rollouts"]["autonomous"]["num_success"] for one in found] == [0, 6]
    assert [one["selection"]["success"] for one in found] == [0.0, 0.75]
    page = Page((tmp_path / "run/report.html").read_text())
    row = page.tables[-1][1]
    assert row["own roll-outs"] == "1.00 (8/8)" and row[AUTONOMOUS] == row["selection"] == "0.75 (6/8)"
    assert "Own roll-outs without a correction" in page.text


def test_a_human_after_the_success_corrected_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def recorded(success: bool, *human: int) -> dict[str, np.ndarray]:
        flags, by_human = np.zeros(6, bool), np.zeros(6, bool)
        flags[3:], by_human[list(human)] = success, True
        return episode(6, success, rng, **{"next.success": flags, LEROBOT_NAME: by_human})

    data = write_dataset(tmp_path / "data", [recorded(True, 5), recorded(True, 3), recorded(False, 0)])
    noted = as_json(label(LabelCommand(str(data), output=str(tmp_path / "l.parquet")), silent))
    found = read_rollouts(noted, tmp_path)
    (outcomes,) = found.outcomes.values()
    assert outcomes == [Outcome(True, 4), Outcome(True, 4, True), Outcome(False, 6, True)]
    assert (found.rate.num_success, found.autonomous.rate.num_success) == (2, 1)
    before = {
        **noted,
        "outcomes": {task: [one[:2] for one in each] for task, each in noted["outcomes"].items()},
    }
    with pytest.raises(ChunkRLError, match="does not say which episodes were corrected"):
        read_rollouts(before, tmp_path)
    assert read_rollouts({**before, "num_human": 0}, tmp_path).autonomous.rate.num_success == 2


def test_episodes_that_come_while_they_are_counted_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, others = tmp_path / "data", tmp_path / "others"
    iterate_fakes.write_walks(data, 3)
    iterate_fakes.write_walks(others, 4)
    command = LabelCommand(str(data), output=str(tmp_path / "l.parquet"))

    def label_and_add(asked: LabelCommand, progress: Progress) -> tuple[FrameTable, FrameLabels]:
        found = label_dataset(asked, progress)
        shutil.rmtree(data)
        shutil.copytree(others, data)
        return found

    monkeypatch.setattr(rollouts, "label_dataset", label_and_add)
    with pytest.raises(ChunkRLError, match="changed while its episodes were counted"):
        label(command, silent)
    monkeypatch.undo()
    assert read_rollouts(label(replace(command, overwrite=True), silent), tmp_path).rate.num_episodes == 4


def test_roll_outs_of_other_tasks_are_said(pretrained: Path, tmp_path: Path) -> None:
    for number, env in enumerate(("walk", "run")):
        iterate_fakes.write_walks(tmp_path / f"brought/round-{number:03d}", 8, seed=1, env=env, speed=0.6)
    (note,) = iterate(brought(pretrained, tmp_path)).notes
    assert "roll-outs of 'walk to the target of run', those of the pretrained policy of" in note
