"""Cross-fitting: no row trains the network that labels it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from chunk_data import (
    identity_factory,
    open_chunks,
    random_episodes,
    without_failures,
    write_dataset,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.cloning import Cloning, CloningConfig
from chunkrl.algorithms.cross_fit import CrossFitted, assign_folds
from chunkrl.algorithms.iql import ChunkIQL, IQLConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.value_labels import ValueLabels
from chunkrl.algorithms.weighted import AdvantageWeighted, WeightedConfig
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import NetworkConfig
from chunkrl.training.algorithm import Histogram
from chunkrl.training.config import OptimConfig
from chunkrl.training.trainer import Trainer, TrainerConfig

CPU = torch.device("cpu")


@settings(max_examples=100)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 7), st.integers(0, 5))
def test_folds_are_balanced(success: list[bool], num_folds: int, seed: int) -> None:
    outcome = np.array(success)
    if num_folds > len(outcome):
        with pytest.raises(ChunkRLError, match="--num-folds"):
            assign_folds(outcome, num_folds, seed)
        return
    fold = assign_folds(outcome, num_folds, seed)
    assert (fold == assign_folds(outcome, num_folds, seed)).all()
    for part in (outcome, ~outcome, np.ones_like(outcome)):
        counts = np.bincount(fold[part], minlength=num_folds)
        assert counts.max() - counts.min() <= 1


def test_folds_depend_on_the_seed_and_need_one_at_least() -> None:
    outcome = np.arange(40) % 2 == 0
    assert (assign_folds(outcome, 5, 0) != assign_folds(outcome, 5, 1)).any()
    for bad in (0, -2):
        with pytest.raises(ChunkRLError, match="at least 1"):
            assign_folds(outcome, bad, 0)


def test_selection_of_held_out_and_seen() -> None:
    fitted = CrossFitted(lambda: torch.nn.Linear(1, 1), 3)
    fold = torch.tensor([0, 2, 1, 0])
    outputs = torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40], [100, 200, 300, 400]])
    assert fitted.held_out(outputs, fold).tolist() == [1, 200, 30, 4]
    assert fitted.seen(outputs, fold).tolist() == [55, 11, 151.5, 220]
    twin = torch.stack([outputs, -outputs], dim=1)  # [K, heads, B]
    assert fitted.held_out(twin, fold).tolist() == [[1, 200, 30, 4], [-1, -200, -30, -4]]
    assert fitted.trains_on(fold).tolist() == [
        [False, True, True, False],
        [True, True, False, True],
        [True, False, True, True],
    ]


def test_one_fold_turns_it_off() -> None:
    fitted = CrossFitted(lambda: torch.nn.Linear(1, 1), 1)
    fold, outputs = torch.tensor([0, 0]), torch.tensor([[1.0, 2.0]])
    assert fitted.held_out(outputs, fold).tolist() == [1, 2]
    assert fitted.seen(outputs, fold).tolist() == [1, 2]
    assert fitted.trains_on(fold).all()


@pytest.mark.parametrize("grad_clip", [10.0, 1e-3])
@pytest.mark.parametrize("algorithm", ["cross_fitted", "two critics per fold", "iql"])
def test_an_episodes_values_do_not_depend_on_its_own_data(
    tmp_path: Path, algorithm: str, grad_clip: float
) -> None:
    """Its own rows are changed while it trains, and its held-out values, asked on the same rows, are not.

    With a small `grad_clip` this finds networks that share one gradient norm.
    """
    root = write_dataset(tmp_path / "d", random_episodes(6, lengths=(6, 7)))
    found = []
    for shift in (0.0, 2.0):
        dataset = open_chunks(root)
        factory, optim = identity_factory(dataset), OptimConfig(lr=1e-2, grad_clip=grad_clip)
        torch.manual_seed(0)
        if algorithm == "iql":
            config = IQLConfig(num_updates=20, num_folds=3)
            learner = ChunkIQL(config, factory, optim, dataset, 0, CPU)
        else:
            fit = ValueFit() if algorithm == "cross_fitted" else ValueFit(num_critics=2, aggregate="min")
            fitted = WeightedConfig(policy_updates=1, value_updates=20, num_folds=3, fit=fit)
            learner = AdvantageWeighted(fitted, factory, optim, dataset, 0, CPU)
        name = learner.phases()[0].name
        learner.start_phase(name)
        rng = np.random.default_rng(0)
        for _ in range(20):
            batch = dataset.batch(rng.integers(len(dataset), size=16))
            own = batch.episode_index == 0
            state = batch.observation.state
            assert state is not None
            state[own] += shift
            batch = replace(batch, reward=torch.where(own, batch.reward + shift, batch.reward))
            if algorithm != "iql":
                batch.labels["outcome"][own] = 1.0 if shift else 0.0
            learner.update(name, batch)
        if isinstance(learner, ChunkIQL):
            learner.start_phase("values")
            fold, held_out, seen = learner.fold, learner.labels["value"], learner.labels["value_seen"]
        else:
            assert learner.values is not None
            fold, (held_out, seen) = learner.values.fold, learner.values.frame_values()
        same_fold = fold[dataset.episode] == fold[0]
        found.append((held_out[same_fold], held_out[~same_fold], seen[same_fold]))
    assert np.array_equal(found[0][0], found[1][0])
    assert not np.array_equal(found[0][1], found[1][1])  # the change did reach the other networks
    assert not np.array_equal(found[0][2], found[1][2])


def test_labels_are_of_the_held_out_network(tmp_path: Path) -> None:
    dataset = open_chunks(write_dataset(tmp_path / "d", random_episodes(6)))
    torch.manual_seed(0)
    config = WeightedConfig(policy_updates=2, value_updates=5, num_folds=3, fit=ValueFit(lam=1.0))
    learner = AdvantageWeighted(config, identity_factory(dataset), OptimConfig(), dataset, 0, CPU)
    values = learner.values
    assert values is not None
    networks = values.networks
    Trainer(learner, dataset, TrainerConfig(batch_size=8)).run()
    networks.eval()
    unit = []
    with torch.no_grad():
        for row in range(len(dataset)):
            network = networks.networks[int(values.fold[dataset.episode[row]])]
            unit.append(network(dataset.batch(np.array([row])).observation).item())
    value = values.range.from_unit(np.array(unit))
    np.testing.assert_allclose(learner.labels["value"], value, rtol=1e-5)
    advantage = learner.labels["return"] - value  # lam = 1: Monte-Carlo return minus V
    np.testing.assert_allclose(learner.labels["advantage"], advantage, atol=1e-6)
    weight = np.exp(2.0 * (advantage - advantage.mean()) / advantage.std()).clip(max=100)
    expected = without_failures(weight, dataset.success)
    np.testing.assert_allclose(learner.labels["weight"], expected, rtol=1e-3)
    assert learner.labels["weight"].mean() == pytest.approx(1.0, rel=1e-5)


def test_nothing_to_learn_from_is_said_before_training(tmp_path: Path) -> None:
    failures = [e | {"next.success": np.zeros_like(e["next.success"])} for e in random_episodes(6)]
    dataset = open_chunks(write_dataset(tmp_path / "d", failures))

    def make() -> None:
        config = WeightedConfig(policy_updates=1, value_updates=1, num_folds=2)
        AdvantageWeighted(config, identity_factory(dataset), OptimConfig(), dataset, 0, CPU)

    def clone(data: Literal["all", "successes"]) -> None:
        config = CloningConfig(policy_updates=1, value_updates=1, num_folds=2, data=data)
        Cloning(config, identity_factory(dataset), OptimConfig(), dataset, 0, CPU)

    with pytest.raises(ChunkRLError, match=r"no reward.*--success"):
        make()
    with pytest.raises(ChunkRLError, match=r"no successful episode"):
        clone("successes")
    clone("all")  # plain cloning needs no reward


@pytest.mark.parametrize("algorithm", ["cross_fitted", "two critics per fold", "iql"])
def test_success_alone_comes_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, algorithm: str
) -> None:
    episodes = [e for e in random_episodes(12) if e["next.success"].any()]
    dataset = open_chunks(write_dataset(tmp_path / "d", episodes))
    factory = identity_factory(dataset)
    if algorithm == "iql":
        ChunkIQL(IQLConfig(num_updates=1), factory, OptimConfig(), dataset, 0, CPU)
    else:
        config = WeightedConfig(policy_updates=1, value_updates=1, num_folds=2)
        AdvantageWeighted(config, factory, OptimConfig(), dataset, 0, CPU)
    assert "not what leads to failure" in caplog.text


def test_dropout_acts_in_training_alone(tmp_path: Path) -> None:
    dataset = open_chunks(write_dataset(tmp_path / "d", random_episodes(4)))
    factory = identity_factory(dataset, NetworkConfig(hidden_dim=16, num_layers=2, dropout=0.5))
    learner = ChunkIQL(IQLConfig(num_updates=1), factory, OptimConfig(), dataset, 0, CPU)
    batch = dataset.batch(np.arange(8))
    learner.update("joint", batch)
    looks = []
    for _ in range(2):
        learner.start_phase("values")
        looks.append(learner.labels["advantage"])
    assert np.array_equal(*looks)
    ensemble = learner.q_ensemble()
    assert ensemble is not None and not ensemble.critic.training
    learner.update("joint", batch)
    assert all(part.training for part in (learner.value, learner.critic)) and not learner.target.training


def test_constant_values_at_a_relabelling_are_told_and_do_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_chunks(write_dataset(tmp_path / "d", random_episodes(6)))
    config = WeightedConfig(
        policy_updates=4, value_updates=2, num_folds=2, value_updates_per_update=1, relabel_interval=2
    )
    learner = AdvantageWeighted(config, identity_factory(dataset), OptimConfig(), dataset, 0, CPU)
    assert learner.values is not None
    constant = np.full(len(dataset), 0.5, np.float32)
    monkeypatch.setattr(learner.values, "frame_values", lambda *_: (constant, constant.copy()))
    trainer = Trainer(learner, dataset, TrainerConfig(batch_size=8, log_interval=1))
    with caplog.at_level("WARNING"):
        trainer.run()
    assert trainer.update == 6
    # at the start of the phase, and twice in it
    assert caplog.text.count("nothing to rank or to weight by") == 3
    assert [np.isnan(value) for _, value in trainer.history["value/rank_correlation_held_out"]] == [True]
    assert all(np.isfinite(value) for _, value in trainer.history["loss/policy"])


def test_q_beside_given_values_trains_no_values(tmp_path: Path) -> None:
    """V would learn for nothing: the labels are the earlier run's."""
    root = write_dataset(tmp_path / "d", random_episodes(6))
    settings: dict[str, Any] = {
        "dataset_dir": str(root),
        "action_horizon": 3,
        "action_dim": 2,
        "batch_size": 8,
    }
    settings |= {"num_updates": 2, "value_updates": 3, "num_folds": 2, "device": "cpu"}
    ChunkLevelOfflineRL(**settings, objective="value", output_dir=str(tmp_path / "value")).train()
    settings |= {"values": str(tmp_path / "value"), "train_q": True}
    run = ChunkLevelOfflineRL(**settings, output_dir=str(tmp_path / "q"))
    run.train()
    assert run.trainer is not None
    assert [phase.name for phase in run.algorithm.phases()] == ["critic", "policy"]
    assert run.trainer.update == 5 and "loss/value" not in run.trainer.history
    history = run.trainer.history
    checkpoint = tmp_path / "q" / "checkpoints" / "0000003"  # after Q's phase
    resumed = ChunkLevelOfflineRL(**settings, resume=str(checkpoint), output_dir=str(tmp_path / "again"))
    resumed.train()
    assert resumed.trainer is not None and resumed.trainer.history == history
    # networks of the earlier run may begin it: its policy and moments, for there is no V to begin with
    ChunkLevelOfflineRL(**settings, init=str(tmp_path / "value"), output_dir=str(tmp_path / "begun"))


