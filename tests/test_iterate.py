"""`chunkrl iterate` on a simulator of arithmetic: what a round is, what is chosen, what is kept, what goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import iterate_fakes
import pytest
import torch
from earlier_release import before_failures_had_a_setting
from interrupting import Interrupted, interrupt_after
from iterate_fakes import MAX_STEPS, WalkEnv
from pages import Page

import chunkrl
from chunkrl.cli import main
from chunkrl.collect.config import CollectCommand, CollectConfig
from chunkrl.config import load_config, save_config
from chunkrl.envs import metaworld
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.config import EvaluateCommand, EvaluateConfig
from chunkrl.evaluation.evaluation_result import read_evaluation
from chunkrl.iterate import steps
from chunkrl.iterate.command import iterate
from chunkrl.iterate.config import IterateConfig, RolloutSource, SelectionRule, StopRule, resumed_iteration
from chunkrl.manifest import write_manifest
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.report.numbers import words
from chunkrl.run.config import TrainConfig

COLLECT = CollectConfig(env="walk", num_episodes=8, max_steps=MAX_STEPS, num_workers=0, seed=3)
EVALUATION = EvaluateConfig(env=(), num_episodes=12, max_steps=MAX_STEPS, num_workers=0, device="cpu")


@pytest.fixture(autouse=True)
def _walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaworld, "MetaWorldEnv", WalkEnv)
    monkeypatch.setattr(metaworld, "check_task", lambda name: None)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy that succeeds now and then."""
    return iterate_fakes.pretrain(tmp_path_factory.mktemp("pretrained"))


def settings(
    pretrained: Path, output: Path, train: dict[str, Any] | None = None, **changes: Any
) -> IterateConfig:
    """An iteration of seconds."""
    brief: dict[str, Any] = {
        "num_updates": 20,
        "batch_size": 16,
        "value_epochs": 1.0,
        "num_folds": 2,
        "lr": 3e-3,
    }
    fixed = {"init": str(pretrained), "output_dir": str(output), "device": "cpu", "save_updates": 4}
    own: dict[str, Any] = {
        "rounds": 2,
        "collect": COLLECT,
        "evaluation": EVALUATION,
        "selection": SelectionRule(num_episodes=6),
        "stop": StopRule(at_full_success=False),
    }
    return IterateConfig(TrainConfig(**brief | fixed | (train or {})), **own | changes)


def resumed(config: IterateConfig) -> IterateConfig:
    return replace(config, train=replace(config.train, resume=config.train.output_dir))


def networks(folder: Path) -> dict[str, torch.Tensor]:
    return ChunkPolicy.load(folder).policy.state_dict()


def same_policies(ours: Path, theirs: Path) -> None:
    a, b = networks(ours), networks(theirs)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def results(root: Path) -> dict[str, Any]:
    """results.json, without where the run lies."""
    return json.loads((root / "results.json").read_text().replace(str(root), "RUN"))


@pytest.fixture(scope="module")
def whole(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two arms that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metaworld, "MetaWorldEnv", WalkEnv)
        patch.setattr(metaworld, "check_task", lambda name: None)
        iterate(settings(pretrained, root, arms=("default", "no_new_data")))
    return root


def test_each_round_trains_from_the_pretrained_policy_on_all_roll_outs_so_far(
    whole: Path, pretrained: Path
) -> None:
    first, second = (load_config(TrainConfig, whole / f"default/round-00{n}/train.json") for n in (1, 2))
    rollouts = [str(whole / "round-000/rollouts"), str(whole / "default/round-001/rollouts")]
    assert (first.dataset_dir, first.additional_offline_dataset_paths) == (rollouts[0], ())
    assert (second.dataset_dir, second.additional_offline_dataset_paths) == (rollouts[0], (rollouts[1],))
    assert first.init == second.init == str(pretrained)
    assert first.num_updates == second.num_updates == 20
    # the policy decides them
    assert (first.action_horizon, first.action_dim, first.network.hidden_dim) == (3, 4, 16)
    collected = [load_config(CollectCommand, Path(data).parent / "collect.json") for data in rollouts]
    assert [c.seed for c in collected] == [3, 4]
    assert [c.mode for c in collected] == ["sample", "sample"]
    assert [c.policy for c in collected] == [str(pretrained), str(whole / "default/round-001/train/policy")]
    found = results(whole)["arms"]["default"]["rounds"]
    assert [one["trained_on_rollouts"] for one in found] == [0, 8, 16]


