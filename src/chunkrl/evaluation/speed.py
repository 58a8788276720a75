"""How fast a policy succeeds: part of what reinforcement learning gains, which the success rate does not show.

Intervals are of a bootstrap over what success is resampled over: initial states, and training seeds before them where
there are several. A percentile bootstrap of a median of few successes is narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chunkrl.errors import ChunkRLError
from chunkrl.statistics import Estimate, Interval, percentile_interval, resampled_counts

MEDIAN, PER_1000 = "median steps to success", "successes per 1,000 steps"  # heads of tables
PER_HOUR = "successes per hour"
_NUM_RESAMPLES = 2_000  # of the ends of an interval, 50 on each side
_COUNTS_PER_BLOCK = 2**22  # of a bootstrap, held at once


@dataclass(frozen=True)
class Speed:
    """median_steps: environment steps to success, of the episodes that succeed; None where none does.
    per_1000_steps: successes per 1,000 environment steps of all episodes, those that fail included.
    fps: control steps per second, for `per_hour`; None where they are not known.
    median_interval, per_1000_interval: 95 %; None where they were not computed, or nothing succeeds.

    The median is over the states that the policy solves: one that solves more hard states may have the longer one.
    """

    median_steps: float | None
    per_1000_steps: float
    fps: float | None = None
    median_interval: Interval | None = None
    per_1000_interval: Interval | None = None

    @classmethod
    def of(
        cls, success: NDArray[np.bool_], num_steps: NDArray[np.integer], fps: float | None = None
    ) -> Speed:
        """The speed of episodes, arrays of one shape; an episode that succeeds ends there, so its steps are those to
        success. Without intervals.

        Raises:
            ChunkRLError: other shapes, no episode, an episode without a step, or a rate that is not positive.
        """
        check_steps(success, num_steps, fps)
        lengths = num_steps[success.astype(bool)]
        median = float(np.median(lengths)) if lengths.size else None
        return cls(median, float(1000 * lengths.size / num_steps.sum()), fps)

    @property
    def per_hour(self) -> float | None:
        """Successes per hour in which the policy acts: the time between episodes is not counted."""
        return None if self.fps is None else self.per_1000_steps * _hours(self.fps)

    @property
    def per_hour_interval(self) -> Interval | None:
        """95 %."""
        if self.fps is None or self.per_1000_interval is None:
            return None
        return _times(self.per_1000_interval, _hours(self.fps))

    @classmethod
    def from_json(cls, found: Mapping[str, float | None]) -> Speed | None:
        """What `point_json` was given."""
        rate = found["successes_per_1000_steps"]
        return None if rate is None else cls(found["median_steps_to_success"], rate)


@dataclass(frozen=True)
class SpeedDifference:
    """What one policy is faster than another on the same initial states; negative steps are faster.

    median_steps: difference of the medians, each of the states that its policy solves; None where one solves none.
    steps_where_both: median of the differences on the states that both solve; None where there is none.
    per_1000_steps, per_hour: differences of the rates; per_hour is None where the control rate is not known.
    """

    median_steps: Estimate | None
    steps_where_both: Estimate | None
    per_1000_steps: Estimate
    per_hour: Estimate | None


@dataclass(frozen=True, eq=False)
class Episodes:
    """The episodes of one task. success: bool [num_seeds, n] or [n]; num_steps: int of that shape, to the success or
    the end."""

    success: NDArray[np.bool_]
    num_steps: NDArray[np.integer]

    def __post_init__(self) -> None:
        check_steps(self.success, self.num_steps)
        object.__setattr__(self, "success", np.atleast_2d(self.success).astype(bool))
        object.__setattr__(self, "num_steps", np.atleast_2d(self.num_steps))


def check_steps(success: NDArray[np.bool_], num_steps: NDArray[np.integer], fps: float | None = None) -> None:
    """Raises ChunkRLError where steps are not those of the episodes, or `fps` is not positive."""
    if success.shape != num_steps.shape or success.size == 0 or num_steps.min() < 1:
        raise ChunkRLError(
            f"steps of episodes must be at least 1, one number for each of success {list(success.shape)}, got "
            f"{list(num_steps.shape)}" + (f", least {num_steps.min()}" if num_steps.size else "")
        )
    if fps is not None and not (np.isfinite(fps) and fps > 0):
        raise ChunkRLError(f"fps is {fps}; a control rate is above 0")


def measured_speed(episodes: Sequence[Episodes], fps: float | None = None, seed: int = 0) -> Speed:
    """The speed of one method's episodes of all tasks together, with its intervals: training seeds are drawn first,
    then states, task by task. seed: of the resampling."""
    success, num_steps = _joined(episodes)
    speed = Speed.of(success, num_steps, fps)
    medians, rates = [], []
    for counts in _resampled(episodes, seed):
        medians.append(_weighted_medians(num_steps[success], counts[:, success]))
        rates.append(_rates(counts, success, num_steps))
    return replace(
        speed,
        median_interval=_interval(medians),
        per_1000_interval=_interval(rates) if success.any() else None,
    )


def speed_difference(
    ours: Sequence[Episodes], theirs: Sequence[Episodes], fps: float | None = None, seed: int = 0
) -> SpeedDifference:
    """`ours` against `theirs`, task by task on the same states and training seeds, which are drawn together.

    Raises:
        ChunkRLError: other numbers of tasks, seeds or states.
    """
    if [e.success.shape for e in ours] != [e.success.shape for e in theirs]:
        raise ChunkRLError("speeds are compared on the same tasks, states and numbers of seeds")
    (a, steps_a), (b, steps_b) = _joined(ours), _joined(theirs)
    both = a & b
    change = steps_a[both].astype(np.int64) - steps_b[both]
    medians, changes, rates = [], [], []
    for counts in _resampled(ours, seed):
        medians.append(
            _weighted_medians(steps_a[a], counts[:, a]) - _weighted_medians(steps_b[b], counts[:, b])
        )
        changes.append(_weighted_medians(change, counts[:, both]))
        rates.append(_rates(counts, a, steps_a) - _rates(counts, b, steps_b))
    speed_a, speed_b = Speed.of(a, steps_a), Speed.of(b, steps_b)
    per_1000 = _estimate(speed_a.per_1000_steps - speed_b.per_1000_steps, rates)
    assert per_1000 is not None
    median_a, median_b = speed_a.median_steps, speed_b.median_steps
    return SpeedDifference(
        median_steps=None
        if median_a is None or median_b is None
        else _estimate(median_a - median_b, medians),
        steps_where_both=_estimate(float(np.median(change)), changes) if both.any() else None,
        per_1000_steps=per_1000,
        per_hour=None
        if fps is None
        else Estimate(per_1000.value * _hours(fps), _times(per_1000.interval, _hours(fps))),
    )


def _hours(fps: float) -> float:
    """Thousands of control steps in an hour."""
    return 3.6 * fps


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(interval.low * factor, interval.high * factor)


def _joined(episodes: Sequence[Episodes]) -> tuple[NDArray[np.bool_], NDArray[np.integer]]:
    """success and num_steps of all tasks, [N] each."""
    return (
        np.concatenate([e.success.ravel() for e in episodes]),
        np.concatenate([e.num_steps.ravel() for e in episodes]),
    )


def _resampled(episodes: Sequence[Episodes], seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each episode of `_joined` is drawn, in blocks [size, N]."""
    shapes = [e.success.shape for e in episodes]
    total = sum(num_seeds * n for num_seeds, n in shapes)
    block = max(1, _COUNTS_PER_BLOCK // total)
    for seeds, states in resampled_counts(shapes, _NUM_RESAMPLES, seed, block):
        drawn = [(seeds[:, :, None] * per_task[:, None, :]).reshape(len(seeds), -1) for per_task in states]
        yield np.concatenate(drawn, axis=1)


def _rates(
    counts: NDArray[np.int64], success: NDArray[np.bool_], num_steps: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Successes per 1,000 steps of each resample."""
    return 1000 * (counts @ success.astype(np.int64)) / (counts @ num_steps.astype(np.int64))


def _weighted_medians(values: NDArray[np.integer], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The median of each resample [size]: values [n], each drawn counts [size, n] times; NaN where none is drawn."""
    if not values.size:
        return np.full(len(counts), np.nan)
    order = np.argsort(values, kind="stable")
    ordered, cumulated = values[order], counts[:, order].cumsum(axis=1)
    total = cumulated[:, -1:]
    # the two middle ones, which are one where their number is odd
    middle = [ordered[(cumulated >= rank).argmax(axis=1)] for rank in ((total + 1) // 2, total // 2 + 1)]
    return np.where(total[:, 0] > 0, (middle[0] + middle[1]) / 2, np.nan)


def _interval(blocks: Sequence[NDArray[np.float64]]) -> Interval | None:
    """The interval over the resamples that have the number; None where hardly any has it."""
    found = np.concatenate(blocks)
    found = found[np.isfinite(found)]
    if 2 * found.size < _NUM_RESAMPLES:
        return None
    return percentile_interval(np.round(found, 12) + 0.0)


def _estimate(value: float, blocks: Sequence[NDArray[np.float64]]) -> Estimate | None:
    interval = _interval(blocks)
    return None if interval is None else Estimate(value, interval)


def speed_cells(speed: Speed | None) -> tuple[str, str, str]:
    """The numbers for a table, under `MEDIAN`, `PER_1000` and `PER_HOUR`, with their intervals where they are known;
    empty where steps (or the control rate) are not known, as in results of before they were kept."""
    if speed is None:
        return "", "", ""
    median = "none" if speed.median_steps is None else f"{speed.median_steps:g}"
    if speed.median_interval is not None:
        low, high = (round(end, 1) for end in (speed.median_interval.low, speed.median_interval.high))
        median += f" [{low:g}, {high:g}]"
    per_1000 = _told(speed.per_1000_steps, speed.per_1000_interval, lambda value: f"{value:.1f}")
    per_hour = "" if speed.per_hour is None else _told(speed.per_hour, speed.per_hour_interval, _hourly)
    return median, per_1000, per_hour


def difference_cells(difference: SpeedDifference | None) -> tuple[str, str, str, str]:
    """The differences with their intervals: of steps where both succeed, of medians, of the rates per 1,000 steps and
    per hour; empty where one is not known."""
    if difference is None:
        return "", "", "", ""
    pairs = (
        (difference.steps_where_both, _steps),
        (difference.median_steps, _steps),
        (difference.per_1000_steps, lambda value: f"{value:+.1f}"),
        (difference.per_hour, lambda value: f"{value:+,.0f}" if abs(value) >= 100 else f"{value:+.1f}"),
    )
    both, median, per_1000, per_hour = (
        "" if estimate is None else _told(estimate.value, estimate.interval, form) for estimate, form in pairs
    )
    return both, median, per_1000, per_hour


def _steps(value: float) -> str:
    return f"{round(value, 1):+g}" if value else "0"


def _hourly(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _told(value: float, interval: Interval | None, form: Callable[[float], str]) -> str:
    told = form(value)
    return told if interval is None else f"{told} [{form(interval.low)}, {form(interval.high)}]"


def point_json(speed: Speed | None) -> dict[str, float | None]:
    """Median and rate as results files name them; null where steps are not known."""
    return {
        "median_steps_to_success": None if speed is None else speed.median_steps,
        "successes_per_1000_steps": None if speed is None else speed.per_1000_steps,
    }


def speed_json(speed: Speed | None) -> dict[str, float | list[float] | None]:
    """All numbers as results files name them; null where they are not known. `NAME_interval`: [low, high], 95 %."""
    intervals = {
        "median_steps_to_success": speed and speed.median_interval,
        "successes_per_1000_steps": speed and speed.per_1000_interval,
        "successes_per_hour": speed and speed.per_hour_interval,
    }
    points = point_json(speed) | {"successes_per_hour": speed and speed.per_hour}
    return {
        name: value
        for point, interval in intervals.items()
        for name, value in ((point, points[point]), (f"{point}_interval", _ends(interval)))
    }


def difference_json(difference: SpeedDifference | None) -> dict[str, dict[str, float | list[float]] | None]:
    """Every number of `SpeedDifference` -> {"difference": d, "interval": [low, high]}, null where it is not known."""
    names = ("median_steps", "steps_where_both", "per_1000_steps", "per_hour")
    return {name: _estimate_json(difference and getattr(difference, name)) for name in names}


def _estimate_json(estimate: Estimate | None) -> dict[str, float | list[float]] | None:
    if estimate is None:
        return None
    return {"difference": estimate.value, "interval": [estimate.interval.low, estimate.interval.high]}


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
