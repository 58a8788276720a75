"""Returns along episodes, in closed form and against slow sums."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl.data.chunk_semantics import cut_segments
from chunkrl.data.label_rules import TimeOut
from chunkrl.data.returns import lambda_returns, n_step_returns, normalize_per_task

# rows 0 to 2: the task ends; rows 3 to 5: time runs out
STARTS, LENGTHS = np.array([0, 3]), np.array([3, 3])
TERMINATED = np.array([False, False, True, False, False, False])
SEGMENTS = cut_segments(TERMINATED, STARTS, LENGTHS)
VALUE = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
REWARD = np.array([0.0, 0.0, 1.0, 10.0, 20.0, 30.0])


def returns(lam: float, time_out: TimeOut) -> list[float]:
    return lambda_returns(VALUE, REWARD, SEGMENTS, 0.5, lam, time_out).tolist()


def test_one_step() -> None:
    assert returns(0.0, "failure") == [1.0, 1.5, 1.0, 12.5, 23.0, 30.0]
    # with `bootstrap` the last action's reward is not counted: its return is V of the last stored frame
    assert returns(0.0, "bootstrap") == [1.0, 1.5, 1.0, 12.5, 23.0, 6.0]


def test_monte_carlo() -> None:
    assert returns(1.0, "failure") == [0.25, 0.5, 1.0, 10 + 10 + 7.5, 20 + 15, 30.0]
    assert returns(1.0, "bootstrap") == [0.25, 0.5, 1.0, 10 + 10 + 0.25 * 6, 20 + 3, 6.0]


def test_between() -> None:
    g2 = 1.0
    g1 = 0.5 * (0.5 * 3 + 0.5 * g2)
    g0 = 0.5 * (0.5 * 2 + 0.5 * g1)
    g4 = 20 + 0.5 * (0.5 * 6 + 0.5 * 30)
    g3 = 10 + 0.5 * (0.5 * 5 + 0.5 * g4)
    assert returns(0.5, "failure") == pytest.approx([g0, g1, g2, g3, g4, 30.0])


def test_frames_after_a_success_do_not_reach_back() -> None:
    terminated = np.array([False, True, False, False])
    segments = cut_segments(terminated, np.array([0]), np.array([4]))
    reward = np.array([0.0, 1.0, 5.0, 7.0])
    found = lambda_returns(np.full(4, 9.0), reward, segments, 0.5, 1.0)
    assert found.tolist() == [0.5, 1.0, 5 + 3.5, 7.0]


def random_data(episodes: list[tuple[int, bool]], seed: int):
    """Segments, value, reward; episodes of (length, success)."""
    lengths = np.array([length for length, _ in episodes])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    terminated = np.zeros(lengths.sum(), dtype=bool)
    terminated[starts + lengths - 1] = [success for _, success in episodes]
    value, reward = np.random.default_rng(seed).normal(size=(2, len(terminated)))
    return cut_segments(terminated, starts, lengths), value, reward


EPISODES = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4)
GAMMA = st.sampled_from([0.5, 0.9, 1.0])


@settings(max_examples=60)
@given(EPISODES, GAMMA, st.integers(0, 99))
def test_monte_carlo_is_the_discounted_sum(episodes: list[tuple[int, bool]], gamma: float, seed: int) -> None:
    segments, value, reward = random_data(episodes, seed)
    expected = [
        sum(gamma**i * reward[row + i] for i in range(segments.of(np.array(row))[0] - row))
        for row in range(len(value))
    ]
    found = lambda_returns(value, reward, segments, gamma, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60)
@given(EPISODES, GAMMA, st.integers(0, 99), st.sampled_from(["failure", "bootstrap"]))
def test_n_step_returns_lie_between_one_step_and_monte_carlo(
    episodes: list[tuple[int, bool]], gamma: float, seed: int, time_out: TimeOut
) -> None:
    segments, value, reward = random_data(episodes, seed)
    for n_step, lam in ((1, 0.0), (100, 1.0)):
        found = n_step_returns(value, reward, segments, gamma, n_step, time_out)
        expected = lambda_returns(value, reward, segments, gamma, lam, time_out)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_n_step_closed_form() -> None:
    found = n_step_returns(VALUE, REWARD, SEGMENTS, 0.5, 2)
    # The success: V, then rewards to its end. The time-out: nothing after it.
    assert found.tolist() == [0.25 * 3, 0.5, 1.0, 10 + 10 + 0.25 * 6, 20 + 15, 30.0]
    found = n_step_returns(VALUE, REWARD, SEGMENTS, 0.5, 2, "bootstrap")
    assert found.tolist() == [0.25 * 3, 0.5, 1.0, 10 + 10 + 0.25 * 6, 20 + 0.5 * 6, 6.0]


def test_normalised_per_task() -> None:
    found = normalize_per_task(np.array([-10.0, 0, -5, 3, 3, -200]), np.array([0, 0, 0, 2, 2, 7]))
    assert found.tolist() == [-1.0, 0.0, -0.5, 0.0, 0.0, 0.0]
