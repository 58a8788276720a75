"""RA-BC in closed form on LeRobot's rule, and the progress from which it makes given weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl.integration.rabc import Spread, choose_kappa, encode_weights, rabc_weights


def test_weights_follow_the_rise_of_progress() -> None:
    progress = np.array([0.0, 0.1, 0.2, 0.1, 0.5, 0.505, 0.51, 0.51])
    episode = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = rabc_weights(progress, episode, horizon=2, kappa=0.05)
    # rises over two steps, held at the episode's last frame: .2, 0, -.1, 0, .01, .005, 0, 0
    delta = np.array([0.2, 0.0, -0.1, 0.0, 0.01, 0.005, 0.0, 0.0])
    ramp = (delta - (delta.mean() - 2 * delta.std())) / (4 * delta.std() + 1e-8)
    expected = np.where(delta < 0, 0, np.where(delta > 0.05, 1, ramp))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def chunks_of(lengths: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(lengths)), lengths)


def test_a_rise_over_the_whole_data_has_no_negative_mean() -> None:
    progress, episode = np.array([0.9, 0.5, 0.1, 0.2]), np.zeros(4, int)
    delta = np.array([-0.4, -0.4, 0.1, 0.0])  # mean -.175, which LeRobot takes as 0
    ramp = np.clip((delta + 2 * delta.std()) / (4 * delta.std() + 1e-6), 0, 1)
    expected = np.where(delta < 0, 0, ramp)
    np.testing.assert_allclose(rabc_weights(progress, episode, 1, kappa=1.0), expected, rtol=1e-6)


@pytest.mark.parametrize("num", [1, 2, 50])
def test_kappa_lets_a_quarter_count_in_full(num: int) -> None:
    rise = np.random.default_rng(0).normal(0.1, 1.0, 4 * num)
    kappa = choose_kappa(rise)
    assert kappa > 0
    if num > 2:
        assert (rise > kappa).mean() == 0.25


def test_kappa_where_little_rises() -> None:
    assert choose_kappa(np.array([-1.0] * 9 + [0.2, 0.4, 0.6])) == 0.4
    assert choose_kappa(np.array([-1.0, 0.0])) == 0.0


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.5, 4.0]),
)
def test_encoded_weights_come_back(lengths: list[int], horizon: int, seed: int, spread: float) -> None:
    """By LeRobot's rule, up to one factor, but for each episode's last frame, which has nothing to rise over."""
    rng = np.random.default_rng(seed)
    episode = chunks_of(lengths)
    weight = np.exp(spread * rng.normal(size=len(episode))) * (rng.uniform(size=len(episode)) > 0.2)
    encoded = encode_weights(weight, episode, horizon)
    assert len(encoded.others) <= 4 * (len(weight) + 1) + 2
    progress = np.concatenate([encoded.progress, encoded.others])
    whole = np.append(episode, np.full(len(encoded.others), episode[-1] + 1))
    found = rabc_weights(progress, whole, horizon, kappa=1.0)[: len(weight)]
    last = np.append(np.diff(episode) != 0, True)
    wanted = np.where(last, 0.0, weight)
    if wanted.any():
        wanted /= wanted.max()
    np.testing.assert_allclose(found, wanted, atol=5e-6)


def test_spread_of_weights() -> None:
    assert Spread.of(np.array([0.0, 1.0, 1.0, 0.0])) == Spread(0.5, 0.5, 0.5, 0.5)
    assert Spread.of(np.zeros(3)).effective == 0.0
