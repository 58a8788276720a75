"""A trained pi policy that acts: the interface of `chunkrl.training.policy_io.ChunkPolicy` on a pi folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from chunkrl.errors import ChunkRLError
from chunkrl.models.lora import adapted_modules, merge_lora
from chunkrl.models.pi.checkpoint import load_pretrained, save_pretrained
from chunkrl.models.pi.policy import DEFAULT_NUM_STEPS, PiPolicy
from chunkrl.types import Observation


class PiActor:
    """Chunks [B, H, A] in the data's units from batched observations.

    num_steps: Euler steps. condition, guidance: what is asked for; None: the policy's settings.
    """

    def __init__(
        self,
        policy: PiPolicy,
        num_steps: int = DEFAULT_NUM_STEPS,
        condition: str | None = None,
        guidance: float | None = None,
    ) -> None:
        self.policy = policy.eval()
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

        Mode `mode` starts the flow from zero noise, `sample` from drawn noise. Raises ChunkRLError for best-of-N:
        a pi folder holds no Q.
        """
        config = self.policy.recipe.config
        shape = (1, config.horizon, config.action_dim)
        if mode == "best_of_n":
            raise ChunkRLError("best-of-N needs Q(x, A), which a pi policy's folder does not hold")
        if mode == "mode":
            noise = torch.zeros(observation.batch_size, *shape)
        else:
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        chunks = self.policy.sample(
            observation,
            num_steps=self.num_steps,
            condition=self.condition,
            noise=noise,
            guidance=self.guidance,
        )
        return chunks[:, 0]

    def save(self, folder: str | Path) -> None:
        """Writes a LeRobot folder, LoRA merged into the weights, whole or not at all; an older one is replaced."""
        policy = self.policy
        if adapted_modules(policy.model):
            policy = copy.deepcopy(policy).cpu()
            merge_lora(policy.model)
        save_pretrained(policy, folder, overwrite=True)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> PiActor:
        """Any folder that `load_pretrained` reads. Raises CheckpointError when it is no whole policy."""
        return cls(load_pretrained(folder, device=device))
