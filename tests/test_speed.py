"""Steps to success and successes per 1,000 steps."""

import numpy as np
import pytest

from benchmarks.speed_tables import speed_of, speed_table
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.speed import Speed, speed_cells, speed_json

SUCCESS, STEPS = np.array([True, False, True, True]), np.array([40, 150, 60, 50])


def test_failures_count_for_the_rate_alone() -> None:
    speed = Speed.of(SUCCESS, STEPS)
    assert speed == Speed(50.0, 1000 * 3 / 300)
    assert speed_cells(speed) == ("50", "10.0")
    assert Speed.from_json(speed_json(speed)) == speed
    # two training seeds as rows are episodes alike: 40, 60, 50 and 44, 154, 54
    both = Speed.of(np.stack([SUCCESS, SUCCESS[::-1]]), np.stack([STEPS, STEPS + 4]))
    assert both == Speed(52.0, 1000 * 6 / 616)


def test_no_success_and_steps_that_are_not_known() -> None:
    none = Speed.of(np.zeros(4, dtype=bool), STEPS)
    assert none == Speed(None, 0.0) and speed_cells(none) == ("none", "0.0")
    assert Speed.from_json(speed_json(none)) == none
    assert speed_cells(None) == ("", "") and Speed.from_json(speed_json(None)) is None


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
