"""Balanced weights in closed form: the improved policy in every state, and each stratum what successes are due."""

from __future__ import annotations

import html
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import episode, identity_factory, open_chunks, random_episodes, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.advantages import step_rewards
from chunkrl.algorithms.balance import RunningBalance, Strata, equal_count_bins, make_strata, stratify
from chunkrl.algorithms.config import BalanceConfig, ConditioningConfig
from chunkrl.algorithms.iql import ChunkIQL, IQLConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.weighted import AdvantageWeighted, WeightedConfig
from chunkrl.algorithms.weights import WeightRule, to_weights
from chunkrl.data.chunk_semantics import Segments
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import PolicyConfig
from chunkrl.report.run_weights import LEVELS, TIMES, place_chart
from chunkrl.training.config import OptimConfig
from chunkrl.training.trainer import Trainer, TrainerConfig

CPU = torch.device("cpu")
FINE = BalanceConfig(min_starts=1, floor=0.0)


def _all_alike(num: int) -> np.ndarray:
    return np.ones(num)


# ---- strata


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 3)), min_size=1, max_size=60),
    st.integers(1, 8),
)
def test_bins_hold_equal_mass_and_keep_ties_together(rows: list[tuple[int, int]], num_bins: int) -> None:
    values, rates = np.array([v for v, _ in rows], float), np.array([r for _, r in rows], float)
    bins = equal_count_bins(values, rates, num_bins)
    assert bins.min() >= 0 and bins.max() < num_bins
    order = np.argsort(values, kind="stable")
    assert (np.diff(bins[order]) >= 0).all()
    for value in np.unique(values):
        assert len(np.unique(bins[values == value])) == 1
    # a bin is over-full by no more than the largest tie that it holds
    largest = max(rates[values == value].sum() for value in np.unique(values))
    mass = np.bincount(bins, weights=rates, minlength=num_bins)
    assert mass.max() <= rates.sum() / num_bins + largest + 1e-9


def test_distinct_values_are_cut_evenly() -> None:
    assert equal_count_bins(np.arange(8.0)[::-1], _all_alike(8), 4).tolist() == [3, 3, 2, 2, 1, 1, 0, 0]
    # a rate is as good as so many copies
    assert equal_count_bins(np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 1.0]), 2).tolist() == [0, 1, 1]


def test_small_data_have_fewer_strata_of_value_then_of_time() -> None:
    step, value = np.tile(np.arange(40), 4), np.linspace(0, 1, 160)
    task = np.zeros(160, int)

    def count(min_starts: int) -> int:
        config = BalanceConfig(time_bins=8, value_bins=4, min_starts=min_starts)
        return int(stratify(task, step, value, _all_alike(160), config).max()) + 1

    # 160 starts: 32 strata of 5; 8 of 20; then 4 of 40, 1 of 160
    assert [count(n) for n in (5, 6, 20, 40, 81, 1000)] == [32, 24, 8, 4, 1, 1]


def test_strata_lie_within_tasks_and_ignore_what_is_never_drawn() -> None:
    task = np.repeat([0, 1], 40)
    step, value = np.tile(np.arange(40), 2), np.linspace(0, 1, 80)
    config = BalanceConfig(time_bins=2, value_bins=2, min_starts=1)
    index = stratify(task, step, value, _all_alike(80), config)
    assert not set(index[:40]) & set(index[40:]) and sorted(set(index)) == list(range(8))
    assert set(np.bincount(index)) == {10}
    rates = np.where(np.arange(80) % 2 == 0, 1.0, 0.0)
    drawn = stratify(task, step, value, rates, config)
    assert set(np.bincount(drawn[rates > 0])) == {5}


# ---- the improved policy, state by state


def _tabular() -> dict[str, np.ndarray]:
    """Four states (two times, two values), two actions, exact advantages; a row per start, many alike.

    Episodes are of one time and one state, so a start's success is its episode's.
    """
    # step, value, action, advantage, number of starts, of them successful
    rows = [
        (0, 0.2, 0, -0.02, 60, 6),
        (0, 0.2, 1, +0.03, 40, 14),
        (0, 0.5, 0, -0.01, 50, 24),
        (0, 0.5, 1, +0.01, 50, 26),
        (9, 0.3, 0, -0.30, 80, 8),
        (9, 0.3, 1, +0.60, 20, 18),
        (9, 0.9, 0, -0.80, 10, 1),
        (9, 0.9, 1, +0.10, 90, 90),
    ]
    counts = [row[4] for row in rows]
    table = {
        name: np.repeat(np.array([row[k] for row in rows], float), counts)
        for k, name in enumerate(("step", "value", "action", "advantage"))
    }
    good = [np.arange(n) < k for *_, n, k in rows]
    return table | {"success": np.concatenate(good)}


