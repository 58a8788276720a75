"""What is averaged over the data counts each start as often as training draws it, and nothing after a success."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import episode, identity_factory, open_chunks, random_episodes, write_dataset
from chunk_data import settings as training_settings
from hypothesis import given
from hypothesis import settings as of_examples
from hypothesis import strategies as st

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms import advantages as adv
from chunkrl.algorithms.advantage_bins import advantage_bins
from chunkrl.algorithms.config import BalanceConfig, ConditioningConfig
from chunkrl.algorithms.iql import ChunkIQL, IQLConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.weighted import AdvantageWeighted, WeightedConfig
from chunkrl.algorithms.weights import WeightRule, to_weights
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.draws import draw_rates, starts_by_weight, starts_that_weigh, trained_starts
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.loader import ChunkLoader
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import PolicyConfig
from chunkrl.models.value_head import ValueHead
from chunkrl.training.config import OptimConfig
from chunkrl.training.trainer import Trainer, TrainerConfig

CPU = torch.device("cpu")


# ---- rates


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[ChunkDataset]:
    base = tmp_path_factory.mktemp("draws")
    sizes = {"a": (3, (4, 5)), "b": (1, (5, 6))}  # 12 starts and 5
    return [
        open_chunks(write_dataset(base / name, random_episodes(n, seed=n, lengths=lengths)))
        for name, (n, lengths) in sizes.items()
    ]


def test_rates_in_closed_form(datasets: list[ChunkDataset]) -> None:
    assert draw_rates(ChunkCollection(datasets), None) is None
    assert draw_rates(datasets[0], None) is None
    rates = draw_rates(ChunkCollection(datasets, [1.0, 3.0]), None)
    assert rates is not None
    # a quarter of 17 draws on 12 starts, three quarters on 5
    np.testing.assert_allclose(rates, [17 / 4 / 12] * 12 + [17 * 3 / 4 / 5] * 5, rtol=1e-6)
    some = draw_rates(ChunkCollection(datasets, [1.0, 3.0]), np.array([0, 1, 12]))
    assert some is not None
    np.testing.assert_allclose(some[[0, 1, 12]], [3 / 4 / 2, 3 / 4 / 2, 9 / 4], rtol=1e-6)
    assert some.sum() == pytest.approx(3) and np.count_nonzero(some) == 3
    first_alone = draw_rates(ChunkCollection(datasets, [1.0, 3.0]), np.array([4, 7]))
    assert first_alone is not None and first_alone[[4, 7]].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("drawn", [None, [0, 1, 2, 5, 12, 14]])
def test_rates_are_how_often_the_loader_draws(datasets: list[ChunkDataset], drawn: list[int] | None) -> None:
    data = ChunkCollection(datasets, [2.0, 3.0])
    subset = None if drawn is None else np.array(drawn)
    loader = ChunkLoader(data, 4, 0, subset=subset)
    counts = np.zeros(len(data))
    for update in range(3000):
        counts += np.bincount(loader.positions(update), minlength=len(data))
    rates = draw_rates(data, subset)
    assert rates is not None
    np.testing.assert_allclose(counts / counts.sum(), rates / rates.sum(), atol=8e-3)


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 4)), min_size=2, max_size=30).filter(
        lambda rows: sum(rate for _, rate in rows) > 0
    )
)
def test_a_rate_is_as_good_as_so_many_copies(rows: list[tuple[float, int]]) -> None:
    advantage, rates = (np.array(column) for column in zip(*rows, strict=True))
    copies = np.repeat(advantage, rates)
    if copies.std() >= 1e-6:
        scaled = adv.standardize(advantage, 2.0, rates)
        np.testing.assert_allclose(np.repeat(scaled, rates), adv.standardize(copies, 2.0), atol=1e-6)
        weight, metrics = to_weights(advantage, WeightRule(0.7, 2.0, 5.0), rates)
        expected, theirs = to_weights(copies, WeightRule(0.7, 2.0, 5.0))
        np.testing.assert_allclose(np.repeat(weight, rates), expected, rtol=1e-4)
        assert metrics == pytest.approx(theirs, rel=1e-4)
        assert (weight[rates == 0] == 0).all()
        assert np.average(weight, weights=rates) == pytest.approx(1.0, rel=1e-5)


def test_bins_have_their_shares_of_what_is_drawn() -> None:
    advantage, task = np.arange(10.0), np.zeros(10, int)
    halves = ConditioningConfig(num_bins=2, edges="quantiles", cuts=(0.5,))
    assert advantage_bins(advantage, task, halves, 1.0).tolist() == [0] * 5 + [1] * 5
    rates = np.array([1.0] * 8 + [4.0] * 2)  # 16 draws, of which the best two starts have half
    assert advantage_bins(advantage, task, halves, 1.0, rates).tolist() == [0] * 8 + [1] * 2
    fifths = ConditioningConfig(num_bins=5, edges="quantiles")
    rates = np.array([2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    found = advantage_bins(advantage, task, fifths, 1.0, rates)
    shares = np.bincount(found, weights=rates, minlength=5)
    assert shares.tolist() == [2, 2, 2, 2, 2]
    assert found[8:].tolist() == [4, 4]  # never drawn, and no edge moved for them
    other = advantage.copy()
    other[8:] = 1e6
    assert advantage_bins(other, task, fifths, 1.0, rates)[:8].tolist() == found[:8].tolist()


def test_a_task_that_is_never_drawn_needs_no_bins() -> None:
    advantage, task = np.array([0.0, 1, 2, 3, 7, 7]), np.array([0, 0, 0, 0, 1, 1])
    rates = np.array([1.0, 1, 1, 1, 0, 0])
    config = ConditioningConfig(num_bins=2, edges="quantiles", cuts=(0.5,))
    assert advantage_bins(advantage, task, config, 1.0, rates).tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("drawn", [None, [0, 1, 2, 5, 12, 14]])
@pytest.mark.parametrize("of_datasets", [None, [2.0, 3.0]])
def test_no_row_of_a_batch_weighs_nothing(
    datasets: list[ChunkDataset], drawn: list[int] | None, of_datasets: list[float] | None
) -> None:
    """What is left for the loss gives the mean of any quantity that the weights gave with all rows drawn."""
    data = ChunkCollection(datasets, of_datasets)
    subset = None if drawn is None else np.array(drawn)
    rng = np.random.default_rng(0)
    weight, value = (
        np.where(rng.random(len(data)) < 0.5, rng.random(len(data)), 0.0),
        rng.normal(size=len(data)),
    )
    weight[[2, 12]] = 1.0, 2.0  # something in each data set
    chosen, left = starts_that_weigh(data, subset, weight)
    assert chosen is not None and (weight[chosen] > 0).all()
    assert set(chosen) == set(np.flatnonzero(weight)) & set(range(len(data)) if drawn is None else drawn)
    before, after = draw_rates(data, subset), draw_rates(data, chosen)
    assert after is not None
    means = [np.average(w * value, weights=rate) for w, rate in ((weight, before), (left, after))]
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_what_all_weighs_something_stays(datasets: list[ChunkDataset]) -> None:
    data = ChunkCollection(datasets, [2.0, 3.0])
    weight = np.linspace(0.1, 1, len(data))
    chosen, left = starts_that_weigh(data, None, weight)
    assert chosen is None
    np.testing.assert_array_equal(left, weight.astype(np.float32))
    first, last = data.spans[1]
    weight[first:last] = 0.0
    weight[0] = 0.0
    chosen, left = starts_that_weigh(data, None, weight)
    assert chosen is not None and chosen.tolist() == list(range(1, first))
    # the second, three rows of five, is left out, and so is one start of twelve
    np.testing.assert_allclose(left[1:first], weight[1:first] * (2 / 5) * (11 / 12), rtol=1e-6)


def run_on_two(folder: Path, fit: ValueFit = ValueFit(), **changes: Any) -> ChunkLevelOfflineRL:
    """A finished run on data sets of 6 and 2 episodes, the second drawn from four times as often as the first."""
    first, second = (
        write_dataset(folder / name, random_episodes(n, seed=n)) for name, n in (("a", 6), ("b", 2))
    )
    more = {"additional_offline_dataset_paths": (str(second),), "dataset_weights": (1.0, 4.0)} | changes
    run = ChunkLevelOfflineRL(**training_settings(first, folder / "run", num_updates=1, fit=fit, **more))
    run.train()
    return run


def test_weights_of_a_run_have_mean_1_in_its_batches(tmp_path: Path) -> None:
    run = run_on_two(tmp_path)
    weight = run.algorithm.labels["weight"]
    loader = ChunkLoader(run.dataset, 10, 0)
    drawn = np.concatenate([weight[loader.positions(update)] for update in range(600)])
    assert drawn.mean() == pytest.approx(1.0, abs=0.01)
    assert weight.mean() != pytest.approx(1.0, abs=0.01)


# ---- starts in proportion to their weight


def test_starts_by_weight_in_closed_form(datasets: list[ChunkDataset]) -> None:
    both = ChunkCollection(datasets)  # 12 starts and 5
    drawn = np.array([0, 1, 2, 3, 12, 13])
    weight = np.full(17, 9.0, np.float32)
    weight[drawn] = [0, 2, 1, 1, 0, 6]
    for seed in range(5):  # shares are whole numbers: nothing to round
        starts, left = starts_by_weight(both, drawn, weight, seed)
        assert starts.tolist() == [1, 1, 2, 3, 13, 13]
        np.testing.assert_allclose(left, [1.0] * 12 + [3.0] * 5)
    nothing = starts_by_weight(both, drawn, np.zeros(17, np.float32), 0)
    assert nothing[0].tolist() == drawn.tolist() and not nothing[1].any()


# weights have a mean of 1 over the data: far below it float32 has few digits left
@of_examples(max_examples=40)
@given(
    st.lists(st.floats(0, 100, width=32), min_size=12, max_size=12).filter(lambda found: sum(found) > 1e-20)
)
def test_starts_by_weight_leave_the_objective_as_it_is(
    datasets: list[ChunkDataset], given: list[float]
) -> None:
    weight = np.array(given, np.float32)
    share = weight.astype(np.float64) * 12 / weight.sum(dtype=np.float64)
    total = np.zeros(12)
    for seed in range(100):
        starts, left = starts_by_weight(datasets[0], None, weight, seed)
        counts = np.bincount(starts, minlength=12)
        assert counts.sum() == 12 and (np.abs(counts - share) < 1 + 1e-6).all()
        np.testing.assert_allclose(left, weight.mean(dtype=np.float64), rtol=1e-6)
        total += counts
    np.testing.assert_allclose(total / 100, share, atol=0.25)


def test_a_run_draws_by_weight_and_stores_the_weights(tmp_path: Path) -> None:
    own = {"balance": BalanceConfig(failures="together")}  # so that there is much that weighs next to nothing
    runs = {draw: run_on_two(tmp_path / draw, ValueFit(draw=draw), **own) for draw in ("uniform", "weight")}
    run = runs["weight"]
    weight = run.algorithm.labels["weight"]
    np.testing.assert_array_equal(weight, runs["uniform"].algorithm.labels["weight"])
    # the mean of any quantity, as batches of either run count it
    value, means = np.random.default_rng(0).normal(size=len(weight)), {}
    for draw, ran in runs.items():
        loader = ChunkLoader(ran.dataset, 10, 0, subset=ran.algorithm.phases()[-1].subset)
        batches = [loader.batch(update) for update in range(800)]
        means[draw] = [(b.labels["weight"].numpy() * value[b.index.numpy()]).mean() for b in batches]
    # with so few starts what is rounded is the larger part of the difference
    assert np.mean(means["weight"]) == pytest.approx(np.mean(means["uniform"]), abs=0.1)
    assert np.std(means["weight"]) < np.std(means["uniform"])


@pytest.mark.parametrize(
    "settings",
    [{"objective": "advantage_conditioned"}, {"value_updates_per_update": 1, "relabel_interval": 2}],
    ids=["condition", "relabel"],
)
def test_drawing_by_weight_wants_weights_that_stay(tmp_path: Path, settings: dict[str, Any]) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(4))
    pi = {"policy": PolicyConfig("pi"), "pi0_config": "p"} if "objective" in settings else {}
    with pytest.raises(ChunkRLError, match=r"fit\.draw"):
        ChunkLevelOfflineRL(
            **training_settings(data, tmp_path / "run", fit=ValueFit(draw="weight"), **settings, **pi)
        )


# ---- after a success


def with_a_rest(seed: int) -> list[dict[str, np.ndarray]]:
    """Six episodes of seven frames, of which every second one succeeds at its fourth and goes on; what is recorded
    there depends on the seed."""
    rng, rest = np.random.default_rng(0), np.random.default_rng(seed)
    episodes = []
    for number in range(6):
        columns = episode(7, False, rng, **{"next.reward": np.zeros(7, np.float32)})
        if number % 2 == 0:
            columns["next.success"][3:] = True
            columns["next.reward"][3] = 1.0
            for name in ("observation.state", "action"):
                columns[name][4:] = rest.normal(size=columns[name][4:].shape) * 9
            columns["next.reward"][4:] = rest.uniform(1, 5, 3)
        episodes.append(columns)
    return episodes


TRAINED = [7 * number + frame for number in range(6) for frame in range(4 if number % 2 == 0 else 7)]


def learner(dataset: ChunkDataset, algorithm: str) -> Any:
    torch.manual_seed(0)
    factory, optim = identity_factory(dataset), OptimConfig(lr=1e-2)
    if algorithm == "iql":
        return ChunkIQL(IQLConfig(num_updates=8, num_folds=2), factory, optim, dataset, 0, CPU)
    fit = ValueFit(target="bootstrap" if algorithm == "bootstrap" else "monte_carlo")
    config = WeightedConfig(policy_updates=4, value_updates=8, num_folds=2, fit=fit, train_q=True)
    return AdvantageWeighted(config, factory, optim, dataset, 0, CPU)


@pytest.mark.parametrize("algorithm", ["monte_carlo", "bootstrap", "iql"])
def test_what_is_recorded_behind_a_success_changes_nothing(tmp_path: Path, algorithm: str) -> None:
    found = []
    for seed in (1, 2):
        root = write_dataset(tmp_path / str(seed), with_a_rest(seed))
        dataset = open_chunks(root, reward="sum", labels=LabelRule(success="next.success"))
        assert dataset.frame_labels.after_success.sum() == 9
        starts = trained_starts(dataset)
        assert starts is not None and starts.tolist() == TRAINED
        one = learner(dataset, algorithm)
        assert all(np.array_equal(phase.subset, TRAINED) for phase in one.phases())
        trainer = Trainer(one, dataset, TrainerConfig(batch_size=6))
        trainer.run()
        history = {k: v for k, v in trainer.history.items() if k != "value/calibration_error"}
        labels = {name: values[TRAINED] for name, values in one.labels.items()}
        found.append(([p.detach() for p in one.policy.parameters()], labels, history, one.labels))
    (policy, labels, history, everywhere), (policy_2, labels_2, history_2, _) = found
    assert all(torch.equal(a, b) for a, b in zip(policy, policy_2, strict=True))
    assert labels.keys() == labels_2.keys() and history == history_2
    for name, values in labels.items():
        assert np.array_equal(values, labels_2[name]), name
    untrained = np.setdiff1d(np.arange(42), TRAINED)
    assert (everywhere["advantage"][untrained] == 0).all()
    if algorithm != "iql":
        assert (everywhere["weight"][untrained] == 0).all()
        assert labels["weight"].mean() == pytest.approx(1.0, rel=1e-5)
        assert labels["scaled_advantage"].mean() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["scalar", "hl_gauss"])
def test_q_learns_the_advantages_of_chunks(tmp_path: Path, kind: str) -> None:
    """As numbers of deviation 1, or as a distribution between the least and the largest of what is trained on."""
    dataset = open_chunks(write_dataset(tmp_path / "d", with_a_rest(1)))
    torch.manual_seed(0)
    head = ValueHead("hl_gauss") if kind == "hl_gauss" else ValueHead()
    fit = ValueFit(head=head, dropout=0.0, noise=0.0)
    config = WeightedConfig(policy_updates=1, value_updates=150, num_folds=1, fit=fit, train_q=True)
    learner = AdvantageWeighted(config, identity_factory(dataset), OptimConfig(lr=1e-2), dataset, 0, CPU)
    learner.values.update = lambda batch: {}  # type: ignore[union-attr, method-assign]
    Trainer(learner, dataset, TrainerConfig(batch_size=33)).run()
    target = learner.labels["scaled_advantage"][TRAINED]
    if kind == "hl_gauss":
        assert (target.min(), target.max()) == (0.0, 1.0)
    else:
        assert (target.mean(), target.std()) == pytest.approx((0.0, 1.0), abs=1e-4)
    batch, ensemble = dataset.batch(np.array(TRAINED)), learner.q_ensemble()
    assert ensemble is not None
    learnt = ensemble(batch.observation, batch.actions[:, None])[:, 0].numpy()
    taught = batch.critic_mask.numpy()  # not the last frames of time-outs
    assert np.abs(learnt - target)[taught].max() < 0.25 * target.std()


# ---- failing is no escape from costs


def costly(tmp_path: Path, last: float, success_length: int = 8) -> Path:
    """Rewards -1 per step, 0 at success; failures take 4 steps, and their last reward is `last`."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(4):
        length = success_length if number % 2 == 0 else 4
        reward = np.full(length, -1.0, np.float32)
        reward[-1] = 0.0 if number % 2 == 0 else last
        episodes.append(episode(length, number % 2 == 0, rng, **{"next.reward": reward}))
    return write_dataset(tmp_path / f"d{last}-{success_length}", episodes)


