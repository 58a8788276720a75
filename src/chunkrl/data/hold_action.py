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

    control: `delta` (zero motion, `gripper_dims` keep their last value) or `absolute` (the last action).
    gripper_dims: of the action, which say where the gripper is and not how it moves.
    """

    control: Literal["delta", "absolute"] = "delta"
    gripper_dims: tuple[int, ...] = (-1,)

    def from_last(self, last: np.ndarray) -> np.ndarray:
        """last: [..., A], the last real action; returns the hold action [..., A]."""
        if self.control == "absolute":
            return last.copy()
        hold = last.copy()
        hold[:] = 0
        dims = list(self.gripper_dims)
        hold[..., dims] = last[..., dims]
        return hold

    def check(self, action_dim: int) -> None:
        """Raises DatasetError where the rule does not fit actions of `action_dim` values."""
        if self.control not in ("delta", "absolute"):
            raise DatasetError(f"hold.control is {self.control!r}; it must be delta or absolute")
        outside = [dim for dim in self.gripper_dims if not -action_dim <= dim < action_dim]
        if self.control == "delta" and outside:
            raise DatasetError(f"hold.gripper_dims names {outside}, but actions have {action_dim} values")
