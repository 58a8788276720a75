"""The chunk-level document's objective to the letter (objective document), for comparisons.

L_Q with y = r + gamma^H V(x'), L_V towards E_{A~pi}[Q - log pi], weights exp(beta (Q - V)),
L = L_Q + lambda_V L_V + lambda_pi L_pi, for a Gaussian policy: alpha = 1, log pi summed over the chunk, one optimiser
of all, and nothing masked, clipped or standardised. It bootstraps past a success and from a time-out's last frame.
For training use `weighted` or `iql`, which repair it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chunkrl.algorithms import losses
from chunkrl.algorithms.base import MethodInputs
from chunkrl.algorithms.joint import JointConfig, JointMethod, shared_settings
from chunkrl.algorithms.weight_spread import LITERAL_CURE
from chunkrl.algorithms.weights import StartWeights, normalized
from chunkrl.data.collection import ChunkData
from chunkrl.errors import ChunkRLError
from chunkrl.models.policy import ImitationLoss
from chunkrl.training.algorithm import Metrics
from chunkrl.types import ChunkTransition


@dataclass(frozen=True)
class DocumentConfig(JointConfig):
    """alpha: temperature of -log pi in V's target (0 drops it)."""

    alpha: float = 1.0


class DocumentObjective(JointMethod):
    """The method of this module; see `DocumentConfig`."""

    config: DocumentConfig
    bootstraps_past_ends = True

    def _check(self, dataset: ChunkData) -> None:
        if self.config.alpha > 0 and not self.policy.has_log_prob:
            raise ChunkRLError(
                "the document's entropy term needs log pi, which only a Gaussian policy has: "
                "use --policy.kind gaussian, or --objective iql / cross_fitted for a flow policy"
            )
        if "candidates" in dataset.label_names:
            raise ChunkRLError(
                "candidate chunks need the expectile V of --objective iql: the document's V samples the policy"
            )

    def _ends(self, batch: ChunkTransition) -> tuple[torch.Tensor, torch.Tensor]:
        """gamma^H everywhere, and every row."""
        horizon_discount = self._dataset.gamma**self._dataset.critic_horizon
        return torch.full_like(batch.discount, horizon_discount), torch.ones_like(batch.critic_mask)

    def _value_target(self, now: Any, chunks: torch.Tensor) -> torch.Tensor | None:
        return None  # V learns from a chunk that the policy draws

    def _value_loss(
        self, value: torch.Tensor, target: torch.Tensor | None, now: Any, batch: ChunkTransition
    ) -> tuple[torch.Tensor, Metrics]:
        """The folds' sum of losses towards Q - log pi of a chunk drawn from the policy."""
        trains = self.value.trains_on(batch.labels["fold"])
        config, log_prob = self.config, None
        with torch.no_grad():
            chunk = self.policy.sample(batch.observation, 1)[:, 0]
            if config.alpha > 0:
                whole = torch.ones_like(batch.action_mask)
                log_prob = self.policy.log_prob(self.policy.prepare(batch.observation), chunk, whole)
        drawn, total = self._target_q(now, chunk), value.new_zeros(())
        for k in range(len(value)):
            # every fold's V stays within its own data: rows it may not see are left out of its mean
            rows = trains[k].nonzero().squeeze(-1)
            entropy = None if log_prob is None else log_prob[rows]
            total = total + losses.value_loss(value[k][rows], drawn[k][rows], entropy, config.alpha)
        return total, {} if log_prob is None else {"policy/log_prob": float(log_prob.mean())}

    def _weights(self, advantage: torch.Tensor, batch: ChunkTransition) -> tuple[torch.Tensor, Metrics]:
        return losses.advantage_weights(advantage, self.config.beta, None), {}

    def _start_weights(self, advantage: np.ndarray, rates: np.ndarray | None) -> StartWeights:
        exponent = self.config.beta * advantage.astype(np.float64)
        weight, size = normalized(np.exp(exponent - exponent.max()), rates)
        return StartWeights.of(weight, {"weight/effective_sample_size": size}, self._dataset, rates, None)

    @property
    def _cure(self) -> str:
        return LITERAL_CURE

    def _imitation_loss(self, batch: ChunkTransition) -> ImitationLoss:
        if not self.policy.has_log_prob:
            return super()._imitation_loss(batch)
        prepared = self.policy.prepare(batch.observation)
        # the document's sum
        return ImitationLoss(-self.policy.log_prob(prepared, batch.actions, batch.action_mask))


def build(inputs: MethodInputs) -> DocumentObjective:
    """The method of `inputs`."""
    value_optim = None if inputs.settings.value_lr is None else inputs.value_optim
    return DocumentObjective(
        DocumentConfig(**shared_settings(inputs)), *inputs.networks_and_data(), value_optim
    )