def fitted(root: Path, fit: ValueFit, **rule: Any) -> AdvantageWeighted:
    labels = LabelRule(success="next.success", **rule)
    dataset = open_chunks(root, gamma=0.99, reward="sum", labels=labels)
    config = WeightedConfig(policy_updates=1, value_updates=1, num_folds=2, fit=fit)
    return AdvantageWeighted(config, identity_factory(dataset), OptimConfig(), dataset, 0, CPU)


def test_a_time_limit_is_no_escape_from_recorded_costs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Failures that end at -1 would look better than the first frame of a success of 8 steps, at about -7."""
    root = costly(tmp_path, -1.0)
    for rule in ({}, {"failure_terminal": True}, {"step_reward": "cost", "failure_penalty": 0.0}):
        with pytest.raises(
            ChunkRLError, match=r"learn to fail; use --step-reward cost with a --failure-penalty"
        ):
            fitted(root, ValueFit(), **rule)
    with pytest.raises(ChunkRLError, match="learn to fail"):
        fitted(root, ValueFit(time_out="bootstrap"), failure_terminal=True)
    fitted(root, ValueFit(time_out="bootstrap"))
    made = fitted(root, ValueFit(), step_reward="cost")
    assert made.values is not None
    frames = np.flatnonzero(made.values._data.frame_labels.truncated)
    assert (made.values.returns[frames] == -100).all() and made.values.returns.min() >= -100 - 1e-3
    assert "smaller penalty" not in caplog.text
    # without costs that a success has, nothing is escaped
    fitted(costly(tmp_path, -1.0, success_length=1), ValueFit())


def test_a_penalty_below_the_costs_of_a_success_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted(costly(tmp_path, -5.0), ValueFit())
    assert "at a smaller penalty; use --step-reward cost" in caplog.text
    caplog.clear()
    fitted(costly(tmp_path, -9.0), ValueFit())
    assert "penalty" not in caplog.text


def test_it_is_said_where_v_learns_from_successes_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_dataset(tmp_path / "d", random_episodes(6))
    config = WeightedConfig(
        policy_updates=1, value_updates=1, num_folds=2, fit=ValueFit(time_out="bootstrap")
    )
    for terminal in (False, True):
        caplog.clear()
        labels = LabelRule(success="next.success", failure_terminal=terminal)
        dataset = open_chunks(root, labels=labels)
        AdvantageWeighted(config, identity_factory(dataset), OptimConfig(), dataset, 0, CPU)
        assert ("alone: its other episodes (3 of 6) have no known outcome" in caplog.text) == (not terminal)


def test_rewards_of_progress_are_no_costs(tmp_path: Path) -> None:
    """They may be negative at times, also after a slow success, and say nothing against a time limit."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(4):
        reward = np.array([0.5, -0.4, 0.5, -0.2, 0.1], np.float32)
        episodes.append(episode(5, number % 2 == 0, rng, **{"next.reward": reward}))
    fitted(write_dataset(tmp_path / "d", episodes), ValueFit())


