"""Which of two policies is better, judged after every pair of trials and valid at any time.

A pair gives d = success of A - success of B, one of -1, 0 and 1. Against the claim that its mean is at most m, one
bets: wealth grows by the factor 1 + u (d - m) / (1 + m) a pair, for u between 0 and 1, averaged over u. If the claim
holds, the wealth is a supermartingale that begins at 1, and so reaches 1 / a with a probability of at most a,
however often and whenever one looks (Ville 1939): the test by betting of Waudby-Smith and Ramdas, Estimating means
of bounded random variables by betting, JRSS B 2024, in the line of Robbins, Annals of Mathematical Statistics 1970.
With m = 0 it hears only of pairs that tell the policies apart: u stands for the chance (1 + u) / 2 that A wins such
a pair, and the wealth is that of a uniform mixture over chances above 1/2 against 1/2, whose closed form
tests/test_trial_evidence.py has. Both directions share the error: each is claimed at 2 / error. What no m would be
bet away is a confidence sequence of the difference, which excludes 0 at the very pair that decides.

Valid where pairs are alike and independent; at m = 0 also where they are not (a scene that drifts), as long as who
acts first is drawn, if the policies are the same.

Libraries considered: confseq 0.0.11 (has no wheel; does not build without Boost's headers), savvi 0.3.1 (needs cvxpy
and scipy; tests of counts, no confidence sequence of a paired difference), ville 0.1.0 (a first release on scipy),
expectation (Python 3.12): docs/design/libraries.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from chunkrl.errors import ChunkRLError
from chunkrl.statistics import Interval

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_BETS, _LOG_SHARES = (_NODES + 1) / 2, np.log(_WEIGHTS / 2)  # u, uniform between 0 and 1
_MOST_STEPS = 2_000  # pairs that tell the policies apart, of which a forecast thinks


@dataclass(frozen=True)
class Counts:
    """Pairs so far. only_a, only_b: those that A alone and B alone solved. num_pairs: all."""

    only_a: int = 0
    only_b: int = 0
    num_pairs: int = 0

    def __post_init__(self) -> None:
        if min(self.only_a, self.only_b) < 0 or self.only_a + self.only_b > self.num_pairs:
            raise ChunkRLError(f"{self} are no counts of pairs")

    def after(self, success_a: bool, success_b: bool) -> Counts:
        """With one pair more."""
        return Counts(
            self.only_a + (success_a and not success_b),
            self.only_b + (success_b and not success_a),
            self.num_pairs + 1,
        )

    @property
    def difference(self) -> float:
        """success(A) - success(B), a fraction."""
        return (self.only_a - self.only_b) / self.num_pairs

    @property
    def mirrored(self) -> Counts:
        """The same pairs, with A for B."""
        return Counts(self.only_b, self.only_a, self.num_pairs)


def log_wealth(counts: Counts, mean: float = 0.0) -> float:
    """Evidence, as a natural logarithm, that A's success is above B's by more than `mean`, in (-1, 1)."""
    same = counts.num_pairs - counts.only_a - counts.only_b
    bets = _BETS / (1 + mean)
    factors = (
        (counts.only_a, 1 + bets * (1 - mean)),
        (counts.only_b, 1 - bets * (1 + mean)),
        (same, 1 - bets * mean),
    )
    with np.errstate(divide="ignore"):
        logs = sum(count * np.log(factor) for count, factor in factors if count) + _LOG_SHARES
    return _log_sum(logs)


def _log_sum(logs: NDArray[np.float64]) -> float:
    top = float(logs.max())
    return top + math.log(float(np.exp(logs - top).sum())) if math.isfinite(top) else top


def log_threshold(error: float) -> float:
    """What the evidence must reach for a claim, if a claim of either direction may be wrong with probability `error`.

    Raises:
        ChunkRLError: `error` is not between 0 and 1.
    """
    if not 0 < error < 1:
        raise ChunkRLError(f"error is {error}; it must lie between 0 and 1")
    return math.log(2 / error)


def verdict(counts: Counts, error: float) -> int:
    """1: A is better, -1: B is, 0: not decided."""
    bar = log_threshold(error)
    return int(log_wealth(counts) >= bar) - int(log_wealth(counts.mirrored) >= bar)


def confidence_sequence(counts: Counts, error: float) -> Interval:
    """Where success(A) - success(B) lies: holds for all numbers of pairs at once with probability 1 - `error`."""
    bar = log_threshold(error)
    return Interval(_lowest(counts, bar), -_lowest(counts.mirrored, bar))


def _lowest(counts: Counts, bar: float) -> float:
    """The largest mean that is bet away; the wealth falls as the mean rises."""
    low, high = -1.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if log_wealth(counts, middle) >= bar:
            low = middle
        else:
            high = middle
    return round(low, 9) + 0.0


@cache
def needed_wins(error: float, num: int = _MOST_STEPS) -> NDArray[np.int64]:
    """By n, pairs that tell the policies apart, the fewest that A must win for a verdict; n + 1 where none is enough.

    int [num + 1].
    """
    bar = log_threshold(error)
    ups, downs = np.log1p(_BETS), np.log1p(-_BETS)
    found = np.zeros(num + 1, dtype=np.int64)
    wins = 0
    for n in range(num + 1):
        wins = min(wins, n)
        while wins <= n and _log_sum(wins * ups + (n - wins) * downs + _LOG_SHARES) < bar:
            wins += 1
        found[n] = wins
    return found


@dataclass(frozen=True)
class Forecast:
    """Further pairs until a verdict, if it goes on as observed. likely: in half of the cases it takes no more; most:
    in nine of ten. None: more than `limit`."""

    likely: int | None
    most: int | None
    limit: int


def forecast(counts: Counts, error: float) -> Forecast | None:
    """How many more pairs a verdict takes, if pairs tell the policies apart as often as until now, and the next of
    these is A's with the chance that those before it suggest, so that how little is known counts, too (Jeffreys'
    prior).

    None where no pair has told them apart.
    """
    num_apart = counts.only_a + counts.only_b
    if num_apart == 0:
        return None
    decided = _decided_by(counts, error)
    apart = num_apart / counts.num_pairs

    def pairs(share: float) -> int | None:
        steps = int(np.searchsorted(decided, share))
        return None if steps == len(decided) else math.ceil(steps / apart)

    return Forecast(pairs(0.5), pairs(0.9), math.floor((len(decided) - 1) / apart))


def _decided_by(counts: Counts, error: float) -> NDArray[np.float64]:
    """By k, the probability of a verdict within k more pairs that tell the policies apart.

    `row` holds the probabilities of how many A has won and nothing is decided.
    """
    needed = needed_wins(error)
    start = counts.only_a + counts.only_b
    num = max(1, len(needed) - start)
    row = np.zeros(num + 1)
    row[0] = 1.0
    found = np.zeros(num)
    for k in range(num):
        n = start + k
        wins = counts.only_a + np.arange(k + 1)
        over = (wins >= needed[n]) | (n - wins >= needed[n])
        found[k] = found[k - 1] + float(row[: k + 1][over].sum()) if k else float(over[0])
        row[: k + 1][over] = 0.0
        chance = (wins + 0.5) / (n + 1)
        row[1 : k + 2] = np.append(row[1 : k + 1] * (1 - chance[1:]), 0.0) + row[: k + 1] * chance
        row[0] *= 1 - chance[0]
        if found[k] > 0.95:
            found[k:] = found[k]
            break
    return found
