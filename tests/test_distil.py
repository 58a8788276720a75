"""Best-of-N, distilled: which chunk is chosen, by whom, and what the policy then learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import (
    identity_factory,
    open_chunks,
    random_episodes,
    settings,
    without_failures,
    write_dataset,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.best_of_n_critic import AdvantageCritic
from chunkrl.algorithms.cloning import Cloning, CloningConfig
from chunkrl.algorithms.config import DistilConfig
from chunkrl.algorithms.cross_fit import CrossFitted
from chunkrl.algorithms.distil import best_chunks, distil_metrics, mixture, with_best_chunks
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.values_io import load_values
from chunkrl.algorithms.weighted import AdvantageWeighted, WeightedConfig
from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import PolicyConfig
from chunkrl.models.value_head import ValueHead
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.progress import silent
from chunkrl.training.algorithm import Histogram
from chunkrl.training.checkpoint import load_state
from chunkrl.training.config import OptimConfig
from chunkrl.training.trainer import Trainer, TrainerConfig

CPU = torch.device("cpu")
N = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", random_episodes(6))


class Near(torch.nn.Module):
    """Q that prefers chunks near a number of its own: fold k's near k."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        self.target = float(Near.made)
        Near.made += 1

    def prepare(self, observation: Any) -> Any:
        return observation

    def forward_prepared(self, _: Any, actions: torch.Tensor) -> torch.Tensor:
        return -(actions - self.target).square().sum(dim=(-1, -2))[None]


class Noise:
    """A policy whose chunks are its noise."""

    noise_shape = (3, 2)

    def eval(self) -> None: ...

    def with_vision(self, observation: Any) -> Any:
        return observation

    def sample(self, observation: Any, num_samples: int, noise: torch.Tensor) -> torch.Tensor:
        assert noise.shape == (observation.batch_size, num_samples, 3, 2)
        return noise


def ask(dataset: ChunkDataset, num_folds: int, positions: np.ndarray | None = None) -> tuple[Any, np.ndarray]:
    Near.made = 0
    critics = CrossFitted(Near, num_folds)
    fold = np.arange(len(dataset)) % num_folds
    dataset.attach("fold", fold)
    policy: Any = Noise()
    return best_chunks(policy, critics, dataset, positions, N, 3, CPU, silent), fold


@pytest.mark.parametrize("num_folds", [1, 3])
def test_the_best_is_the_held_out_critics(data: Path, num_folds: int) -> None:
    """Against numpy: of N chunks from the start's own noise, the one nearest to its fold's number."""
    dataset = open_chunks(data)
    best, fold = ask(dataset, num_folds)
    recorded = dataset.batch(np.arange(len(dataset))).actions.numpy()
    for row in range(len(dataset)):
        noise = np.random.default_rng([3, 0xBE57, row]).standard_normal((N, 3, 2), dtype=np.float32)
        q = -((noise - fold[row]) ** 2).sum(axis=(1, 2))
        np.testing.assert_array_equal(best.chunk[row], noise[q.argmax()])
        assert best.q[row] == pytest.approx(q.max(), rel=1e-5)
        assert best.q_mean[row] == pytest.approx(q.mean(), rel=1e-5)
        own = -((recorded[row] - fold[row]) ** 2).sum()
        assert best.q_recorded[row] == pytest.approx(own, rel=1e-5)


