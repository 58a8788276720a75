"""What the pi models must do at any size, with random weights: no files needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pi_tiny import CAMERAS, KINDS, random_inputs, random_model, tiny_config
from torch import Tensor

from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.models.pi import PiConfig, PiModel, VisionConfig
from chunkrl.models.pi.config import ModelKind
from chunkrl.models.pi.flow import (
    PrefixInputs,
    _visible_somewhere,
    attention_mask,
    euler_times,
    time_embedding,
    token_positions,
)
from chunkrl.models.pi.language import rotary_angles, rotate

BATCH, SAMPLES, HORIZON, WIDTH = 2, 3, 10, 32


def draws(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(actions [B, H, A], noise [B, N, H, A], time [B, N])."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(BATCH, HORIZON, WIDTH, generator=generator)
    noise = torch.randn(BATCH, SAMPLES, HORIZON, WIDTH, generator=generator)
    return actions, noise, torch.rand(BATCH, SAMPLES, generator=generator)


def joint_velocity(model: PiModel, inputs: PrefixInputs, x_t: Tensor, time: Tensor) -> Tensor:
    """One pass over prefix and suffix together, both experts in every layer, no cache: x_t [B, H, A], time [B]."""
    embeddings, valid = model.embed_prefix(inputs)
    condition = model.condition_on_time(time)
    suffix = model.embed_suffix(x_t, inputs.state, condition)
    num_prefix, opens = valid.shape[1], model.suffix_opens_block()
    everything = torch.cat((valid, torch.ones(len(valid), len(opens), dtype=torch.bool)), dim=1)
    mask = attention_mask(everything, torch.cat((torch.zeros(num_prefix, dtype=torch.bool), opens)))
    bias = torch.where(mask, 0.0, -1e30)[:, None]
    angles = rotary_angles(token_positions(everything), model.config.head_dim)
    streams = [embeddings, suffix]
    for index in range(model.config.depth):
        layers: tuple[Any, Any] = (model.language.layers[index], model.expert.layers[index])
        modulation = condition.modulations.layers[index] if condition.modulations else None
        normed, gates = _norms(
            streams, [x.input_layernorm for x in layers], modulation and modulation.attention
        )
        q, k, v = (
            torch.cat(
                [getattr(x.self_attn, name)(h) for x, h in zip(layers, normed, strict=True)], dim=1
            ).unflatten(-1, (-1, model.config.head_dim))
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = rotate(q, angles), rotate(k, angles)
        logits = torch.einsum("bqhd,bkd->bhqk", q, k[:, :, 0]) * model.config.head_dim**-0.5 + bias
        out = torch.einsum("bhqk,bkd->bqhd", logits.softmax(-1), v[:, :, 0]).flatten(2)
        parts = out[:, :num_prefix], out[:, num_prefix:]
        streams = [
            x + layer.self_attn.o_proj(o) * gate
            for x, layer, o, gate in zip(streams, layers, parts, gates, strict=True)
        ]
        norms = [x.post_attention_layernorm for x in layers]
        normed, gates = _norms(streams, norms, modulation and modulation.mlp)
        streams = [
            x + layer.mlp(h) * gate for x, layer, h, gate in zip(streams, layers, normed, gates, strict=True)
        ]
    final = condition.modulations.final if condition.modulations else None
    return model.action_out_proj(_norms([streams[1]], [model.expert.norm], final)[0][0][:, -HORIZON:])


def _norms(streams: list[Tensor], norms: list, modulation: Tensor | None) -> tuple[list[Tensor], list]:
    """Norm each stream; the last one adaptively where there is a modulation."""
    normed, gates = [], []
    for x, norm in zip(streams, norms, strict=True):
        adaptive = modulation is not None and norm is norms[-1]
        result = norm(x, modulation) if adaptive else (norm(x), 1.0)
        normed.append(result[0])
        gates.append(result[1])
    return normed, gates


@pytest.mark.parametrize("kind", KINDS)
def test_cached_prefix_equals_one_joint_pass(kind: ModelKind) -> None:
    model, inputs = random_model(kind), random_inputs(kind)
    _, noise, time = draws()
    expected = joint_velocity(model, inputs, noise[:, 0], time[:, 0])
    cached = model.velocity(model.encode_prefix(inputs), noise[:, :1], time[:, :1])[:, 0]
    torch.testing.assert_close(cached, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_several_samples_equal_one_at_a_time(kind: ModelKind) -> None:
    model, inputs = random_model(kind), random_inputs(kind)
    _, noise, time = draws()
    prefix = model.encode_prefix(inputs)
    together = model.velocity(prefix, noise, time)
    for n in range(SAMPLES):
        alone = model.velocity(prefix, noise[:, n : n + 1], time[:, n : n + 1])
        torch.testing.assert_close(together[:, n : n + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_integrates_the_velocity(kind: ModelKind) -> None:
    # The sampler computes modulations once for all steps; here they are computed again at every step.
    model, inputs = random_model(kind), random_inputs(kind)
    _, noise, _ = draws()
    prefix = model.encode_prefix(inputs)
    x = noise
    for time in euler_times(4):
        x = x - model.velocity(prefix, x, time.expand(BATCH, SAMPLES)).detach() / 4
    torch.testing.assert_close(model.sample(prefix, noise, euler_times(4)), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_cameras_and_padding_have_exactly_no_effect(kind: ModelKind) -> None:
    model, inputs = random_model(kind), random_inputs(kind)
    _, noise, time = draws()
    before = model.velocity(model.encode_prefix(inputs), noise, time)
    for camera in CAMERAS:
        inputs.images[camera][~inputs.image_masks[camera]] = 1.0
    inputs.tokens[~inputs.token_mask] = 11
    assert torch.equal(model.velocity(model.encode_prefix(inputs), noise, time), before)
    inputs.images[CAMERAS[0]][0] = 1.0
    assert not torch.equal(model.velocity(model.encode_prefix(inputs), noise, time)[0], before[0])


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_out_masked_cameras_and_padding_changes_nothing(kind: ModelKind) -> None:
    model, inputs = random_model(kind), random_inputs(kind)
    _, noise, time = draws()
    full = model.velocity(model.encode_prefix(inputs), noise, time)
    for row in range(BATCH):
        cameras = [camera for camera in CAMERAS if inputs.image_masks[camera][row]]
        length = int(inputs.token_mask[row].sum())
        alone = slice(row, row + 1)
        short = PrefixInputs(
            images={camera: inputs.images[camera][alone] for camera in cameras},
            image_masks={camera: inputs.image_masks[camera][alone] for camera in cameras},
            tokens=inputs.tokens[alone, :length],
            token_mask=inputs.token_mask[alone, :length],
            state=None if inputs.state is None else inputs.state[alone],
        )
        for dense in (False, True):
            prefix = model.encode_prefix(replace(short, dense=dense))
            velocity = model.velocity(prefix, noise[alone], time[alone])
            torch.testing.assert_close(velocity, full[alone], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_actions_change_no_loss_on_real_steps(kind: ModelKind) -> None:
    model, inputs = random_model(kind), random_inputs(kind)
    actions, noise, time = draws()
    prefix = model.encode_prefix(inputs)
    mask = torch.arange(HORIZON)[None] < torch.tensor([4, HORIZON])[:, None]
    other = torch.where(mask[..., None], actions, 100.0)
    first, second = (model.flow_loss(prefix, a, noise, time, mask) for a in (actions, other))
    assert torch.equal(first[0, :, :4], second[0, :, :4])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(
        model.flow_loss(prefix, actions, noise, time)[0, :, :4],
        model.flow_loss(prefix, other, noise, time)[0, :, :4],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_several_samples_is_the_sum(kind: ModelKind) -> None:
    model, inputs = random_model(kind), random_inputs(kind)
    actions, noise, time = draws()
    model.flow_loss(model.encode_prefix(inputs), actions, noise, time).sum().backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    for n in range(SAMPLES):
        prefix = model.encode_prefix(inputs)
        model.flow_loss(prefix, actions, noise[:, n : n + 1], time[:, n : n + 1]).sum().backward()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(together)
    for name, gradient in together.items():
        summed = model.get_parameter(name).grad
        assert summed is not None
        torch.testing.assert_close(gradient, summed, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind: ModelKind) -> None:
    model, inputs = random_model(kind), random_inputs(kind)
    actions, noise, time = draws()
    gradients = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad(set_to_none=True)
        model.flow_loss(model.encode_prefix(inputs), actions, noise, time).mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None and recomputed is not None
        torch.testing.assert_close(plain, recomputed, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_unused_parameters_are_frozen_and_all_others_learn(kind: ModelKind) -> None:
    model, inputs = random_model(kind), random_inputs(kind)
    actions, noise, time = draws()
    model.flow_loss(model.encode_prefix(inputs), actions, noise, time).mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    last = "language.layers.2."
    assert frozen == {
        "language.norm.weight",
        *(f"{last}mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        *(f"{last}self_attn.{name}_proj.weight" for name in ("q", "o")),
        f"{last}post_attention_layernorm.weight",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_and_low_precision_weights_run(kind: ModelKind) -> None:
    exact, inputs = random_model(kind), random_inputs(kind)
    _, noise, time = draws()
    expected = exact.velocity(exact.encode_prefix(inputs), noise, time)
    low = random_model(kind).to(torch.bfloat16)
    mixed = random_model(kind).to(torch.bfloat16)
    # As openpi stores it: norms, patch embedding and action heads in float32.
    for name, parameter in mixed.named_parameters():
        if "norm" in name or "embeddings" in name or "action" in name or "state" in name:
            parameter.data = parameter.data.float()
    for model in (low, mixed):
        velocity = model.velocity(model.encode_prefix(inputs), noise, time)
        assert velocity.dtype == torch.float32
        error = (velocity - expected).norm() / expected.norm()
        assert 0 < error < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_prefix_and_sampling_compile_without_graph_breaks(kind: ModelKind) -> None:
    model, inputs = random_model(kind), random_inputs(kind)
    _, noise, _ = draws()
    times = euler_times(2)
    with torch.no_grad():
        expected = model.sample(model.encode_prefix(inputs), noise, times)
        prefix = torch.compile(model.encode_prefix, backend="eager", fullgraph=True)(inputs)
        compiled = torch.compile(model.sample, backend="eager", fullgraph=True)(prefix, noise, times)
    torch.testing.assert_close(compiled, expected)


def test_time_embedding_is_periodic_in_closed_form() -> None:
    embedding = time_embedding(torch.tensor([0.0, 0.25, 1.0]), 4, min_period=0.5, max_period=2.0)
    # Periods 0.5 and 2: angles 2 pi t / period.
    expected = torch.tensor([[0.0, 0, 1, 1], [0, 0.5**0.5, -1, 0.5**0.5], [0, 0, 1, -1]])
    torch.testing.assert_close(embedding, expected, atol=1e-6, rtol=0)


def test_euler_times() -> None:
    assert euler_times(4).tolist() == [1.0, 0.75, 0.5, 0.25]
    with pytest.raises(ChunkRLError, match="flow_steps is 0"):
        euler_times(0)


def test_flow_times_follow_their_distribution() -> None:
    model = random_model("pi05")
    times = model.draw_times((20000,), torch.Generator().manual_seed(0))
    assert float(times.min()) >= 0.001 and float(times.max()) <= 1.0
    # Beta(1.5, 1) has mean 0.6 and distribution function x^1.5.
    assert abs(float(times.mean()) - (0.6 * 0.999 + 0.001)) < 0.01
    assert abs(float((times < 0.5).float().mean()) - (0.499 / 0.999) ** 1.5) < 0.01
    again = model.draw_times((20000,), torch.Generator().manual_seed(0))
    assert torch.equal(times, again)


def test_attention_mask_and_positions_in_closed_form() -> None:
    valid = torch.tensor([[True, False, True, True]])
    opens = torch.tensor([False, False, True, False])
    expected = torch.tensor([[[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]]).bool()
    assert torch.equal(attention_mask(valid, opens), expected)
    assert torch.equal(attention_mask(valid, opens, first_query=2), expected[:, 2:])
    assert token_positions(valid).tolist() == [[0, 0, 1, 2]]


def test_queries_that_see_nothing_are_kept_finite() -> None:
    # Not every attention kernel answers a row without keys with zeros: some give NaN, which would spread.
    mask = torch.tensor([[[True, False], [False, False]]])
    assert _visible_somewhere(mask).tolist() == [[[True, False], [True, True]]]


def test_rotation_depends_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator) for _ in range(2))

    def logit(i: int, j: int) -> Tensor:
        return (
            rotate(q, rotary_angles(torch.tensor([[i]]), 8))
            * rotate(k, rotary_angles(torch.tensor([[j]]), 8))
        ).sum()

    torch.testing.assert_close(logit(3, 1), logit(12, 10))
    torch.testing.assert_close(rotate(q, rotary_angles(torch.tensor([[0]]), 8)), q)


def test_grouped_keys_equal_repeated_keys() -> None:
    from chunkrl.models.layers import attend

    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 4, 8, generator=generator)
    k, v = (torch.randn(2, 6, 2, 8, generator=generator) for _ in range(2))
    out = attend(q, k, v, None).unflatten(-1, (4, 8))
    for head in range(4):
        group = head // 2
        expected = F.softmax(q[:, :, head] @ k[:, :, group].mT / 8**0.5, dim=-1) @ v[:, :, group]
        torch.testing.assert_close(out[:, :, head], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "pi1"},
        {"depth": 0},
        {"num_heads": 3, "num_kv_heads": 2},
        {"head_dim": 15},
        {"horizon": -1},
    ],
)
def test_impossible_sizes_are_refused(change: dict) -> None:
    with pytest.raises(CheckpointError):
        replace(tiny_config("pi0"), **change)


def test_impossible_vision_sizes_are_refused() -> None:
    for wrong in ({"width": 50, "num_heads": 4}, {"image_size": 57}, {"depth": 0}):
        with pytest.raises(CheckpointError):
            VisionConfig(**wrong)
    assert PiConfig().vision.num_tokens == 256


def test_pi0_without_state_is_an_error() -> None:
    model = random_model("pi0")
    prefix = model.encode_prefix(replace(random_inputs("pi0"), state=None))
    _, noise, time = draws()
    with pytest.raises(ChunkRLError, match="state"):
        model.velocity(prefix, noise, time)
