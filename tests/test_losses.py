"""Every loss against a value computed by hand, and where its gradient stops."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import identity_factory, open_chunks, random_episodes, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms import losses
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.hold_action import HoldAction
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.models.value_head import ValueHead


def t(*values: float, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, requires_grad=grad)


def test_bellman_target() -> None:
    next_value = t(4.0, 4.0, 4.0, grad=True)
    target = losses.bellman_target(t(1.0, 1.0, 0.0), t(0.0, 0.25, 0.5), next_value)
    assert target.tolist() == [1.0, 2.0, 2.0]
    assert not target.requires_grad


def test_critic_loss() -> None:
    q = torch.tensor([[1.0, 2.0, 9.0], [3.0, 2.0, 9.0]], requires_grad=True)
    target = t(0.0, 4.0, 0.0, grad=True)
    loss = losses.critic_loss(q, target, torch.tensor([True, True, False]))
    # heads: (1 + 4) / 2 and (9 + 4) / 2; the masked row counts nowhere
    assert loss.item() == pytest.approx((2.5 + 6.5) / 2)
    loss.backward()
    assert target.grad is None
    assert q.grad is not None
    # d/dq of ((q - y)^2 / 2 rows) / 2 heads
    assert q.grad.tolist() == [[0.5, -1.0, 0.0], [1.5, -1.0, 0.0]]


def test_value_loss_of_the_document() -> None:
    value, q, log_prob = t(1.0, 2.0, grad=True), t(3.0, 3.0, grad=True), t(1.0, -1.0, grad=True)
    loss = losses.value_loss(value, q, log_prob, alpha=1.0)
    assert loss.item() == pytest.approx(((1 - 2) ** 2 + (2 - 4) ** 2) / 2)
    loss.backward()
    assert q.grad is None and log_prob.grad is None
    assert value.grad is not None and value.grad.tolist() == [-1.0, -2.0]
    assert losses.value_loss(value, q, log_prob, alpha=0.5).item() == pytest.approx((1.5**2 + 1.5**2) / 2)
    assert losses.value_loss(value, q, None, alpha=1.0).item() == pytest.approx((4 + 1) / 2)


def test_expectile_loss() -> None:
    value, target = t(0.0, 0.0, 0.0, grad=True), t(2.0, -2.0, 5.0, grad=True)
    loss = losses.expectile_loss(value, target, 0.9, torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx((0.9 * 4 + 0.1 * 4) / 2)
    loss.backward()
    assert target.grad is None
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([-1.8, 0.2, 0.0])
    half = losses.expectile_loss(value, target, 0.5, torch.tensor([True, True, True]))
    assert half.item() == pytest.approx(0.5 * (4 + 4 + 25) / 3)


def test_advantage_weights() -> None:
    advantage = t(0.0, 1.0, 2.0, grad=True)
    plain = losses.advantage_weights(advantage, 2.0, None)
    assert plain.tolist() == pytest.approx([1.0, math.exp(2), math.exp(4)])
    assert not plain.requires_grad
    assert losses.advantage_weights(advantage, 2.0, 5.0).tolist() == pytest.approx([1.0, 5.0, 5.0])
    best = losses.advantage_weights(advantage, 1.0, None, "max")
    assert best.tolist() == pytest.approx([math.exp(-2), math.exp(-1), 1.0])
    scaled = losses.advantage_weights(advantage, 1.0, None, "standardize")
    root = math.sqrt(1.5)
    assert scaled.tolist() == pytest.approx([math.exp(-root), 1.0, math.exp(root)])
    same = losses.advantage_weights(t(3.0, 3.0), 1.0, None, "standardize")
    assert same.tolist() == [1.0, 1.0]


def test_policy_and_total_loss() -> None:
    weights, nll = t(1.0, 3.0, grad=True), t(2.0, 4.0, grad=True)
    loss = losses.policy_loss(weights, nll)
    assert loss.item() == 7.0
    loss.backward()
    assert weights.grad is None
    assert nll.grad is not None and nll.grad.tolist() == [0.5, 1.5]
    assert losses.policy_loss(torch.ones(2), nll) == nll.mean()  # uniform weights: behaviour cloning
    assert losses.total_loss(t(1.0), t(2.0), t(3.0), 0.5, 10.0).item() == 32.0


def test_masked_mean_and_effective_sample_size() -> None:
    assert losses.weighted_mean(t(1.0, 3.0, 100.0), torch.tensor([True, True, False])).item() == 2.0
    assert losses.weighted_mean(t(1.0, 3.0), torch.tensor([False, False])).item() == 0.0
    assert losses.effective_sample_size(torch.ones(4)).item() == pytest.approx(1.0)
    assert losses.effective_sample_size(t(1.0, 0.0, 0.0, 0.0)).item() == pytest.approx(0.25)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ChunkDataset:
    root = write_dataset(tmp_path_factory.mktemp("data") / "d", random_episodes(6))
    return open_chunks(root, horizon=4)


@pytest.mark.parametrize("spread", ["state", "fixed"])
def test_gaussian_log_prob_is_the_density(dataset: ChunkDataset, spread: str) -> None:
    policy: Any = identity_factory(dataset, policy=PolicyConfig("gaussian", spread)).policy()  # type: ignore[arg-type]
    batch = dataset.batch(np.arange(8))
    prepared = policy.encoder.prepare(batch.observation)
    mean, log_std = policy.gaussian(prepared)
    normal = torch.distributions.Normal(mean, log_std.exp())
    density = normal.log_prob(batch.actions).sum(-1) * batch.action_mask
    found = policy.log_prob(prepared, batch.actions, batch.action_mask)
    torch.testing.assert_close(found, density.sum(-1))
    nll = policy.negative_log_likelihood(prepared, batch.actions, batch.action_mask)
    torch.testing.assert_close(nll, -found / (2 * batch.action_mask.sum(-1)))


def test_flow_loss_by_hand(dataset: ChunkDataset) -> None:
    policy: Any = identity_factory(dataset, policy=PolicyConfig("flow")).policy()
    for parameter in policy.head.parameters():
        torch.nn.init.zeros_(parameter)  # the velocity is 0: the loss is the mean of (noise - A)^2
    batch = dataset.batch(np.arange(8))
    torch.manual_seed(0)
    loss = policy.negative_log_likelihood(
        policy.encoder.prepare(batch.observation), batch.actions, batch.action_mask
    )
    torch.manual_seed(0)
    noise = torch.randn_like(batch.actions)
    for row in range(8):
        real = batch.action_mask[row]
        expected = (noise[row][real] - batch.actions[row][real]).square().mean()
        assert loss[row].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_what_stands_in_the_padding_changes_no_policy_loss(dataset: ChunkDataset, kind: str) -> None:
    policy: Any = identity_factory(dataset, policy=PolicyConfig(kind)).policy()
    batch = dataset.batch(np.arange(len(dataset)))
    assert not batch.action_mask.all()
    garbage = torch.where(batch.action_mask[..., None], batch.actions, torch.full_like(batch.actions, 50.0))
    prepared = policy.encoder.prepare(batch.observation)
    found = []
    for actions in (batch.actions, garbage):
        torch.manual_seed(0)
        policy.zero_grad()
        loss = policy.negative_log_likelihood(prepared, actions, batch.action_mask)
        loss.mean().backward()
        found.append((loss.detach(), [p.grad.clone() for p in policy.parameters() if p.grad is not None]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_padded_and_held_chunks_of_one_motion_have_the_same_q(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = rng.normal(size=(1, 3)).astype(np.float32)
    move = np.array([[0.5, 1.0]], dtype=np.float32)
    held = np.array([[0.0, 1.0]], dtype=np.float32)  # delta control: no motion, gripper kept
    ends = {"next.success": np.array([True])}
    padded = {"observation.state": state, "action": move} | ends
    whole = {
        "observation.state": np.concatenate([state, rng.normal(size=(2, 3)).astype(np.float32)]),
        "action": np.concatenate([move, held, held]),
        "next.success": np.array([False, False, False]),
    }
    dataset = open_chunks(write_dataset(tmp_path / "d", [padded, whole]), horizon=3, hold=HoldAction())
    batch = dataset.batch(np.array([0, 1]))
    assert batch.action_mask.sum(1).tolist() == [1, 3]
    assert torch.equal(batch.actions[0], batch.actions[1])
    critic = identity_factory(dataset).critic(2, ValueHead("scalar"))
    q = [critic(b.observation, b.actions) for b in (dataset.batch(np.array([row])) for row in (0, 1))]
    assert torch.equal(q[0], q[1])


def test_critic_scores_candidates_as_single_chunks(dataset: ChunkDataset) -> None:
    critic = identity_factory(dataset).critic(2, ValueHead("scalar"))
    batch = dataset.batch(np.arange(5))
    candidates = torch.randn(5, 3, 4, 2)
    together = critic(batch.observation, candidates)
    assert together.shape == (2, 5, 3)
    for n in range(3):
        torch.testing.assert_close(together[:, :, n], critic(batch.observation, candidates[:, n]))


def test_flow_policy_has_no_log_prob(dataset: ChunkDataset) -> None:
    policy: Any = identity_factory(dataset, policy=PolicyConfig("flow")).policy()
    batch = dataset.batch(np.arange(2))
    with pytest.raises(ValueError, match="no cheap log-likelihood"):
        policy.log_prob(policy.encoder.prepare(batch.observation), batch.actions, batch.action_mask)
    with pytest.raises(ChunkRLError, match=r"only a Gaussian policy has.*--policy.kind gaussian"):
        ChunkLevelOfflineRL(
            dataset_dir=str(dataset.table.description.root),
            action_horizon=3,
            action_dim=2,
            objective="document",
            policy=PolicyConfig("flow"),
            device="cpu",
        )


def test_sizes_that_build_no_network_are_refused() -> None:
    sizes: list[dict[str, Any]] = [
        {"hidden_dim": 0},
        {"num_layers": 0},
        {"dropout": 1.0},
        {"text_buckets": 1},
    ]
    for bad in sizes:
        with pytest.raises(ChunkRLError, match=next(iter(bad))):
            NetworkConfig(**bad)
    with pytest.raises(ChunkRLError, match="fixed_std"):
        PolicyConfig(fixed_std=0.0)
    with pytest.raises(ChunkRLError, match="kind"):
        PolicyConfig(kind="mixture")  # type: ignore[arg-type]