def test_what_is_not_asked_about_stays_zero_and_changes_nothing_else(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_chunks(data)
    whole, _ = ask(dataset, 2)
    monkeypatch.setattr("chunkrl.algorithms.distil.labelling_batch_size", lambda _: 2 * N)  # 2 starts at once
    positions = np.array([0, 3, 4, 7, 8])
    some, _ = ask(dataset, 2, positions)
    rest = np.setdiff1d(np.arange(len(dataset)), positions)
    for name in ("chunk", "q", "q_recorded", "q_mean"):
        np.testing.assert_allclose(getattr(some, name)[positions], getattr(whole, name)[positions], rtol=1e-6)
        assert not getattr(some, name)[rest].any()


positive = arrays(np.float64, 6, elements=st.floats(0.0, 50.0))


@given(positive, positive, arrays(bool, 6), st.floats(0.05, 1.0))
def test_the_mixtures_expected_loss(
    weight: np.ndarray, recorded: np.ndarray, won: np.ndarray, share: float
) -> None:
    labels = mixture(weight, recorded, won, share)
    mixed, best = (labels[name].astype(np.float64) for name in ("weight", "best_probability"))
    assert ((best >= 0) & (best <= 1 + 1e-6)).all() and not best[~won].any()
    np.testing.assert_allclose(mixed * best, np.where(won, share * weight, 0.0), rtol=1e-5, atol=1e-6)
    kept = (1 - share) * recorded + np.where(won, 0.0, share * weight)
    np.testing.assert_allclose(mixed * (1 - best), kept, rtol=1e-4, atol=1e-4)


def test_rows_are_replaced_as_often_as_their_labels_say(data: Path) -> None:
    dataset = open_chunks(data)
    probability = np.linspace(0, 1, len(dataset)).astype(np.float32)
    best = np.full((len(dataset), 3, 2), 7.0, np.float32)
    dataset.attach("best_probability", probability)
    dataset.attach("best_chunk", best)
    batch = dataset.batch(np.arange(len(dataset)))
    torch.manual_seed(0)
    replaced = np.zeros(len(dataset))
    for _ in range(400):
        found = with_best_chunks(batch)
        drawn = (found.actions == 7.0).flatten(1).all(dim=1)
        replaced += drawn.numpy()
        assert found.action_mask[drawn].all()  # no padding
        assert torch.equal(found.action_mask[~drawn], batch.action_mask[~drawn])
        assert torch.equal(found.actions[~drawn], batch.actions[~drawn])
    np.testing.assert_allclose(replaced / 400, probability, atol=0.1)
    assert replaced[0] == 0 and replaced[-1] == 400


def test_metrics_count_what_is_drawn() -> None:
    won = np.array([True, False, True, True])
    gain, mean = np.array([2.0, -1.0, 4.0, 100.0]), np.array([1.0, -3.0, 2.0, 50.0])
    found = distil_metrics(won, gain, mean, np.array([1.0, 2.0, 1.0, 0.0]))
    assert found["distil/replaced_fraction"] == 0.5
    assert found["distil/predicted_gain"] == 1.5  # (2 + 2 * 0 + 4) / 4
    assert found["distil/policy_gain"] == -0.75
    histogram = found["distil/gain"]
    assert isinstance(histogram, Histogram) and sum(histogram.counts) == 3
    assert distil_metrics(won, gain, mean, None)["distil/replaced_fraction"] == 0.75


@pytest.mark.parametrize("kind", ["sigmoid", "hl_gauss"])
def test_a_unit_of_q_in_returns(data: Path, kind: Any) -> None:
    """What Q learns, times the unit, has the differences of the advantages."""
    dataset = open_chunks(data)
    critic = AdvantageCritic(identity_factory(dataset), ValueHead(kind), 2, OptimConfig(), 1, CPU)
    advantage = np.random.default_rng(0).normal(size=len(dataset)).astype(np.float32)
    for rates in (None, np.linspace(0, 2, len(dataset))):
        learned = critic.targets(advantage, None, rates)
        unit = critic.unit(advantage, None, rates)
        np.testing.assert_allclose(unit * (learned - learned[0]), advantage - advantage[0], atol=1e-5)


def learner(
    dataset: ChunkDataset, policy: PolicyConfig = PolicyConfig(), **changes: Any
) -> AdvantageWeighted:
    torch.manual_seed(0)
    own: dict[str, Any] = {"policy_updates": 2, "value_updates": 2, "num_folds": 2, "distil": DistilConfig(4)}
    config = WeightedConfig(**own | changes)
    factory = identity_factory(dataset, policy=policy)
    return AdvantageWeighted(config, factory, OptimConfig(), dataset, 0, CPU)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_a_run_distils_what_its_own_policy_drew(data: Path, kind: Any) -> None:
    """Labels, weights and phases of a whole run, from the networks that stood before the last phase."""
    dataset = open_chunks(data)
    trained = learner(dataset, PolicyConfig(kind), ema_decay=0.5)
    assert [phase.name for phase in trained.phases()] == ["value", "critic", "policy", "distil"]
    assert trained.phases()[-1].num_updates == 2
    trainer = Trainer(trained, dataset, TrainerConfig(batch_size=8, log_interval=1))
    seen: dict[str, Any] = {}
    original = trained.start_phase

    def start(name: str, progress: Any = silent) -> Any:
        if name == "distil":
            with trained.deployed():
                assert trained.critic is not None
                critics = trained.critic.networks
                seen["best"] = best_chunks(trained.policy, critics, dataset, None, 4, 0, CPU, silent)
            seen["recorded"] = trained.labels["weight"]
        return original(name, progress)

    trained.start_phase = start  # type: ignore[method-assign]
    trainer.run()
    best, labels = seen["best"], trained.labels
    np.testing.assert_array_equal(labels["best_chunk"], best.chunk)
    won = best.q > best.q_recorded
    weighs = won & (labels["weight"] > 0)  # a failure's best chunk weighs nothing, as its recorded one
    assert weighs.any() and (labels["best_probability"] > 0).tolist() == weighs.tolist()
    np.testing.assert_allclose(labels["weight"].mean(), 1.0, rtol=1e-4)
    # half of the loss is of recorded chunks, with their weight
    distilled = 2 * labels["weight"] - seen["recorded"]
    expected = labels["weight"] * labels["best_probability"]
    np.testing.assert_allclose(expected[won], 0.5 * distilled[won], rtol=1e-3, atol=1e-5)
    history = trainer.history
    assert history["distil/replaced_fraction"] == [(6, pytest.approx(won.mean()))]
    assert history["distil/predicted_gain"][0][1] > 0
    assert trained.q_ensemble() is None  # nobody asked for Q at action time


def test_a_weight_is_of_the_recorded_advantage_and_the_gain(data: Path) -> None:
    """One place: exp(2 z) of A + what the winner gains in Q, in returns; before, the weights of A."""
    dataset = open_chunks(data)
    trained = learner(dataset, distil=DistilConfig(4, share=1.0, first="weighted"))
    seen: dict[str, Any] = {}
    original = trained.start_phase

    def start(name: str, progress: Any = silent) -> Any:
        if name == "distil":
            assert trained.critic is not None
            critics = trained.critic.networks
            seen["best"] = best_chunks(trained.policy, critics, dataset, None, 4, 0, CPU, silent)
            part = np.mean(dataset.success)  # of the starts: the others are not drawn
            seen["attached"] = dataset.labels["weight"] / part
        return original(name, progress)

    trained.start_phase = start  # type: ignore[method-assign]
    Trainer(trained, dataset, TrainerConfig(batch_size=8)).run()
    best, advantage = seen["best"], trained.labels["advantage"].astype(np.float64)
    gain = advantage.std() * np.maximum(best.q - best.q_recorded, 0)
    for found, expected in ((trained.labels["weight"], advantage + gain), (seen["attached"], advantage)):
        weight = np.exp(2 * (expected - expected.mean()) / expected.std()).clip(max=100)
        np.testing.assert_allclose(found, without_failures(weight, dataset.success), rtol=1e-3)


def test_what_is_distilled_is_drawn_by_a_clone_of_the_data(data: Path) -> None:
    """Before it, the policy is that of behaviour cloning after the same draws of noise, to the bit."""
    policies = []
    for first in ("cloned", "weighted"):
        dataset = open_chunks(data)
        trained = learner(dataset, distil=DistilConfig(4, first=first), fit=ValueFit(draw="weight"))  # type: ignore[arg-type]
        original = trained.start_phase

        def start(name: str, progress: Any = silent, run: Any = trained, call: Any = original) -> Any:
            if name == "policy":
                metrics = call(name, progress)
                assert (run.phases()[-2].subset is None) == (run.config.distil.first == "cloned")
                assert (run.labels["weight"] != 1).any()
                return metrics
            if name == "distil":
                policies.append([p.detach().clone() for p in run.policy.parameters()])
            return call(name, progress)

        trained.start_phase = start  # type: ignore[method-assign]
        Trainer(trained, dataset, TrainerConfig(batch_size=8)).run()
    uniform = open_chunks(data)
    torch.manual_seed(0)
    config = CloningConfig(policy_updates=2, value_updates=2, num_folds=2, train_q=True)
    factory = identity_factory(uniform)
    cloning = Cloning(config, factory, OptimConfig(), uniform, 0, CPU)
    Trainer(cloning, uniform, TrainerConfig(batch_size=8)).run()
    assert all(torch.equal(a, b) for a, b in zip(policies[0], cloning.policy.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(*policies, strict=True))


def test_a_humans_chunk_stays(tmp_path: Path) -> None:
    episodes = random_episodes(6, lengths=(8, 9))
    for number, columns in enumerate(episodes):
        columns["complementary_info.is_intervention"] = np.arange(8) < (4 if number == 0 else 0)
    dataset = open_chunks(write_dataset(tmp_path / "d", episodes))
    trained = learner(dataset, distil=DistilConfig(32, share=1.0))
    Trainer(trained, dataset, TrainerConfig(batch_size=8)).run()
    human = dataset.frame_labels.human & (np.arange(len(dataset)) < 2)  # chunks whose 3 steps are all human
    assert human.sum() == 2 and not trained.labels["best_probability"][human].any()
    assert (trained.labels["best_probability"][~human & dataset.success] == 1).mean() > 0.8
    np.testing.assert_allclose(trained.labels["weight"][human], trained.labels["weight"].max())


def test_a_policy_that_is_trained_already_is_distilled(data: Path, tmp_path: Path) -> None:
    """`--init` and no updates: the candidates are of that policy, and the run's folder has the distilled one."""
    ChunkLevelOfflineRL(**settings(data, tmp_path / "first", objective="behaviour_cloning")).train()
    own = {"num_updates": 0, "init": str(tmp_path / "first" / "policy"), "distil": DistilConfig(4, 3)}
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "second", **own))
    first = ChunkPolicy.load(tmp_path / "first" / "policy").policy
    for ours, theirs in zip(run.policy.parameters(), first.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert [phase.name for phase in run.algorithm.phases()] == ["value", "critic", "distil"]
    run.train()
    critics, dataset = run.algorithm.critic.networks, run.dataset
    expected = best_chunks(first, critics, dataset, None, 4, 0, CPU, silent)
    np.testing.assert_array_equal(run.algorithm.labels["best_chunk"], expected.chunk)
    last = ChunkPolicy.load(tmp_path / "second" / "policy").policy
    moved = zip(last.parameters(), first.parameters(), strict=True)
    assert any(not torch.equal(ours, theirs) for ours, theirs in moved)


def test_values_of_another_run_serve(data: Path, tmp_path: Path) -> None:
    ChunkLevelOfflineRL(**settings(data, tmp_path / "value", objective="value")).train()
    own = {"distil": DistilConfig(3), "values": str(tmp_path / "value")}
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "given", **own))
    run.train()
    assert [phase.name for phase in run.algorithm.phases()] == ["critic", "policy", "distil"]
    given = load_values(tmp_path / "value", run.dataset)
    np.testing.assert_array_equal(run.algorithm.labels["advantage"], given.advantage)
    assert run.algorithm.labels["best_probability"].any()