def test_the_weighted_clone_is_the_improved_policy_in_every_state() -> None:
    data = _tabular()
    num = len(data["step"])
    config = BalanceConfig(time_bins=2, value_bins=2, min_starts=1, floor=0.0)
    task, rates = np.zeros(num, int), _all_alike(num)
    index = stratify(task, data["step"], data["value"], rates, config)
    due = np.bincount(index, weights=data["success"])
    strata = Strata(index, data["success"].astype(np.float32), np.zeros(num, bool), due)
    rule = WeightRule(beta=0.5, scale=2.0, clip=1e9)
    weight, _ = to_weights(data["advantage"], rule, strata=strata)
    plain, _ = to_weights(data["advantage"], rule)
    temperature = data["advantage"].std() / (rule.beta * rule.scale)
    total_success = data["success"].sum()
    starved = []
    for step in (0, 9):
        for value in np.unique(data["value"][data["step"] == step]):
            here = (data["step"] == step) & (data["value"] == value)
            # what a table learns: the weighted share of each action; and how much of the weight is spent here
            learned = np.array([weight[here & (data["action"] == a)].sum() for a in (0, 1)])
            behaviour = np.array([np.mean(data["action"][here] == a) for a in (0, 1)])
            gain = np.array([data["advantage"][here & (data["action"] == a)][0] for a in (0, 1)])
            improved = behaviour * np.exp(gain / temperature)
            np.testing.assert_allclose(learned / learned.sum(), improved / improved.sum(), rtol=1e-5)
            visited = data["success"][here].sum() / total_success  # p(x | success)
            assert weight[here].sum() / weight.sum() == pytest.approx(visited, rel=1e-5)
            starved.append(plain[here].sum() / plain.sum() / visited)
    assert min(starved) < 0.75  # which weights without balance do not do


class _Table(SimpleNamespace):
    """Data whose starts are the rows of a table."""

    def __len__(self) -> int:
        return len(self.starts)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_without_failures_it_is_the_improved_policy_of_the_successes(beta: float) -> None:
    """In every state the data's policy conditioned on success, times exp(beta A); with beta 0 their plain clone."""
    table = _tabular()
    ends = np.cumsum(table["step"].astype(int) + 1)
    data: Any = _Table(
        segments=Segments(ends, np.ones(len(ends), bool)),
        starts=ends - 1,
        success=table["success"],
        task=np.zeros(len(ends), int),
        tasks=("push",),
    )
    config = BalanceConfig(time_bins=2, value_bins=2, min_starts=1)
    rewards = np.zeros(ends[-1], np.float32)
    strata = make_strata(data, table["value"], rewards, None, None, config)
    weight, _ = to_weights(table["advantage"], WeightRule(beta, 2.0, 1e9), strata=strata)
    temperature = table["advantage"].std() / 2.0
    good = table["success"]
    assert not weight[~good].any()
    if beta == 0:
        np.testing.assert_allclose(weight, good / good.mean(), rtol=1e-5)
    for step, value in sorted(set(zip(table["step"], table["value"], strict=True))):
        here = (table["step"] == step) & (table["value"] == value)
        learned = np.array([weight[here & (table["action"] == a)].sum() for a in (0, 1)])
        successful = np.array([np.sum(good[here] & (table["action"][here] == a)) for a in (0, 1)])
        gain = np.array([table["advantage"][here & (table["action"] == a)][0] for a in (0, 1)])
        improved = successful * np.exp(beta * gain / temperature)
        np.testing.assert_allclose(learned / learned.sum(), improved / improved.sum(), rtol=1e-5)
        assert weight[here].sum() / weight.sum() == pytest.approx(good[here].sum() / good.sum(), rel=1e-5)


