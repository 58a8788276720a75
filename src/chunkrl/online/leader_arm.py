"""A leader arm: it mirrors the follower while the policy acts and leads during interventions, without jumps.

Positions are absolute joint targets in the units of the follower's state, any number of joints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError


class Teleoperator(Protocol):
    """A leader arm's hardware."""

    joint_names: tuple[str, ...]

    def positions(self) -> np.ndarray:
        """float32 [N], where it is."""
        ...

    def set_torque(self, on: bool) -> None:
        """Off: a hand may move it. On: it goes where `drive` says."""
        ...

    def drive(self, positions: np.ndarray) -> None:
        """float32 [N], where to go (torque on)."""
        ...

    def close(self) -> None:
        """Disconnects, without torque."""
        ...


class Handover:
    """Keeps targets together when who gives them changes.

    From `begin` on a target moves by at most `max_step` a step towards what is wanted, until both agree within
    `tolerance` in every joint; from there what is wanted passes unchanged. As tolerance <= max_step, the handover
    itself moves no joint by more than `max_step` in a step, and it takes ceil((gap - tolerance) / max_step) steps
    where what is wanted stands still.
    """

    def __init__(self, max_step: float | Sequence[float], tolerance: float | Sequence[float]) -> None:
        """In the units of the targets, one value for all joints or one for each."""
        self._max_step, self._tolerance = np.asarray(max_step), np.asarray(tolerance)
        if (
            not (self._max_step > 0).all()
            or not ((self._tolerance >= 0) & (self._tolerance <= self._max_step)).all()
        ):
            raise ChunkRLError(
                f"handover max_step {max_step} and tolerance {tolerance}: 0 <= tolerance <= max_step > 0"
            )
        self._current: np.ndarray | None = None

    @property
    def agreed(self) -> bool:
        """No handover is under way."""
        return self._current is None

    def begin(self, current: np.ndarray) -> None:
        """current: [N], the target so far."""
        self._current = np.array(current, dtype=np.float32)

    def limit(self, wanted: np.ndarray) -> np.ndarray:
        """wanted: [N], what the new source asks for; returns the target [N] of this step."""
        if self._current is None or not np.isfinite(wanted).all():  # NaN is the action guard's to refuse
            return wanted
        gap = wanted - self._current
        if (np.abs(gap) <= self._tolerance).all():
            self._current = None
            return wanted
        # in float64: a tolerance below float32's resolution would never be reached
        self._current = self._current + np.clip(gap, -self._max_step, self._max_step)
        return self._current.astype(np.float32)


class LeaderArm:
    """`Corrector` with a leader arm in a person's hand; keys say when.

    Attributes:
        num_early: interventions that began while leader and follower did not agree yet; the follower then comes
            to the leader slowly (the actor's own `Handover`).
    """

    def __init__(
        self,
        teleoperator: Teleoperator,
        joints: Sequence[int],
        max_step: float | Sequence[float],
        tolerance: float | Sequence[float],
    ) -> None:
        """
        Args:
            joints: places of the follower's positions in the state, in the order of the leader's joints.
            max_step, tolerance: of the mirroring leader's own motion, as in `Handover`: it comes slowly where it is
                far from the follower.
        """
        if len(joints) != len(teleoperator.joint_names):
            raise ChunkRLError(
                f"the leader has {len(teleoperator.joint_names)} joints {teleoperator.joint_names}, the follower "
                f"{len(joints)}: use a leader of the follower's kind"
            )
        self._teleoperator, self._joints = teleoperator, list(joints)
        self._mirror = Handover(max_step, tolerance)
        self.num_early = 0
        self._mirroring = False

    def begin_episode(self, step: EnvStep) -> None:
        """The leader begins to mirror, slowly: the follower may have gone home."""
        self._mirroring = False
        self.release(step)

    def wants_control(self, step: EnvStep, human: bool) -> bool | None:
        """Keys decide."""
        return None

    def follow(self, step: EnvStep) -> None:
        """The leader goes where the follower is."""
        self._teleoperator.drive(self._mirror.limit(step.state[self._joints]))

    def take(self, step: EnvStep) -> None:
        """The leader is let go."""
        self.num_early += not self._mirror.agreed
        self._mirroring = False
        self._teleoperator.set_torque(False)

    def act(self, step: EnvStep) -> np.ndarray:
        """Where the leader is."""
        return np.asarray(self._teleoperator.positions(), dtype=np.float32)

    def release(self, step: EnvStep) -> None:
        """The leader mirrors again, from where the hand left it."""
        if self._mirroring:
            return
        here = np.asarray(self._teleoperator.positions(), dtype=np.float32)
        self._mirror.begin(here)
        self._teleoperator.drive(here)  # before torque: it must not jump to an old target
        self._teleoperator.set_torque(True)
        self._mirroring = True

    def close(self) -> None:
        """Disconnects the leader."""
        self._teleoperator.close()
