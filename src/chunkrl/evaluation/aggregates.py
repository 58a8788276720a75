"""Aggregates over tasks and training seeds, by rliable (R. Agarwal et al., NeurIPS 2021), extra `evaluation`.

Scores are success rates [num_seeds, num_tasks]. The bootstrap is stratified: training seeds are drawn again within
each task, so that intervals speak of other seeds on these tasks. With one seed there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError, install_command
from chunkrl.statistics import Estimate, Interval

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class MethodAggregates:
    """mean: over seeds and tasks. iqm: interquartile mean, of the middle half of all seeds and tasks.
    optimality_gap: what is missing to 1, on average; less is better."""

    mean: Estimate
    iqm: Estimate
    optimality_gap: Estimate


@dataclass(frozen=True)
class Aggregates:
    """methods: by name. improvement: baseline -> P(a seed of the method beats one of its), mean over tasks."""

    methods: Mapping[str, MethodAggregates]
    improvement: Mapping[str, Estimate]


def _import_rliable() -> tuple[Any, Any]:
    try:
        from rliable import library, metrics  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("--aggregates", error.name or "rliable", "evaluation") from error
    except TypeError as error:  # arch 7, which rliable 1.2 needs, does not import beside pandas 3
        raise ChunkRLError(
            f"rliable cannot be imported ({error}): {install_command('evaluation')} gives versions that fit"
        ) from error
    return library, metrics


def aggregate(
    scores: Mapping[str, NDArray[np.float64]], method: str, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Aggregates:
    """Aggregates of every method, and `method` against each of the others.

    Args:
        scores: method -> float [num_seeds, num_tasks], success rates; at least two seeds, the same tasks.
        seed: of the resampling.

    Raises:
        MissingExtraError: rliable is not installed.
        ChunkRLError: fewer than two seeds, or other shapes.
    """
    for name, matrix in scores.items():
        if matrix.ndim != 2 or matrix.shape[0] < 2 or matrix.shape[1] != scores[method].shape[1]:
            raise ChunkRLError(
                f"{name}: aggregates need [at least two seeds, the tasks of all methods], got {list(matrix.shape)}"
            )
    library, metrics = _import_rliable()

    def estimate(function: Callable[..., float], data: Any) -> Estimate:
        state = np.random.get_state()
        np.random.seed(seed)  # rliable draws from numpy's global generator, whatever generator it is given
        try:
            point, interval = library.get_interval_estimates(
                {"it": data}, lambda *arrays: np.array([function(*arrays)]), reps=num_resamples
            )
        finally:
            np.random.set_state(state)
        low, high = np.round(interval["it"][:, 0], 12)
        return Estimate(float(point["it"][0]), Interval(float(low), float(high)))

    methods = {
        name: MethodAggregates(
            estimate(metrics.aggregate_mean, matrix),
            estimate(metrics.aggregate_iqm, matrix),
            estimate(metrics.aggregate_optimality_gap, matrix),
        )
        for name, matrix in scores.items()
    }
    improvement = {
        name: estimate(metrics.probability_of_improvement, [scores[method], matrix])
        for name, matrix in scores.items()
        if name != method
    }
    return Aggregates(methods, improvement)