def test_one_stratum_is_the_weight_without_balance() -> None:
    rng = np.random.default_rng(0)
    advantage, success = rng.normal(size=50), rng.random(50) < 0.3
    strata = Strata(
        np.zeros(50, np.int32), success.astype(np.float32), np.zeros(50, bool), np.array([success.sum()])
    )
    found, metrics = to_weights(advantage, WeightRule(), strata=strata)
    expected, theirs = to_weights(advantage, WeightRule())
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert metrics == pytest.approx(theirs)


def test_a_stratum_without_successes_keeps_the_floor_alone() -> None:
    index = np.repeat([0, 1], 20).astype(np.int32)
    credit = (index == 0).astype(np.float32)
    due = np.bincount(index, weights=credit + 0.01)
    strata = Strata(index, credit, np.zeros(40, bool), due)
    weight, _ = to_weights(np.random.default_rng(1).normal(size=40), WeightRule(), strata=strata)
    assert weight[20:].sum() / weight.sum() == pytest.approx(0.01 / 1.02, rel=1e-5)


def test_mixing_with_cloning_of_the_successes() -> None:
    rng = np.random.default_rng(2)
    index, credit = rng.integers(3, size=60).astype(np.int32), (rng.random(60) < 0.5).astype(np.float32)
    strata = Strata(index, credit, np.zeros(60, bool), np.bincount(index, weights=credit))
    advantage = rng.normal(size=60)
    balanced, _ = to_weights(advantage, WeightRule(), strata=strata)
    cloned, _ = to_weights(advantage, WeightRule(success_mix=1.0), strata=strata)
    half, _ = to_weights(advantage, WeightRule(success_mix=0.5), strata=strata)
    np.testing.assert_allclose(cloned, credit / credit.mean(), rtol=1e-5)
    np.testing.assert_allclose(half, (balanced + cloned) / 2, rtol=1e-4)


@given(
    st.lists(
        st.tuples(st.floats(-3, 3), st.integers(0, 3), st.integers(0, 2), st.booleans()),
        min_size=3,
        max_size=40,
    )
)
def test_a_rate_is_as_good_as_so_many_copies(rows: list[tuple[float, int, int, bool]]) -> None:
    advantage = np.array([a for a, *_ in rows])
    rates = np.array([r for _, r, *_ in rows], np.float64)
    index, credit = np.array([g for *_, g, _ in rows]), np.array([s for *_, s in rows], np.float32)
    if not (rates * credit).sum():
        return
    num = int(index.max()) + 1
    due = np.bincount(index, weights=rates * (credit + 0.001), minlength=num)
    nothing = np.zeros(len(rows), bool)
    found, _ = to_weights(advantage, WeightRule(), rates, strata=Strata(index, credit, nothing, due))
    copies = rates.astype(int)
    again = Strata(np.repeat(index, copies), np.repeat(credit, copies), np.repeat(nothing, copies), due)
    expected, _ = to_weights(np.repeat(advantage, copies), WeightRule(), strata=again)
    np.testing.assert_allclose(np.repeat(found, copies), expected, rtol=2e-4, atol=1e-6)
    assert (found[rates == 0] == 0).all()


# ---- of data sets


def _two_tasks(base: Path, outcomes: list[list[bool]], **columns: Any) -> ChunkDataset:
    """Episodes of 6 frames of two tasks in turns; outcomes: of the first task, and of the second."""
    rng = np.random.default_rng(0)
    episodes = []
    for first, second in zip(*outcomes, strict=True):
        episodes += [episode(6, good, rng, **columns) for good in (first, second)]
    return open_chunks(write_dataset(base / "d", episodes, tasks=("push", "pull")))


def test_every_stratum_sums_to_its_successful_starts(tmp_path: Path) -> None:
    data = _two_tasks(tmp_path, [[True, False, False, True], [False, True, False, False]])
    value = np.random.default_rng(0).random(len(data)).astype(np.float32)
    strata = make_strata(data, value, step_rewards(data), None, None, BalanceConfig("strata", 3, 2, 2, 0.0))
    for task, successful in ((0, 2), (1, 1)):
        own = np.unique(strata.index[data.task == task])
        assert strata.due[own].sum() == successful * 6
    weight, _ = to_weights(np.random.default_rng(1).normal(size=len(data)), WeightRule(), strata=strata)
    sums = np.bincount(strata.index, weights=weight, minlength=strata.num)
    np.testing.assert_allclose(sums / sums.sum(), strata.due / strata.due.sum(), rtol=1e-5)


