"""What a trial found, as records, as JSON and in words. Who acted when stands here: it is written when nobody
acts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.evaluation.evaluation_result import RESULT_FILE, Rate, rate_json, rate_of
from chunkrl.evaluation.speed import (
    MEDIAN,
    PER_1000,
    PER_HOUR,
    Episodes,
    SpeedDifference,
    difference_json,
    speed_cells,
    speed_difference,
)
from chunkrl.files.atomic import write_text
from chunkrl.statistics import Interval
from chunkrl.trial.evidence import (
    Counts,
    Forecast,
    confidence_sequence,
    forecast,
    log_threshold,
    log_wealth,
)
from chunkrl.trial.records import Attempt, TrialSettings
from chunkrl.trial.standing import Comparison, Standing, Trial

SIDECAR = "meta/trial.json"  # in the episodes' data set
_VERSION = 1


@dataclass(frozen=True)
class Compared:
    """The first policy against another one.

    policy, other: names. history: counts after each pair. verdict: 1: the first is better, -1: the other is, 0: not
    decided. interval: of the difference in success, valid at any time. forecast: None where nothing can be said, or
    it is decided. speed: None before the first pair.
    """

    policy: str
    other: str
    history: tuple[Counts, ...]
    error: float
    verdict: int
    interval: Interval
    forecast: Forecast | None
    speed: SpeedDifference | None

    @property
    def counts(self) -> Counts:
        """The counts of all pairs."""
        return self.history[-1] if self.history else Counts()

    @property
    def verdict_told(self) -> str:
        """The verdict in words."""
        better, worse = (self.policy, self.other) if self.verdict > 0 else (self.other, self.policy)
        return f"{better} is better than {worse}" if self.verdict else "not decided"

    def evidence(self, counts: Counts | None = None) -> tuple[float, float]:
        """log10 of the evidence that the first policy is better, and that the other is; claimed at `bar`."""
        counts = self.counts if counts is None else counts
        return log_wealth(counts) / math.log(10), log_wealth(counts.mirrored) / math.log(10)

    @property
    def bar(self) -> float:
        """log10 of the evidence that a claim takes."""
        return log_threshold(self.error) / math.log(10)


@dataclass(frozen=True)
class TrialResult:
    """A trial up to now, of the pairs that are complete: who acted in half of one would tell who acts next.

    rates: of each policy, None before its first trial. trials: those that count, in order. num_pending: of the pair
    that is not complete. num_neither: attempts that count as neither, by outcome.
    """

    settings: TrialSettings
    decided: bool
    num_pairs: int
    rates: tuple[Rate | None, ...]
    compared: tuple[Compared, ...]
    trials: tuple[Trial, ...]
    num_pending: int
    num_neither: dict[str, int]
    crashes: tuple[str, ...]

    @classmethod
    def of(cls, settings: TrialSettings, standing: Standing, attempts: Sequence[Attempt]) -> TrialResult:
        """The result of what there is."""
        complete = [t for t in standing.trials if t.attempt.pair < standing.num_pairs]
        own = [[t for t in complete if t.policy == i] for i in range(len(settings.policies))]
        neither = [attempt for attempt in attempts if not attempt.counts]
        return cls(
            settings,
            standing.decided,
            standing.num_pairs,
            tuple(_rate(trials, settings.fps) for trials in own),
            tuple(_compared(settings, comparison, own) for comparison in standing.comparisons),
            tuple(complete),
            len(standing.trials) - len(complete),
            dict(Counter(attempt.outcome for attempt in neither)),
            tuple(dict.fromkeys(attempt.note for attempt in neither if attempt.note)),
        )

    def name(self, policy: int) -> str:
        """The name of a policy."""
        return self.settings.policies[policy].name


def _rate(trials: Sequence[Trial], fps: float) -> Rate | None:
    return rate_of(*_arrays(trials), fps) if trials else None


def _arrays(trials: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray]:
    """success [n] and num_steps [n]."""
    return (
        np.array([trial.success for trial in trials], dtype=bool),
        np.array([max(trial.attempt.num_steps, 1) for trial in trials], dtype=np.int64),
    )


def _compared(settings: TrialSettings, comparison: Comparison, own: Sequence[Sequence[Trial]]) -> Compared:
    error, num_pairs = settings.error_each, len(comparison.history)
    first, other = own[0][:num_pairs], own[comparison.other][:num_pairs]
    speed = None
    if num_pairs:
        speed = speed_difference([Episodes(*_arrays(first))], [Episodes(*_arrays(other))], settings.fps)
    return Compared(
        settings.policies[0].name,
        settings.policies[comparison.other].name,
        tuple(comparison.history),
        error,
        comparison.verdict,
        confidence_sequence(comparison.counts, error),
        None if comparison.verdict else forecast(comparison.counts, error),
        speed,
    )


def told_forecast(found: Compared) -> str:
    """How many more pairs a verdict would take, in words."""
    if found.forecast is None:
        return "how many more pairs a verdict takes cannot be said: no pair has told the two apart"
    likely, most, limit = found.forecast.likely, found.forecast.most, found.forecast.limit
    if likely is None:
        return f"if it goes on as observed, a verdict takes more than {limit} further pairs"
    within = f"more than {limit}" if most is None else str(most)
    return f"if it goes on as observed, a verdict takes about {likely} further pairs (in nine of ten cases {within})"


def told_pending(number: int) -> str:
    """What of a pair that is not complete is kept, in words."""
    return (
        f"{number} {'trial' if number == 1 else 'trials'} of a pair that is not complete will count with it, and "
        "nothing here tells who acted"
    )


def format_result(result: TrialResult) -> str:
    """Every policy's success and speed, then every comparison, for people."""
    lines = []
    for entry, rate in zip(result.settings.policies, result.rates, strict=True):
        if rate is None:
            lines.append(f"{entry.name}: no trial yet")
            continue
        median, per_1000, per_hour = speed_cells(rate.speed)
        lines.append(
            f"{entry.name}: success {rate.num_success}/{rate.num_episodes} = {rate.rate:.2f}, {MEDIAN} {median}, "
            f"{PER_1000} {per_1000}, {PER_HOUR} {per_hour}"
        )
    for found in result.compared:
        counts, interval = found.counts, found.interval
        lines.append(
            f"{found.policy} against {found.other}: {found.verdict_told} after {counts.num_pairs} pairs "
            f"({counts.only_a} : {counts.only_b} won alone); difference in success "
            f"{100 * counts.difference if counts.num_pairs else 0:+.1f} points, {1 - found.error:.3g} confidence "
            f"sequence [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
        )
        if not found.verdict:
            lines.append(told_forecast(found))
    if result.num_pending:
        lines.append(told_pending(result.num_pending))
    if result.num_neither:
        told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(result.num_neither.items()))
        lines.append(f"counted as neither and made again: {told}")
    lines += [f"a policy raised {note}" for note in result.crashes]
    return "\n".join(lines)


