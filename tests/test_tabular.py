"""A small chunk MDP with one-hot states: learners must reach the exact Q and V of its data.

A corridor of 5 places; actions move by -1 or +1; arriving at the last place succeeds, 7 steps are the limit.
Chunks have 2 actions, all starts count, so Q and V below are of the chunks in the data, as the objectives
define them, by fixed-point iteration over tables.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import identity_factory, open_chunks, write_dataset

from chunkrl.algorithms import losses
from chunkrl.algorithms.config import DistilConfig
from chunkrl.algorithms.document import DocumentConfig, DocumentObjective
from chunkrl.algorithms.iql import ChunkIQL, IQLConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.weighted import AdvantageWeighted, WeightedConfig
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.hold_action import HoldAction
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.progress import Progress, silent
from chunkrl.training.algorithm import Metrics
from chunkrl.training.config import OptimConfig
from chunkrl.training.trainer import Trainer, TrainerConfig
from chunkrl.types import ChunkTransition

NUM_PLACES, LIMIT, GAMMA = 5, 7, 0.8
CPU = torch.device("cpu")
TABLE = NetworkConfig(hidden_dim=64, num_layers=2, layer_norm=False)


def walk(rng: np.random.Generator) -> dict[str, np.ndarray]:
    place, places, actions, success = int(rng.integers(NUM_PLACES - 1)), [], [], []
    while len(places) < LIMIT and not (success and success[-1]):
        step = 1 if rng.random() < 0.6 else -1
        places.append(place)
        actions.append(step)
        place = min(max(place + step, 0), NUM_PLACES - 1)
        success.append(place == NUM_PLACES - 1)
    return {
        "observation.state": np.eye(NUM_PLACES, dtype=np.float32)[places],
        "action": np.array(actions, dtype=np.float32)[:, None],
        "next.success": np.array(success),
    }


@pytest.fixture(scope="module")
def corridor(tmp_path_factory: pytest.TempPathFactory) -> ChunkDataset:
    rng = np.random.default_rng(0)
    root = write_dataset(tmp_path_factory.mktemp("data") / "d", [walk(rng) for _ in range(30)])
    return open_chunks(root, horizon=2, gamma=GAMMA, hold=HoldAction("delta", ()))


def places(batch: ChunkTransition) -> tuple[np.ndarray, np.ndarray]:
    now, then = batch.observation.state, batch.next_observation.state
    assert now is not None and then is not None
    return now.argmax(1).numpy(), then.argmax(1).numpy()


def expectile(values: np.ndarray, tau: float) -> float:
    """The tau-expectile of values [n], by iteration of its weighted mean."""
    mean = values.mean()
    for _ in range(200):
        weight = np.where(values > mean, tau, 1 - tau)
        mean = (weight * values).sum() / weight.sum()
    return float(mean)


def exact(batch: ChunkTransition, state_value: Callable[[np.ndarray], float]) -> tuple[dict, np.ndarray]:
    """The fixed point Q(x, A) = E[r + discount V(x')], V(x) = state_value(Q of the chunks seen at x)."""
    now, then = places(batch)
    keys = [(int(x), *chunk) for x, chunk in zip(now, batch.actions[..., 0].tolist(), strict=True)]
    mask = batch.critic_mask.numpy()
    value = np.zeros(NUM_PLACES)
    q: dict = {}
    for _ in range(200):
        target = batch.reward.numpy() + batch.discount.numpy() * value[then]
        samples = defaultdict(list)
        for row, key in enumerate(keys):
            if mask[row]:
                samples[key].append(target[row])
        q = {key: float(np.mean(found)) for key, found in samples.items()}
        for x in range(NUM_PLACES - 1):
            rows = [q[key] for row, key in enumerate(keys) if mask[row] and now[row] == x]
            value[x] = state_value(np.array(rows))
    return q, value


@pytest.mark.parametrize("tau", [pytest.param(0.5, marks=pytest.mark.slow), 0.9])
def test_joint_learner_reaches_the_exact_values(corridor: ChunkDataset, tau: float) -> None:
    batch = corridor.batch(np.arange(len(corridor)))
    q, value = exact(batch, lambda found: expectile(found, tau))
    assert value[3] - value[0] > 0.2  # the problem is not trivial
    torch.manual_seed(0)
    config = IQLConfig(num_updates=350, expectile=tau, target_rate=0.1)
    factory = identity_factory(corridor, TABLE)
    learner = ChunkIQL(config, factory, OptimConfig(lr=3e-3), corridor, 0, CPU)
    Trainer(learner, corridor, TrainerConfig(batch_size=len(corridor))).run()
    now, _ = places(batch)
    np.testing.assert_allclose(learner.labels["value"], value[now], atol=0.03)
    with torch.no_grad():
        found = learner.critic.networks[0](batch.observation, batch.actions).numpy()
    for row in np.flatnonzero(batch.critic_mask.numpy()):
        key = (int(now[row]), *batch.actions[row, :, 0].tolist())
        assert found[:, row] == pytest.approx(q[key], abs=0.05), key


def test_best_of_n_and_weights_prefer_the_way_to_the_goal(corridor: ChunkDataset) -> None:
    torch.manual_seed(0)
    config = IQLConfig(num_updates=300, target_rate=0.05)
    factory = identity_factory(corridor, TABLE)
    learner = ChunkIQL(config, factory, OptimConfig(lr=3e-3), corridor, 0, CPU)
    Trainer(learner, corridor, TrainerConfig(batch_size=len(corridor))).run()
    batch = corridor.batch(np.arange(len(corridor)))
    ensemble = learner.q_ensemble()
    assert ensemble is not None
    candidates = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])[..., None]
    best = ensemble.best(batch.observation, candidates.expand(len(corridor), 3, 2, 1))
    now, _ = places(batch)
    assert (best[now == 2, :, 0] == 1.0).all()
    with torch.no_grad():
        mean = learner.policy(batch.observation)
    left = (batch.actions[..., 0] * batch.action_mask).sum(1).numpy()
    assert mean[now == 2, 0, 0].mean() > left[now == 2].mean() / 2 + 0.2  # better than its data


