"""How a chunk's actions are written: as recorded, step by step, or relative to the state where it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from chunkrl.errors import DatasetError

if TYPE_CHECKING:  # its fields are settings, which are read without torch
    from torch import Tensor

EncodingKind = Literal["absolute", "delta", "relative"]


@dataclass(frozen=True)
class ActionEncoding:
    """Actions of a chunk and back; for recorded actions that are targets in the units of the state.

    kind: absolute: a_i, as recorded. delta: a_i - a_{i-1}, the first one a_0 - s. relative: a_i - s, with s the
        state where the chunk starts (openpi calls this delta).
    action_dims: which values are encoded (None: all); a gripper's usually is not.
    state_dims: the state's value for each of these (None: those of the same number).
    """

    kind: EncodingKind = "absolute"
    action_dims: tuple[int, ...] | None = None
    state_dims: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(EncodingKind):
            raise DatasetError(
                f"action encoding {self.kind!r}: use one of {', '.join(get_args(EncodingKind))}"
            )
        if self.state_dims is not None and len(self.state_dims) != len(self.action_dims or ()):
            raise DatasetError(
                f"action_dims {self.action_dims} and state_dims {self.state_dims} must pair up one to one"
            )

    def check(self, action_dim: int, state_dim: int) -> None:
        """Raises DatasetError where actions of `action_dim` and states of `state_dim` values do not fit."""
        if self.kind == "absolute":
            return
        actions, states = self._dims(action_dim)
        if (
            not actions
            or not all(0 <= dim < action_dim for dim in actions)
            or len(set(actions)) < len(actions)
        ):
            raise DatasetError(f"action_dims {actions}: name different ones of the {action_dim} values")
        if not all(0 <= dim < state_dim for dim in states):
            raise DatasetError(
                f"action encoding {self.kind} needs the state values {states}, states have {state_dim}: "
                "name action_dims and state_dims that belong together, or use absolute"
            )

    def _dims(self, action_dim: int) -> tuple[list[int], list[int]]:
        actions = list(range(action_dim)) if self.action_dims is None else list(self.action_dims)
        return actions, actions if self.state_dims is None else list(self.state_dims)

    def encode(self, actions: Tensor, state: Tensor | None) -> Tensor:
        """Recorded actions [..., H, A] and the first state [..., S] to encoded actions [..., H, A]."""
        if self.kind == "absolute":
            return actions
        import torch

        chosen, start = self._start(actions, state)
        values = actions[..., chosen]
        before = torch.cat([start, values[..., :-1, :]], dim=-2) if self.kind == "delta" else start
        return self._put(actions, chosen, values - before)

    def decode(self, actions: Tensor, state: Tensor | None) -> Tensor:
        """The inverse of `encode`, up to float32 rounding."""
        if self.kind == "absolute":
            return actions
        chosen, start = self._start(actions, state)
        values = actions[..., chosen]
        return self._put(actions, chosen, start + (values.cumsum(dim=-2) if self.kind == "delta" else values))

    def _start(self, actions: Tensor, state: Tensor | None) -> tuple[list[int], Tensor]:
        """The encoded dimensions, and the state's values for them [..., 1, n]."""
        if state is None:
            raise DatasetError(f"action encoding {self.kind} needs a state; use absolute")
        chosen, states = self._dims(actions.shape[-1])
        return chosen, state[..., None, states]

    @staticmethod
    def _put(actions: Tensor, chosen: list[int], values: Tensor) -> Tensor:
        result = actions.clone()
        result[..., chosen] = values
        return result
