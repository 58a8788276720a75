"""Chunks of a human: which they are, and what they weigh."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chunkrl.algorithms.human_chunks import forced_metrics, human_chunks
from chunkrl.algorithms.weights import WeightRule, to_weights
from chunkrl.data.chunk_semantics import Segments

HUMAN = np.array([0, 0, 1, 1, 0, 1, 1, 1], bool)  # an episode of 5 frames, one of 3


def _data(human: np.ndarray = HUMAN, horizon: int = 2) -> Any:
    return SimpleNamespace(
        starts=np.arange(8),
        action_horizon=horizon,
        segments=Segments(np.array([5, 8]), np.array([True, False])),
        frame_labels=SimpleNamespace(human=human),
    )


def test_a_chunk_is_a_humans_when_all_its_real_steps_are() -> None:
    found = human_chunks(_data(), "high")
    assert found is not None and found.loss_steps is None
    # frame 4's chunk has one real step, the robot's; frame 7's has one real step, a human's
    assert found.forced.tolist() == [False, False, True, False, False, True, True, True]


def test_masked_chunks_keep_the_humans_steps_alone() -> None:
    found = human_chunks(_data(), "high_and_mask")
    assert found is not None and found.loss_steps is not None
    assert found.forced.tolist() == [False, True, True, True, False, True, True, True]
    assert found.loss_steps[1].tolist() == [False, True]
    assert found.loss_steps[3].tolist() == [True, False]
    assert found.loss_steps[[0, 2, 4, 5, 6, 7]].all()


def test_nothing_is_forced_without_humans_or_where_the_critic_decides() -> None:
    assert human_chunks(_data(np.zeros(8, bool)), "high") is None
    assert human_chunks(_data(), "critic") is None


def test_a_humans_chunk_weighs_what_the_best_chunk_weighs() -> None:
    advantage, forced = np.array([-1.0, -1.0, 1.0, 1.0]), np.array([True, False, False, False])
    weight, _ = to_weights(advantage, WeightRule(1.0, np.log(3.0)), None, forced)
    # deviation log 3: weights 3, 1/3, 3, 3 before their mean of 7/3 is taken out
    np.testing.assert_allclose(weight, np.array([3, 1 / 3, 3, 3]) / (7 / 3), rtol=1e-6)
    clipped, metrics = to_weights(advantage, WeightRule(1.0, np.log(3.0), 2.0), None, forced)
    np.testing.assert_allclose(clipped[[0, 2]], clipped[3])
    assert metrics["weight/clip_fraction"] == 0.75
    assert to_weights(advantage, WeightRule(0.0), None, forced)[0].tolist() == [1.0] * 4


def test_what_is_never_drawn_is_not_the_best() -> None:
    advantage, rates = np.array([-1.0, -1.0, 1.0, 9.0]), np.array([1.0, 1.0, 2.0, 0.0])
    forced = np.array([True, False, False, False])
    weight, _ = to_weights(advantage, WeightRule(1.0, np.log(3.0)), rates, forced)
    assert weight[0] == pytest.approx(weight[2]) and weight[3] == 0
    assert weight[2] / weight[1] == pytest.approx(9.0)


def test_the_critics_opinion_of_forced_chunks_is_told() -> None:
    overruled, advantage = np.array([True, True, False, False]), np.array([-1.0, 0.5, 3.0, 4.0])
    metrics = forced_metrics(overruled, advantage)
    assert metrics == {"advantage/forced_fraction": 0.5, "advantage/mean_of_forced": -0.25}
    rated = forced_metrics(overruled, advantage, np.array([1.0, 1.0, 6.0, 0.0]))
    assert rated["advantage/forced_fraction"] == 0.25
