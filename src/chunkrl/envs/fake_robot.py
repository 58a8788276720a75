"""A robot and a leader arm made of arithmetic: the actor's loop without hardware, in closed form."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from chunkrl.envs.robot import RobotState


class FakeRobot:
    """N joints that go a fixed share of the way to their targets at each `send`.

    sent: every target received [N], in order. Images show the number of observations made, modulo 256.
    """

    def __init__(
        self,
        num_joints: int,
        cameras: Mapping[str, tuple[int, int]] | None = None,
        speed: float = 1.0,
        limit: float = np.inf,
        observe_s: float = 0.0,
        send_s: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        Args:
            cameras: camera -> (height, width).
            speed: share of the way, in (0, 1]; 1: a target is reached at once.
            limit: the robot's own: a target is brought to within `limit` of the position before.
            observe_s, send_s: latencies, seconds.
        """
        self.name = "fake_robot"
        self.joint_names = tuple(f"joint_{i}" for i in range(num_joints))
        self.cameras: Mapping[str, tuple[int, int]] = dict(cameras or {})
        self.positions = np.zeros(num_joints, dtype=np.float32)
        self.sent: list[np.ndarray] = []
        self.closed = False
        self._speed, self._limit = speed, limit
        self._observe_s, self._send_s, self._sleep = observe_s, send_s, sleep
        self._num_observed = 0

    def observe(self) -> RobotState:
        """Positions and one grey image per camera."""
        if self._observe_s:
            self._sleep(self._observe_s)
        grey = self._num_observed % 256
        self._num_observed += 1
        images = {name: np.full((*size, 3), grey, np.uint8) for name, size in self.cameras.items()}
        return RobotState(self.positions.copy(), images)

    def send(self, targets: np.ndarray) -> np.ndarray:
        """Moves at once."""
        if self._send_s:
            self._sleep(self._send_s)
        executed = np.clip(targets, self.positions - self._limit, self.positions + self._limit)
        executed = executed.astype(np.float32)
        self.sent.append(executed)
        self.positions = (self.positions + self._speed * (executed - self.positions)).astype(np.float32)
        return executed

    def close(self) -> None:
        """Says so."""
        self.closed = True


class FakeLeader:
    """A leader arm that is where it was driven while it has torque, and where `hand` puts it otherwise."""

    def __init__(self, num_joints: int, positions: np.ndarray | None = None) -> None:
        self.joint_names = tuple(f"joint_{i}" for i in range(num_joints))
        self.at = np.zeros(num_joints, np.float32) if positions is None else np.array(positions, np.float32)
        self.torque = self.closed = False
        self.driven: list[np.ndarray] = []

    def positions(self) -> np.ndarray:
        """Where it is."""
        return self.at.copy()

    def set_torque(self, on: bool) -> None:
        """A hand can move it while torque is off."""
        self.torque = on

    def drive(self, positions: np.ndarray) -> None:
        """Reached at once, if there is torque."""
        self.driven.append(np.array(positions, np.float32))
        if self.torque:
            self.at = np.array(positions, np.float32)

    def hand(self, positions: np.ndarray) -> None:
        """A person moves it."""
        assert not self.torque, "the leader holds its position against the hand"
        self.at = np.array(positions, np.float32)

    def close(self) -> None:
        """Says so."""
        self.torque, self.closed = False, True