def test_joint_methods_say_at_once_that_no_outcome_is_known(tmp_path: Path) -> None:
    """They had trained to the end, and died of it."""
    rng = np.random.default_rng(0)
    rewards = {"next.reward": np.array([0.5, 0.4, 0.5, 0.2], np.float32)}
    root = write_dataset(tmp_path / "d", [episode(4, False, rng, **rewards) for _ in range(4)])
    dataset = open_chunks(root, reward="sum", labels=LabelRule(success="next.success"))
    config = IQLConfig(num_updates=1, time_out="bootstrap")
    with pytest.raises(ChunkRLError, match="no episode terminates"):
        ChunkIQL(config, identity_factory(dataset), OptimConfig(), dataset, 0, CPU)


def test_iql_refuses_failures_that_end_its_costs(tmp_path: Path) -> None:
    root = costly(tmp_path, -1.0)
    for terminal in (False, True):  # a time-out bootstraps there
        rule = LabelRule(success="next.success", failure_terminal=terminal)
        dataset = open_chunks(root, gamma=0.99, reward="sum", labels=rule)
        if terminal:
            with pytest.raises(ChunkRLError, match="learn to fail"):
                ChunkIQL(IQLConfig(num_updates=1), identity_factory(dataset), OptimConfig(), dataset, 0, CPU)
        else:
            ChunkIQL(IQLConfig(num_updates=1), identity_factory(dataset), OptimConfig(), dataset, 0, CPU)