def test_the_control_without_new_data_makes_as_many_updates(whole: Path) -> None:
    configs = [load_config(TrainConfig, whole / f"no_new_data/round-00{n}/train.json") for n in (1, 2)]
    assert [c.num_updates for c in configs] == [20, 40]
    assert {c.dataset_dir for c in configs} == {str(whole / "round-000/rollouts")}
    assert all(c.additional_offline_dataset_paths == () for c in configs)
    assert not list((whole / "no_new_data").rglob("rollouts"))
    # its first round is the other arm's: the same data and updates
    same_policies(*(whole / arm / "round-001/train/policy" for arm in ("default", "no_new_data")))


def test_cloning_of_the_roll_outs_is_a_control_of_the_same_command(pretrained: Path, tmp_path: Path) -> None:
    """Of the successes and of all: each from the pretrained policy, on the same episodes, by the same steps."""
    arms = ("default", "success_cloning", "behaviour_cloning")
    root = tmp_path / "run"
    iterate(settings(pretrained, root, rounds=1, arms=arms))
    policies = [networks(root / arm / "round-001/train/policy") for arm in arms]
    for number, arm in enumerate(arms):
        train = load_config(TrainConfig, root / arm / "round-001/train.json")
        assert train.objective == ("cross_fitted" if arm == "default" else arm)
        assert (train.init, train.num_updates) == (str(pretrained), 20)
        assert train.dataset_dir == str(root / "round-000/rollouts")
        found = results(root)["arms"][arm]["rounds"]
        assert [one["trained_on_rollouts"] for one in found] == [0, 8]
        assert found[1]["evaluation"]["num_episodes"] == 12
        for other in policies[:number]:
            assert any(not torch.equal(policies[number][name], other[name]) for name in other)
    page = Page((root / "report.html").read_text()).text
    assert all(words(arm) in page for arm in arms)


def test_results_are_those_of_the_evaluations(whole: Path) -> None:
    found = results(whole)
    assert found["arms"].keys() == {"default", "no_new_data"} and found["notes"] == []
    for arm, run in found["arms"].items():
        assert run["ended"] == "all 2 rounds are made"
        for one in run["rounds"]:
            folder = whole / ("" if one["round"] == 0 else arm) / f"round-00{one['round']}"
            for name, key, count in (("evaluation", "evaluation", 12), ("selection", "selection", 6)):
                evaluation = read_evaluation(folder / name)
                success = evaluation.success("walk")
                assert one[key]["num_success"] == success.sum() and one[key]["num_episodes"] == count
                assert one[key]["success"] == success.mean()
            shared = set(read_evaluation(folder / "evaluation").seeds("walk"))
            assert not shared & set(read_evaluation(folder / "selection").seeds("walk"))
        scores = [one["selection"]["success"] for one in run["rounds"]]
        assert run["chosen"] == scores.index(max(scores))
        chosen = run["rounds"][run["chosen"]]["policy"].replace("RUN", str(whole))
        same_policies(whole / arm / "policy", Path(chosen))
    rollouts = found["arms"]["default"]["rounds"][0]["rollouts"]
    assert rollouts["num_episodes"] == 8 and list(rollouts["tasks"]) == ["walk to the target of walk"]


def test_the_page_says_every_number(whole: Path) -> None:
    page = Page((whole / "report.html").read_text())
    found = results(whole)["arms"]
    for said in ("Reported states", "Selection", "Own roll-outs", "no new data", "all 2 rounds are made"):
        assert said in page.text
    for arm, run in found.items():
        for one in run["rounds"]:
            rate, (low, high) = one["evaluation"]["success"], one["evaluation"]["interval"]
            (row,) = [
                row
                for row in page.tables[-1]
                if row["arm"] == words(arm) and row["round"].split(", ")[0] == str(one["round"])
            ]
            assert row["success"] == f"{rate:.2f} ({one['evaluation']['num_success']}/12)"
            assert row["95 % interval"] == f"[{low:.2f}, {high:.2f}]"
            trained_on = f"{one['trained_on_rollouts']} roll-outs" if one["trained_on_rollouts"] else ""
            assert row["trained on"] == trained_on and ("chosen" in row["round"]) == (
                one["round"] == run["chosen"]
            )
    rings = [attrs for tag, attrs in page.tags if tag == "circle" and attrs.get("r") == "8"]
    drawn = {"Reported states": 2, "Selection": 2, "Own roll-outs": 0}
    drawn["Own roll-outs"] = sum(
        run["rounds"][run["chosen"]]["rollouts"] is not None for run in found.values()
    )
    assert len(rings) == sum(drawn.values())


