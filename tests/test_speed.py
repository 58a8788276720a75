"""Steps to success, successes per 1,000 steps and per hour."""

import numpy as np
import pytest

from benchmarks.speed_tables import speed_of, speed_table
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.speed import (
    Episodes,
    Speed,
    _weighted_medians,
    measured_speed,
    point_json,
    speed_cells,
    speed_difference,
    speed_json,
)
from chunkrl.report.tables import Cell, speed_difference_columns
from chunkrl.statistics import Estimate, Interval

SUCCESS, STEPS = np.array([True, False, True, True]), np.array([40, 150, 60, 50])


def test_failures_count_for_the_rate_alone() -> None:
    speed = Speed.of(SUCCESS, STEPS)
    assert speed == Speed(50.0, 1000 * 3 / 300)
    assert speed_cells(speed) == ("50", "10.0", "")
    assert Speed.from_json(point_json(speed)) == speed
    # two training seeds as rows are episodes alike: 40, 60, 50 and 44, 154, 54
    both = Speed.of(np.stack([SUCCESS, SUCCESS[::-1]]), np.stack([STEPS, STEPS + 4]))
    assert both == Speed(52.0, 1000 * 6 / 616)


def test_no_success_and_steps_that_are_not_known() -> None:
    none = Speed.of(np.zeros(4, dtype=bool), STEPS)
    assert none == Speed(None, 0.0) and speed_cells(none) == ("none", "0.0", "")
    assert Speed.from_json(point_json(none)) == none
    assert speed_cells(None) == ("", "", "") and Speed.from_json(point_json(None)) is None


def test_steps_that_do_not_fit() -> None:
    for success, steps in ((SUCCESS, STEPS[:3]), (SUCCESS[:0], STEPS[:0]), (SUCCESS, STEPS * 0)):
        with pytest.raises(ChunkRLError, match=r"steps of episodes must be at least 1"):
            Speed.of(success, steps)


def test_benchmarks_read_records_of_before_steps_were_kept() -> None:
    new = {"success": {"a": [1, 0], "b": [0, 1]}, "num_steps": {"a": [30, 50], "b": None}}  # b did not train
    old = {"success": {"a": [1, 1]}}
    assert speed_of([new], "a") == {"median_steps_to_success": 30.0, "successes_per_1000_steps": 12.5}
    unknown = dict.fromkeys(("median_steps_to_success", "successes_per_1000_steps"))
    assert speed_of([new, old], "a") == speed_of([new], "b") == unknown
    places = {"push": {"a": speed_of([new], "a"), "b": unknown}}
    assert speed_table(places, ("a", "b"))[2:] == ["| a | 30; 12.5 |", "| b |  |"]


def test_intervals_in_closed_form() -> None:
    # both successes and failures take 10 steps: the rate is the success rate of a resample, by 100
    success = np.arange(10) < 6
    speed = measured_speed([Episodes(success, np.full(10, 10))], fps=50.0)
    assert (speed.median_steps, speed.per_1000_steps) == (10.0, 60.0)
    assert speed.median_interval == Interval(10.0, 10.0)
    # Binomial(10, .6): P(X <= 2) = .0123, P(X <= 3) = .055; P(X >= 9) = .046, P(X >= 10) = .006
    assert speed.per_1000_interval == Interval(30.0, 90.0)
    # 50 steps a second are 180 thousand in an hour
    assert speed.per_hour == pytest.approx(60 * 180)
    assert speed.per_hour_interval == Interval(30.0 * 180, 90.0 * 180)
    assert speed_cells(speed) == ("10 [10, 10]", "60.0 [30.0, 90.0]", "10,800 [5,400, 16,200]")
    found = speed_json(speed)
    assert found["successes_per_1000_steps_interval"] == [30.0, 90.0]
    assert found["successes_per_hour"] == pytest.approx(10800)


def test_a_resampled_median_is_numpys() -> None:
    generator = np.random.default_rng(3)
    values, counts = generator.integers(1, 30, 9), generator.integers(0, 3, (50, 9))
    counts[0] = 0
    found = _weighted_medians(values, counts)
    assert np.isnan(found[0])
    assert found[1:].tolist() == [np.median(np.repeat(values, row)) for row in counts[1:]]


def test_training_seeds_are_drawn_before_states() -> None:
    # one seed always succeeds, one never: whichever states are drawn, a resample has 0, 1 or 2 good seeds of 2
    success = np.stack([np.ones(50, dtype=bool), np.zeros(50, dtype=bool)])
    speed = measured_speed([Episodes(success, np.full((2, 50), 10))])
    assert speed.per_1000_interval == Interval(0.0, 100.0)
    pooled = measured_speed([Episodes(success.ravel(), np.full(100, 10))])
    assert pooled.per_1000_interval is not None and pooled.per_1000_interval.low > 30


def test_a_difference_in_speed_is_paired() -> None:
    steps = np.arange(20, 60)
    good = np.ones(40, dtype=bool)
    slower = Episodes(good, steps + 5)
    found = speed_difference([Episodes(good, steps)], [slower], fps=10.0)
    # every state is 5 steps faster, whichever are drawn; states differ by far more
    assert found.steps_where_both == Estimate(-5.0, Interval(-5.0, -5.0))
    assert found.median_steps == Estimate(-5.0, Interval(-5.0, -5.0))
    gain = 1000 * 40 / steps.sum() - 1000 * 40 / (steps + 5).sum()
    assert found.per_1000_steps.value == pytest.approx(gain) and found.per_1000_steps.interval.low > 0
    assert found.per_hour is not None and found.per_hour.value == pytest.approx(36 * gain)
    # where one solves nothing there is no median, and a rate all the same
    none = speed_difference([Episodes(~good, steps)], [slower])
    assert none.median_steps is None and none.steps_where_both is None and none.per_hour is None
    assert none.per_1000_steps.value < 0
    with pytest.raises(ChunkRLError, match="same tasks"):
        speed_difference([slower], [Episodes(good[:3], steps[:3])])


def test_columns_of_differences_are_sorted_by_their_numbers() -> None:
    """As texts, +90 would stand above +1,000."""
    steps = np.arange(20, 60)
    good = np.ones(40, dtype=bool)
    found = speed_difference([Episodes(good, steps)], [Episodes(good, steps + 5)], fps=10.0)
    both, median, per_1000, per_hour = speed_difference_columns(found).values()
    assert (both.text, both.order) == ("−5 [−5, −5]", -5.0) and median == both
    assert found.per_hour is not None
    assert (per_1000.order, per_hour.order) == (found.per_1000_steps.value, found.per_hour.value)
    assert list(speed_difference_columns(None).values()) == [Cell("")] * 4


def test_rates_that_are_none() -> None:
    for fps in (0.0, -1.0, float("nan")):
        with pytest.raises(ChunkRLError, match="control rate is above 0"):
            measured_speed([Episodes(SUCCESS, STEPS)], fps)
