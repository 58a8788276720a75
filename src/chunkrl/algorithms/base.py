"""What a method is built of, and what it offers a run besides what the trainer asks (`training.algorithm`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from chunkrl.algorithms.best_of_n import QEnsemble
from chunkrl.algorithms.registry import Method
from chunkrl.data.collection import ChunkData
from chunkrl.models.policy import PolicyModel
from chunkrl.models.value_head import ValueHead
from chunkrl.training.algorithm import Algorithm
from chunkrl.training.config import OptimConfig

if TYPE_CHECKING:  # value_labels reports as `Metrics`
    from chunkrl.algorithms.value_labels import ValueLabels


class Networks(Protocol):
    """Builds the networks of one run, each call a fresh one from torch's global generator
    (`chunkrl.policies.family.PolicyFamily.networks`)."""

    def policy(self) -> PolicyModel:
        """pi(A | x)."""
        ...

    def value(self, head: ValueHead) -> nn.Module:
        """V(x): `prepare(observation)`, `outputs(prepared)` [B, O], `forward_prepared(prepared)` [B]."""
        ...

    def critic(self, num_critics: int, head: ValueHead) -> nn.Module:
        """Q(x, A): `prepare(observation)`, `outputs(prepared, actions)` [num_critics, B, O] or [.., B, N, O],
        `forward_prepared(prepared, actions)` [num_critics, B] or [.., B, N]."""
        ...


@dataclass(frozen=True)
class MethodInputs:
    """What a method is built of.

    settings: the run's `TrainConfig`; a method reads what its record names (`registry`). networks: builds them.
    optim, value_optim: of the policy, and of values and critics. num_updates: of the policy. value_updates: of the
    value phase. keep_values: values stay, to label data that grow. given: values of an earlier run on the same data.
    sample_weights: float [len], of every start; None: none are given.
    """

    method: Method
    settings: Any
    networks: Networks
    optim: OptimConfig
    value_optim: OptimConfig
    dataset: ChunkData
    device: torch.device
    num_updates: int
    value_updates: int
    keep_values: bool = False
    given: ValueLabels | None = None
    sample_weights: np.ndarray | None = None

    def networks_and_data(self) -> tuple[Networks, OptimConfig, ChunkData, int, torch.device]:
        """The arguments that all methods have first: networks, optim, dataset, seed, device."""
        return self.networks, self.optim, self.dataset, self.settings.seed, self.device

    def values(self) -> tuple[OptimConfig, ValueLabels | None]:
        """How values are trained, or those that stand in their place."""
        return self.value_optim, self.given


class ChunkAlgorithm(Algorithm, Protocol):
    """A learner over chunk transitions; it owns its networks and optimisers."""

    def q_ensemble(self) -> QEnsemble | None:
        """Q for best-of-N at action time; None where the algorithm trained none."""
        ...