def test_losses_of_q_on_rows_that_it_may_and_may_not_train_on(tmp_path: Path) -> None:
    dataset = open_chunks(write_dataset(tmp_path / "d", random_episodes(6)))
    fit = ValueFit(dropout=0.0, noise=0.0)
    config = WeightedConfig(policy_updates=1, value_updates=1, num_folds=2, train_q=True, fit=fit)
    learner = AdvantageWeighted(config, identity_factory(dataset), OptimConfig(), dataset, 0, CPU)
    learner.start_phase("critic")
    batch = dataset.batch(np.arange(len(dataset)))
    assert learner.critic is not None
    networks: Any = learner.critic.networks
    with torch.no_grad():
        prepared = networks.networks[0].prepare(batch.observation)
        q = torch.stack(
            [network.forward_prepared(prepared, batch.actions)[0] for network in networks.networks]
        )
    error = (q - batch.labels["scaled_advantage"]).square()
    metrics = learner.update("critic", batch)
    taught = batch.critic_mask
    for name, rows in (("", networks.trains_on), ("_held_out", lambda fold: ~networks.trains_on(fold))):
        mask = rows(batch.labels["fold"]) & taught
        means = [error[k][mask[k]] for k in range(2)]
        expected = sum(m.mean() for m in means) / 2 if name == "" else torch.cat(means).mean()
        assert metrics[f"loss/critic{name}"] == pytest.approx(float(expected), rel=1e-5)
    assert metrics["q/mean"] == pytest.approx(float(q.mean()), rel=1e-4, abs=1e-7)
    assert metrics["q/std"] == pytest.approx(float(q.std(unbiased=False)), rel=1e-4)


