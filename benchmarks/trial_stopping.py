"""When `chunkrl trial` stops, by simulation: wrong decisions with equal policies, and trials saved against a fixed
number.

    python -m benchmarks.trial_stopping            # the tables of docs/results.md, about a minute

Pairs of trials of two policies, success independent within a pair (a robot whose scene is set up again) or with a
part of the initial states that decide alone (`shared`). Beside chunkrl's rule: a fixed number of pairs and the exact
McNemar test; the same test looked at after every pair, as an impatient person would; and risk that is spent evenly
over a largest number of pairs, the idea of STEP (D. Snyder et al., Is Your Imitation Learning Policy Better than
Mine?, RSS 2025), here in its plainest form: on the pairs that tell the policies apart, where STEP itself works with
both success counts and chooses its regions by optimisation. It is simulated on a fifth of the runs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chunkrl.statistics import mcnemar_p_value
from chunkrl.trial.evidence import needed_wins

ERROR = 0.05
EQUAL = (0.1, 0.3, 0.5, 0.7, 0.9)
DIFFERENT = ((0.5, 0.95), (0.5, 0.8), (0.5, 0.7), (0.5, 0.6), (0.8, 0.95), (0.9, 0.97), (0.1, 0.3))


@dataclass(frozen=True)
class Stops:
    """decided: int [runs], 1 and -1 for A and B, 0 for neither. pairs: int [runs], when it ended."""

    decided: NDArray[np.int64]
    pairs: NDArray[np.int64]


def draw(
    rates: tuple[float, float], num_runs: int, num_pairs: int, rng: np.random.Generator, shared: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """only_a and only_b after every pair, int [runs, num_pairs]. shared: the chance that one draw decides both."""
    first, second = rng.random((2, num_runs, num_pairs))
    second = np.where(rng.random((num_runs, num_pairs)) < shared, first, second)
    a, b = first < rates[0], second < rates[1]
    return np.cumsum(a & ~b, axis=1), np.cumsum(b & ~a, axis=1)


def cut(
    counts: tuple[NDArray[np.int64], NDArray[np.int64]], num_runs: int, num_pairs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first pairs of the first runs."""
    return counts[0][:num_runs, :num_pairs], counts[1][:num_runs, :num_pairs]


def by_bars(only_a: NDArray[np.int64], only_b: NDArray[np.int64], needed: NDArray[np.int64]) -> Stops:
    """The first pair at which one side has the wins that `needed` asks of so many pairs."""
    bars = needed[only_a + only_b]
    return _first(only_a >= bars, only_b >= bars)


def _first(for_a: NDArray[np.bool_], for_b: NDArray[np.bool_]) -> Stops:
    over = for_a | for_b
    at = np.where(over.any(axis=1), over.argmax(axis=1), over.shape[1] - 1)
    rows = np.arange(len(at))
    return Stops(for_a[rows, at].astype(np.int64) - for_b[rows, at], at + 1)


