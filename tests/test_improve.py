"""`chunkrl improve`: the whole way on a data set of seconds, what goes on after a stop, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from chunk_data import episode, policy_of_one_update, random_episodes, settings, write_dataset
from earlier_release import before_failures_had_a_setting
from interrupting import Interrupted, interrupt_after
from lerobot_folder import edit_parquet
from pages import Page
from waiting import until

import chunkrl
from chunkrl import load_policy
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.cli import main
from chunkrl.config import load_config, save_config
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.hold_out import held_out_places
from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import ChunkRLError, DatasetError, OutputFolderError
from chunkrl.improve import command
from chunkrl.improve.command import improve
from chunkrl.improve.config import ImproveConfig, ImproveTraining, resumed_improvement
from chunkrl.improve.recipe import Recipe
from chunkrl.improve.records import ImproveResult
from chunkrl.iterate import steps
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.models.pi.checkpoint import RECIPE_FILE
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.run.config import TrainConfig


def told_by_state(num_episodes: int = 60, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Every second episode succeeds, and a value of its states says it; there the action is the state, elsewhere its
    opposite."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(num_episodes):
        columns = episode(12, number % 2 == 0, rng)
        sign = 1 if number % 2 == 0 else -1
        state = columns["observation.state"].copy()
        state[:, 2] = sign + 0.1 * state[:, 2]
        found.append(columns | {"observation.state": state, "action": sign * state[:, :2]})
    return found


def of(data: Path, output: Path, policy: Path | None = None, **changes: Any) -> ImproveConfig:
    """An improvement of seconds."""
    own: dict[str, Any] = {
        "action_horizon": 3,
        "num_updates": 40,
        "batch_size": 64,
        "lr": 2e-2,
        "value_updates": 20,
        "num_folds": 2,
        "network": NetworkConfig(hidden_dim=8, num_layers=1),
        "frames": FrameSettings(held_out=0.4),
        "save_updates": 10,
        "log_interval": 10,
        "device": "cpu",
        "output_dir": str(output),
    }
    training = ImproveTraining(**own | changes)
    return ImproveConfig(str(data), None if policy is None else str(policy), training)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("improve") / "arm", told_by_state())


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an improvement that was made in one go."""
    root = tmp_path_factory.mktemp("whole") / "improve"
    improve(of(data, root))
    return root


def results(root: Path) -> dict[str, Any]:
    """results.json, without where the run lies and how long it took."""
    found = json.loads((root / "results.json").read_text().replace(str(root), "RUN"))
    for step in found["steps"]:
        step.pop("seconds")
    return found


def same_policies(ours: Path, theirs: Path) -> None:
    a, b = (ChunkPolicy.load(folder).policy.state_dict() for folder in (ours, theirs))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refused(config: ImproveConfig, kind: type[ChunkRLError] = ChunkRLError) -> str:
    with pytest.raises(kind) as error:
        improve(config)
    return str(error.value)


def test_the_whole_way(whole: Path) -> None:
    found = results(whole)
    assert [step["name"] for step in found["steps"]] == [
        *("inspect", "labels", "values", "diagnosis", "train", "control", "verdict", "export")
    ]
    data = found["data"]
    assert (data["num_episodes"], data["num_success"], data["num_held_out"]) == (60, 30, 24)
    assert data["labels"] == "the column next.success"
    assert found["values"]["held_out"] > 0.5
    assert found["recipe"]["objective"] == "cross_fitted" and found["recipe"]["control"] == "success_cloning"
    assert found["judgement"]["num_episodes"] == data["num_held_out_success"] >= 8
    assert found["chosen"] == ("control" if found["judgement"]["claim"] == "worse" else "train")
    names = {"train": "05-train", "control": "06-control"}
    same_policies(whole / "policy", whole / names[found["chosen"]] / "run" / "policy")
    assert load_policy(whole / "policy").action_horizon == 3
    recipe, control = (load_config(TrainConfig, whole / f"{name}/run/config.json") for name in names.values())
    assert recipe.values == str(whole / "03-values" / "run")
    for name in ("num_updates", "seed", "frames", "labels", "action_horizon", "network"):
        assert getattr(recipe, name) == getattr(control, name)


def test_the_page_tells_the_story(whole: Path) -> None:
    text = Page((whole / "improve.html").read_text()).text
    found = results(whole)
    assert found["recipe"]["reason"] in text and found["judgement"]["claim"] in text
    for told in ("30", "of which", "chunkrl train --config", "chunkrl trial", "docs/results.md"):
        assert told in text


