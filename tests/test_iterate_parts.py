"""Parts of `chunkrl iterate`: the choice, when rounds end, each step's settings, what is refused, corrections."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import iterate_fakes
import numpy as np
import pytest
from chunk_data import episode, policy_of_one_update, random_episodes, write_dataset
from iterate_fakes import WalkEnv
from pages import Page
from test_iterate import COLLECT, EVALUATION, results, settings

from chunkrl.algorithms.config import BalanceConfig, DistilConfig
from chunkrl.cli import main
from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import LabelRule
from chunkrl.envs import metaworld
from chunkrl.envs.scripted import MixtureConfig
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.evaluation_result import Rate, rate_of
from chunkrl.iterate.checks import make_plan
from chunkrl.iterate.command import iterate
from chunkrl.iterate.config import ArmName, IterateConfig, RolloutSource, SelectionRule, StopRule
from chunkrl.iterate.plan import Plan
from chunkrl.iterate.records import Outcome, Rollouts
from chunkrl.iterate.rollouts import data_sources, label, read_rollouts, record
from chunkrl.iterate.selection import choose, why_ended
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.progress import silent
from chunkrl.report import charts
from chunkrl.run.config import TrainConfig
from chunkrl.statistics import Interval, wilson_interval


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return iterate_fakes.pretrain(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaworld, "MetaWorldEnv", WalkEnv)
    monkeypatch.setattr(metaworld, "check_task", lambda name: None)


def rate(num_success: int, num_episodes: int) -> Rate:
    return rate_of(np.arange(num_episodes) < num_success, np.full(num_episodes, 5))


def test_the_best_round_is_chosen_and_of_equal_ones_the_first() -> None:
    assert choose({}) is None
    assert choose({0: rate(3, 10), 1: rate(7, 10), 2: rate(7, 10), 3: rate(5, 10)}) == 1
    assert choose({2: rate(7, 10), 0: rate(7, 10)}) == 0
    assert choose({0: rate(5, 10), 1: rate(51, 100)}) == 1  # rates count, not numbers


def test_tasks_count_alike_however_many_episodes_each_has() -> None:
    """The first round has more episodes of the easy task, and the second is better on both."""

    def rollouts(**by_task: tuple[int, int]) -> Rollouts:
        outcomes = {t: [Outcome(n < won, 5) for n in range(num)] for t, (won, num) in by_task.items()}
        return Rollouts("data", "", outcomes, 1, 0)

    rounds = [rollouts(easy=(32, 40), hard=(2, 10)), rollouts(easy=(9, 10), hard=(16, 40))]
    rates = [one.rate for one in rounds]
    assert [one.rate for one in rates] == [0.5, 0.65] and choose(dict(enumerate(rates))) == 1
    assert [(one.num_success, one.num_episodes) for one in rates] == [(34, 50), (25, 50)]
    # 1 / 32 is the mean of 1 / 40 and 1 / 10, over 2
    assert rates[0].interval == wilson_interval(16, 32)
    equal = rollouts(a=(1, 3), b=(2, 3), c=(0, 3)).rate
    assert (equal.rate, equal.interval) == (3 / 9, wilson_interval(3, 9))


def test_when_rounds_end() -> None:
    def ended(*successes: int, **rule: Any) -> str:
        scores = {number: rate(success, 10) for number, success in enumerate(successes)}
        return why_ended(scores, StopRule(**rule))

    assert ended() == ended(3, 2, 2, 2) == ""
    assert ended(3, 10) == "all 10 selection episodes of round 1 succeed"
    assert ended(3, 10, at_full_success=False) == ""
    assert ended(3, 5, 4, patience=2) == ""
    assert ended(3, 5, 4, 5, patience=2) == "no better selection than round 1's in 2 rounds"
    assert ended(3, 3, patience=1) == "no better selection than round 0's in 1 rounds"


def some_rollouts(name: str, num_frames: int) -> Rollouts:
    return Rollouts(name, "", {"walk": [Outcome(True, 3), Outcome(False, 9)]}, num_frames, 0)


def test_roll_outs_have_their_share_of_every_batch_by_their_frames(pretrained: Path) -> None:
    data = [some_rollouts("a", 30), some_rollouts("b", 10)]
    own = {"dataset_dir": "d", "additional_offline_dataset_paths": ("e",), "dataset_weights": (3.0, 1.0)}
    config = settings(pretrained, Path("run"), own, rollouts=RolloutSource(share=0.8))
    train = Plan(config, pretrained).train("default", 2, data)
    assert train.additional_offline_dataset_paths == ("e", "a", "b")
    np.testing.assert_allclose(train.dataset_weights, (0.15, 0.05, 0.6, 0.2))
    without = settings(pretrained, Path("run"), {"dataset_dir": "d"})
    train = Plan(without, pretrained).train("default", 2, data)
    assert (train.dataset_dir, train.additional_offline_dataset_paths) == ("d", ("a", "b"))
    assert train.dataset_weights == () and train.additional_success is None


def test_success_of_roll_outs_is_read_by_a_rule_of_their_own(pretrained: Path) -> None:
    demonstrations = {"dataset_dir": "d", "labels": replace(TrainConfig().labels, success="all")}
    both = Plan(settings(pretrained, Path("run"), demonstrations), pretrained)
    train = both.train("default", 1, [some_rollouts("a", 3)])
    assert train.labels.success == "all" and train.additional_success == "auto"
    assert both.label("default", 0).rule.success == "auto"


def test_cloning_arms_differ_in_the_objective_alone(pretrained: Path) -> None:
    own = {"value_updates_per_update": 2, "relabel_interval": 10, "train_q": True}
    own |= {"balance": BalanceConfig(time_bins=3), "distil": DistilConfig(num_candidates=4)}
    both = Plan(settings(pretrained, Path("run"), own), pretrained)
    default = both.train("default", 1, [some_rollouts("a", 3)])
    for arm in ("success_cloning", "behaviour_cloning"):
        train = both.train(arm, 1, [some_rollouts("a", 3)])
        assert train.objective == arm and not train.unread()
        same = replace(default.with_objective(arm), train_q=False, output_dir=train.output_dir)
        assert train == same.with_objective(arm)


def test_the_control_without_new_data_distils_as_long(pretrained: Path) -> None:
    data = [some_rollouts("a", 3)]
    for updates, expected in ((100, [100, 200, 300]), (None, [None] * 3)):
        own = {"num_updates": 20, "distil": DistilConfig(num_candidates=4, updates=updates)}
        both = Plan(settings(pretrained, Path("run"), own), pretrained)
        found = [both.train("no_new_data", number, data) for number in (1, 2, 3)]
        assert [train.num_updates for train in found] == [20, 40, 60]
        assert [train.distil.updates for train in found] == expected


def test_an_actor_that_records_too_few_episodes_ends_the_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Somebody quit: what is recorded stays, and no later step takes it for all."""
    pytest.importorskip("grpc", reason="needs chunkrl[online]")
    from chunkrl.online.actor import session
    from chunkrl.online.actor.command import ActorCommand
    from chunkrl.online.learner import intake

    asked: list[int | None] = []
    monkeypatch.setattr(session, "run_actor", lambda command, stores: asked.append(command.num_episodes))
    monkeypatch.setattr(intake, "store_recordings", lambda spool, root: SimpleNamespace(num_episodes=3))
    command = ActorCommand(policy="p", robot="robot.json", output_dir=str(tmp_path / "actor"), num_episodes=5)
    with pytest.raises(
        ChunkRLError, match="3 episodes are recorded, 5 are wanted; record the rest with --resume"
    ):
        record(command, tmp_path / "rollouts")
    assert asked == [2]  # a robot's session goes on
    assert record(replace(command, num_episodes=3), tmp_path / "rollouts") == {"num_episodes": 3}


