"""Best-of-N: sample N chunks from the policy, execute the one that Q prefers (IDQL, arXiv 2304.10573).

Q is trained by `best_of_n_critic`, or by `iql`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chunkrl.algorithms.cross_fit import CrossFitted
from chunkrl.errors import ChunkRLError
from chunkrl.types import Observation

_MOST_NETWORKS = 1024  # of each kind: more are a damaged file


def least_q(critics: CrossFitted, prepared: Any, actions: Tensor) -> Tensor:
    """Each fold's Q of chunks [B, H, A], the minimum over its heads: [K, B]; of N each [B, N, H, A]: [K, B, N]."""
    return critics.each(lambda q: q.forward_prepared(prepared, actions).amin(0))  # type: ignore[operator]


def check_ensemble(num_folds: int, num_critics: int) -> None:
    """Raises ChunkRLError for numbers that no Q ensemble has."""
    if not 1 <= num_folds <= _MOST_NETWORKS or not 1 <= num_critics <= _MOST_NETWORKS:
        raise ChunkRLError(f"{num_folds} folds of {num_critics} networks: give 1 to {_MOST_NETWORKS} of each")


class QEnsemble(nn.Module):
    """Scores of chunks on new observations: the minimum over a network's heads, the mean over the folds."""

    def __init__(self, critic: CrossFitted) -> None:
        super().__init__()
        self.critic = critic

    @torch.no_grad()
    def forward(self, observation: Observation, actions: Tensor) -> Tensor:
        """actions: candidates [B, N, H, A]; returns [B, N], comparable within a row."""
        first: Any = self.critic.networks[0]
        prepared = first.prepare(observation)
        return least_q(self.critic, prepared, actions).mean(0)

    def best(self, observation: Observation, actions: Tensor) -> Tensor:
        """The candidate with the highest score of each row: [B, N, H, A] -> [B, H, A]."""
        choice = self(observation, actions).argmax(dim=1)
        return actions[torch.arange(len(actions), device=actions.device), choice]