def test_outcome_values_reach_the_mean_return(corridor: ChunkDataset) -> None:
    """The default's V, without its regularisation, is the mean Monte-Carlo return of each state."""
    torch.manual_seed(0)
    fit = ValueFit(hidden_dim=64, num_layers=1, dropout=0.0, noise=0.0, lam=1.0)
    config = WeightedConfig(policy_updates=1, value_updates=300, num_folds=1, fit=fit)
    factory = identity_factory(corridor, TABLE)
    learner = AdvantageWeighted(config, factory, OptimConfig(lr=1e-2), corridor, 0, CPU)
    Trainer(learner, corridor, TrainerConfig(batch_size=len(corridor))).run()
    now, _ = places(corridor.batch(np.arange(len(corridor))))
    for x in range(NUM_PLACES - 1):
        expected = learner.labels["return"][now == x].mean()
        assert learner.labels["value"][now == x] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("kind", ["gaussian", pytest.param("flow", marks=pytest.mark.slow)])
def test_distilled_best_of_n_prefers_the_best_chunk_everywhere(corridor: ChunkDataset, kind: str) -> None:
    """The advantage of a chunk here is the exact mean of its Monte-Carlo return minus V, and two steps to the right
    have the highest at every place: the distilled policy goes there, further than the clone that drew it."""
    batch = corridor.batch(np.arange(len(corridor)))
    now, _ = places(batch)
    fit = ValueFit(hidden_dim=64, num_layers=1, dropout=0.0, noise=0.0, lam=1.0)
    config = WeightedConfig(150, 150, num_folds=1, fit=fit, distil=DistilConfig(16, share=1.0))
    torch.manual_seed(0)
    factory = identity_factory(corridor, TABLE, PolicyConfig(kind))
    learner = AdvantageWeighted(config, factory, OptimConfig(lr=3e-3), corridor, 0, CPU)
    trainer = Trainer(learner, corridor, TrainerConfig(batch_size=len(corridor)))
    before = []
    original = learner.start_phase

    def start(name: str, progress: Progress = silent) -> Metrics:
        if name == "distil":
            with torch.no_grad():
                before.append(learner.policy(batch.observation))
        return original(name, progress)

    learner.start_phase = start  # type: ignore[method-assign]
    trainer.run()
    critic = learner.critic
    assert critic is not None
    right = torch.ones(len(corridor), 1, 2, 1)
    asked = torch.cat([right, -right, right * torch.tensor([1.0, -1.0])[:, None]], dim=1)
    with torch.no_grad():
        q = critic.networks.networks[0](batch.observation, asked)[0]
        after = learner.policy(batch.observation)
    advantage, chunk = learner.labels["advantage"], batch.actions[..., 0].numpy()
    unit = critic.unit(advantage, None, None)
    for x in range(NUM_PLACES - 2):  # from the last place one step succeeds, and its chunk is padded
        here = now == x
        both = here & (chunk == 1.0).all(axis=1) & batch.action_mask.all(dim=1).numpy()
        expected = (advantage[both].mean() - advantage.mean()) / unit
        assert q[here, 0].mean().item() == pytest.approx(expected, abs=0.15)
        assert (q[here].argmax(dim=1) == 0).all()
        assert after[here].min() > 0.6 and after[here].mean() > before[0][here].mean()
    assert after[now == NUM_PLACES - 2, 0].min() > 0.6
    assert trainer.history["distil/replaced_fraction"][0][1] > 0.5
    assert trainer.history["distil/predicted_gain"][0][1] > 0