def test_a_task_without_success_is_cloned_uniformly_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _two_tasks(tmp_path, [[True, False, False, True], [False] * 4])
    advantage = np.random.default_rng(1).normal(size=len(data))
    pull = data.task == 1

    def weights(**settings: Any) -> np.ndarray:
        config = BalanceConfig(min_starts=1, **settings)
        strata = make_strata(data, None, step_rewards(data), None, None, config)
        return to_weights(advantage, WeightRule(), strata=strata)[0]

    cloned = weights(floor=0.0)
    assert "no episode of 'pull' succeeds" in caplog.text and "--balance.without-success" in caplog.text
    # all alike, and as much of it as of the other task, half of whose episodes succeed
    np.testing.assert_allclose(cloned[pull], cloned[pull][0], rtol=1e-6)
    assert cloned[pull].sum() == pytest.approx(cloned[~pull].sum(), rel=1e-5)
    left = weights(without_success="leave_out")
    assert not left[pull].any() and left[~pull].sum() == pytest.approx(len(data), rel=1e-5)


def test_what_is_left_out_has_no_weight_beside_a_humans_chunk(tmp_path: Path) -> None:
    """One stratum a task: the human's chunk in the silent task gets all that is due there."""
    data = _two_tasks(tmp_path, [[True, False], [False] * 2])
    human = np.arange(len(data)) == np.flatnonzero(data.task == 1)[3]
    advantage = np.random.default_rng(1).normal(size=len(data))
    config = BalanceConfig(min_starts=100, floor=0.0, without_success="leave_out")
    strata = make_strata(data, None, step_rewards(data), None, human, config)
    weight, _ = to_weights(advantage, WeightRule(), None, human, strata)
    assert (weight[data.task == 1] > 0).tolist() == human[data.task == 1].tolist()
    # six starts of a success in one task, one human's chunk in the other
    assert weight[human] == pytest.approx(weight[data.task == 0].sum() / 6, rel=1e-5)


@pytest.mark.parametrize("share", ["auto", "returns"])
def test_failing_soon_is_no_success_where_steps_cost(tmp_path: Path, share: Any) -> None:
    """In a task of failures alone, each step -1, returns differ by when the episodes ended, and say nothing."""
    rng = np.random.default_rng(0)
    lengths = [(6, True), (4, False), (6, True), (8, False)]
    root = write_dataset(tmp_path / "d", [episode(n, s, rng) for n, s in lengths], tasks=("push", "pull"))
    data = open_chunks(root, labels=LabelRule(step_reward="cost"), reward="sum")
    strata = make_strata(data, None, step_rewards(data), None, None, BalanceConfig(share=share))
    assert strata.uniform.tolist() == (data.task == 1).tolist() and strata.silent == ("pull",)
    np.testing.assert_array_equal(strata.credit, np.ones(len(data), np.float32))


def test_new_tasks_without_success_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = _two_tasks(tmp_path, [[True, False], [False] * 2])
    first = make_strata(data, None, step_rewards(data), None, None, BalanceConfig())
    assert first.silent == ("pull",) and "'pull'" in caplog.text
    caplog.clear()
    make_strata(data, None, step_rewards(data), None, None, BalanceConfig(), first.silent)
    assert not caplog.records
    make_strata(data, None, step_rewards(data), None, None, BalanceConfig(), ("another",))
    assert "'pull'" in caplog.text


def test_a_large_beta_keeps_the_ratios_within_a_stratum() -> None:
    """exp(beta z) is 0 in float32 all over one stratum: its weights are still e^(beta (z - z')) apart."""
    advantage = np.concatenate([np.array([10.0, 10.1]), np.array([-10.0, -10.01, -10.02])])
    index = np.array([0, 0, 1, 1, 1], np.int32)
    strata = Strata(index, np.ones(5, np.float32), np.zeros(5, bool), np.array([2.0, 3.0]))
    rule = WeightRule(beta=200.0, scale=1.0, clip=1e30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight, _ = to_weights(advantage.astype(np.float32), rule, strata=strata)
    apart = np.exp(-200.0 * 0.01 / advantage.std())
    np.testing.assert_allclose(weight[3:] / weight[2:4], apart, rtol=1e-3)
    assert weight[2:].sum() == pytest.approx(3.0, rel=1e-5)


def test_advantages_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ChunkRLError, match="NaN or infinite"):
        to_weights(np.array([0.0, np.nan, 1.0]), WeightRule())


