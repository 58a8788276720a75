"""Typed records that cross module boundaries. Nothing here computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


def _map(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Mapping):
        return {key: _map(item, fn) for key, item in value.items()}
    if isinstance(value, TensorRecord):
        return value.map(fn)
    return value


@dataclass(frozen=True)
class TensorRecord:
    """A frozen record of tensors (nested records and dicts of tensors too)."""

    def map(self, fn: Callable[[Tensor], Tensor]):
        """The same record with `fn` applied to every tensor in it."""
        return replace(self, **{f.name: _map(getattr(self, f.name), fn) for f in fields(self)})

    def to(self, device: torch.device | str):
        """The same record with every tensor on `device`."""
        return self.map(lambda t: t.to(device, non_blocking=True))


@dataclass(frozen=True)
class Observation(TensorRecord):
    """What the policy sees. An item has no batch dimension; a batch has it first.

    images: camera name -> uint8 [..., 3, height, width].
    state: float32 [..., S], in the data set's units (networks normalise), or None.
    task: the task's text; a tuple of B texts in a batch.
    vision: [..., C, T, W], a pi policy's tokens of the images, where they are computed already
        (`models.policy.PolicyModel.with_vision`); None: whoever needs them computes them.
    """

    images: Mapping[str, Tensor] = field(default_factory=dict)
    state: Tensor | None = None
    task: str | tuple[str, ...] = ""
    vision: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of rows of a batched observation."""
        if self.state is not None:
            return self.state.shape[0]
        if self.images:
            return next(iter(self.images.values())).shape[0]
        return len(self.task)


@dataclass(frozen=True)
class ChunkTransition(TensorRecord):
    """One chunk decision: H consecutive actions from frame t of one episode (`chunkrl.data.chunks`).

    An item has no batch dimension, a batch has it first (`...` below).

    observation: x_t.
    actions: float32 [..., H, A], in the data set's units, padded with the hold action.
    action_mask: bool [..., H], True on the k real steps.
    reward: float32 [...], the chunk's reward.
    discount: float32 [...], gamma^k, and 0 where `terminated`.
    next_observation: x_{t+k}; where the episode ends without termination the last stored frame.
    terminated: bool [...], the task ended inside the chunk (success, or a failure declared terminal).
    truncated: bool [...], the recording ended inside the chunk without termination.
    covered_steps: int64 [...], k, the number of steps that reward and discount cover.
    critic_mask: bool [...], False where k = 0: such a chunk trains the policy only.
    episode_index, frame_index: int64 [...], where the chunk starts.
    index: int64 [...], position of the start in its data set or collection (key for labels).
    labels: name -> [...], per-start labels attached to the data set (returns, values, advantages, weights).
    """

    observation: Observation
    actions: Tensor
    action_mask: Tensor
    reward: Tensor
    discount: Tensor
    next_observation: Observation
    terminated: Tensor
    truncated: Tensor
    covered_steps: Tensor
    critic_mask: Tensor
    episode_index: Tensor
    frame_index: Tensor
    index: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, rows: slice) -> ChunkTransition:
        """Some rows of a batch."""
        part = self.map(lambda tensor: tensor[rows])
        now, then = (
            replace(observation, task=observation.task[rows])
            for observation in (part.observation, part.next_observation)
        )
        return replace(part, observation=now, next_observation=then)