def test_targets_that_bootstrap_are_recorded(tmp_path: Path) -> None:
    """With V = 0.5 everywhere: r + gamma V over one step, and r alone at the end of an episode."""
    dataset = open_chunks(
        write_dataset(tmp_path / "d", random_episodes(6)), reward="sum", critic_horizon=1, gamma=0.5
    )
    config = WeightedConfig(policy_updates=1, value_updates=1, num_folds=2, fit=ValueFit(target="bootstrap"))
    learner = AdvantageWeighted(config, identity_factory(dataset), OptimConfig(), dataset, 0, CPU)
    assert learner.values is not None
    half = np.full(len(dataset), 0.5, np.float32)
    metrics = learner.values.target_metrics(ValueLabels(half, half, half, half))
    reward, ends = dataset.frame_labels.reward, dataset.segments.ends - 1
    expected = reward + 0.25
    expected[ends] = reward[ends]
    assert metrics == {"value/target": Histogram.of(expected)}
    learner = ChunkIQL(IQLConfig(num_updates=1), identity_factory(dataset), OptimConfig(), dataset, 0, CPU)
    recorded = learner.start_phase("values")["q/held_out"]
    expected = Histogram.of(learner.labels["value"] + learner.labels["advantage"])
    assert isinstance(recorded, Histogram) and sum(recorded.counts) == len(dataset)
    assert recorded.edges == pytest.approx(expected.edges, abs=1e-5)