def test_the_selection_of_libero_is_on_sampled_placements(pretrained: Path) -> None:
    config = settings(
        pretrained, Path("run"), collect=replace(COLLECT, env="libero_spatial/0+libero_spatial/5")
    )
    both = Plan(config, pretrained)
    reported, selected = both.evaluate("default", 1), both.select("default", 1)
    assert reported.env == selected.env == ("libero_spatial/0", "libero_spatial/5")
    assert (reported.initial, selected.initial) == ("official", "sampled")
    assert (reported.seed, selected.seed, selected.num_episodes) == (0, 1000, 6)


def refused(config: IterateConfig) -> str:
    with pytest.raises(ChunkRLError) as error:
        make_plan(config)
    return str(error.value)


def test_settings_that_exclude_each_other_are_refused_before_the_first_step(
    pretrained: Path, tmp_path: Path, walks: None
) -> None:
    def told(train: dict[str, Any] | None = None, **changes: Any) -> str:
        return refused(settings(pretrained, tmp_path / "run", train, **changes))

    assert "name the pretrained policy" in told({"init": None})
    assert "is a run, not a policy" in told({"init": str(pretrained.parent)})
    assert "network is NetworkConfig(hidden_dim=32" in told({"network": NetworkConfig(hidden_dim=32)})
    assert "action_horizon is 7, and the pretrained policy" in told({"action_horizon": 7})
    assert "begins with fresh networks" in told({"objective": "iql"})
    assert "trains no policy" in told({"objective": "value"})
    assert "each round trains its own" in told({"values": str(tmp_path)})
    assert "each round has more" in told({"sample_weights": ("w.parquet",)})
    assert "rounds is 0" in told(rounds=0)
    for arms in ((), ("default", "default"), ("dagger",)):
        assert "name one or several of default, success_cloning" in told(arms=arms)
    acting = replace(COLLECT, policy="p", mixture=MixtureConfig(policy_share=1.0))
    assert "are each round's: leave them out" in told(collect=acting)
    same = SelectionRule(seed=EVALUATION.seed)
    assert "--selection.seed 0 gives initial states that --evaluation.seed 0 reports" in told(selection=same)
    assert "give --dataset-dir" in told(rollouts=RolloutSource(share=0.5))
    assert "say with --rollouts.share" in told({"dataset_dir": "d", "dataset_weights": (1.0,)})
    two = {"dataset_dir": "d", "additional_offline_dataset_paths": ("e",)}
    assert "give --dataset-weights, one for each" in told(two, rollouts=RolloutSource(share=0.5))
    assert "--dataset-dir" in told({"additional_offline_dataset_paths": ("e",)})
    labels = replace(TrainConfig().labels, success="all")
    assert "--success all would be the roll-outs' rule too" in told(two | {"labels": labels})
    folder = RolloutSource(folder="f")
    assert "nothing can be evaluated" in told(rollouts=folder)
    by = SelectionRule(by="rollouts")
    assert "use one of --arms" in told(rollouts=folder, selection=by, arms=("default", "no_new_data"))
    with pytest.raises(ChunkRLError, match="give one of them"):
        RolloutSource(folder="f", actor="a")


