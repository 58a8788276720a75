"""Evidence of `chunkrl trial`: closed forms, what makes it valid at any time, and a small simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.trial_stopping import by_bars, cut, draw, evenly_spent, mcnemar_bars, wrong
from chunkrl.errors import ChunkRLError
from chunkrl.statistics import Interval, mcnemar_p_value
from chunkrl.trial.evidence import (
    Counts,
    confidence_sequence,
    forecast,
    log_wealth,
    needed_wins,
    verdict,
)

ERROR = 0.05
counts = st.builds(lambda a, b, same: Counts(a, b, a + b + same), *[st.integers(0, 30)] * 3)


def mixture(wins: int, losses: int) -> Fraction:
    """The integral of (1 + u)^wins (1 - u)^losses over u in [0, 1], exactly: 2^(n + 1) times an incomplete beta
    function, B(wins + 1, losses + 1) from 1/2 on."""
    n = wins + losses
    # B from 1/2 on is B(wins + 1, losses + 1) P(Binomial(n + 1, 1/2) <= wins)
    beta = Fraction(math.factorial(wins) * math.factorial(losses), math.factorial(n + 1))
    below = Fraction(sum(math.comb(n + 1, k) for k in range(wins + 1)), 2 ** (n + 1))
    return 2 ** (n + 1) * beta * below


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (8, 0), (0, 8), (12, 3), (40, 25)])
def test_evidence_is_a_beta_mixture_of_the_pairs_that_tell_apart(wins: int, losses: int) -> None:
    expected = math.log(mixture(wins, losses))
    for same in (0, 17):
        assert log_wealth(Counts(wins, losses, wins + losses + same)) == pytest.approx(expected, abs=1e-9)


@given(counts, st.floats(-0.9, 0.9), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_on_average_nothing_is_won_where_the_claim_just_holds(
    found: Counts, mean: float, spread: float
) -> None:
    # a pair of the difference 1 with chance a and -1 with chance b, a - b = mean
    b = max(0.0, -mean) + spread * (1 - abs(mean)) / 2
    a = b + mean
    after = [
        (a, found.after(True, False)),
        (b, found.after(False, True)),
        (1 - a - b, found.after(True, True)),
    ]
    now = log_wealth(found, mean)
    average = sum(chance * math.exp(log_wealth(one, mean) - now) for chance, one in after)
    assert average == pytest.approx(1, abs=1e-9)


@given(counts)
@settings(max_examples=60, deadline=None)
def test_the_confidence_sequence_leaves_zero_behind_where_the_verdict_falls(found: Counts) -> None:
    interval, decided = confidence_sequence(found, ERROR), verdict(found, ERROR)
    assert (decided > 0) == (interval.low > 0) and (decided < 0) == (interval.high < 0)
    if found.num_pairs:
        assert interval.low <= found.difference <= interval.high
    mirrored = confidence_sequence(found.mirrored, ERROR)
    assert (mirrored.low, mirrored.high) == (-interval.high, -interval.low)
    needed = needed_wins(ERROR, 60)[found.only_a + found.only_b]
    assert decided == int(found.only_a >= needed) - int(found.only_b >= needed)


def test_eight_pairs_won_alone_decide() -> None:
    # (2^(n + 1) - 1) / (n + 1) must reach 2 / .05: 31.9 of seven, 56.8 of eight
    assert [verdict(Counts(n, 0, n), ERROR) for n in (7, 8)] == [0, 1]
    assert verdict(Counts(0, 8, 90), ERROR) == -1
    assert confidence_sequence(Counts(), ERROR) == Interval(-1.0, 1.0)
    with pytest.raises(ChunkRLError, match=r"must lie between 0 and 1"):
        verdict(Counts(), 1.0)
    with pytest.raises(ChunkRLError, match="no counts of pairs"):
        Counts(3, 2, 4)


def test_how_many_more_pairs() -> None:
    # A has won all of four pairs that tell apart, of eight: four more in a row decide, with the chance
    # 4.5/5 x 5.5/6 x 6.5/7 x 7.5/8 = .72, and one pair in two is of them
    found = forecast(Counts(4, 0, 8), ERROR)
    assert found is not None and found.likely == 8 and found.most is not None and found.most > 8
    assert forecast(Counts(), ERROR) is None and forecast(Counts(0, 0, 9), ERROR) is None
    assert forecast(Counts(0, 4, 8), ERROR) == found
    # nearly even: nothing within a thousand pairs
    even = forecast(Counts(501, 500, 2002), ERROR)
    assert even is not None and even.likely is None and even.limit == 1998
    # against a simulation of what follows 12 : 4, by drawing the chance first
    found, rng = forecast(Counts(12, 4, 16), ERROR), np.random.default_rng(0)
    wins = rng.random((4000, 400)) < rng.beta(12.5, 4.5, (4000, 1))
    stops = by_bars(12 + np.cumsum(wins, axis=1), 4 + np.cumsum(~wins, axis=1), needed_wins(ERROR))
    assert found is not None and found.likely is not None and found.most is not None
    decided = [np.mean((stops.decided != 0) & (stops.pairs <= most)) for most in (found.likely, found.most)]
    assert decided[0] == pytest.approx(0.5, abs=0.05) and decided[1] == pytest.approx(0.9, abs=0.02)


def test_wrong_decisions_of_equal_policies_stay_below_the_error() -> None:
    for rate in (0.2, 0.5):
        found = draw((rate, rate), 1000, 200, np.random.default_rng([1, round(100 * rate)]))
        assert wrong(by_bars(*found, needed_wins(ERROR))) <= 0.05
        # who tests after every pair as if it were the only look is wrong far more often
        assert wrong(by_bars(*found, mcnemar_bars(200))) > 0.1
        assert wrong(evenly_spent(*cut(found, 200, 60))) < 0.09
    found = draw((0.5, 0.9), 300, 200, np.random.default_rng(2))
    stops = by_bars(*found, needed_wins(ERROR))
    assert (stops.decided == -1).all() and np.median(stops.pairs) < 40


def test_bars_of_the_exact_test() -> None:
    bars = mcnemar_bars(40)
    assert bars[:7].tolist() == [1, 2, 3, 4, 5, 6, 6]  # of fewer than six no number is enough
    for n in range(6, 41):
        assert mcnemar_p_value(int(bars[n]), n - int(bars[n])) <= ERROR
        assert mcnemar_p_value(int(bars[n]) - 1, n - int(bars[n]) + 1) > ERROR