def test_leaving_all_tasks_out_is_an_error(tmp_path: Path) -> None:
    data = _two_tasks(tmp_path, [[False] * 2, [False] * 2])
    config = BalanceConfig(without_success="leave_out")
    with pytest.raises(ChunkRLError, match=r"no task of .* has a successful episode.*--success"):
        make_strata(data, None, np.zeros(len(data), np.float32), None, None, config)


def test_graded_rewards_count_by_their_return(tmp_path: Path) -> None:
    """A task without success whose episodes earn 0, 1, 3: credits 0, 1/3, 1; and by option where some succeed."""
    rng = np.random.default_rng(0)
    rewards = [0.0, 1.0, 3.0]
    episodes = [
        episode(4, i == 1, rng, **{"next.reward": np.full(4, r / 4, np.float32)})
        for i, r in enumerate(rewards)
    ]
    root = write_dataset(tmp_path / "d", episodes)
    data = open_chunks(root, labels=LabelRule(success="next.success"), reward="sum")
    by_return = make_strata(data, None, step_rewards(data), None, None, BalanceConfig(share="returns"))
    np.testing.assert_allclose(by_return.credit, np.repeat([0, 1 / 3, 1], 4), rtol=1e-6)
    by_success = make_strata(data, None, step_rewards(data), None, None, BalanceConfig())
    assert by_success.credit.tolist() == [0] * 4 + [1] * 4 + [0] * 4
    failures = [e | {"next.success": np.zeros(4, bool)} for e in episodes]
    graded = open_chunks(write_dataset(tmp_path / "g", failures), reward="sum")
    found = make_strata(graded, None, step_rewards(graded), None, None, BalanceConfig())
    np.testing.assert_allclose(found.credit, np.repeat([0, 1 / 3, 1], 4), rtol=1e-6)
    assert not found.uniform.any()


def test_a_humans_chunks_are_due_what_successes_are(tmp_path: Path) -> None:
    data = _two_tasks(tmp_path, [[True, False], [True, False]])
    forced = np.zeros(len(data), bool)
    forced[np.flatnonzero(~data.success)[:3]] = True
    strata = make_strata(data, None, step_rewards(data), None, forced, FINE)
    assert strata.due.sum() == data.success.sum() + 3
    advantage = np.where(forced, -5.0, 0.0) + np.random.default_rng(0).normal(size=len(data)) / 10
    weight, _ = to_weights(advantage, WeightRule(), None, forced, strata)
    assert (weight[forced] > 0.5).all()


def test_draw_rates_count_in_what_is_due(tmp_path: Path) -> None:
    roots = [write_dataset(tmp_path / n, random_episodes(4, seed=s)) for s, n in enumerate("ab")]
    both = ChunkCollection([open_chunks(root) for root in roots], [1.0, 3.0])
    rates = np.linspace(0.5, 1.5, len(both)).astype(np.float32)
    strata = make_strata(both, None, step_rewards(both), rates, None, FINE)
    assert strata.due.sum() == pytest.approx((rates * both.success).sum(), rel=1e-5)


# ---- where it is seen


def _learner(data: ChunkDataset, **settings: Any) -> AdvantageWeighted:
    torch.manual_seed(0)
    config = WeightedConfig(policy_updates=2, value_updates=3, num_folds=2, **settings)
    return AdvantageWeighted(config, identity_factory(data), OptimConfig(), data, 0, CPU)


def test_training_balances_by_default_and_says_where_the_weight_lies(tmp_path: Path) -> None:
    data = open_chunks(write_dataset(tmp_path / "d", random_episodes(8, lengths=(9, 10))))
    learner = _learner(data, balance=BalanceConfig("strata", 3, 1, 3))
    trainer = Trainer(learner, data, TrainerConfig(batch_size=8, log_interval=1))
    trainer.run()
    stratum, weight = learner.labels["stratum"], learner.labels["weight"]
    assert len(np.unique(stratum)) == 6  # failures are strata of their own, and weigh nothing
    assert not weight[~data.success].any()
    for third in np.unique(stratum[data.success]):  # four episodes succeed, three steps of each in every bin
        assert weight[stratum == third].sum() == pytest.approx(len(data) / 3, rel=1e-4)
    history = {name: points[-1][1] for name, points in trainer.history.items()}
    assert history["weight/num_strata"] == 3
    assert history["weight/lowest_stratum"] == pytest.approx(1.0, rel=1e-4)
    parts = [history[f"weight/{name}_third"] for name in ("first", "middle", "last")]
    assert sum(parts) == pytest.approx(1.0)
    assert [history[f"weight/{n}_third_frames"] for n in ("first", "middle", "last")] == pytest.approx(
        [1 / 3] * 3
    )