def to_json(result: TrialResult) -> dict[str, Any]:
    """What result.json holds; rates and differences are fractions, evidence is log10."""
    return {
        "version": _VERSION,
        "decided": result.decided,
        "num_pairs": result.num_pairs,
        "settings": asdict(result.settings),
        "policies": {
            entry.name: None if rate is None else rate_json(rate)
            for entry, rate in zip(result.settings.policies, result.rates, strict=True)
        },
        "comparisons": [_compared_json(found) for found in result.compared],
        "trials": [{**asdict(t.attempt), "policy": result.name(t.policy)} for t in result.trials],
        "pending": result.num_pending,
        "neither": result.num_neither,
        "crashes": list(result.crashes),
    }


def _compared_json(found: Compared) -> dict[str, Any]:
    counts = found.counts
    better, worse = found.evidence()
    return {
        "policy": found.policy,
        "against": found.other,
        "verdict": {1: "better", -1: "worse", 0: "not decided"}[found.verdict],
        **asdict(counts),
        "difference": counts.difference if counts.num_pairs else None,
        "confidence_sequence": [found.interval.low, found.interval.high],
        "error": found.error,
        "evidence_better": better,
        "evidence_worse": worse,
        "evidence_needed": found.bar,
        "further_pairs": None if found.forecast is None else asdict(found.forecast),
        "speed": difference_json(found.speed),
    }


def write_result(root: Path, result: TrialResult) -> Path:
    """Writes `result.json`, whole or not at all."""
    path = root / RESULT_FILE
    write_text(path, json.dumps(to_json(result), indent=2, allow_nan=False) + "\n")
    return path


def write_sidecar(dataset: Path, result: TrialResult) -> None:
    """Says beside the recorded episodes which policy made each: `complementary_info.policy_version` is its number."""
    content = {
        "policies": [asdict(entry) for entry in result.settings.policies],
        "episodes": {t.attempt.episode_id: result.name(t.policy) for t in result.trials},
    }
    write_text(dataset / SIDECAR, json.dumps(content, indent=1) + "\n")
