"""A trained pi policy that acts: the interface of `chunkrl.training.policy_io.ChunkPolicy` on a pi policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from chunkrl.errors import ChunkRLError
from chunkrl.models.pi.config import DEFAULT_NUM_STEPS
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.types import Observation

NO_Q = (
    "best-of-N needs Q(x, A), and this policy's folder holds none: train with --train-q or --objective iql, or use "
    "mode `mode` or `sample`"
)


class ChunkScorer(Protocol):
    """Q, as best-of-N asks it (`chunkrl.algorithms.best_of_n.QEnsemble`)."""

    def best(self, observation: Observation, actions: Tensor) -> Tensor:
        """The best candidate of each row: [B, N, H, A] -> [B, H, A]."""
        ...


class PiActor:
    """Chunks [B, H, A] in the data's units from batched observations.

    num_steps: Euler steps. condition, guidance: what is asked for; None: the policy's settings. q: for best-of-N.
    """

    def __init__(
        self,
        policy: PiPolicy,
        num_steps: int = DEFAULT_NUM_STEPS,
        condition: str | None = None,
        guidance: float | None = None,
        q: ChunkScorer | None = None,
    ) -> None:
        self.policy, self.q = policy.eval(), q
        self.num_steps, self.condition, self.guidance = num_steps, condition, guidance

    @property
    def action_horizon(self) -> int:
        """H."""
        return self.policy.recipe.config.horizon

    @property
    def action_dim(self) -> int:
        """A."""
        return self.policy.recipe.settings.action_dim

    @property
    def state_dim(self) -> int:
        """S; 0 for a policy without state."""
        return self.policy.recipe.settings.state_dim

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that observations must have."""
        return self.policy.recipe.settings.cameras

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        generators: Sequence[torch.Generator],
        mode: str = "mode",
        num_candidates: int = 16,
    ) -> Tensor:
        """One chunk for each of B observations; row b's noise comes from generators[b] alone.

        Mode `mode` starts the flow from zero noise, `sample` from drawn noise; `best_of_n` samples `num_candidates`
        chunks in one batch and takes the one that Q prefers, with one pass of the vision tower for both. Raises
        ChunkRLError for best-of-N without Q.
        """
        config = self.policy.recipe.config
        shape = (num_candidates if mode == "best_of_n" else 1, config.horizon, config.action_dim)
        if mode == "mode":
            noise = torch.zeros(observation.batch_size, *shape)
        else:
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        if mode == "best_of_n":
            if self.q is None:
                raise ChunkRLError(NO_Q)
            observation = self.policy.with_vision(observation)
        chunks = self.policy.sample(
            observation,
            num_samples=shape[0],
            num_steps=self.num_steps,
            condition=self.condition,
            noise=noise,
            guidance=self.guidance,
        )
        if mode == "best_of_n":
            assert self.q is not None
            return self.q.best(observation, chunks)
        return chunks[:, 0]