def test_a_step_can_be_repeated_by_hand(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = shlex.split((whole / "06-control" / "command.txt").read_text())
    main([*line[1:], "--output-dir", str(tmp_path / "again")])
    same_policies(tmp_path / "again" / "policy", whole / "06-control" / "run" / "policy")
    for name in ("01-inspect", "02-labels"):
        main(shlex.split((whole / name / "command.txt").read_text())[1:])
    assert "30" in capsys.readouterr().out


def test_a_second_call_does_nothing(data: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.done.json")}
    kept = results(whole)
    improve(of(data, whole))
    improve(resumed_improvement(whole))
    with before_failures_had_a_setting(whole):
        assert "train.balance.failures ('together' there, 'left_out' here)" in refused(of(data, whole))
        improve(resumed_improvement(whole))
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.done.json")} == before
    assert results(whole) == kept


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_result(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """Inside steps: every session ends after so many reports of progress, wherever that is."""
    root, sessions = tmp_path / "improve", 0
    while True:
        sessions += 1
        try:
            improve(of(data, root), interrupt_after(45))
        except Interrupted:
            continue
        break
    assert sessions > 2
    assert results(root) == results(whole)
    same_policies(root / "policy", whole / "policy")


@pytest.mark.parametrize("before_marking", [True, False])
def test_a_run_that_is_stopped_between_steps_goes_on(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_marking: bool
) -> None:
    """The last steps, after the trainings; each session ends when its first step is done, before or after that is
    noted."""
    root, marked = tmp_path / "improve", set[Path]()
    shutil.copytree(whole, root)
    rename(root, whole)
    for name in ("07-verdict", "08-export"):
        (root / name / "config.done.json").unlink()
    shutil.rmtree(root / "policy")
    write, sessions = steps.write_text, 0

    def stop_at_the_first(path: Path, text: str) -> None:
        if before_marking and path not in marked:
            marked.add(path)
            raise Interrupted
        write(path, text)
        if not before_marking:
            raise Interrupted

    monkeypatch.setattr(steps, "write_text", stop_at_the_first)
    while True:
        sessions += 1
        try:
            improve(of(data, root))
        except Interrupted:
            continue
        break
    assert sessions == 3
    assert results(root) == results(whole)
    same_policies(root / "policy", whole / "policy")
    assert not list(root.glob("policy.replaced*"))


def rename(root: Path, old: Path) -> None:
    """A copied run's files name its own folder."""
    for file in root.rglob("*.json"):
        text = file.read_text()
        if str(old) in text and "checkpoints" not in file.parts:
            file.write_text(text.replace(str(old), str(root)))


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(data: Path, whole: Path, tmp_path: Path) -> None:
    """A process that SIGKILL ends in the middle of a training."""
    root = tmp_path / "improve"
    save_config(of(data, root), tmp_path / "config.json")
    folders = (Path(__file__).parent, Path(chunkrl.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))}
    arguments = [sys.executable, "-m", "chunkrl", "improve", "--config", str(tmp_path / "config.json")]
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        sign = root / "05-train/run/checkpoints/last"
        until(lambda: sign.exists() or process.poll() is not None, seconds=1200, pause_s=0.001)
        assert process.poll() is None, "the run ended before it was killed"
        process.kill()
    assert not (root / "06-control/config.done.json").exists()
    improve(of(data, root))
    assert results(root) == results(whole)
    same_policies(root / "policy", whole / "policy")


def test_other_settings_and_other_data_are_refused(data: Path, whole: Path, tmp_path: Path) -> None:
    told = refused(of(data, whole, num_updates=41, gamma=0.9))
    assert "train.num_updates (40 there, 41 here)" in told and "train.gamma (0.99 there, 0.9 here)" in told
    other = write_dataset(tmp_path / "other", random_episodes(6))
    assert "data (" in refused(of(other, whole))
    copied = tmp_path / "improve"
    shutil.copytree(whole, copied)
    sources = json.loads((copied / "sources.json").read_text())
    (copied / "sources.json").write_text(json.dumps(dict.fromkeys(sources, "0")))
    assert "is no longer what" in refused(of(data, copied))


def test_settings_that_a_training_refused_can_be_corrected(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "improve"
    assert "37" in refused(of(data, root, num_folds=37))  # 36 episodes are trained on
    assert not (root / "03-values/run/checkpoints/last").exists()
    stop_at(monkeypatch, "_train")
    with pytest.raises(Interrupted):
        improve(of(data, root))
    assert load_config(TrainConfig, root / "03-values/config.json").num_folds == 2
    assert "train.num_folds (2 there, 3 here)" in refused(of(data, root, num_folds=3))


def test_successes_that_are_all_held_out_are_none_to_learn_from(tmp_path: Path) -> None:
    (chosen, *_) = held_out_places(20, 0.4)
    episodes = told_by_state(20)
    for number, columns in enumerate(episodes):
        columns["next.success"] = np.array([*[False] * (len(columns["action"]) - 1), number == chosen])
    bad = write_dataset(tmp_path / "bad", episodes)
    told = refused(of(bad, tmp_path / "improve"))
    assert (
        "Every episode that succeeds (1) is among the 8 that are held out" in told and "Hold out less" in told
    )


def test_a_folder_of_another_command_is_refused(data: Path, tmp_path: Path) -> None:
    policy_of_one_update(data, tmp_path / "run", 2)
    told = refused(of(data, tmp_path / "run"), OutputFolderError)
    assert "would mix its own files into it" in told
    resumed = replace(of(data, tmp_path / "new").train, resume=str(tmp_path / "new"))
    assert "no run of chunkrl improve to resume" in refused(ImproveConfig(str(data), None, resumed))


def test_a_dry_run_writes_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert improve(replace(of(data, tmp_path / "improve"), dry_run=True)) is None
    told = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    for part in ("01-inspect", "08-export", "30 episodes succeed", "memory", "all trainings: about"):
        assert part in told
    assert "nothing was written" in told


# ---- what the data lack


def without(name: str, episodes: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    return [{key: value for key, value in columns.items() if key != name} for columns in episodes]


def test_data_that_do_not_say_who_succeeded_are_asked_for_it(tmp_path: Path) -> None:
    bare = write_dataset(tmp_path / "bare", without("next.success", random_episodes(6)))
    told = refused(of(bare, tmp_path / "improve"), DatasetError)
    for part in ("Which episodes of", "--success all", "--success-file", "chunkrl label", "--browser"):
        assert part in told
    assert not (tmp_path / "improve").exists()


def test_a_list_of_successes_is_used_and_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_dataset(tmp_path / "bare", without("next.success", told_by_state(20)))
    (tmp_path / "good.txt").write_text("0\n2\n4\n")
    stop_at(monkeypatch, "_values")
    rule = LabelRule(success_file=str(tmp_path / "good.txt"))
    with pytest.raises(Interrupted):
        improve(of(bare, tmp_path / "improve", labels=rule))
    assert f"3 of 20 episodes succeed, by the list {tmp_path / 'good.txt'}" in capsys.readouterr().out
    main(["label", str(bare), "--success", "episodes", "--success-episodes", "0", "6"])
    with pytest.raises(Interrupted):
        improve(of(bare, tmp_path / "beside"))
    told = capsys.readouterr().out
    assert "2 of 20 episodes succeed, by the file labels/" in told
    assert (tmp_path / "beside/02-labels/command.txt").read_text().startswith("chunkrl inspect")


def test_labels_that_were_changed_after_the_values_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, recipe and control would be of different ones."""
    data = write_dataset(tmp_path / "arm", told_by_state(20))
    main(["label", str(data)])
    (file,) = (data / "labels").glob("*.parquet")
    before = file.read_bytes()
    stop_at(monkeypatch, "_diagnose")
    config = of(data, tmp_path / "improve")
    with pytest.raises(Interrupted):
        improve(config)
    main(
        [
            "label",
            str(data),
            "--success",
            "episodes",
            "--success-episodes",
            "0",
            "2",
            "--output",
            str(file),
            "--overwrite",
        ]
    )
    told = refused(config)
    assert f"the file of labels of {data} is no longer what {tmp_path / 'improve'} began with" in told
    file.write_bytes(before)
    with pytest.raises(Interrupted):
        improve(config)


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def interrupt(*_: Any) -> None:
        raise Interrupted

    monkeypatch.setattr(command._Improvement, name, interrupt)


def test_nobody_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    bad = write_dataset(tmp_path / "bad", [episode(6, False, rng) for _ in range(6)])
    told = refused(of(bad, tmp_path / "improve"))
    assert "None of the 6 episodes succeeds" in told and "chunkrl label" in told
    assert not (tmp_path / "improve/03-values").exists()
    assert "None of the 6" in (tmp_path / "improve/improve.html").read_text()
    stop_at(monkeypatch, "_values")
    corrected = LabelRule(success="episodes", success_episodes=(0, 1))
    with pytest.raises(Interrupted):
        improve(of(bad, tmp_path / "improve", labels=corrected))
    assert "2 of 6 episodes succeed, by --success episodes" in capsys.readouterr().out


def test_successes_of_one_length_leave_nothing_to_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    good = write_dataset(tmp_path / "good", [episode(6, True, rng) for _ in range(10)])
    found = improve(of(good, tmp_path / "improve", num_updates=2))
    assert isinstance(found, ImproveResult) and found.recipe is not None
    assert found.recipe.objective == "success_cloning" and found.recipe.control is None
    left_out = [step.name for step in found.steps if step.seconds is None]
    assert left_out == ["values", "diagnosis", "control", "verdict"]
    assert found.chosen == "train" and (tmp_path / "improve/policy").is_dir()
    assert "only speed can be learned" in capsys.readouterr().out
    told = refused(of(good, tmp_path / "asked", objective="cross_fitted"))
    assert "all episodes return the same" in told


def test_data_that_cannot_be_trained_on_stop_it_in_their_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_dataset(tmp_path / "broken", random_episodes(4))
    file = next((broken / "data").rglob("*.parquet"))
    actions = pq.read_table(file)["action"].to_pylist()
    actions[7][0] = math.nan
    edit_parquet(file, action=actions)
    told = refused(of(broken, tmp_path / "improve"), DatasetError)
    assert "episode 0, frame 7: 'action' is NaN or infinite" in told
    assert "problem    " in capsys.readouterr().out
    stop_at(monkeypatch, "_values")  # nothing is trained yet: other settings are no other run
    with pytest.raises(Interrupted):
        improve(of(broken, tmp_path / "improve", frames=FrameSettings(skip_bad_episodes=True, held_out=0.4)))
    assert "of 3 episodes succeed" in capsys.readouterr().out


# ---- settings


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dataset_dir": "data"}, "--dataset-dir is not for chunkrl improve"),
        ({"additional_offline_dataset_paths": ("more",)}, "improve is of one data set"),
        ({"init": "run"}, "name the policy to improve with --policy"),
        ({"pi0_config": "pi05"}, "name the checkpoint's folder with --policy"),
        ({"values": "run"}, "improve trains values of its own"),
        ({"num_folds": 1}, "--num-folds 1 has no values of episodes that a network never saw"),
        ({"objective": "advantage_conditioned"}, "use --policy.kind pi"),
        ({"num_updates": 0}, "num_updates is 0"),
    ],
)
def test_settings_that_exclude_each_other(
    data: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    assert told in refused(of(data, tmp_path / "improve", **changes))
    assert not (tmp_path / "improve").exists()


def test_data_and_policy_that_are_none(data: Path, tmp_path: Path) -> None:
    assert "name the data" in refused(replace(of(data, tmp_path / "improve"), data=""))
    assert "there is no such folder" in refused(of(data, tmp_path / "improve", tmp_path / "policy"))
    (tmp_path / "empty").mkdir()
    assert "holds no policy" in refused(of(data, tmp_path / "improve", tmp_path / "empty"))
    assert not (tmp_path / "improve").exists()


def test_a_small_policy_is_begun_with(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy_of_one_update(data, tmp_path / "run", 2)
    plan = command.make_plan(of(data, tmp_path / "improve", tmp_path / "run", network=NetworkConfig()))
    assert plan.train.init == str(tmp_path / "run" / "policy") and plan.values().init is None
    assert plan.train.network == NetworkConfig(hidden_dim=8, num_layers=1)
    assert plan.training("control", "success_cloning").init == plan.train.init
    assert settings(data, tmp_path)["network"] == plan.train.network


def test_a_pi_policy_begins_with_its_checkpoint(data: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "pi05"
    checkpoint.mkdir()
    (checkpoint / RECIPE_FILE).write_text("{}")
    config = of(data, tmp_path / "improve", checkpoint, network=NetworkConfig())
    plan = command.make_plan(config)
    assert plan.train.policy.kind == "pi" and plan.train.init is None
    assert (plan.train.pi0_checkpoints_dir, plan.train.pi0_config) == (str(tmp_path), "pi05")
    recipe = plan.recipe(Recipe("cross_fitted", "success_cloning", ""))
    assert recipe.values == str(tmp_path / "improve/03-values/run")
    assert plan.values().policy.kind == "pi" and plan.training("control", "success_cloning").fit == ValueFit()
    other = replace(config, train=replace(config.train, policy=PolicyConfig(kind="flow")))
    assert "--policy.kind is flow: leave that out" in refused(other)
