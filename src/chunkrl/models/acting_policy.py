"""What a policy that acts offers, of whichever family: `load_policy` returns one, and whatever acts takes one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chunkrl.models.acting import ObservationInput
from chunkrl.models.config import ActionMode
from chunkrl.models.overlap import Overlap
from chunkrl.types import Observation

ASKED = ("condition", "guidance", "guidance_from", "flow_steps")
"""What `ActingPolicy.ask_as` takes from a command."""


class Asked(Protocol):
    """Settings of a command that makes a policy act; None: what the policy was saved with."""

    @property
    def policy(self) -> str:
        """Its folder, for messages."""
        ...

    @property
    def mode(self) -> ActionMode:
        """How it acts."""
        ...

    @property
    def condition(self) -> str | None:
        """The condition of the prompt."""
        ...

    @property
    def guidance(self) -> float | None:
        """Towards the condition."""
        ...

    @property
    def guidance_from(self) -> str | None:
        """The condition that guidance leads away from; "" for the policy without one."""
        ...

    @property
    def flow_steps(self) -> int | None:
        """Euler steps."""
        ...


class ActingPolicy(Protocol):
    """Networks in `policy`, whose parameters' names are those of pushed weights, and how they act."""

    @property
    def policy(self) -> nn.Module:
        """The networks."""
        ...

    @property
    def takes(self) -> ObservationInput:
        """What observations must have."""
        ...

    @property
    def action_horizon(self) -> int:
        """H."""
        ...

    @property
    def action_dim(self) -> int:
        """A."""
        ...

    @property
    def state_dim(self) -> int:
        """S; 0 for a policy without state."""
        ...

    @property
    def fps(self) -> float | None:
        """Control rate of the data that it was trained on, steps/s; None: not known."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that observations must have."""
        ...

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each camera's images as the networks see them; () where they resize any."""
        ...

    @property
    def recorded_sizes(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """(height, width) of each camera's images in the data's files; () where the policy does not say."""
        ...

    @property
    def own_image_size(self) -> int | None:
        """Side of the images that networks which resize any make of them; None: they resize none."""
        ...

    @property
    def gains_from_batches(self) -> bool:
        """Whether a few observations together take hardly longer than one."""
        ...

    def act(
        self,
        observation: Observation,
        generators: Sequence[torch.Generator] = (),
        mode: ActionMode = "mode",
        num_candidates: int = 16,
    ) -> Tensor:
        """Chunks [B, H, A], or one [H, A], in the data's units."""
        ...

    @property
    def takes_overlap(self) -> bool:
        """Whether `act_on` is there: flows can be guided, what has no flow cannot."""
        ...

    def act_on(
        self,
        observation: Observation,
        overlap: Overlap,
        generators: Sequence[torch.Generator] = (),
        mode: ActionMode = "mode",
    ) -> Tensor:
        """Chunks [B, H, A] for a batch that go on from what is left of the last ones (`models.overlap`).

        Raises:
            ChunkRLError: the policy has no flow, or what is left does not fit it.
        """
        ...

    def imitation_loss(
        self, observation: Observation, actions: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """What the policy loses on chunks [B, H, A] in the data's units, a value per chunk [B].

        action_mask: bool [B, H], the real steps; None: all.
        observation: as the networks take it (`ObservationInput.take`). With gradients, where they are enabled.
        """
        ...

    def ask_as(self, asked: Asked) -> dict[str, Any]:
        """Sets what it is asked for, and returns it, by the names in `ASKED` (None of what it has not).

        Raises:
            ChunkRLError: it has no such thing, or was not trained with it.
        """
        ...

    def identity(self) -> str:
        """A digest of what no push of weights carries: statistics, limits, sizes; "" where its folder holds them."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes `folder` whole or not at all; `load_policy` reads it."""
        ...
