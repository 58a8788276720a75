"""The action that pads a chunk beyond an episode's end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from chunkrl.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class HoldAction:
    """The action that keeps the robot where it is, which pads chunks beyond an episode's end.

    control: `delta` (zero motion, `gripper_dims` keep their last value), `absolute` (the last action), or `auto`:
        absolute where the data's actions are targets near the next state, else delta (`chunkrl.data.control`).
    gripper_dims: of the action, which say where the gripper is and not how it moves.
    """

    control: Literal["auto", "delta", "absolute"] = "auto"
    gripper_dims: tuple[int, ...] = (-1,)

    def from_last(self, last: np.ndarray) -> np.ndarray:
        """last: [..., A], the last real action; returns the hold action [..., A]. Not of `auto`."""
        assert self.control != "auto", "the data decide it (chunkrl.data.control.resolve_hold)"
        if self.control == "absolute":
            return last.copy()
        hold = last.copy()
        hold[:] = 0
        dims = list(self.gripper_dims)
        hold[..., dims] = last[..., dims]
        return hold

    def check(self, action_dim: int) -> None:
        """Raises DatasetError where the rule does not fit actions of `action_dim` values."""
        if self.control not in ("auto", "delta", "absolute"):
            raise DatasetError(f"hold.control is {self.control!r}; it must be auto, delta or absolute")
        outside = [dim for dim in self.gripper_dims if not -action_dim <= dim < action_dim]
        if self.control != "absolute" and outside:
            raise DatasetError(f"hold.gripper_dims names {outside}, but actions have {action_dim} values")
