"""Scripted mixtures without a simulator: the frozen recipe, each controller in each mixture, what is refused."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from chunkrl.envs.protocol import EnvStep
from chunkrl.envs.scripted import (
    BURSTS,
    CONTROLLERS,
    EXPERT,
    POLICY,
    RELEASE,
    SHIFTED,
    Mixture,
    MixtureConfig,
    MixtureController,
)
from chunkrl.errors import ChunkRLError

ACTION_DIM = 4


def test_mixtures_that_are_none_are_refused() -> None:
    for bad, message in (
        ({"mixture": "across"}, "mixture is 'across'"),
        ({"bad_within": (1.0,)}, "bad_within"),
        ({"episode_controllers": (0.0,) * 4}, "episode_controllers"),
        ({"segment_steps": (9, 8)}, "segment_steps"),
        ({"policy_share": 1.5}, "policy_share is 1.5"),
        ({"noise_std": (0.3, 0.1)}, r"noise_std is \(0.3, 0.1\); .*lowest <= highest"),
        ({"noise_std": (0.0, float("nan"))}, "noise_std"),
        ({"shift_m": (-0.1, 0.1)}, "shift_m is"),
        ({"expert_probability": (0.2, 1.2)}, r"expert_probability is \(0.2, 1.2\); .*in \[0, 1\]"),
        ({"expert_probability": ()}, "one value at least"),
        ({"bad_within": (0.0, float("nan"), 1.0, 0.0)}, "bad_within"),
    ):
        with pytest.raises(ChunkRLError, match=message):
            MixtureConfig(**bad)  # type: ignore[arg-type]


STEP = EnvStep(np.zeros(3, dtype=np.float32))


class RestingExpert:
    """Does nothing, and remembers by how much the target was misplaced."""

    release = np.array([0.0, 0.0, 0.5, -1.0])

    def __init__(self) -> None:
        self.shifts: list[np.ndarray] = []

    def reset(self) -> None: ...

    def act(self, shift: np.ndarray) -> np.ndarray:
        self.shifts.append(shift)
        return np.zeros(ACTION_DIM)


class SteadyPolicy:
    """A learned policy whose action is the number of its turn, in thousandths."""

    def __init__(self) -> None:
        self.turns = 0

    def begin(self, rng: np.random.Generator) -> None:
        self.turns += 1

    def act(self, step: EnvStep) -> np.ndarray:
        return np.full(ACTION_DIM, self.turns / 1000)


@pytest.mark.parametrize("mixture", ["within", "episodes"])
def test_a_policy_has_its_share(mixture: str) -> None:
    config = MixtureConfig(mixture=mixture, policy_share=0.25)  # type: ignore[arg-type]
    rng, policy = np.random.default_rng(0), SteadyPolicy()
    acted: list[int] = []
    for _ in range(1000 if mixture == "episodes" else 100):
        controller = MixtureController(RestingExpert(), config, rng, policy)
        for _ in range(1 if mixture == "episodes" else 120):
            before = policy.turns
            action, number = controller.act(STEP)
            acted.append(number)
            if number == POLICY:  # without the scripts' noise
                assert np.allclose(action, policy.turns / 1000)
            assert policy.turns - before in (0, 1)
    assert np.mean(np.array(acted) == POLICY) == pytest.approx(0.25, abs=0.05)  # 3 deviations and more
    alone = MixtureConfig(mixture=mixture, policy_share=1.0)  # type: ignore[arg-type]
    controller = MixtureController(None, alone, rng, policy)  # needs no expert
    assert {controller.act(STEP)[1] for _ in range(40)} == {POLICY}


def test_segments_have_the_lengths_of_the_recipe() -> None:
    expert = RestingExpert()
    config = MixtureConfig(expert_probability=(0.0,), bad_within=(0.0, 0.5, 0.5, 0.0))
    controller = MixtureController(expert, config, np.random.default_rng(0))
    numbers = [controller.act(STEP)[1] for _ in range(400)]
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    assert set(numbers) == {CONTROLLERS.index("shifted_target"), CONTROLLERS.index("early_release")}
    assert np.diff(cuts).min() >= 8
    shifts = [float(np.linalg.norm(shift)) for shift in expert.shifts if shift.any()]
    assert shifts and min(shifts) >= 0.12 and max(shifts) <= 0.15 + 1e-6


@pytest.mark.parametrize(
    ("mixture", "numbers", "total"),
    [
        ("within", 3387271695, [-6.14503, -5.96583, 206.09502, -382.57242]),
        ("episodes", 4144665146, [-2.19264, -10.80823, 201.78445, -415.01073]),
    ],
)
def test_the_recipe_is_frozen(mixture: Mixture, numbers: int, total: list[float]) -> None:
    """Published data sets are known by their hash: no draw may be added, left out or moved."""
    acted, actions = [], []
    for seed in range(20):
        controller = MixtureController(
            RestingExpert(), MixtureConfig(mixture=mixture), np.random.default_rng(seed)
        )
        for _ in range(100):
            action, number = controller.act(STEP)
            acted.append(number)
            actions.append(action)
    assert zlib.crc32(bytes(acted)) == numbers
    np.testing.assert_allclose(np.sum(actions, axis=0, dtype=np.float64), total, atol=1e-4)


def only(mixture: Mixture, number: int, num_steps: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Actions [T, A] and the target's shifts [T, 3] where one controller alone acts, without noise."""
    alone = tuple(float(number == other) for other in range(len(CONTROLLERS)))
    config = MixtureConfig(mixture, (0.0,), alone, alone, noise_std=(0.0, 0.0))
    expert = RestingExpert()
    controller = MixtureController(expert, config, np.random.default_rng(3))
    steps = [controller.act(STEP) for _ in range(num_steps)]
    assert {acting for _, acting in steps} == {number}
    return np.stack([action for action, _ in steps]), np.stack(expert.shifts)


def lengths(values: np.ndarray) -> np.ndarray:
    """Of the pieces of equal rows, the last one left out."""
    cuts = np.flatnonzero((np.diff(values, axis=0) != 0).any(axis=1)) + 1
    return np.diff(cuts, prepend=0)


@pytest.mark.parametrize("mixture", ["within", "episodes"])
def test_each_controller_acts_in_each_mixture(mixture: Mixture) -> None:
    actions, shifts = only(mixture, EXPERT)
    assert not actions.any() and not shifts.any()
    actions, shifts = only(mixture, SHIFTED)
    assert not actions.any()
    length = np.linalg.norm(shifts, axis=1)
    assert length.min() >= 0.12 and length.max() <= 0.15
    drawn = lengths(shifts)
    assert len(drawn) == 0 if mixture == "episodes" else drawn.min() >= 8 and drawn.max() <= 15
    actions, shifts = only(mixture, RELEASE)
    assert not shifts.any()
    released = np.all(actions == RestingExpert.release.astype(np.float32), axis=1)
    first = int(np.argmax(released))
    assert released[first:].all() and not actions[:first].any()
    assert first == 0 if mixture == "within" else 15 <= first < 45
    actions, shifts = only(mixture, BURSTS)
    assert not shifts.any()
    burst = np.any(actions != 0, axis=1)
    assert 0.3 < burst.mean() < 0.7 and np.abs(actions[burst]).max() > 0.9
    # a burst is constant, and ends with its segment at the latest
    pieces = lengths(actions)
    starts = np.cumsum([0, *pieces[:-1]])
    assert len(pieces) > 20 and pieces[burst[starts]].max() <= 15
