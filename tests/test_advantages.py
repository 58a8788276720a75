"""Returns, advantages and weights along episodes, in closed form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl.algorithms import advantages as adv
from chunkrl.data.chunks import cut_segments
from chunkrl.data.labels import discounted_returns

# rows 0 to 2: the task ends; rows 3 to 5: time runs out
STARTS, LENGTHS = np.array([0, 3]), np.array([3, 3])
TERMINATED = np.array([False, False, True, False, False, False])
SEGMENTS = cut_segments(TERMINATED, STARTS, LENGTHS)
VALUE = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
REWARD = np.array([0.0, 0.0, 1.0, 10.0, 20.0, 30.0])


def returns(lam: float, time_out: adv.TimeOut) -> list[float]:
    return adv.lambda_returns(VALUE, REWARD, SEGMENTS, 0.5, lam, time_out).tolist()


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
    found = adv.lambda_returns(np.full(4, 9.0), reward, segments, 0.5, 1.0)
    assert found.tolist() == [0.5, 1.0, 5 + 3.5, 7.0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4),
    st.sampled_from([0.5, 0.9, 1.0]),
    st.integers(0, 99),
)
def test_monte_carlo_is_the_discounted_return(
    episodes: list[tuple[int, bool]], gamma: float, seed: int
) -> None:
    lengths = np.array([length for length, _ in episodes])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    terminated = np.zeros(lengths.sum(), dtype=bool)
    terminated[starts + lengths - 1] = [success for _, success in episodes]
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, len(terminated)))
    found = adv.lambda_returns(value, reward, cut_segments(terminated, starts, lengths), gamma, 1.0)
    np.testing.assert_allclose(
        found, discounted_returns(reward, terminated, starts, lengths, gamma), rtol=1e-5, atol=1e-5
    )


def test_return_range_and_unit() -> None:
    bounds = adv.return_range(np.array([0.25, 2.0]))
    assert (bounds.low, bounds.high) == (0.0, 2.0)
    unit = bounds.to_unit(np.array([0.0, 1.0, 2.0, 5.0]))
    assert unit.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert bounds.from_unit(unit[:3]).tolist() == [0.0, 1.0, 2.0]
    assert adv.return_range(np.array([-3.0, -1.0])) == adv.ReturnRange(-3.0, 0.0)
    assert adv.return_range(np.zeros(2)) == adv.ReturnRange(0.0, 1.0)


def test_standardize() -> None:
    found = adv.standardize(np.array([1.0, 3.0]), 3.0)
    assert found.tolist() == [-3.0, 3.0]
    assert adv.standardize(np.full(4, 0.7), 3.0).tolist() == [0.0] * 4


def test_shuffled_keeps_the_multiset() -> None:
    advantage = np.arange(50.0)
    shuffled = adv.shuffle_between(advantage, seed=1)
    assert sorted(shuffled) == advantage.tolist()
    assert shuffled.tolist() != advantage.tolist()
    assert shuffled.tolist() == adv.shuffle_between(advantage, seed=1).tolist()
    assert shuffled.tolist() != adv.shuffle_between(advantage, seed=2).tolist()
