"""Success intervals, paired comparisons and rank statistics against closed forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl.errors import ChunkRLError
from chunkrl.statistics import (
    auc,
    bootstrap_over_seeds,
    bootstrap_over_tasks,
    mcnemar_p_value,
    paired_difference,
    spearman,
    wilson_interval,
)

SMALL_INTEGERS = st.integers(-4, 4)  # few distinct values: ties are common


class TestWilson:
    def test_published_values(self):
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        for num_success, num_episodes, low, high in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ]:
            interval = wilson_interval(num_success, num_episodes)
            assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)

    def test_ends_solve_the_score_equation(self):
        # Both ends p satisfy |k/n - p| = z sqrt(p (1 - p) / n).
        z = 1.959963984540054
        interval = wilson_interval(37, 50)
        for p in (interval.low, interval.high):
            assert abs(37 / 50 - p) == pytest.approx(z * math.sqrt(p * (1 - p) / 50), rel=1e-12)

    @given(st.integers(1, 400), st.data())
    def test_contains_the_rate_and_mirrors(self, num_episodes, data):
        num_success = data.draw(st.integers(0, num_episodes))
        interval = wilson_interval(num_success, num_episodes)
        mirrored = wilson_interval(num_episodes - num_success, num_episodes)
        assert 0 <= interval.low <= num_success / num_episodes <= interval.high <= 1
        assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx(
            (interval.low, interval.high), abs=1e-12
        )

    def test_higher_confidence_is_wider(self):
        assert wilson_interval(5, 10, 0.99).low < wilson_interval(5, 10, 0.95).low

    @pytest.mark.parametrize("arguments", [(0, 0), (-1, 5), (6, 5), (1, 2, 1.0), (1, 2, 0.0)])
    def test_refuses(self, arguments):
        with pytest.raises(ChunkRLError):
            wilson_interval(*arguments)


class TestMcNemar:
    @pytest.mark.parametrize(
        ("only_a", "only_b", "p_value"),
        [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (5, 0, 2 / 32),
            (1, 5, 2 * (1 + 6) / 64),
            (2, 8, 2 * (1 + 10 + 45) / 1024),
            (7, 7, 1.0),
        ],
    )
    def test_by_hand(self, only_a, only_b, p_value):
        assert mcnemar_p_value(only_a, only_b) == p_value
        assert mcnemar_p_value(only_b, only_a) == p_value

    def test_against_scipy(self):
        stats = pytest.importorskip("scipy.stats")
        for only_a, only_b in [(3, 19), (40, 61), (700, 900)]:
            expected = stats.binomtest(only_a, only_a + only_b).pvalue
            assert mcnemar_p_value(only_a, only_b) == pytest.approx(expected, rel=1e-9)

    def test_thousands_of_pairs_do_not_overflow(self):
        assert mcnemar_p_value(0, 5000) == 0.0
        assert mcnemar_p_value(2500, 2500) == 1.0

    def test_refuses_negative_counts(self):
        with pytest.raises(ChunkRLError, match="negative"):
            mcnemar_p_value(-1, 3)


class TestPairedDifference:
    def test_counts_and_mean(self):
        a = np.array([1, 1, 1, 0, 0, 1], dtype=bool)
        b = np.array([0, 0, 1, 1, 0, 1], dtype=bool)
        result = paired_difference(a, b)
        assert (result.only_a, result.only_b, result.num_pairs) == (2, 1, 6)
        assert result.difference == pytest.approx(1 / 6)
        assert result.p_value == 1.0

    def test_interval_is_the_exact_bootstrap_distribution(self):
        # Three pairs with differences 1, 0, -1: all 27 resamples can be enumerated.
        means = sorted(sum(draw) / 3 for draw in itertools.product((1, 0, -1), repeat=3))
        low, high = np.quantile(means, [0.1, 0.9], method="inverted_cdf")
        result = paired_difference([1, 0, 0], [0, 0, 1], num_resamples=20_000, confidence=0.8)
        assert (result.interval.low, result.interval.high) == pytest.approx((low, high), abs=1e-12)

    def test_interval_width_follows_the_standard_error(self):
        rng = np.random.default_rng(0)
        a, b = rng.random(400) < 0.7, rng.random(400) < 0.4
        result = paired_difference(a, b, num_resamples=20_000)
        difference = a.astype(float) - b
        half = 1.96 * difference.std() / math.sqrt(400)
        assert result.interval.low == pytest.approx(difference.mean() - half, abs=0.006)
        assert result.interval.high == pytest.approx(difference.mean() + half, abs=0.006)

    def test_pairing_matters(self):
        # Equal policies on the same states have no uncertainty; unpaired they would.
        a = np.arange(50) % 2 == 0
        result = paired_difference(a, a)
        assert (result.interval.low, result.interval.high, result.p_value) == (0.0, 0.0, 1.0)

    def test_deterministic_and_antisymmetric(self):
        rng = np.random.default_rng(1)
        a, b = rng.random(60) < 0.6, rng.random(60) < 0.5
        first, second = paired_difference(a, b, seed=3), paired_difference(a, b, seed=3)
        swapped = paired_difference(b, a, seed=3)
        assert first == second
        assert swapped.difference == -first.difference
        assert (-swapped.interval.high, -swapped.interval.low) == pytest.approx(
            (first.interval.low, first.interval.high)
        )

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            ([True, False], [True], "same shape"),
            ([], [], "non-empty"),
            ([[True]], [[True]], "non-empty array \\[n\\]"),
            ([0.5], [1.0], "booleans"),
            ([math.nan], [1.0], "not finite"),
        ],
    )
    def test_refuses(self, a, b, message):
        with pytest.raises(ChunkRLError, match=message):
            paired_difference(a, b)

    def test_refuses_no_resamples(self):
        with pytest.raises(ChunkRLError, match="num_resamples"):
            paired_difference([True], [False], num_resamples=0)


class TestBootstrapOverSeeds:
    def test_only_seeds_vary(self):
        # Every state agrees within a seed: the bootstrap is that of the seeds' means 0 and 1, so a resample
        # of two is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
        a = np.array([[0.0] * 8, [1.0] * 8])
        result = bootstrap_over_seeds(a, np.zeros((2, 8)), num_resamples=4000)
        assert result.difference == 0.5
        assert result.per_seed == (0.0, 1.0)
        assert (result.interval.low, result.interval.high) == (0.0, 1.0)
        narrow = bootstrap_over_seeds(a, np.zeros((2, 8)), num_resamples=4000, confidence=0.4)
        assert (narrow.interval.low, narrow.interval.high) == (0.5, 0.5)

    def test_shared_states_do_not_average_out_over_seeds(self):
        # Twenty seeds with the same outcomes are no more evidence about the states than one.
        difference = np.array([1, 0, 0, 1, 0, -1, 0, 1, 0, 0])
        one = bootstrap_over_seeds(difference[None], np.zeros((1, 10)), num_resamples=20_000)
        many = bootstrap_over_seeds(np.tile(difference, (20, 1)), np.zeros((20, 10)), num_resamples=20_000)
        assert many.interval.low == pytest.approx(one.interval.low, abs=1e-9)
        assert many.interval.high == pytest.approx(one.interval.high, abs=1e-9)

    def test_one_seed_equals_the_paired_bootstrap(self):
        rng = np.random.default_rng(2)
        a, b = rng.random(30) < 0.7, rng.random(30) < 0.5
        paired, seeded = paired_difference(a, b), bootstrap_over_seeds(a[None], b[None])
        assert (paired.difference, paired.interval) == (seeded.difference, seeded.interval)

    def test_variance_of_two_levels(self):
        # Var of the estimate = var over seeds of their means / S + mean over seeds of the state variance
        # / (S n), for outcomes independent over seeds and states (up to 1/S and 1/n terms).
        rng = np.random.default_rng(5)
        num_seeds, n = 40, 300
        rate = rng.uniform(0.3, 0.9, (num_seeds, 1))
        a = (rng.random((num_seeds, n)) < rate).astype(float)
        result = bootstrap_over_seeds(a, np.zeros_like(a), num_resamples=8000, confidence=0.6827)
        half = (result.interval.high - result.interval.low) / 2
        expected = math.sqrt(a.mean(1).var() / num_seeds + a.var(1).mean() / (num_seeds * n))
        assert half == pytest.approx(expected, rel=0.06)

    def test_tasks_weigh_the_same_whatever_their_size(self):
        a = {"push": np.ones((2, 10)), "pick": np.zeros((2, 1000))}
        b = {task: np.zeros_like(value) for task, value in a.items()}
        result = bootstrap_over_tasks(a, b, num_resamples=50)
        assert result.difference == 0.5
        assert result.per_task == (1.0, 0.0)
        assert (result.interval.low, result.interval.high) == (0.5, 0.5)
        assert result.num_seeds == 2

    def test_seeds_are_drawn_jointly_over_tasks(self):
        # Seed 0 wins on one task what it loses on the other: jointly drawn, the mean over tasks never varies.
        a = {"one": np.array([[1.0], [0.0]]), "two": np.array([[0.0], [1.0]])}
        result = bootstrap_over_tasks(a, {task: np.zeros((2, 1)) for task in a}, num_resamples=500)
        assert (result.interval.low, result.interval.high) == (0.5, 0.5)

    def test_an_end_at_zero_is_exactly_zero(self):
        # 0.1 + 0.2 - 0.3 is 5.6e-17 in floating point; an interval's end must not sit on the wrong side of 0.
        a = {"one": np.full((3, 7), 0.1), "two": np.full((3, 7), 0.2), "three": np.zeros((3, 7))}
        b = {"one": np.zeros((3, 7)), "two": np.zeros((3, 7)), "three": np.full((3, 7), 0.3)}
        result = bootstrap_over_tasks(a, b, num_resamples=200)
        assert (result.interval.low, result.interval.high) == (0.0, 0.0)

    def test_order_of_tasks_does_not_pair_wrong_ones(self):
        a = {"one": [[1.0]], "two": [[0.0]]}
        b = {"two": [[0.0]], "one": [[1.0]]}
        assert bootstrap_over_tasks(a, b, num_resamples=10).per_task == (0.0, 0.0)

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            ({}, {}, "same tasks"),
            ({"one": [[1]]}, {"two": [[1]]}, "same tasks"),
            ({"one": [[1]]}, {"one": [[1, 0]]}, "task 'one'.*same shape"),
            ({"one": [[1]], "two": [[1], [0]]}, {"one": [[1]], "two": [[1], [0]]}, "numbers of seeds"),
            ({"one": [1, 0]}, {"one": [1, 0]}, "num_seeds, n"),
            ({"one": [[math.inf]]}, {"one": [[1]]}, "not finite"),
        ],
    )
    def test_refuses(self, a, b, message):
        with pytest.raises(ChunkRLError, match=message):
            bootstrap_over_tasks(a, b)


class TestRanks:
    def test_spearman_by_hand(self):
        assert spearman([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
        assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
        # no ties: 1 - 6 sum d^2 / (n (n^2 - 1)), d = (0, 1, -1, 0)
        assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / 60)
        # ranks of x: 1.5 1.5 3; of y: 1 2 3
        assert spearman([5, 5, 7], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))

    def test_spearman_of_a_constant_is_nan(self):
        assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))

    @given(st.lists(st.tuples(SMALL_INTEGERS, SMALL_INTEGERS), min_size=3, max_size=20))
    @settings(max_examples=60)
    def test_spearman_against_scipy(self, pairs):
        stats = pytest.importorskip("scipy.stats")
        x, y = zip(*pairs, strict=True)
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)

    @given(
        st.lists(SMALL_INTEGERS, min_size=1, max_size=12), st.lists(SMALL_INTEGERS, min_size=1, max_size=12)
    )
    def test_auc_counts_pairs(self, positive, negative):
        wins = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(positive, negative)]
        assert auc(positive, negative) == pytest.approx(sum(wins) / len(wins), abs=1e-12)

    def test_refuses(self):
        with pytest.raises(ChunkRLError, match="at least two"):
            spearman([1.0], [1.0])
        with pytest.raises(ChunkRLError, match="same shape"):
            spearman([1.0, 2.0], [1.0])
        with pytest.raises(ChunkRLError, match="negative: expected a non-empty"):
            auc([1.0], [])
        with pytest.raises(ChunkRLError, match="not finite"):
            auc([math.nan], [0.0])