def test_an_arm_without_q_is_not_asked_to_pick_by_it(pretrained: Path, tmp_path: Path, walks: None) -> None:
    """Before the first step, and with the cure that fits: the flag that trains Q may be given already."""
    evaluation = {"evaluation": replace(EVALUATION, mode="best_of_n")}
    collect = {"collect": replace(COLLECT, mode="best_of_n")}

    def config(train_q: bool, *arms: ArmName, **changes: Any) -> IterateConfig:
        return settings(pretrained, tmp_path / "run", {"train_q": train_q}, arms=arms, **changes)

    for changes, name in ((evaluation, "--evaluation.mode"), (collect, "--collect.mode")):
        said = refused(config(True, "default", "success_cloning", **changes))
        assert said.startswith(
            f"{name} best_of_n picks chunks by Q, and success_cloning only clones: leave that arm"
        )
        assert "--train-q alone: add it" in refused(config(False, "default", **changes))
        make_plan(config(True, "default", "no_new_data", **changes))
    # the pretrained policy alone acts
    make_plan(config(False, "success_cloning", "no_new_data", rounds=1, **collect))


def test_pi_policies_begin_with_their_checkpoint(tmp_path: Path, walks: None) -> None:
    pi = {"policy": PolicyConfig(kind="pi"), "init": None}

    def told(**more: Any) -> str:
        return refused(settings(tmp_path, tmp_path / "run", pi | more))

    assert "--pi0-checkpoints-dir and --pi0-config" in told()
    assert "leave it out" in told(pi0_config="policy", init="p")
    data = replace(TrainConfig().pi, norm_stats="data")
    assert "--pi0-config policy" in told(pi0_config="policy", pi=data)
    given = pi | {"pi0_config": "policy", "pi0_checkpoints_dir": str(tmp_path)}
    made = make_plan(settings(tmp_path, tmp_path / "run", given))
    assert made.pretrained == tmp_path / "policy" == made.policy("default", 0)
    assert made.train("default", 1, [some_rollouts("a", 3)]).pi0_config == "policy"