def test_document_objective_moves_as_its_formulas_say(corridor: ChunkDataset) -> None:
    """One update's losses against the document's formulas on the same networks and the same noise."""
    torch.manual_seed(0)
    factory = identity_factory(corridor, TABLE)
    config = DocumentConfig(num_updates=1, beta=0.7, lambda_v=0.5, lambda_pi=2.0)
    learner = DocumentObjective(config, factory, OptimConfig(), corridor, 0, CPU)
    batch = corridor.batch(np.arange(len(corridor)))
    policy: Any = learner.policy
    value, critic = learner.value.networks[0], learner.critic.networks[0]
    with torch.no_grad():
        v, v_next = value(batch.observation), value(batch.next_observation)
        q = critic(batch.observation, batch.actions)[0]
        # y = r + gamma^H V(x'), at ends as well
        expected_critic = (q - (batch.reward + GAMMA**2 * v_next)).square().mean()
        torch.manual_seed(5)
        chunk = policy.sample(batch.observation, 1)[:, 0]
        prepared = policy.encoder.prepare(batch.observation)
        whole = torch.ones_like(batch.action_mask)
        entropy = policy.log_prob(prepared, chunk, whole)
        expected_value = (v - (critic(batch.observation, chunk)[0] - entropy)).square().mean()
        weights = torch.exp(0.7 * (q - v))
        log_prob = policy.log_prob(prepared, batch.actions, batch.action_mask)
        expected_policy = -(weights * log_prob).mean()
    torch.manual_seed(5)
    metrics = learner.update("joint", batch)
    assert metrics["loss/critic"] == pytest.approx(expected_critic.item(), rel=1e-5)
    assert metrics["loss/value"] == pytest.approx(expected_value.item(), rel=1e-5)
    assert metrics["loss/policy"] == pytest.approx(expected_policy.item(), rel=1e-5)
    assert metrics["weight/mean"] == pytest.approx(weights.mean().item(), rel=1e-5)


def test_document_objective_reaches_its_fixed_point_on_a_one_step_problem(tmp_path: Path) -> None:
    """One state, one step, gamma tiny, the policy held: Q(a) -> r(a), and V -> E_pi[Q - log pi]."""
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observation.state": np.ones((1, 1), dtype=np.float32),
            "action": np.array([[action]], dtype=np.float32),
            "next.success": np.array([action > 0]),
        }
        for action in rng.choice([-1.0, 1.0], size=24)
    ]
    dataset = open_chunks(write_dataset(tmp_path / "d", episodes), horizon=1, gamma=1e-3)
    factory = identity_factory(dataset, TABLE)
    torch.manual_seed(0)
    learner = DocumentObjective(
        DocumentConfig(num_updates=500, lambda_pi=0.0),
        factory,
        OptimConfig(lr=3e-3),
        dataset,
        0,
        CPU,
    )
    Trainer(learner, dataset, TrainerConfig(batch_size=24)).run()
    batch = dataset.batch(np.arange(24))
    with torch.no_grad():
        q = learner.critic.networks[0](batch.observation, batch.actions)[0]
        assert q.numpy() == pytest.approx(batch.reward.numpy(), abs=0.06)
        one = batch.observation.map(lambda tensor: tensor[:1].expand(4000, 1))
        policy: Any = learner.policy
        chunk = policy.sample(one, 1)[:, 0]
        prepared = policy.encoder.prepare(one)
        entropy = policy.log_prob(prepared, chunk, torch.ones(4000, 1, dtype=torch.bool))
        soft = losses.bellman_target(learner.critic.networks[0](one, chunk)[0], -entropy, torch.ones(4000))
        assert learner.value.networks[0](one)[0].item() == pytest.approx(soft.mean().item(), abs=0.15)
