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
from chunkrl.errors import ChunkRLError
from chunkrl.iterate.command import iterate
from chunkrl.iterate.config import IterateConfig, RolloutSource, SelectionRule, StopRule, resumed_iteration
from chunkrl.iterate.places import Places
from chunkrl.iterate.steps import check_sources


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


def test_a_refused_step_that_was_begun_leaves_them_too(made: Path, tmp_path: Path) -> None:
    root = copied(made, tmp_path / "run")
    shutil.rmtree(root / "default")
    for name in ("collect", "label"):
        (root / "round-000" / f"{name}.done.json").unlink()
    files = root / "iterate.json", root / "round-000/collect.json"
    before = [file.read_bytes() for file in files]
    message = refused(replace(resumed_iteration(root), collect=replace(COLLECT, seed=4)))
    assert str(root / "round-000/rollouts") in message and "seed" in message
    assert [file.read_bytes() for file in files] == before
    iterate(resumed_iteration(root))
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


def test_a_source_that_came_at_a_resumption_is_kept_too(tmp_path: Path) -> None:
    check_sources(tmp_path, {"a": "1"}, is_new=True)
    check_sources(tmp_path, {"a": "1", "b": "2"}, is_new=False)
    check_sources(tmp_path, {"b": "2"}, is_new=False)
    for changed in ({"a": "1", "b": "3"}, {"a": "2"}):
        with pytest.raises(ChunkRLError, match="is no longer what"):
            check_sources(tmp_path, changed, is_new=False)
    check_sources(tmp_path, {"a": "1", "b": "2"}, is_new=False)


def test_a_run_goes_on_wherever_its_folder_is(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun by paths from a working directory; resumed by another name, from elsewhere, and after it was moved."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    shutil.copytree(pretrained, here / "pretrained")
    iterate_fakes.write_walks(here / "demonstrations", 6, speed=0.5)
    elsewhere.mkdir()
    monkeypatch.chdir(here)
    iterate(settings(Path("pretrained"), Path("runs/x"), {"dataset_dir": "demonstrations"}, rounds=1))
    done = {file: file.stat().st_mtime_ns for file in here.rglob("*.done.json")}
    iterate(resumed_iteration(here / "runs/x"))
    monkeypatch.chdir(elsewhere)
    iterate(resumed_iteration(Path("../here/runs/x")))
    assert {file: file.stat().st_mtime_ns for file in here.rglob("*.done.json")} == done
    (here / "runs/x").rename(elsewhere / "moved")
    (run,) = iterate(replace(resumed_iteration(Path("moved")), rounds=2)).arms
    assert [one.num_episodes for one in run.rounds] == [0, 8, 16]
    assert all(
        (elsewhere / "moved").resolve() in Path(one.policy).resolve().parents for one in run.rounds[1:]
    )
    # another policy, or other data, are others all the same
    shutil.copytree(pretrained, elsewhere / "pretrained")
    config = resumed_iteration(Path("moved"))
    assert "of another configuration: policy" in refused(
        replace(config, train=replace(config.train, init="pretrained"))
    )


def test_what_is_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "new"
    places = Places.of(root / "arm/round", root, {"output_dir": "runs/old/arm/round/train"})
    assert places.noted_root == "runs/old"
    same = places.same
    assert same("runs/old/a", "new/a") and same("runs/old/a", str(root / "a"))
    assert same(["runs/old/a", "data"], [str(root / "a"), str(tmp_path / "data")])
    assert not same("runs/old/a", "new/b") and not same("runs/older/a", "new/a")
    assert not same(["data"], ["data", "data"]) and not same("data", ["data"])
    assert not same("cross_fitted", "success_cloning") and not same(1, 2) and not same(None, "a")
    (tmp_path / "link").symlink_to("data")
    assert same("link", "data") and same("owner/name", "owner/name") and not same("owner/name", "owner/other")
    assert Places.of(root, root, {"train.output_dir": "x"}).noted_root == ""


def test_a_copied_run_whose_links_became_folders_goes_on(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(made, root)  # as cp -rL does
    link = root / "default/policy"
    assert not link.is_symlink()
    iterate(resumed_iteration(root))
    run = results(root)["arms"]["default"]
    target = Path(run["rounds"][run["chosen"]]["policy"].replace("RUN", str(root)))
    assert link.is_symlink() and link.resolve() == target.resolve()
    assert (root / "default/policy.replaced-001/state.json").is_file()  # nothing is deleted
