"""What `chunkrl improve` decides by: each diagnosis, and the recipe that follows from it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunk_data import episode, random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.evaluation.verdict import MIN_SUCCESSES
from chunkrl.improve.config import ImproveConfig
from chunkrl.improve.diagnosis import (
    FEW_EPISODES,
    MIN_EFFECTIVE_SIZE,
    DataFacts,
    Finding,
    ValueFacts,
    diagnose,
)
from chunkrl.improve.export import copy_policy
from chunkrl.improve.measure import measure_data, measure_values
from chunkrl.improve.plan import Plan
from chunkrl.improve.recipe import Recipe, choose_recipe
from chunkrl.progress import silent
from chunkrl.run.config import TrainConfig

DATA = DataFacts(
    name="arm",
    labels="the column next.success",
    num_episodes=150,
    num_success=75,
    num_frames=9000,
    num_held_out=30,
    num_held_out_success=15,
    held_out=0.2,
    num_tasks=1,
    silent_tasks=(),
    returns_differ=True,
    gamma=0.99,
)
VALUES = ValueFacts(held_out=0.4, seen=0.6, effective_sample_size=0.15, on_successes=0.9, starved=())
ALL_SUCCEED = replace(DATA, num_success=150, num_held_out_success=30)


def only(findings: tuple[Finding, ...]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_nothing_is_said_of_data_that_are_as_they_should_be() -> None:
    assert diagnose(DATA, VALUES) == diagnose(DATA, None) == ()


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"num_success": 0, "num_held_out_success": 0}, "no_success", "None of the 150 episodes succeeds"),
        (
            {"num_success": 15},
            "no_success",
            "Every episode that succeeds (15) is among the 30",
        ),
        (
            {"num_success": 150, "num_held_out_success": 30},
            "no_failures",
            "only speed can be learned (a step",
        ),
        ({"returns_differ": False}, "nothing_to_rank", "nothing to learn for values"),
        ({"silent_tasks": ("lift",)}, "task_without_success", "No episode of 'lift' that is trained"),
        (
            {"num_episodes": 40, "num_success": 35, "num_held_out": 26},
            "few_episodes",
            "14 episodes to train on",
        ),
    ],
)
def test_each_diagnosis_of_the_data(changes: dict[str, Any], name: str, told: str) -> None:
    finding = only(diagnose(replace(DATA, **changes), None))
    assert finding.name == name and told in str(finding) and finding.cure
    assert finding.is_fatal == (name == "no_success")


def test_how_many_more_episodes_a_verdict_needs() -> None:
    finding = only(diagnose(replace(DATA, num_held_out_success=3), None))
    assert finding.name == "no_verdict"
    # 5 are missing, and of ten more episodes one is held out and succeeds
    assert "3 of the 30 held-out episodes succeed, and a verdict needs 8" in finding.text
    assert "About 50 more episodes" in finding.cure
    fewer = replace(DATA, num_success=20, num_held_out_success=4)
    assert "or --held-out 0.4 of those" in only(diagnose(fewer, None)).cure
    none = only(diagnose(replace(DATA, num_held_out=0, num_held_out_success=0, held_out=0.0), None))
    assert "No episode is held out" in none.text and "--held-out at .2" in none.cure
    # so few that .2 of them is nobody: 8 are missing
    tiny = replace(DATA, num_episodes=4, num_success=2, num_held_out=0, num_held_out_success=0)
    (told,) = (found for found in diagnose(tiny, None) if found.name == "no_verdict")
    assert "About 80 more episodes" in told.cure and "--held-out at .2" not in told.cure
    assert DATA.can_judge and not replace(DATA, num_held_out_success=MIN_SUCCESSES - 1).can_judge


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"held_out": 0.05, "seen": 0.2}, "values", "hardly rank"),
        ({"held_out": 0.3, "seen": 0.9}, "values", "memorise"),
        ({"held_out": None, "seen": None}, "values", "the same everywhere"),
        ({"effective_sample_size": 0.02}, "effective_sample_size", "rest on 2.0% of the starts"),
        ({"starved": ("the first third starves",)}, "starved_third", "the first third starves"),
    ],
)
def test_each_diagnosis_of_the_values(changes: dict[str, Any], name: str, told: str) -> None:
    finding = only(diagnose(DATA, replace(VALUES, **changes)))
    assert finding.name == name and told in finding.text and not finding.is_fatal


FEW = replace(DATA, num_episodes=FEW_EPISODES, num_held_out=1)


@pytest.mark.parametrize(
    ("data", "values", "asked", "expected"),
    [
        (DATA, VALUES, "auto", ("cross_fitted", "success_cloning")),
        (DATA, VALUES, "advantage_conditioned", ("advantage_conditioned", "success_cloning")),
        (DATA, VALUES, "success_cloning", ("success_cloning", "behaviour_cloning")),
        (ALL_SUCCEED, VALUES, "auto", ("cross_fitted", "success_cloning")),
        (ALL_SUCCEED, None, "auto", ("success_cloning", None)),
        (DATA, None, "auto", ("success_cloning", "behaviour_cloning")),
        (FEW, VALUES, "auto", ("success_cloning", "behaviour_cloning")),
        (replace(FEW, num_held_out=0), VALUES, "auto", ("cross_fitted", "success_cloning")),
        (FEW, VALUES, "cross_fitted", ("cross_fitted", "success_cloning")),
        (
            DATA,
            replace(VALUES, held_out=0.09),
            "auto",
            ("success_cloning", "behaviour_cloning"),
        ),
        (DATA, replace(VALUES, held_out=0.1), "auto", ("cross_fitted", "success_cloning")),
        (DATA, replace(VALUES, held_out=None), "auto", ("success_cloning", "behaviour_cloning")),
        (
            DATA,
            replace(VALUES, effective_sample_size=MIN_EFFECTIVE_SIZE / 2),
            "auto",
            ("success_cloning", "behaviour_cloning"),
        ),
        (DATA, replace(VALUES, starved=("x",)), "auto", ("cross_fitted", "success_cloning")),
    ],
)
def test_the_rule(
    data: DataFacts,
    values: ValueFacts | None,
    asked: Any,
    expected: tuple[str, str],
) -> None:
    found = choose_recipe(data, values, asked)
    assert found == Recipe(*expected, reason=found.reason)
    assert found.reason.startswith("it was asked for") == (asked != "auto")


# ---- what is measured


def config_of(data: Path, output: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**settings(data, output, **changes))


def test_the_facts_of_a_data_set(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "arm", random_episodes(20), tasks=("push", "lift"))
    found = measure_data(
        config_of(data, tmp_path, frames=FrameSettings(held_out=0.5)), "the column x", silent
    )
    assert found.num_episodes == 20 and found.num_success == 10 and found.num_held_out == 10
    # every second episode succeeds, and every second one is of `lift`
    assert found.silent_tasks == ("lift",) and found.num_tasks == 2
    assert found.returns_differ and not found.all_succeed and found.num_trained == 10
    assert found.labels == "the column x" and found.gamma == 0.99
    held = ChunkLevelOfflineRL(**settings(data, tmp_path, held_out=0.5)).dataset.frame_labels.success
    assert found.num_held_out_success == 10 - held.sum()
    assert measure_data(config_of(data, tmp_path), "", silent).num_held_out == 0


@pytest.mark.parametrize(("lengths", "differ"), [((6, 6, 6), False), ((6, 7, 6), True)])
def test_returns_differ_where_successes_take_longer(
    tmp_path: Path, lengths: tuple[int, ...], differ: bool
) -> None:
    rng = np.random.default_rng(0)
    data = write_dataset(tmp_path / "arm", [episode(length, True, rng) for length in lengths])
    assert measure_data(config_of(data, tmp_path), "", silent).returns_differ == differ


def test_frames_after_a_success_say_nothing_of_returns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episodes = [episode(length, False, rng) for length in (6, 8)]
    for columns in episodes:
        columns["next.success"][3] = True
    data = write_dataset(tmp_path / "arm", episodes)
    assert not measure_data(config_of(data, tmp_path), "", silent).returns_differ


def test_the_weights_are_those_that_training_makes(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "arm", random_episodes(12))
    config = config_of(data, tmp_path / "run", objective="cross_fitted", num_updates=1, beta=2.0)
    run = ChunkLevelOfflineRL(config)
    run.train()
    assert run.trainer is not None
    found, history = measure_values(tmp_path / "run", config, silent), run.trainer.history
    last = {name: points[-1][1] for name, points in history.items() if points}
    assert found.effective_sample_size == pytest.approx(last["weight/effective_sample_size"], rel=1e-4)
    assert found.on_successes == pytest.approx(last["weight/on_successes"], rel=1e-4)
    assert found.held_out == pytest.approx(last["value/rank_correlation_held_out"], abs=1e-4)
    assert found.seen == pytest.approx(last["value/rank_correlation_seen"], abs=1e-4)


def test_a_copy_is_whole_and_keeps_what_was_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "policy"
    (source / "inner").mkdir(parents=True)
    (source / "a").write_text("1")
    (source / "inner" / "b").write_text("2")
    for _ in range(2):  # the same again changes nothing
        copy_policy(source, target, silent)
        assert (target / "a").read_text() == "1" and (target / "inner" / "b").read_text() == "2"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["policy", "source"]
    (source / "a").write_text("3")
    copy_policy(source, target, silent)
    assert (target / "a").read_text() == "3"
    assert (tmp_path / "policy.replaced-001" / "a").read_text() == "1"


def test_commands_can_be_pasted_whatever_the_folder_is_called() -> None:
    plan = Plan(ImproveConfig(), TrainConfig(output_dir="my run"))
    assert shlex.split(plan.command_line("train", "train")) == [
        *("chunkrl", "train", "--config", "my run/05-train/config.json")
    ]