@pytest.mark.parametrize(("failures", "drawn"), [("left_out", 4 * 9), ("apart", None), ("together", None)])
def test_starts_of_failures_that_are_left_out_are_not_drawn(
    tmp_path: Path, failures: Any, drawn: Any
) -> None:
    data = open_chunks(write_dataset(tmp_path / "d", random_episodes(8, lengths=(9, 10))))
    learner = _learner(data, balance=BalanceConfig(failures=failures))
    value, policy = learner.phases()
    assert value.subset is None and policy.subset is None  # values learn from failures
    learner.start_phase("policy")
    subset = learner.phases()[1].subset
    assert (subset is None) == (drawn is None)
    if subset is not None:
        assert len(subset) == drawn and data.success[subset].all()
        # half of the starts are drawn, and the mean weight of all was 1
        np.testing.assert_allclose(data.labels["weight"], learner.labels["weight"] / 2, rtol=1e-6)
        assert data.labels["weight"][subset].mean() == pytest.approx(1.0, rel=1e-5)


def test_values_that_learn_from_the_same_rows_see_failures(tmp_path: Path) -> None:
    data = open_chunks(write_dataset(tmp_path / "d", random_episodes(8, lengths=(9, 10))))
    learner = _learner(data, value_updates_per_update=1, relabel_interval=1)
    learner.start_phase("policy")
    assert learner.phases()[1].subset is None
    assert not learner.labels["weight"][~data.success].any()


def test_a_starved_third_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = open_chunks(write_dataset(tmp_path / "d", random_episodes(8, lengths=(9, 10))))
    learner = _learner(data, balance=BalanceConfig("none"))
    step = np.concatenate([np.arange(9)] * 8)
    assert learner.values is not None
    value = np.where(step < 8, 0.5, 0.0).astype(np.float32)  # the last step is a surprise, all others none
    learner.values.frame_values = lambda *_: (value, value)  # type: ignore[method-assign]
    learner.start_phase("policy")
    assert "the first third of successful episodes carries" in caplog.text
    assert "--balance.kind strata" in caplog.text


def test_past_advantages_are_added(tmp_path: Path) -> None:
    data = open_chunks(write_dataset(tmp_path / "d", random_episodes(6, lengths=(6, 7))))
    value = np.random.default_rng(0).random(len(data)).astype(np.float32)
    found = []
    for c in (0.0, 0.5):
        learner = _learner(data, balance=BalanceConfig("none"), fit=ValueFit(past_advantage=c))
        assert learner.values is not None
        learner.values.frame_values = lambda *_: (value, value)  # type: ignore[method-assign]
        learner.start_phase("policy")
        found.append(learner.labels)
    advantage = found[0]["advantage"]
    np.testing.assert_array_equal(advantage, found[1]["advantage"])  # what is saved is the advantage itself
    shifted = advantage + 0.5 * (value - np.repeat(value[::6], 6))
    expected, _ = to_weights(shifted, WeightRule())
    np.testing.assert_allclose(found[1]["weight"], expected, rtol=1e-5)


# ---- iql: the same with running means


def test_running_balance_reaches_what_is_due() -> None:
    index = np.repeat([0, 1, 2], [100, 200, 100]).astype(np.int32)
    credit = np.repeat([1.0, 0.5, 0.0], [100, 200, 100]).astype(np.float32)
    due = np.bincount(index, weights=credit + 0.001)
    uniform = index == 1  # a task without successes: its advantages say nothing
    running = RunningBalance.of(Strata(index, credit, uniform, due), None, CPU)
    rng = np.random.default_rng(0)
    scale, sums = np.array([0.1, 5.0, 30.0]), np.zeros(3)
    for update in range(600):
        rows = rng.integers(400, size=32)
        weight = torch.from_numpy(scale[index[rows]] * rng.uniform(0.5, 1.5, 32)).float()
        found = running.apply(weight, torch.from_numpy(index[rows])).numpy()
        assert len(np.unique(found[uniform[rows]])) <= 1
        if update >= 100:
            np.add.at(sums, index[rows], found)
    np.testing.assert_allclose(sums / sums.sum(), due / due.sum(), atol=0.03)
    again = RunningBalance.of(Strata(index, credit, uniform, due), None, CPU)
    again.load_state_dict(running.state_dict())
    weight, stratum = torch.tensor([1.0, 2.0]), torch.tensor([0, 2])
    assert torch.equal(again.apply(weight, stratum), running.apply(weight, stratum))