def test_drawn_by_weight(data: Path) -> None:
    """The mixture's weight decides what is drawn, and the loss has none."""
    dataset = open_chunks(data)
    trained = learner(dataset, fit=ValueFit(draw="weight"))
    Trainer(trained, dataset, TrainerConfig(batch_size=8)).run()
    drawn = np.bincount(trained.phases()[-1].subset, minlength=len(dataset))  # type: ignore[arg-type]
    assert (np.abs(drawn - trained.labels["weight"]) < 1).all()  # rounded up or down
    np.testing.assert_allclose(dataset.labels["weight"], 1.0, rtol=1e-4)


def test_checkpoints_hold_the_chunks(data: Path, tmp_path: Path) -> None:
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", distil=DistilConfig(3)))
    run.train()
    state = load_state(tmp_path / "run" / "checkpoints" / f"{run.trainer.update:07d}")  # type: ignore[union-attr]
    assert state["algorithm"]["labels"]["best_chunk"].shape == (len(run.dataset), 3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"distil": DistilConfig(4), "objective": "document"},
            "document does not read --distil.num-candidates",
        ),
        ({"distil": DistilConfig(4), "objective": "iql"}, "use --objective cross_fitted$"),
        ({"distil": DistilConfig(4), "objective": "shuffled_advantages"}, "use --objective cross_fitted$"),
        (
            {"distil": DistilConfig(4), "value_updates_per_update": 1, "relabel_interval": 2},
            "without --value-updates-per-update",
        ),
        ({"num_updates": 0}, "at least 1, or 0 with --distil.num-candidates"),
        ({"num_updates": 0, "distil": DistilConfig(4)}, "--init or --policy.kind pi"),
        ({"num_updates": 0, "distil": DistilConfig(4), "init": "x"}, "needs --distil.updates"),
        ({"distil": DistilConfig(4), "value_updates": 0, "init": "x"}, "--value-updates"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ChunkRLError, match=message):
        ChunkLevelOfflineRL(**settings(data, tmp_path / "run", **changes))


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong in ({"num_candidates": -1}, {"num_candidates": 2, "share": 0.0}, {"share": 1.5}):
        with pytest.raises(ChunkRLError, match=r"distil\.share"):
            DistilConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ChunkRLError, match="at least 1"):
        DistilConfig(2, updates=0)
    with pytest.raises(ChunkRLError, match="use cloned or weighted"):
        DistilConfig(2, first="random")  # type: ignore[arg-type]
    for alone in ({"share": 1.0}, {"updates": 3}, {"first": "weighted"}):
        with pytest.raises(ChunkRLError, match=r"give --distil\.num-candidates"):
            DistilConfig(**alone)  # type: ignore[arg-type]


def test_data_that_grow_are_refused(data: Path) -> None:
    dataset = open_chunks(data)
    with pytest.raises(ChunkRLError, match=r"--distil\.\* are of data that stay"):
        learner(dataset).grow(dataset)


def test_several_data_sets_keep_their_own_chunks(data: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", random_episodes(4, seed=9))
    run = ChunkLevelOfflineRL(
        **settings(
            data,
            tmp_path / "run",
            distil=DistilConfig(3, share=1.0),
            additional_offline_dataset_paths=(str(other),),
            dataset_weights=(3.0, 1.0),
        )
    )
    run.train()
    labels = run.algorithm.labels
    first, second = run.dataset.datasets
    assert len(labels["best_chunk"]) == len(first) + len(second)
    index = np.array([len(first) + 1, 0])
    batch = run.dataset.batch(index)
    np.testing.assert_array_equal(batch.labels["best_chunk"].numpy(), labels["best_chunk"][index])
