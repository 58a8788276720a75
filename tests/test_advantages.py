"""Ranges, scales and controls of advantages, in closed form."""

import numpy as np

from chunkrl.algorithms import advantages as adv


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
