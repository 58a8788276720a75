"""What the trainer asks of an algorithm, whichever it is: phases, updates, state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import nn

from chunkrl.data.collection import ChunkData
from chunkrl.models.policy import PolicyModel
from chunkrl.progress import Progress, silent
from chunkrl.types import ChunkTransition


@dataclass(frozen=True)
class Histogram:
    """A distribution: counts int [n] of the values between neighbouring edges float [n + 1], increasing."""

    counts: tuple[int, ...]
    edges: tuple[float, ...]

    @staticmethod
    def of(values: np.ndarray, num_bins: int = 40) -> Histogram:
        """The histogram of the finite ones of `values` [...]; all counts are 0 where there is none."""
        values = np.asarray(values, dtype=np.float64)
        counts, edges = np.histogram(values[np.isfinite(values)], bins=num_bins)
        return Histogram(tuple(counts.tolist()), tuple(edges.tolist()))


Metrics = dict[str, float | Histogram]
"""Metrics by name. Scalars of `update` are averaged over the interval between two records; a histogram is recorded as
it comes, so give it where something changes as a whole (the data is labelled), not at every update."""


def only_finite(metrics: Metrics) -> Metrics:
    """Without the scalars that are not finite. For numbers that may have no meaning, as the rank correlation of a
    constant: `Algorithm.update` returns what must stop the run."""
    return {k: v for k, v in metrics.items() if isinstance(v, Histogram) or math.isfinite(v)}


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own batches.

    name: shown in progress and metrics. num_updates: updates. subset: positions that may be drawn, None all.
    next_observation: whether batches must carry x_{t+k}.
    batch_multiple: batches per update, end to end in one (for critic updates between policy updates).
    num_passes: times that the same batches come, one after the other; num_updates is of all of them.
    """

    name: str
    num_updates: int
    subset: np.ndarray | None = None
    next_observation: bool = True
    batch_multiple: int = 1
    num_passes: int = 1


class Algorithm(Protocol):
    """A learner over chunk transitions."""

    policy: PolicyModel

    def phases(self) -> tuple[Phase, ...]:
        """The phases in order; constant over the run."""
        ...

    def start_phase(self, name: str, progress: Progress = silent) -> Metrics:
        """Called before a phase's first update (not when resuming within it): may label the data."""
        ...

    def update(self, name: str, batch: ChunkTransition) -> Metrics:
        """One update in phase `name`; returns finite scalars, or non-finite ones that stop the run."""
        ...

    def grow(self, data: ChunkData) -> Metrics:
        """Trains on `data` from now: episodes have come and others gone, and the rest are as they were
        (`chunkrl.data.identity`). Raises ChunkRLError where the algorithm needs data that stay."""
        ...

    def take_networks(self, state: dict[str, Any]) -> None:
        """Begins with the networks of another run, whose `state_dict` this is: policy, values and moments, but
        neither labels nor progress; learning rates begin again."""
        ...

    def deployed(self) -> AbstractContextManager[None]:
        """Inside, `policy` holds the weights to deploy (their average, where the algorithm keeps one)."""
        ...

    def held_out_rank_correlation(self) -> float | None:
        """How well values rank episodes that they never saw, over the last batches of their training; None where no
        values learn, or none is known yet. For people to look at: nothing depends on it."""
        ...

    def trained_networks(self) -> Mapping[str, nn.Module]:
        """Everything that has parameters, by what it is: the policy, V, Q, their averages."""
        ...

    def rehearse(self, num_starts: int) -> float:
        """Puts labels that nothing learned in the place of those from trained values, so that the phases after them
        can be tried out without labelling all data; the algorithm is of no other use then.

        Returns the seconds that labelling a start takes, measured on `num_starts`; 0 where values label nothing.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything an interrupted run needs: networks, optimisers, labels; nested dicts of tensors and plain
        JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, strict; attaches its labels to the data set again."""
        ...
