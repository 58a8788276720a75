"""What stands between every source of actions and the robot: limits, a guard against NaN, and the hold action."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chunkrl.data.hold_action import HoldAction
from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActionSpace:
    """What an actor must know of a robot's actions.

    low, high: float32 [A], limits of every action that is sent.
    hold: how position is held (the same rule that pads the data's chunks).
    rest: the world after a reset -> action [A] that keeps the robot there; the first to be held.
    """

    low: np.ndarray
    high: np.ndarray
    hold: HoldAction
    rest: Callable[[EnvStep], np.ndarray]

    def __post_init__(self) -> None:
        low, high = np.asarray(self.low), np.asarray(self.high)
        if low.ndim != 1 or low.shape != high.shape:
            raise ChunkRLError(f"action limits of shapes {low.shape} and {high.shape}; give both [A]")
        if not (low < high).all():  # also where one is NaN
            wrong = int(np.argmin(low < high))
            raise ChunkRLError(
                f"action {wrong} is limited to [{low[wrong]}, {high[wrong]}]; low must be below high"
            )
        self.hold.check(len(low))

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.low)

    @classmethod
    def simulator(cls, action_dim: int) -> ActionSpace:
        """Motions in [-1, 1] with the gripper last, as the simulators of `chunkrl.envs` take them."""
        ones = np.ones(action_dim, dtype=np.float32)
        return cls(-ones, ones, HoldAction("delta"), lambda _: np.zeros(action_dim, dtype=np.float32))

    @classmethod
    def joint_targets(cls, low: np.ndarray, high: np.ndarray) -> ActionSpace:
        """Absolute joint targets; the state's first A values are the joints' positions."""
        num_joints = len(low)
        return cls(
            np.asarray(low, dtype=np.float32),
            np.asarray(high, dtype=np.float32),
            HoldAction(control="absolute", gripper_dims=()),
            lambda step: np.asarray(step.state[:num_joints], dtype=np.float32),
        )


@dataclass(frozen=True)
class GuardedAction:
    """action: float32 [A], may be sent. num_clipped: values that were outside the limits. held: position is held
    instead of what was asked for, because of `fault` (empty: nothing was asked for)."""

    action: np.ndarray
    num_clipped: int = 0
    held: bool = False
    fault: str = ""


@dataclass(frozen=True)
class ActionFault:
    """An action that was refused: in which episode (counted by the guard, from 0) and step, and why."""

    episode: int
    step: int
    message: str


class ActionGuard:
    """Checks every action before it is sent.

    Attributes:
        num_clipped: values clipped to the limits so far; num_held: steps on which position was held.
        faults: every action refused so far.
    """

    def __init__(self, space: ActionSpace) -> None:
        self.space = space
        self.num_clipped = self.num_held = 0
        self.faults: list[ActionFault] = []
        self._episode, self._step = -1, 0
        self._last = np.zeros(space.action_dim, dtype=np.float32)

    @property
    def last(self) -> np.ndarray:
        """float32 [A], the action executed last, or the resting one after a reset."""
        return self._last

    def reset(self, step: EnvStep) -> None:
        """An episode begins with the robot as in `step`."""
        self._episode, self._step = self._episode + 1, 0
        self._last = self._clipped(np.asarray(self.space.rest(step), dtype=np.float32))

    def check(self, wanted: np.ndarray | None) -> GuardedAction:
        """wanted: [A], or None to hold position."""
        fault = self._fault(wanted)
        if wanted is None or fault:
            if fault:
                self.faults.append(ActionFault(self._episode, self._step, fault))
                _LOG.error("episode %d, step %d: %s; position is held", self._episode, self._step, fault)
            self.num_held += 1
            return GuardedAction(self._clipped(self.space.hold.from_last(self._last)), held=True, fault=fault)
        wanted = np.asarray(wanted, dtype=np.float32)
        action = self._clipped(wanted)
        num_clipped = int((action != wanted).sum())
        self.num_clipped += num_clipped
        return GuardedAction(action, num_clipped)

    def executed(self, action: np.ndarray) -> None:
        """float32 [A], what the robot did: from here position is held."""
        self._last = np.array(action, dtype=np.float32)
        self._step += 1

    def _fault(self, wanted: np.ndarray | None) -> str:
        if wanted is None:
            return ""
        if np.shape(wanted) != (self.space.action_dim,):
            return f"an action of shape {np.shape(wanted)}, the robot takes ({self.space.action_dim},)"
        if not np.isfinite(wanted).all():
            return f"an action with NaN or inf: {np.asarray(wanted).tolist()}"
        return ""

    def _clipped(self, action: np.ndarray) -> np.ndarray:
        return np.clip(action, self.space.low, self.space.high).astype(np.float32)
