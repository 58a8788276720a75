"""Real-time chunking in closed form: weights, guided velocities, and chunks that go on from the last one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from actor_fakes import small_policy
from pi_tiny import ACTION_DIM, STATE_DIM, observation, tiny_policy, tiny_recipe
from torch import Tensor

from chunkrl import Observation
from chunkrl.errors import ChunkRLError
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.overlap import Guide, Overlap, Schedule
from chunkrl.models.pi.actor import PiActor
from chunkrl.policies.chunk_policy import ChunkPolicy

LEFT = torch.ones(1, 6, 2)


@pytest.mark.parametrize(
    ("delay", "horizon", "schedule", "expected"),
    [
        (2, 5, "linear", [1, 1, 0.75, 0.5, 0.25, 0, 0, 0]),
        (2, 5, "ones", [1, 1, 1, 1, 1, 0, 0, 0]),
        (2, 5, "zeros", [1, 1, 0, 0, 0, 0, 0, 0]),
        (0, 1, "linear", [0.5, 0, 0, 0, 0, 0, 0, 0]),
        (7, 3, "linear", [1, 1, 1, 0, 0, 0, 0, 0]),
        (0, 20, "ones", [1, 1, 1, 1, 1, 1, 0, 0]),  # no more is left
    ],
)
def test_weights_are_one_until_the_delay_and_fade_until_the_horizon(
    delay: int, horizon: int, schedule: Schedule, expected: list[float]
) -> None:
    assert Overlap(LEFT, delay, horizon, schedule).weights(8).tolist() == expected


def test_the_exponential_schedule_falls_faster() -> None:
    weights = Overlap(LEFT, 1, 4, "exp").weights(6)
    linear = [0.75, 0.5, 0.25]
    expected = [1, *(w * (math.exp(w) - 1) / (math.e - 1) for w in linear), 0, 0]
    assert torch.allclose(weights, torch.tensor(expected))


@pytest.mark.parametrize("time", [1.0, 0.9, 0.5, 0.1])
def test_a_guided_velocity_is_the_formulas(time: float) -> None:
    """v = a x + c: the chunk it heads for is (1 - t a) x - t c, whose Jacobian is (1 - t a)."""
    a, c = 0.7, torch.tensor([[[0.3, -1.0]]])
    x, target = torch.randn(1, 3, 2), torch.randn(1, 3, 2)
    weights = torch.tensor([1.0, 0.5, 0.0])[:, None].expand(-1, 2)
    guide = Guide(target, weights, most=5.0)
    w = 5.0 if time == 1 else min(5.0, time / (1 - time) * ((1 - time) ** 2 + time**2) / time**2)
    heading = (1 - time * a) * x - time * c
    expected = (a * x + c) - w * (1 - time * a) * weights * (target - heading)
    with torch.no_grad():
        found = guide.velocity(lambda point: a * point + c, x, time)
    assert torch.allclose(found, expected, atol=1e-6) and not found.requires_grad


def flow_policy() -> ChunkPolicy:
    """A small flow with random weights."""
    return small_policy(0, STATE_DIM, ACTION_DIM, kind="flow")


def tiny_pi(**settings: Any) -> PiActor:
    return PiActor(tiny_policy("pi05", tiny_recipe("pi05", **settings)))


def seen(policy: ActingPolicy) -> Observation:
    found = observation()
    return found if policy.cameras else replace(found, images={})


@pytest.mark.parametrize("make", [flow_policy, tiny_pi])
def test_without_weight_it_is_plain_acting(make: Any) -> None:
    policy = make()
    plain = policy.act(seen(policy))
    nothing = Overlap(torch.ones(2, 4, ACTION_DIM), delay=0, horizon=0)
    assert torch.allclose(policy.act_on(seen(policy), nothing), plain, atol=1e-6)


@pytest.mark.parametrize("make", [flow_policy, tiny_pi])
def test_the_frozen_actions_become_what_is_left(make: Any) -> None:
    """Acceptance test 6."""
    policy, delay = make(), 3
    plain = policy.act(seen(policy))
    left = plain[:, :6] + 0.5
    guided = policy.act_on(seen(policy), Overlap(left, delay, 6))

    def away(chunk: Tensor) -> Tensor:
        return (chunk[:, :delay] - left[:, :delay]).abs().mean()

    assert float(away(guided)) < 0.1 * float(away(plain))
    assert torch.equal(policy.act(seen(policy)), plain)  # nothing stays


def test_relative_actions_go_on_from_where_the_arm_is() -> None:
    """What is left is in the data's units: it is the same place for another state."""
    policy = tiny_pi(delta_actions=(True,) * ACTION_DIM)
    here = seen(policy)
    assert here.state is not None
    left = policy.act(here)[:, :5]
    moved = replace(here, state=here.state + 0.3)
    guided = policy.act_on(moved, Overlap(left, 4, 5))
    plain = policy.act(moved)
    assert float((guided[:, :4] - left[:, :4]).abs().mean()) < float(
        (plain[:, :4] - left[:, :4]).abs().mean()
    )


def test_what_cannot_be_guided_says_so(tmp_path: Path) -> None:
    gaussian = small_policy(0, STATE_DIM, ACTION_DIM)
    assert not gaussian.takes_overlap and flow_policy().takes_overlap
    with pytest.raises(ChunkRLError, match="no flow that could be guided"):
        gaussian.act_on(seen(gaussian), Overlap(torch.ones(2, 4, ACTION_DIM), 1, 2))
    flow = flow_policy()
    for left in (torch.ones(1, 4, ACTION_DIM), torch.ones(2, 4, 3)):
        with pytest.raises(ChunkRLError, match="expected 2 rows of 7 values"):
            flow.act_on(seen(flow), Overlap(left, 1, 2))
    with pytest.raises(ChunkRLError, match="best-of-N"):
        flow.act_on(seen(flow), Overlap(torch.ones(2, 4, ACTION_DIM), 1, 2), mode="best_of_n")


@pytest.mark.parametrize(
    "wrong",
    [
        {"actions": torch.ones(2, 0, 3)},
        {"actions": torch.ones(4, 3)},
        {"actions": torch.full((1, 2, 3), math.nan)},
        {"delay": -1},
        {"horizon": -1},
        {"most": 0.0},
        {"schedule": "cosine"},
    ],
)
def test_an_overlap_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"actions": LEFT, "delay": 1, "horizon": 2}
    with pytest.raises(ChunkRLError):
        Overlap(**(given | wrong))
