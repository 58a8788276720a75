"""Critics on a pi policy's features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pi_tiny import ACTION_DIM, KINDS, observation, tiny_policy, tiny_recipe
from torch import Tensor

from chunkrl.errors import ChunkRLError
from chunkrl.models.pi.config import PiCriticConfig, PiSettings
from chunkrl.models.pi.critic import PiCritic, PiValue
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.value_head import ValueHead

SMALL = PiCriticConfig(depth=2, num_queries=4, head_width=16)
V_HEAD = ValueHead("hl_gauss")
HORIZON = 10


def value(policy: PiPolicy, config: PiCriticConfig = SMALL) -> PiValue:
    torch.manual_seed(0)
    return PiValue(policy, config, V_HEAD).eval()


def critic(policy: PiPolicy, num_critics: int = 2) -> PiCritic:
    torch.manual_seed(0)
    return PiCritic(policy, SMALL, V_HEAD, num_critics).eval()


def chunks(batch: int = 2, num: int = 3) -> Tensor:
    return torch.randn(batch, num, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
def test_v_and_q_have_their_shapes_and_gradients_of_their_own(kind) -> None:
    policy, seen = tiny_policy(kind), observation()
    v, q = value(policy), critic(policy)
    inputs = v.prepare(seen)
    assert v.outputs(inputs).shape == (2, V_HEAD.num_outputs)
    assert v.forward_prepared(inputs).shape == (2,)
    scores = q.forward_prepared(inputs, chunks())
    assert scores.shape == (2, 2, 3) and q.forward_prepared(inputs, chunks()[:, 0]).shape == (2, 2)
    (v.forward_prepared(inputs).sum() + scores.sum()).backward()
    assert all(p.grad is None for p in policy.parameters())
    for network in (v, q):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
            assert parameter.dtype == torch.float32


def test_blocks_are_copies_of_the_policys() -> None:
    policy = tiny_policy("pi05")
    network = value(policy)
    ours = network.layers[1].state_dict()
    theirs = policy.model.language.layers[1].state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not any("vision" in name or "embed" in name for name, _ in network.named_parameters())
    with torch.no_grad():
        next(network.layers[1].parameters()).add_(1.0)
    assert not torch.equal(
        next(network.layers[1].parameters()), next(policy.model.language.layers[1].parameters())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_v_does_not_change_with_the_advantage(kind) -> None:
    """Not with the policy's default condition either: attention in the prefix is bidirectional."""
    policy = tiny_policy(kind)
    v, q = value(policy), critic(policy)

    def values() -> list[Tensor]:
        inputs = v.prepare(observation())
        return [v.forward_prepared(inputs), q.forward_prepared(q.prepare(observation()), chunks())]

    before = values()
    settings = replace(policy.recipe.settings, condition="Advantage: positive")
    policy.recipe = replace(policy.recipe, settings=settings)
    assert all(torch.equal(a, b) for a, b in zip(before, values(), strict=True))


@pytest.mark.parametrize("prompt_format", ["pi0", "pi05_state", "pi05_padded_state", "pi05_no_state"])
def test_v_reads_images_task_and_state_in_every_format(prompt_format) -> None:
    recipe = tiny_recipe("pi0" if prompt_format == "pi0" else "pi05", prompt_format)
    policy = tiny_policy(recipe.config.kind, recipe)
    network, seen = value(policy), observation()
    base = network.forward_prepared(network.prepare(seen))
    assert seen.state is not None
    others = (
        replace(seen, state=seen.state + 0.5),
        replace(seen, task=("open the drawer", seen.task[1])),
        replace(seen, images={**seen.images, "wrist": 255 - seen.images["wrist"]}),
    )
    for other in others:
        assert not torch.allclose(base, network.forward_prepared(network.prepare(other)), atol=1e-7)


def test_each_row_alone_gives_the_same_as_in_a_padded_batch() -> None:
    policy = tiny_policy("pi05")
    network = value(policy)
    both = observation(tasks=("push", "push the very long red cup to the left side"))
    together = network.forward_prepared(network.prepare(both))
    for row in range(2):
        one = both.map(lambda t, r=row: t[r : r + 1])
        one = replace(one, task=(both.task[row],))
        assert torch.allclose(
            network.forward_prepared(network.prepare(one)), together[row : row + 1], atol=1e-5
        )


def test_candidates_share_the_prefix_and_do_not_see_each_other() -> None:
    policy = tiny_policy("pi05")
    q = critic(policy)
    inputs = q.prepare(observation())
    together = q.forward_prepared(inputs, chunks()).detach()
    for n in range(3):
        alone = q.forward_prepared(inputs, chunks()[:, n]).detach()
        assert torch.allclose(alone, together[..., n], atol=1e-5)
    assert float((together[..., 0] - together[..., 1]).abs().min()) > 1e-6
    assert not torch.equal(together[0], together[1])  # two networks


def test_q_depends_on_every_action_of_the_chunk() -> None:
    policy = tiny_policy("pi05")
    q = critic(policy)
    chunk = chunks()[:, 0].requires_grad_(True)
    q.forward_prepared(q.prepare(observation()), chunk).sum().backward()
    assert chunk.grad is not None
    assert bool((chunk.grad.abs() > 0).all())


def test_the_baseline_is_a_head_on_frozen_features() -> None:
    policy = tiny_policy("pi05")
    network = value(policy, PiCriticConfig(depth=0, num_queries=1, head_width=16))
    assert not any(name.startswith("layers") for name, _ in network.named_parameters())
    assert network.forward_prepared(network.prepare(observation())).shape == (2,)
    with pytest.raises(ChunkRLError, match="depth of at least 1"):
        PiCritic(policy, PiCriticConfig(depth=0), V_HEAD)


def test_checkpointing_changes_no_gradient() -> None:
    policy, seen = tiny_policy("pi05"), observation()
    gradients = []
    for checkpointing in (False, True):
        network = value(policy, replace(SMALL, gradient_checkpointing=checkpointing))
        network.forward_prepared(network.prepare(seen)).sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None and other is not None and torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean_std", "quantiles"])
def test_state_noise_is_for_training_only(mode) -> None:
    recipe = tiny_recipe("pi05", normalization=mode)
    policy = tiny_policy("pi05", recipe)
    network = value(policy, replace(SMALL, state_noise=1.0))
    torch.manual_seed(0)
    quiet = network.prepare(observation()).embeddings
    assert torch.equal(quiet, network.prepare(observation()).embeddings)
    network.train()
    noisy = network.prepare(observation()).embeddings
    assert noisy.shape != quiet.shape or not torch.equal(quiet, noisy)


def test_a_critic_deeper_than_the_policy_is_refused() -> None:
    with pytest.raises(ChunkRLError, match="policy has 3"):
        value(tiny_policy("pi05"), PiCriticConfig(depth=4))
    with pytest.raises(ChunkRLError):
        PiCriticConfig(num_queries=0)


def test_settings_with_a_condition_are_read_back() -> None:
    settings: PiSettings = tiny_recipe("pi05", condition="Advantage: positive", guidance=2.0).settings
    recipe = tiny_recipe("pi05", condition="Advantage: positive", guidance=2.0)
    assert type(recipe).from_json(recipe.to_json(), "here").settings == settings
