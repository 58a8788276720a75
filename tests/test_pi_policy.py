"""PiPolicy on observations: units, samples, losses and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pi_tiny import (
    ACTION_DIM,
    GOLDEN,
    KINDS,
    CharacterTokenizer,
    needs_golden,
    observation,
    random_model,
    tiny_policy,
    tiny_recipe,
    tiny_stats,
)
from torch import Tensor

from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.models.pi import PiPolicy
from chunkrl.models.pi.config import ModelKind
from chunkrl.types import Observation

HORIZON = 10
DELTA = (True,) * 6 + (False,)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_sample_shape_and_seed(kind: ModelKind) -> None:
    policy = tiny_policy(kind)
    chunks = policy.sample(observation(), num_samples=3, flow_steps=4, generator=seeded())
    assert chunks.shape == (2, 3, HORIZON, ACTION_DIM) and chunks.dtype == torch.float32
    assert torch.isfinite(chunks).all()
    again = policy.sample(observation(), num_samples=3, flow_steps=4, generator=seeded())
    assert torch.equal(chunks, again)
    assert not torch.equal(chunks[:, 0], chunks[:, 1])
    assert not torch.equal(chunks, policy.sample(observation(), 3, 4, generator=seeded(1)))


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_runs_the_prefix_once(kind: ModelKind, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(kind)
    calls = []
    original = policy.model.encode_prefix
    monkeypatch.setattr(policy.model, "encode_prefix", lambda *inputs: calls.append(1) or original(*inputs))
    policy.sample(observation(), num_samples=3, flow_steps=5)
    policy.flow_loss(observation(), torch.zeros(2, HORIZON, ACTION_DIM), num_noise=4)
    assert len(calls) == 2


def test_guidance_sees_the_pictures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, calls = tiny_policy("pi05"), []
    original = policy.model.embed_images
    monkeypatch.setattr(policy.model, "embed_images", lambda images: calls.append(1) or original(images))
    policy.sample(observation(), 1, 2, condition="Advantage: positive", guidance=2.0)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_rows(kind: ModelKind) -> None:
    # Prompts of different lengths: the batch pads one of them, the single row does not.
    policy = tiny_policy(kind)
    batch = observation(tasks=("push", "put the red cup on the plate"))
    loss = policy.flow_loss(batch, torch.ones(2, HORIZON, ACTION_DIM), generator=seeded())
    noise = torch.randn(2, 1, HORIZON, 32, generator=seeded())
    generator = seeded()
    torch.randn(noise.shape, generator=generator)
    time = policy.model.draw_times((2, 1), generator)
    for row in range(2):
        one = slice(row, row + 1)
        assert batch.state is not None
        images = {name: image[one] for name, image in batch.images.items()}
        alone = Observation(images, batch.state[one], (batch.task[row],))
        actions = policy.actions_to_model(torch.ones(1, HORIZON, ACTION_DIM), alone)
        error = policy.model.flow_loss(policy.encode(alone), actions, noise[one], time[one])
        torch.testing.assert_close(error[..., :ACTION_DIM].mean((2, 3)), loss[one], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_prompts_further_changes_nothing(kind: ModelKind) -> None:
    policy = tiny_policy(kind)
    short, long = (policy.prepare(observation(1), pad_to=length) for length in (None, 200))
    assert short.dense and not long.dense and long.tokens.shape == (1, 200)
    noise, time = torch.randn(1, 1, HORIZON, 32, generator=seeded()), torch.full((1, 1), 0.5)
    first, second = (policy.model.velocity(policy.model.encode_prefix(i), noise, time) for i in (short, long))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("delta", [(), DELTA])
@pytest.mark.parametrize("kind", KINDS)
def test_actions_to_the_model_and_back(kind: ModelKind, delta: tuple[bool, ...]) -> None:
    policy = tiny_policy(kind, tiny_recipe(kind, delta_actions=delta))
    obs = observation()
    actions = torch.randn(2, HORIZON, ACTION_DIM, generator=seeded())
    inside = policy.actions_to_model(actions, obs)
    assert inside.shape == (2, HORIZON, 32) and not inside[..., ACTION_DIM:].any()
    back = policy.actions_from_model(inside[:, None], obs)[:, 0]
    torch.testing.assert_close(back, actions, atol=1e-5, rtol=1e-5)
    if delta:
        assert obs.state is not None
        moved = replace(obs, state=obs.state + 1)
        shift = policy.actions_from_model(inside[:, None], moved)[:, 0] - actions
        expected = torch.tensor([1.0] * 6 + [0.0]).expand_as(shift)
        torch.testing.assert_close(shift, expected, atol=1e-5, rtol=1e-5)


@needs_golden
def test_relative_actions_are_openpis() -> None:
    import numpy as np

    with np.load(GOLDEN / "aux/aux.npz") as file:
        state, absolute, relative = (
            torch.from_numpy(file[name]).float()
            for name in ("delta_state", "delta_actions_in", "delta_actions_out")
        )
    config = tiny_recipe("pi0", delta_actions=DELTA, normalization="identity")
    config = replace(config, config=replace(config.config, horizon=len(absolute)))
    policy = PiPolicy(random_model("pi0"), config)
    obs = replace(observation(1), state=state[None])
    torch.testing.assert_close(policy.actions_to_model(absolute[None], obs)[0, :, :7], relative)
    padded = torch.nn.functional.pad(relative, (0, 25))[None, None]
    torch.testing.assert_close(policy.actions_from_model(padded, obs)[0, 0], absolute)


@pytest.mark.parametrize("kind", KINDS)
def test_flow_loss_is_the_mean_over_real_steps_and_dimensions(kind: ModelKind) -> None:
    policy = tiny_policy(kind)
    obs, actions = observation(), torch.randn(2, HORIZON, ACTION_DIM, generator=seeded(5))
    mask = torch.arange(HORIZON)[None] < torch.tensor([3, HORIZON])[:, None]
    loss = policy.flow_loss(obs, actions, mask, num_noise=3, generator=seeded())
    generator = seeded()
    noise = torch.randn(2, 3, HORIZON, 32, generator=generator)
    time = policy.model.draw_times((2, 3), generator)
    error = policy.model.flow_loss(
        policy.encode(obs), policy.actions_to_model(actions, obs), noise, time, mask
    )
    assert loss.shape == (2, 3)
    torch.testing.assert_close(loss[0], error[0, :, :3, :ACTION_DIM].mean((1, 2)))
    torch.testing.assert_close(loss[1], error[1, :, :, :ACTION_DIM].mean((1, 2)))
    padded = policy.flow_loss(obs, actions, num_noise=3, generator=seeded(), padded_dims=True)
    unmasked = policy.model.flow_loss(policy.encode(obs), policy.actions_to_model(actions, obs), noise, time)
    torch.testing.assert_close(padded, unmasked.mean((2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_padding_changes_no_loss(kind: ModelKind) -> None:
    policy = tiny_policy(kind)
    mask = torch.arange(HORIZON)[None] < torch.tensor([3, 7])[:, None]
    actions = torch.randn(2, HORIZON, ACTION_DIM, generator=seeded(5))
    other = torch.where(mask[..., None], actions, -50.0)
    first, second = (
        policy.flow_loss(observation(), a, mask, 2, generator=seeded()) for a in (actions, other)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_the_condition_reaches_the_model(kind: ModelKind) -> None:
    policy = tiny_policy(kind)
    positive, negative = ("Advantage: positive", "Advantage: negative")
    tokens = [policy.prepare(observation(), condition).tokens for condition in (positive, negative)]
    assert not torch.equal(*tokens)
    mixed = policy.prepare(observation(), [positive, negative]).tokens
    assert torch.equal(mixed[0], tokens[0][0]) and torch.equal(mixed[1], tokens[1][1])
    chunks = [
        policy.sample(observation(), 1, 2, condition=c, generator=seeded()) for c in (positive, negative)
    ]
    assert not torch.equal(*chunks)
    with pytest.raises(ChunkRLError, match="conditions"):
        policy.prepare(observation(), [positive])


def test_state_enters_pi05_as_text_and_pi0_as_a_token() -> None:
    obs = observation()
    assert obs.state is not None
    moved = replace(obs, state=obs.state + 0.3)
    pi05, pi0, blind = (
        tiny_policy("pi05"),
        tiny_policy("pi0"),
        tiny_policy("pi05", tiny_recipe("pi05", "pi05_no_state")),
    )
    assert pi05.prepare(obs).state is None
    assert not torch.equal(pi05.prepare(obs, pad_to=90).tokens, pi05.prepare(moved, pad_to=90).tokens)
    before, after = pi0.prepare(obs), pi0.prepare(moved)
    assert torch.equal(before.tokens, after.tokens)
    assert before.state is not None and before.state.shape == (2, 32) and not before.state[:, 8:].any()
    expected = (obs.state.double() - tiny_stats().state["mean"]) / (tiny_stats().state["std"] + 1e-6)
    torch.testing.assert_close(before.state[:, :8], expected.float())
    assert torch.equal(blind.prepare(obs).tokens, blind.prepare(moved).tokens)


def test_a_policy_without_state_needs_none() -> None:
    recipe = tiny_recipe("pi05", "pi05_no_state", state_dim=0)
    chunks = tiny_policy("pi05", recipe).sample(replace(observation(), state=None), 1, 2)
    assert chunks.shape == (2, 1, HORIZON, ACTION_DIM)


@pytest.mark.parametrize("kind", KINDS)
def test_observations_that_do_not_fit_are_refused(kind: ModelKind) -> None:
    policy, obs = tiny_policy(kind), observation()
    assert obs.state is not None
    images = dict(obs.images)
    cases = {
        r"missing \['wrist'\]": replace(obs, images={"front": images["front"]}),
        r"unknown \['top'\]": replace(obs, images={**images, "top": images["front"]}),
        "takes uint8": replace(obs, images={**images, "wrist": images["wrist"].float() / 255}),
        "no state": replace(obs, state=None),
        r"shape \[2, 7\]": replace(obs, state=obs.state[:, :7]),
        "NaN": replace(obs, state=obs.state * float("nan")),
        "task texts": replace(obs, task=("push",)),
        "no task text": replace(obs, task=""),
    }
    for message, wrong in cases.items():
        with pytest.raises(ChunkRLError, match=message):
            policy.sample(wrong, flow_steps=1)
    with pytest.raises(ChunkRLError, match="num_samples is 0"):
        policy.sample(obs, num_samples=0)
    with pytest.raises(ChunkRLError, match="horizon"):
        policy.flow_loss(obs, torch.zeros(2, HORIZON - 1, ACTION_DIM))
    actions, none = torch.zeros(2, HORIZON, ACTION_DIM), torch.zeros(2, HORIZON, dtype=torch.bool)
    with pytest.raises(ChunkRLError, match="no real step"):
        policy.flow_loss(obs, actions, none)
    for wrong in (none.float(), none[:, 1:]):
        with pytest.raises(ChunkRLError, match="takes bool"):
            policy.flow_loss(obs, actions, wrong)


def test_what_a_policy_lacks_is_said() -> None:
    model, recipe = random_model("pi0"), tiny_recipe("pi0")
    with pytest.raises(ChunkRLError, match="norm stats"):
        PiPolicy(model, recipe, None, CharacterTokenizer()).sample(observation(), flow_steps=1)
    with pytest.raises(ChunkRLError, match="tokenizer"):
        PiPolicy(model, recipe, tiny_stats(), None).sample(observation(), flow_steps=1)


@pytest.mark.parametrize("kind", [pytest.param("pi0", marks=pytest.mark.slow), "pi05"])
def test_compiled_sampling_is_one_graph_for_every_prompt(kind: ModelKind) -> None:
    policy = tiny_policy(kind)
    short, long = observation(tasks=("push",) * 2), observation(tasks=("push the red cup to the left",) * 2)
    expected = [policy.sample(o, 2, 3, generator=seeded()) for o in (short, long)]
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    policy.compile_sampling(backend=backend)
    for o, chunks in zip((short, long), expected, strict=True):
        torch.testing.assert_close(policy.sample(o, 2, 3, generator=seeded()), chunks, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


def test_noise_may_be_given() -> None:
    policy = tiny_policy("pi05")
    noise = torch.randn(2, 3, HORIZON, 32, generator=seeded())
    given = policy.sample(observation(), 3, 4, noise=noise)
    assert torch.equal(given, policy.sample(observation(), 3, 4, generator=seeded()))
    with pytest.raises(ChunkRLError, match=r"noise has shape \[2, 3, 10, 7\]"):
        policy.sample(observation(), 3, 4, noise=noise[..., :7])


# ---- guidance


def test_guidance_mixes_the_two_velocities() -> None:
    """One Euler step: x - v with v = v_free + w (v_asked - v_free), so chunks mix linearly in model units."""
    policy, seen = tiny_policy("pi05"), observation()
    noise = torch.randn(2, 1, 10, 32, generator=seeded())

    def chunk(condition: str, guidance: float) -> Tensor:
        return policy.sample(seen, 1, 1, condition=condition, noise=noise, guidance=guidance).double()

    free, asked = chunk("", 1.0), chunk("Advantage: positive", 1.0)
    assert not torch.allclose(free, asked, atol=1e-4)
    for weight in (0.0, 2.0, 3.0):
        expected = free + weight * (asked - free)
        assert torch.allclose(chunk("Advantage: positive", weight), expected, atol=1e-4)


def test_guidance_leads_away_from_the_condition_of_the_settings() -> None:
    high, low = "Advantage: positive", "Advantage: negative"
    recipe = tiny_recipe("pi05", condition=high, conditions=(low, high), guidance_from=low)
    policy, seen = tiny_policy("pi05", recipe), observation()
    noise = torch.randn(2, 1, 10, 32, generator=seeded())

    def chunk(condition: str | list[str], guidance: float) -> Tensor:
        return policy.sample(seen, 1, 1, condition=condition, noise=noise, guidance=guidance).double()

    free, bad, good = chunk("", 1.0), chunk(low, 1.0), chunk(high, 1.0)
    assert not torch.allclose(free, bad, atol=1e-4)
    assert torch.allclose(chunk(high, 2.0), bad + 2 * (good - bad), atol=1e-4)
    # asked for that condition itself, away from none
    assert torch.allclose(chunk(low, 2.0), free + 2 * (bad - free), atol=1e-4)
    rows = chunk([high, low], 2.0)
    assert torch.allclose(rows[0], chunk(high, 2.0)[0], atol=1e-4)
    assert torch.allclose(rows[1], chunk(low, 2.0)[1], atol=1e-4)


def test_guidance_from_what_was_never_trained_is_refused() -> None:
    with pytest.raises(CheckpointError, match="guidance_from is 'Advantage: 0', which is none"):
        tiny_recipe("pi05", conditions=("Advantage: negative",), guidance_from="Advantage: 0")


def test_the_settings_condition_is_what_is_asked_for() -> None:
    recipe = tiny_recipe("pi05", condition="Advantage: positive", guidance=2.0)
    policy, plain, seen = tiny_policy("pi05", recipe), tiny_policy("pi05"), observation()
    default = policy.sample(seen, 1, 2, generator=seeded())
    spelled = plain.sample(seen, 1, 2, condition="Advantage: positive", guidance=2.0, generator=seeded())
    assert torch.equal(default, spelled)
    none = policy.sample(seen, 1, 2, condition="", guidance=1.0, generator=seeded())
    assert torch.equal(none, plain.sample(seen, 1, 2, generator=seeded()))


@pytest.mark.parametrize("mode", ["mean_std", "quantiles"])
def test_state_noise_is_in_the_datas_deviations_and_leaves_constants(mode: str) -> None:
    policy = tiny_policy("pi05", tiny_recipe("pi05", normalization=mode))
    assert policy.norm_stats is not None
    wide = {
        "mean": torch.zeros(8),
        "std": torch.full((8,), 2.0),
        "q01": torch.full((8,), -4.0),
        "q99": torch.full((8,), 4.0),
    }
    wide = {key: value.double() for key, value in wide.items()}
    wide["std"][7] = 0.0
    wide["q01"][7] = wide["q99"][7] = 1.5
    policy.norm_stats = replace(policy.norm_stats, state=wide)
    seen = Observation({}, torch.ones(20_000, 8), ("push",) * 20_000)
    torch.manual_seed(0)
    noisy = policy.with_state_noise(seen, 0.1).state
    assert noisy is not None and seen.state is not None
    moved = (noisy - seen.state).std(dim=0)
    assert moved[:7].tolist() == pytest.approx(
        [0.2] * 7, rel=0.05
    )  # a tenth of the deviation 2 = range 8 / 4
    assert torch.equal(noisy[:, 7], seen.state[:, 7])
    assert policy.with_state_noise(seen, 0.0) is seen
