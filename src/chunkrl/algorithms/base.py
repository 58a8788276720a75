"""What the trainer asks of an algorithm. It owns its networks and optimisers; the trainer never asks which it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from chunkrl.algorithms.best_of_n import QEnsemble
from chunkrl.models.policy import PolicyNetwork
from chunkrl.types import ChunkTransition

Metrics = dict[str, float]


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own batches.

    name: shown in progress and metrics. num_updates: updates. subset: positions that may be drawn, None all.
    next_observation: whether batches must carry x_{t+k}.
    """

    name: str
    num_updates: int
    subset: np.ndarray | None = None
    next_observation: bool = True


class Algorithm(Protocol):
    """A learner over chunk transitions."""

    policy: PolicyNetwork

    def phases(self) -> tuple[Phase, ...]:
        """The phases in order; constant over the run."""
        ...

    def start_phase(self, name: str) -> Metrics:
        """Called before a phase's first update (not when resuming within it): may label the data."""
        ...

    def update(self, name: str, batch: ChunkTransition) -> Metrics:
        """One update in phase `name`; returns finite scalars, or non-finite ones that stop the run."""
        ...

    def q_ensemble(self) -> QEnsemble | None:
        """Q for best-of-N at action time; None where the algorithm trained none."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything an interrupted run needs: networks, optimisers, labels; nested dicts of tensors and plain
        JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, strict; attaches its labels to the data set again."""
        ...