def test_a_step_can_be_repeated_by_hand(whole: Path, tmp_path: Path) -> None:
    folder = whole / "default/round-002"
    main(["train", "--config", str(folder / "train.json"), "--output-dir", str(tmp_path / "train")])
    same_policies(tmp_path / "train/policy", folder / "train/policy")
    config = load_config(EvaluateCommand, folder / "evaluate.json")
    save_config(replace(config, output_dir=str(tmp_path / "evaluation")), tmp_path / "evaluate.json")
    main(["evaluate", "--config", str(tmp_path / "evaluate.json")])
    ours, theirs = (read_evaluation(f / "evaluation") for f in (tmp_path, folder))
    assert ours.episodes == theirs.episodes


def test_a_finished_run_that_is_resumed_does_nothing_and_more_rounds_go_on(
    whole: Path, pretrained: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    config = settings(pretrained, root, rounds=1)
    iterate(config)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.done.json")}
    iterate(resumed(config))
    with before_failures_had_a_setting(root):
        iterate(resumed_iteration(root))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.done.json")} == before
    iterate(resumed(settings(pretrained, root, rounds=2, arms=("default", "no_new_data"))))
    assert results(root) == results(whole)


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_result(
    whole: Path, pretrained: Path, tmp_path: Path
) -> None:
    """Inside steps: every session ends after so many reports of progress, wherever that is."""
    root, config, sessions = tmp_path / "run", None, 0
    while True:
        config = settings(pretrained, root, arms=("default", "no_new_data"))
        config = resumed(config) if (root / "iterate.json").is_file() else config
        sessions += 1
        try:
            iterate(config, interrupt_after(29))
        except Interrupted:
            continue
        break
    assert sessions > 5
    assert results(root) == results(whole)
    for arm in ("default", "no_new_data"):
        for number in (1, 2):
            name = f"{arm}/round-00{number}/train/policy"
            same_policies(root / name, whole / name)


@pytest.mark.parametrize("before_marking", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_between_steps_ends_with_the_same_result(
    whole: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_marking: bool
) -> None:
    """Each session ends when its first step is done, before or after that is noted; it is a step further each time
    where it is noted."""
    root, sessions, marked = tmp_path / "run", 0, set[Path]()
    write, one_arm = steps.write_text, settings(pretrained, tmp_path / "run")

    def stop_at_the_first(path: Path, text: str) -> None:
        if not path.name.endswith(".done.json"):  # what the run began with
            write(path, text)
            return
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
            iterate(resumed(one_arm) if (root / "iterate.json").is_file() else one_arm)
        except Interrupted:
            continue
        break
    num_steps = len(list(root.rglob("*.done.json")))
    assert num_steps == 3 + 2 + 3 * 2 + 2 - 1 and sessions == num_steps + 1
    ours, theirs = results(root)["arms"]["default"], results(whole)["arms"]["default"]
    assert ours == theirs


@pytest.mark.parametrize(
    ("sign", "delay"),
    [
        ("default/round-001/train/checkpoints/last", 0.0),
        *(
            pytest.param(sign, delay, marks=pytest.mark.slow)
            for sign in (
                "round-000/evaluation/episodes",
                "round-000/collect.json",
                "default/round-002/train.json",
            )
            for delay in (0.0, 0.02)
        ),
    ],
)
def test_a_killed_run_goes_on_to_the_same_result(
    whole: Path, pretrained: Path, tmp_path: Path, sign: str, delay: float
) -> None:
    """A process that SIGKILL ends soon after a file is there."""
    root = tmp_path / "run"
    config = settings(pretrained, root, arms=("default", "no_new_data"))
    save_config(config, tmp_path / "config.json")
    script = "import iterate_fakes; iterate_fakes.install(); from chunkrl.cli import main; main()"
    command = [sys.executable, "-c", script, "iterate", "--config", str(tmp_path / "config.json")]
    folders = (Path(__file__).parent, Path(chunkrl.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 240
        while not (root / sign).exists():
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
    assert not (root / "no_new_data/round-002/select.done.json").exists()
    iterate(resumed(config))
    assert results(root) == results(whole)
    for arm in ("default", "no_new_data"):
        same_policies(root / arm / "round-002/train/policy", whole / arm / "round-002/train/policy")


def refused(config: IterateConfig) -> str:
    with pytest.raises(ChunkRLError) as error:
        iterate(config)
    return str(error.value)


def test_a_folder_of_another_run_is_refused(whole: Path, pretrained: Path, tmp_path: Path) -> None:
    config = settings(pretrained, whole, arms=("default", "no_new_data"))
    assert f"--resume {whole}, use another --output-dir" in refused(config)
    before = results(whole)
    other = resumed(replace(config, collect=replace(COLLECT, seed=4)))
    assert "round-000/collect.json is of another configuration: seed (3 there, 4 here)" in refused(other)
    assert results(whole) == before
    (tmp_path / "other" / "checkpoints" / "0000004").mkdir(parents=True)
    assert "would mix its own files into it" in refused(settings(pretrained, tmp_path / "other"))
    assert "no run of chunkrl iterate to resume" in refused(resumed(settings(pretrained, tmp_path / "new")))
    elsewhere = replace(config, train=replace(config.train, resume=str(tmp_path)))
    assert "goes on in the run's own folder" in refused(elsewhere)


def test_a_mistake_that_training_finds_is_corrected_without_new_roll_outs(
    pretrained: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    assert "9" in refused(settings(pretrained, root, {"num_folds": 9}, rounds=1))  # of 8 episodes
    before = (root / "round-000/collect.done.json").stat().st_mtime_ns
    found = iterate(resumed(settings(pretrained, root, rounds=1)))
    assert len(found.arms[0].rounds) == 2
    assert (root / "round-000/collect.done.json").stat().st_mtime_ns == before


def test_a_round_of_another_configuration_is_refused(whole: Path, pretrained: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole, root, symlinks=True)
    for file in root.rglob("*.json"):
        file.write_text(file.read_text().replace(str(whole), str(root)))
    config = resumed(settings(pretrained, root, arms=("default", "no_new_data")))
    iterate(config)
    assert results(root) == results(whole)
    step = root / "default/round-001/train.json"
    kept = step.read_text()
    step.write_text(kept.replace('"num_updates": 20', '"num_updates": 30'))
    assert "round-001/train.json is of another configuration: num_updates (30 there, 20 here)" in refused(
        config
    )
    step.write_text("{")
    assert "is damaged" in refused(config)
    step.write_text(kept)
    # a round that is to be made again, on roll-outs that are no longer what they were
    (step.with_name("train.done.json")).unlink()
    info = root / "round-000/rollouts/meta/info.json"
    info.write_text(info.read_text().replace('"robot_type": "', '"robot_type": "x'))
    assert "is not what it was when its round was labelled" in refused(config)


def test_another_pretrained_policy_in_the_same_folder_is_refused(pretrained: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(pretrained, policy)
    config = settings(policy, tmp_path / "run", rounds=1)
    with pytest.raises(Interrupted):
        iterate(config, interrupt_after(8))
    (policy / "state.json").write_text((policy / "state.json").read_text() + "\n")
    write_manifest(policy)
    assert f"{policy} is no longer what {tmp_path / 'run'} began with" in refused(resumed(config))


def test_a_run_in_use_is_refused(pretrained: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        assert "in use by another chunkrl iterate" in refused(settings(pretrained, tmp_path / "run"))


def test_nothing_that_succeeds_is_nothing_to_learn_from(pretrained: Path, tmp_path: Path) -> None:
    config = settings(pretrained, tmp_path / "run", collect=replace(COLLECT, env="impossible"))
    assert "none of 8 episodes succeeds" in refused(config)
    # demonstrations say what is better
    data = iterate_fakes.write_walks(tmp_path / "demonstrations", 6, speed=0.5)
    more = settings(
        pretrained, tmp_path / "more", {"dataset_dir": str(data)}, rounds=1, collect=config.collect
    )
    found = iterate(more)
    assert [("no success in 8 roll-outs" in note) for note in found.notes] == [True]
    trained = load_config(TrainConfig, tmp_path / "more/default/round-001/train.json")
    assert trained.dataset_dir == str(data)
    assert trained.additional_offline_dataset_paths == (str(tmp_path / "more/round-000/rollouts"),)


def test_a_task_without_success_is_said_and_the_round_goes_on(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = replace(COLLECT, env="walk+impossible", num_episodes=12)
    found = iterate(settings(pretrained, tmp_path / "run", collect=two, rounds=1))
    said = "no success in 6 roll-outs of 'walk to the target of impossible'; the round goes on without"
    assert said in found.notes[0] and said in capsys.readouterr().err
    evaluation = found.arms[0].rounds[1].evaluation
    assert evaluation is not None and set(evaluation.tasks) == {"walk", "impossible"}
    page = Page((tmp_path / "run/report.html").read_text()).text
    assert said in page and "Successes of the reported states" in page


def test_rounds_end_when_every_selection_episode_succeeds(pretrained: Path, tmp_path: Path) -> None:
    easy = replace(EVALUATION, max_steps=60)
    found = iterate(settings(pretrained, tmp_path / "run", evaluation=easy, stop=StopRule()))
    (run,) = found.arms
    assert len(run.rounds) == 1 and run.ended == "all 6 selection episodes of round 0 succeed"
    assert not (tmp_path / "run/round-000/collect.json").exists()  # nothing follows that needs them


def test_policies_chosen_by_their_roll_outs(pretrained: Path, tmp_path: Path) -> None:
    """The last policy makes some for that alone, and nothing else is evaluated."""
    found = iterate(settings(pretrained, tmp_path / "run", rounds=1, selection=SelectionRule(by="rollouts")))
    (run,) = found.arms
    assert all(one.rollouts is not None and one.selection == one.rollouts.rate for one in run.rounds)
    assert not list((tmp_path / "run").rglob("select.json"))


def brought(pretrained: Path, tmp_path: Path, **changes: Any) -> IterateConfig:
    source = RolloutSource(folder=str(tmp_path / "brought"))
    return settings(
        pretrained, tmp_path / "run", rollouts=source, selection=SelectionRule(by="rollouts"), **changes
    )


def test_episodes_that_a_person_brings(pretrained: Path, tmp_path: Path) -> None:
    config = brought(pretrained, tmp_path, rounds=1)
    message = refused(config)
    assert (
        f"{tmp_path / 'brought/round-000'} holds no episodes: record some with the policy {pretrained}"
        in message
    )
    iterate_fakes.write_walks(tmp_path / "brought/round-000", 8, seed=1)
    message = refused(resumed(config))
    policy = tmp_path / "run/default/round-001/train/policy"
    assert f"brought/round-001 holds no episodes: record some with the policy {policy}" in message
    iterate_fakes.write_walks(tmp_path / "brought/round-001", 8, seed=2, speed=0.6)
    (run,) = iterate(resumed(config)).arms
    assert [one.evaluation for one in run.rounds] == [None, None]
    rates = [one.selection.rate for one in run.rounds if one.selection is not None]
    assert rates[0] < rates[1] and run.chosen == 1
    same_policies(tmp_path / "run/default/policy", policy)


def test_a_round_that_collected_nothing(pretrained: Path, tmp_path: Path) -> None:
    iterate_fakes.write_walks(tmp_path / "brought/round-000", 0)
    assert "brought/round-000 holds no episodes" in refused(brought(pretrained, tmp_path))


def test_episodes_of_which_nothing_says_whether_they_succeeded(pretrained: Path, tmp_path: Path) -> None:
    iterate_fakes.write_walks(tmp_path / "brought/round-000", 8, success_column="reached")
    assert "does not say which episodes succeeded" in refused(brought(pretrained, tmp_path))
