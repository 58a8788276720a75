"""A trained pi policy that acts: the interface of `chunkrl.run.policy_io.ChunkPolicy` on a pi policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from chunkrl.errors import ChunkRLError
from chunkrl.models.acting import CameraInput, ObservationInput, check_request, draw_noise
from chunkrl.models.acting_policy import ASKED, Asked
from chunkrl.models.condition import conditions_beside
from chunkrl.models.config import ActionMode
from chunkrl.models.overlap import Overlap, check_overlap
from chunkrl.models.pi.checkpoint import save_pretrained
from chunkrl.models.pi.config import DEFAULT_FLOW_STEPS
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.plugin_files import plugin_files
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
    """Chunks [B, H, A] in the data's units from batched observations. takes: what it takes.

    condition, guidance, guidance_from, flow_steps: what it is asked for (`ask`); the third is None at guidance 1.
    q: for best-of-N.
    """

    condition: str
    guidance: float
    guidance_from: str | None
    flow_steps: int

    def __init__(
        self,
        policy: PiPolicy,
        flow_steps: int | None = None,
        condition: str | None = None,
        guidance: float | None = None,
        q: ChunkScorer | None = None,
    ) -> None:
        self.policy, self.q = policy.eval(), q
        self.ask(condition, guidance, flow_steps)
        settings = policy.recipe.settings
        cameras = tuple(CameraInput(name) for name in settings.cameras)  # the model makes its own size of any
        self.takes = ObservationInput(
            cameras, settings.state_dim, reads_task=True, resize=settings.data_resize
        )

    def ask(
        self,
        condition: str | None = None,
        guidance: float | None = None,
        flow_steps: int | None = None,
        guidance_from: str | None = None,
    ) -> None:
        """From now on `act` asks for this; what is None is as the policy was saved.

        condition: a text that it was trained with ("Advantage: negative"), or "" for nothing. guidance: towards the
        condition, from 0; 1 is the condition alone. guidance_from: the condition that it leads away from, or "" for
        none. flow_steps: Euler steps.

        Raises:
            ChunkRLError: it was not trained with a condition, or guidance leads nowhere or is not read.
        """
        settings = self.policy.recipe.settings
        known = ("", *settings.conditions) if settings.conditions else conditions_beside(settings.condition)
        condition = settings.condition if condition is None else condition
        self._check_known("condition", condition, known)
        if guidance is not None and not condition:
            raise ChunkRLError(
                "guidance leads towards a condition, and the policy is asked for none: leave it out, or take a "
                "policy of --objective advantage_conditioned"
            )
        guidance = settings.guidance if guidance is None else guidance
        if not 0 <= guidance < math.inf:
            raise ChunkRLError(f"guidance is {guidance}; it must not be negative, and finite")
        if guidance_from is not None:
            self._check_known("guidance_from", guidance_from, known)
            if guidance == 1 or guidance_from == condition:
                reason = "guidance is 1" if guidance == 1 else "that is what the policy is asked for"
                raise ChunkRLError(
                    f"guidance_from {guidance_from!r} changes nothing, since {reason}: give another, with another "
                    "guidance, or leave it out"
                )
        self.condition, self.guidance = condition, guidance
        self.guidance_from = None if guidance == 1 else self.policy.guidance_from(condition, guidance_from)
        self.flow_steps = DEFAULT_FLOW_STEPS if flow_steps is None else flow_steps

    def _check_known(self, setting: str, text: str, known: Sequence[str]) -> None:
        if text not in known:
            trained = (
                "without any" if tuple(known) == ("",) else f"with {', '.join(repr(c) for c in known if c)}"
            )
            raise ChunkRLError(
                f"{setting} {text!r} is not what {self.policy.source} was trained with ({trained}): give one of "
                'these, or "" for none'
            )

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
    def fps(self) -> float | None:
        """Control rate of the data that it was trained on, steps/s; None: not known."""
        return self.policy.recipe.settings.fps

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that observations must have."""
        return self.policy.recipe.settings.cameras

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """(): the model resizes any image."""
        return ()

    @property
    def recorded_sizes(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Not noted."""
        return ()

    @property
    def own_image_size(self) -> int | None:
        """Side of the images that the vision tower sees."""
        return self.policy.recipe.config.vision.image_size

    @property
    def gains_from_batches(self) -> bool:
        """A forward pass reads all weights, however few the rows."""
        return True

    @property
    def takes_overlap(self) -> bool:
        """A flow can be guided."""
        return True

    @torch.no_grad()
    def act_on(
        self,
        observation: Observation,
        overlap: Overlap,
        generators: Sequence[torch.Generator] = (),
        mode: ActionMode = "mode",
    ) -> Tensor:
        """See `ActingPolicy.act_on`."""
        taken = self.takes.take(observation).observation
        check_overlap(overlap, taken.batch_size, self.action_dim, mode)
        check_request(mode, generators, taken.batch_size, 1)
        config = self.policy.recipe.config
        return self.policy.sample(
            taken,
            flow_steps=self.flow_steps,
            condition=self.condition,
            noise=draw_noise(mode, generators, taken.batch_size, (1, config.horizon, config.action_dim)),
            guidance=self.guidance,
            guidance_from=self.guidance_from,
            overlap=overlap,
        )[:, 0]

    def imitation_loss(
        self, observation: Observation, actions: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """See `ActingPolicy`; of the condition that it is asked for."""
        return self.policy.flow_loss(observation, actions, action_mask, condition=self.condition).mean(dim=1)

    def ask_as(self, asked: Asked) -> dict[str, Any]:
        """See `ActingPolicy.ask_as`."""
        if asked.mode == "best_of_n" and self.q is None:
            raise ChunkRLError(NO_Q)
        self.ask(asked.condition, asked.guidance, asked.flow_steps, asked.guidance_from)
        return {name: getattr(self, name) for name in ASKED}

    def identity(self) -> str:
        """ "": its folder holds what no push carries."""
        return ""

    def save(self, folder: str | Path) -> None:
        """See `ActingPolicy.save`; without Q."""
        save_pretrained(self.policy, folder, overwrite=True, plugin=plugin_files(self))

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        generators: Sequence[torch.Generator] = (),
        mode: ActionMode = "mode",
        num_candidates: int = 16,
    ) -> Tensor:
        """A chunk [H, A] for one observation, or chunks [B, H, A] for a batch; row b's noise comes from
        generators[b] alone. observation: as `ObservationInput.take` takes it, numpy or torch.

        Mode `mode` starts the flow from zero noise, `sample` from drawn noise; `best_of_n` samples `num_candidates`
        chunks in one batch and takes the one that Q prefers, with one pass of the vision tower for both. Raises
        ObservationError for what the policy did not learn from, ChunkRLError for best-of-N without Q.
        """
        taken = self.takes.take(observation)
        observation = taken.observation
        check_request(mode, generators, observation.batch_size, num_candidates)
        config = self.policy.recipe.config
        shape = (num_candidates if mode == "best_of_n" else 1, config.horizon, config.action_dim)
        noise = draw_noise(mode, generators, observation.batch_size, shape)
        if mode == "best_of_n":
            if self.q is None:
                raise ChunkRLError(NO_Q)
            observation = self.policy.with_vision(observation)
        chunks = self.policy.sample(
            observation,
            num_samples=shape[0],
            flow_steps=self.flow_steps,
            condition=self.condition,
            noise=noise,
            guidance=self.guidance,
            guidance_from=self.guidance_from,
        )
        if mode == "best_of_n":
            assert self.q is not None
            chosen = self.q.best(observation, chunks)
        else:
            chosen = chunks[:, 0]
        return chosen[0] if taken.single else chosen