def mcnemar_bars(num: int, error: float = ERROR) -> NDArray[np.int64]:
    """By n, the fewest wins with which the exact test rejects."""
    found = np.zeros(num + 1, dtype=np.int64)
    wins = 0
    for n in range(num + 1):  # more pairs never need fewer wins
        wins = max(wins, n // 2 + 1)
        while wins <= n and mcnemar_p_value(wins, n - wins) > error:
            wins += 1
        found[n] = wins
    return found


def evenly_spent(only_a: NDArray[np.int64], only_b: NDArray[np.int64], error: float = ERROR) -> Stops:
    """Risk spent evenly over the pairs: after t of T at most error * t / T under equal policies, given which pairs
    tell them apart; the most lopsided counts go first."""
    num_runs, num_pairs = only_a.shape
    row = np.zeros((num_runs, num_pairs + 2))  # of how many A has won, while nothing is decided
    row[:, 0] = 1.0
    spent = np.zeros(num_runs)
    apart = np.diff(only_a + only_b, axis=1, prepend=0).astype(bool)
    for_a, for_b = np.zeros_like(apart), np.zeros_like(apart)
    places = np.arange(num_pairs + 2)
    for t in range(num_pairs):
        moved = row / 2
        moved[:, 1:] += row[:, :-1] / 2
        row = np.where(apart[:, t, None], moved, row)
        n = only_a[:, t] + only_b[:, t]
        tail = row[:, ::-1].cumsum(axis=1)[:, ::-1]  # of at least w wins
        allowed = (error * (t + 1) / num_pairs - spent) / 2
        bar = np.maximum((tail > allowed[:, None]).sum(axis=1), n // 2 + 1)
        over = (places >= bar[:, None]) | (places <= (n - bar)[:, None])
        spent += (row * over).sum(axis=1)
        row = np.where(over, 0.0, row)
        for_a[:, t], for_b[:, t] = only_a[:, t] >= bar, only_b[:, t] >= bar
    return _first(for_a, for_b)


def fixed_pairs(
    rates: tuple[float, float], power: float, bars: NDArray[np.int64], rng: np.random.Generator
) -> int:
    """The fewest pairs with which the exact McNemar test finds the better one with probability `power`."""
    only_a, only_b = draw(rates, 4000, len(bars) - 1, rng)
    found = (only_b >= bars[only_a + only_b]).mean(axis=0)
    reached = np.flatnonzero(found >= power)
    return int(reached[0]) + 1 if reached.size else -1


def equal_table(num_runs: int, num_pairs: int, seed: int) -> list[dict[str, float]]:
    """Wrong decisions of equal policies, by base rate: a row each, for independent and for shared initial states."""
    rows = []
    peeking = mcnemar_bars(num_pairs)
    for shared in (0.0, 0.7):
        for rate in EQUAL:
            rng = np.random.default_rng([seed, round(100 * rate), round(100 * shared)])
            counts = draw((rate, rate), num_runs, num_pairs, rng, shared)
            short = cut(counts, num_runs // 5, 200)
            row = {"rate": rate, "shared": shared}
            row["chunkrl"] = wrong(by_bars(*counts, needed_wins(ERROR)))
            row["peeking"] = wrong(by_bars(*counts, peeking))
            row["evenly_spent_200"] = wrong(evenly_spent(*short))
            rows.append(row)
    return rows


def wrong(stops: Stops) -> float:
    """The share of runs in which something was claimed."""
    return float((stops.decided != 0).mean())


def different_table(num_runs: int, num_pairs: int, seed: int) -> list[dict[str, float]]:
    """Pairs until a decision where the second policy is better, against the fixed number with 90 % power."""
    rows = []
    bars = mcnemar_bars(num_pairs)
    for rates in DIFFERENT:
        rng = np.random.default_rng([seed, *(round(100 * rate) for rate in rates)])
        fixed = fixed_pairs(rates, 0.9, bars, rng)
        counts = draw(rates, num_runs, num_pairs, rng)
        stops = by_bars(*counts, needed_wins(ERROR))
        short = cut(counts, num_runs // 5, 200)
        ours, theirs = by_bars(*short, needed_wins(ERROR)), evenly_spent(*short)
        within = by_bars(*cut(counts, num_runs, fixed), needed_wins(ERROR))
        rows.append(
            {
                "old": rates[0],
                "new": rates[1],
                "fixed_90": fixed,
                "mean": float(stops.pairs.mean()),
                "median": float(np.median(stops.pairs)),
                "ninth_decile": float(np.quantile(stops.pairs, 0.9)),
                "right": float((stops.decided == -1).mean()),
                "wrong": float((stops.decided == 1).mean()),
                "right_within_fixed": float((within.decided == -1).mean()),
                "mean_200": float(ours.pairs.mean()),
                "right_200": float((ours.decided == -1).mean()),
                "evenly_mean_200": float(theirs.pairs.mean()),
                "evenly_right_200": float((theirs.decided == -1).mean()),
            }
        )
    return rows


def markdown(equal: list[dict[str, float]], different: list[dict[str, float]]) -> str:
    """Both tables."""
    lines = [
        "| success of both | states shared | chunkrl | McNemar after every pair | risk spent evenly, 200 pairs |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['rate']:g} | {row['shared']:g} | {row['chunkrl']:.1%} | {row['peeking']:.1%} | "
        f"{row['evenly_spent_200']:.1%} |"
        for row in equal
    ]
    lines += [
        "",
        "| old, new | fixed, 90 % | mean | median | 9 of 10 within | right | wrong | saved | at most 200: mean, "
        "right | risk spent evenly: mean, right |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['old']:g}, {row['new']:g} | {row['fixed_90']} | {row['mean']:.0f} | {row['median']:.0f} | "
        f"{row['ninth_decile']:.0f} | {row['right']:.1%} | {row['wrong']:.2%} | "
        f"{1 - row['mean'] / row['fixed_90']:+.0%} | {row['mean_200']:.0f}, {row['right_200']:.0%} | "
        f"{row['evenly_mean_200']:.0f}, {row['evenly_right_200']:.0%} |"
        for row in different
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs both simulations and prints their tables."""
    parser = argparse.ArgumentParser(description="When chunkrl trial stops, by simulation")
    parser.add_argument("--runs", type=int, default=5000, help="simulated trials of each row")
    parser.add_argument(
        "--equal-pairs", type=int, default=500, help="pairs after which equal policies end undecided"
    )
    parser.add_argument(
        "--pairs", type=int, default=1500, help="pairs after which different policies end undecided"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON of all numbers")
    given = parser.parse_args()
    equal = equal_table(given.runs, given.equal_pairs, given.seed)
    different = different_table(given.runs, given.pairs, given.seed)
    if given.output is not None:
        content = {"runs": given.runs, "seed": given.seed, "equal": equal, "different": different}
        given.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(markdown(equal, different))


if __name__ == "__main__":
    main()