def test_steps_of_a_recording_count_to_its_success(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flags = np.zeros(6, bool)
    flags[3:] = True  # the recording goes on
    episodes = [
        episode(6, True, rng, **{"next.success": flags}),
        episode(5, False, rng),
        episode(2, True, rng),
    ]
    data = write_dataset(tmp_path / "data", episodes, ("push", "pull"))
    noted = label(LabelCommand(str(data), output=str(tmp_path / "l.parquet")), silent)
    found = read_rollouts(json.loads(json.dumps(noted)), tmp_path)
    assert found.outcomes == {
        "push": [Outcome(True, 4), Outcome(True, 2)],
        "pull": [Outcome(False, 5)],
    }
    assert found.num_frames == 13 and found.num_human == 0
    assert found.rate.speed.median_steps == 3 and found.tasks["pull"].num_success == 0


def test_rates_over_rounds_are_drawn_with_their_intervals() -> None:
    points = [(0, 0.25, Interval(0.0, 0.5)), (2, 1.0, Interval(0.5, 1.0))]
    drawn = Page(charts.rate_chart([charts.RateSeries("a", points, marked=2)], "round", "all"))
    circles = [attrs for tag, attrs in drawn.tags if tag == "circle"]
    assert [c["r"] for c in circles] == ["4", "8", "4"]
    # 0 % lies at 220, 100 % at 10
    assert [float(c["cy"] or 0) for c in circles] == [220 - 0.25 * 210, 10, 10]
    whiskers = [str(attrs["d"]) for tag, attrs in drawn.tags if attrs.get("class") == "whisker"]
    assert "220.0V115.0" in whiskers[0].replace(" ", "") and "115.0V10.0" in whiskers[1].replace(" ", "")
    assert "a, 2: 100.0 %, 50.0 to 100.0 %" in drawn.text


def test_interventions_of_a_scripted_corrector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MetaWorld's expert takes over from a policy that does nothing of use; one that is cut off begins again."""
    pytest.importorskip("metaworld", reason="needs the extra chunkrl[sim]")
    pytest.importorskip("grpc", reason="needs the extra chunkrl[online]")
    from chunkrl.online.learner.intake import store_recordings

    collect = f"collect --env reach-v3 --output-dir {tmp_path / 'data'} --num-episodes 4 --max-steps 20"
    main([*collect.split(), "--num-workers", "0"])
    policy = policy_of_one_update(tmp_path / "data", tmp_path / "pre", 4)
    actor = {
        "env": "reach-v3",
        "corrector": "scripted",
        "num_episodes": 3,
        "max_steps": 60,
        "device": "cpu",
        "live": False,
        "correction": {"stall_steps": 3, "correction_steps": 50, "let_go_steps": 0},
    }
    (tmp_path / "actor.json").write_text(json.dumps(actor))
    config = settings(
        policy,
        tmp_path / "run",
        {"num_updates": 5},
        rounds=1,
        rollouts=RolloutSource(actor=str(tmp_path / "actor.json")),
        evaluation=replace(EVALUATION, num_episodes=1, max_steps=10),
        selection=SelectionRule(num_episodes=1),
        stop=StopRule(at_full_success=False),
    )
    found = iterate(config)
    rollouts = found.arms[0].rounds[0].rollouts
    assert rollouts is not None and rollouts.rate.num_episodes == 3 and rollouts.rate.num_success > 0
    assert 0 < rollouts.num_human < rollouts.num_frames
    assert "corrected steps" in Page((tmp_path / "run/report.html").read_text()).text
    table = FrameTable.open(rollouts.data, progress=silent)
    assert table.column("complementary_info.is_intervention").sum() == rollouts.num_human
    folder = tmp_path / "run/round-000"
    assert (
        store_recordings(folder / "actor/spool", folder / "rollouts").num_episodes == 3
    )  # nothing is stored twice
    assert store_recordings(tmp_path / "none", tmp_path / "none").num_episodes == 0
    for name in ("actor", "label"):  # as if it had been cut off before that was noted
        (folder / f"{name}.done.json").unlink()
    actions = table.action.copy()
    iterate(replace(config, train=replace(config.train, resume=config.train.output_dir)))
    assert np.array_equal(FrameTable.open(rollouts.data, progress=silent).action, actions)


@pytest.mark.slow
def test_a_pi_policy_is_trained_from_its_checkpoint_each_round(tmp_path: Path, walks: None) -> None:
    pytest.importorskip("sentencepiece", reason="needs the extra chunkrl[pi]")
    from chunkrl.models.pi import tiny
    from chunkrl.models.pi.checkpoint import load_pretrained
    from chunkrl.models.pi.config import PiCriticConfig

    data = iterate_fakes.write_walks(tmp_path / "walks", 12, state="compact")
    checkpoint = tmp_path / "checkpoints" / "tiny"
    tiny.main([str(data), str(checkpoint), *["--horizon", "3", "--width", "16", "--depth", "1"]])
    pi = {
        "policy": PolicyConfig(kind="pi"),
        "init": None,
        "pi0_config": "tiny",
        "pi0_checkpoints_dir": str(tmp_path / "checkpoints"),
        "action_horizon": 3,
        "action_dim": 4,
        "pi": replace(TrainConfig().pi, critic=PiCriticConfig(depth=1, num_queries=2, head_width=8)),
        "objective": "advantage_conditioned",
        "num_updates": 3,
        "value_epochs": 0.2,
        "dataset_dir": str(data),
    }
    brief = {
        "evaluation": replace(EVALUATION, num_episodes=2),
        "collect": replace(COLLECT, num_episodes=3, state="compact"),
    }
    arms = ("default", "success_cloning")
    config = settings(
        tmp_path, tmp_path / "run", pi, arms=arms, selection=SelectionRule(num_episodes=2), **brief
    )
    found = iterate(config)
    assert [len(run.rounds) for run in found.arms] == [3, 3]
    asked = {
        arm: load_pretrained(tmp_path / f"run/{arm}/round-002/train/policy").recipe.settings.condition
        for arm in arms
    }
    assert asked == {"default": "Advantage: positive", "success_cloning": ""}
    before = results(tmp_path / "run")
    iterate(replace(config, train=replace(config.train, resume=config.train.output_dir)))
    assert results(tmp_path / "run") == before


def test_what_says_who_succeeded_is_a_source(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", random_episodes(4))
    key = f"the file of labels of {data}"

    def told(rule: LabelRule = LabelRule()) -> str:
        found = data_sources(str(data), ColumnMapping(), None, rule, silent)
        assert found.keys() == {str(data), key}
        return found[key]

    assert told() == ""  # its columns
    listed = tmp_path / "good.txt"
    rule = LabelRule(success_file=str(listed))
    digests = []
    for text in ("0\n", "0\n2\n"):
        listed.write_text(text)
        digests.append(told(rule))
    label_dataset(LabelCommand(str(data), rule), silent)
    digests.append(told())
    assert len({"", *digests}) == 4
    assert told(LabelRule(labels="none")) == ""
