"""Resuming `chunkrl iterate`: what a refused attempt leaves, what stays of other arms, whose brought episodes are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import iterate_fakes
import pytest
from iterate_fakes import WalkEnv
from pages import Page
from test_iterate import COLLECT, refused, results, resumed, settings

from chunkrl.envs import metaworld
from chunkrl.iterate.command import iterate
from chunkrl.iterate.config import IterateConfig, RolloutSource, SelectionRule, StopRule, resumed_iteration


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return iterate_fakes.pretrain(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(autouse=True)
def _walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaworld, "MetaWorldEnv", WalkEnv)
    monkeypatch.setattr(metaworld, "check_task", lambda name: None)


@pytest.fixture(scope="module")
def made(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one arm and two rounds."""
    root = tmp_path_factory.mktemp("made") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metaworld, "MetaWorldEnv", WalkEnv)
        patch.setattr(metaworld, "check_task", lambda name: None)
        iterate(settings(pretrained, root))
    return root


def copied(made: Path, root: Path) -> Path:
    """The run at another place, whose files name that."""
    shutil.copytree(made, root, symlinks=True)
    for file in root.rglob("*.json"):
        file.write_text(file.read_text().replace(str(made), str(root)))
    return root


def test_a_refused_resumption_leaves_the_settings_of_the_run(made: Path, tmp_path: Path) -> None:
    root = copied(made, tmp_path / "run")
    before = (root / "iterate.json").read_bytes()
    again = resumed_iteration(root)
    assert "collect.json is of another configuration: seed" in refused(
        replace(again, collect=replace(COLLECT, seed=4))
    )
    assert (root / "iterate.json").read_bytes() == before
    iterate(resumed_iteration(root))  # the run goes on with its own
    assert results(root) == results(made)


def test_arms_that_were_made_before_stay(made: Path, tmp_path: Path) -> None:
    """Also where the stopping rule, or the number of rounds, would end them earlier now."""
    root = copied(made, tmp_path / "run")
    before = results(root)["arms"]["default"]
    iterate(replace(resumed_iteration(root), arms=("success_cloning",), rounds=1))
    found = results(root)["arms"]
    assert list(found) == ["default", "success_cloning"] and found["default"] == before
    assert [len(run["rounds"]) for run in found.values()] == [3, 2]
    page = Page((root / "report.html").read_text())
    assert [row["arm"] for row in page.tables[-1]] == ["default"] * 3 + ["success cloning"] * 2
    (run,) = iterate(
        replace(resumed_iteration(root), arms=("default",), rounds=1, stop=StopRule(patience=1))
    ).arms[:1]
    assert len(run.rounds) == 3 and results(root)["arms"].keys() == found.keys()
    assert results(root)["arms"]["default"]["rounds"] == before["rounds"]


def brought(pretrained: Path, tmp_path: Path, **changes: Any) -> IterateConfig:
    source, by = RolloutSource(folder=str(tmp_path / "brought")), SelectionRule(by="rollouts")
    return settings(pretrained, tmp_path / "run", rollouts=source, selection=by, **changes)


def test_episodes_that_are_brought_are_one_arm_s(pretrained: Path, tmp_path: Path) -> None:
    """From the second round on; nothing is done for another arm, whether they are there already or not."""
    iterate_fakes.write_walks(tmp_path / "brought/round-000", 8, seed=1)
    config = brought(pretrained, tmp_path, rounds=1)
    assert "brought/round-001 holds no episodes" in refused(config)
    other = resumed(replace(config, arms=("success_cloning",)))
    for _ in range(2):
        message = refused(other)
        assert (
            f"{tmp_path / 'brought'} has, from round-001 on, episodes of the policies of default" in message
        )
        assert "--arms default" in message
        assert not (tmp_path / "run/success_cloning").exists()
        iterate_fakes.write_walks(tmp_path / "brought/round-001", 8, seed=2)
    (run,) = iterate(resumed(config)).arms
    assert len(run.rounds) == 2