def test_iql_is_balanced_and_resumes_equal(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", random_episodes(8, lengths=(9, 10)))
    settings: dict[str, Any] = {
        **{"dataset_dir": str(root), "action_horizon": 3, "action_dim": 2, "batch_size": 8, "num_updates": 6},
        **{"num_folds": 1, "device": "cpu", "objective": "iql", "save_updates": 3, "log_interval": 1},
        "balance": BalanceConfig(min_starts=8),
    }
    run = ChunkLevelOfflineRL(**settings, output_dir=str(tmp_path / "run"))
    run.train()
    assert isinstance(run.algorithm, ChunkIQL) and "stratum" in run.dataset.label_names
    checkpoint = tmp_path / "run" / "checkpoints" / "0000003"
    again = ChunkLevelOfflineRL(**settings, resume=str(checkpoint), output_dir=str(tmp_path / "again"))
    again.train()
    assert run.trainer is not None and again.trainer is not None
    assert again.trainer.history["loss/policy"] == run.trainer.history["loss/policy"]


# ---- bad settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "some"}, "use one of strata, none"),
        ({"share": "reward"}, "use one of auto, success, returns"),
        ({"time_bins": 0}, "at least 1"),
        ({"success_mix": 1.5}, r"\[0, 1\]"),
        (
            {"kind": "none", "success_mix": 0.5},
            "balance.success_mix: of balanced weights.*kind none balances none",
        ),
        ({"kind": "none", "time_bins": 4, "floor": 0.1}, "balance.time_bins, balance.floor"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ChunkRLError, match=message):
        BalanceConfig(**settings)


def test_settings_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", random_episodes(4))
    common: dict[str, Any] = {"dataset_dir": str(root), "action_horizon": 3, "action_dim": 2}
    for objective in ("success_cloning", "document", "value"):
        with pytest.raises(
            ChunkRLError,
            match=r"does not read --balance\.time-bins: leave that out.*cross_fitted",
        ):
            ChunkLevelOfflineRL(**common, objective=objective, balance=BalanceConfig(time_bins=4))
        with pytest.raises(ChunkRLError, match=r"does not read --fit\.past-advantage"):
            ChunkLevelOfflineRL(**common, objective=objective, fit=ValueFit(past_advantage=0.5))
    asked: dict[str, Any] = {"objective": "advantage_conditioned", "policy": PolicyConfig(kind="pi")}
    asked |= {"pi0_config": "p", "pi0_checkpoints_dir": str(tmp_path)}
    for edges, balance in (("quantiles", BalanceConfig(time_bins=4)), ("strata", BalanceConfig(floor=0.1))):
        edged = ConditioningConfig(edges=edges)  # type: ignore[arg-type]
        with pytest.raises(ChunkRLError, match=f"balance.*edges {edges} do not depend on it"):
            ChunkLevelOfflineRL(**common, **asked, conditioning=edged, balance=balance)
    for name, unread in (
        ("success_mix", BalanceConfig(success_mix=0.5)),
        ("value_bins", BalanceConfig(value_bins=2)),
    ):
        with pytest.raises(ChunkRLError, match=f"balance.{name}: not for --objective iql"):
            IQLConfig(balance=unread)


# ---- the report's images


def test_the_picture_over_time_and_value_marks_what_is_starved() -> None:
    due = np.full(TIMES * LEVELS, 1 / (TIMES * LEVELS))
    shares = due.copy()
    shares[5], shares[6] = 0.49 * due[5], 1.51 * due[6]
    found = place_chart(shares, due)
    assert found.count('class="starved"') == 1 and found.count("<title>") == TIMES * LEVELS
    assert "1.5 % of the weight, 3.1 % of the successes' frames" in html.unescape(str(found))
    assert 'class="starved"' not in place_chart(due, due)
