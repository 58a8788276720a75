"""How fast a policy succeeds: part of what reinforcement learning gains, which the success rate does not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chunkrl.errors import ChunkRLError

MEDIAN, PER_1000 = "median steps to success", "successes per 1,000 steps"  # heads of tables


@dataclass(frozen=True)
class Speed:
    """median_steps: environment steps to success, of the episodes that succeed; None where none does.
    per_1000_steps: successes per 1,000 environment steps of all episodes, those that fail included.

    The median is over the states that the policy solves: one that solves more hard states may have the longer one.
    """

    median_steps: float | None
    per_1000_steps: float

    @classmethod
    def of(cls, success: NDArray[np.bool_], num_steps: NDArray[np.integer]) -> Speed:
        """The speed of episodes, arrays of one shape; an episode that succeeds ends there, so its steps are those to
        success.

        Raises:
            ChunkRLError: other shapes, no episode, or an episode without a step.
        """
        if success.shape != num_steps.shape or success.size == 0 or num_steps.min() < 1:
            raise ChunkRLError(
                f"steps of episodes must be at least 1, one number for each of success {list(success.shape)}, got "
                f"{list(num_steps.shape)}" + (f", least {num_steps.min()}" if num_steps.size else "")
            )
        lengths = num_steps[success.astype(bool)]
        return cls(
            float(np.median(lengths)) if lengths.size else None, float(1000 * lengths.size / num_steps.sum())
        )

    @classmethod
    def from_json(cls, found: Mapping[str, float | None]) -> Speed | None:
        """What `speed_json` was given."""
        rate = found["successes_per_1000_steps"]
        return None if rate is None else cls(found["median_steps_to_success"], rate)


def speed_cells(speed: Speed | None) -> tuple[str, str]:
    """Both numbers for a table, under `MEDIAN` and `PER_1000`; empty where steps are not known, as in results of
    before they were kept."""
    if speed is None:
        return "", ""
    median = "none" if speed.median_steps is None else f"{speed.median_steps:g}"
    return median, f"{speed.per_1000_steps:.1f}"


def speed_json(speed: Speed | None) -> dict[str, float | None]:
    """Both numbers as results files name them; null where steps are not known."""
    return {
        "median_steps_to_success": None if speed is None else speed.median_steps,
        "successes_per_1000_steps": None if speed is None else speed.per_1000_steps,
    }
