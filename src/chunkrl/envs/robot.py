"""Any robot that takes joint targets behind `chunkrl.envs.protocol.Environment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError

CAMERA_PREFIX = "observation.images."  # as data sets name cameras, so that policies know them by one name


@dataclass(frozen=True)
class RobotState:
    """positions: float32 [N]. images: camera -> uint8 [height, width, 3]."""

    positions: np.ndarray
    images: Mapping[str, np.ndarray] = field(default_factory=dict)


class Robot(Protocol):
    """A robot's hardware: N joints that take absolute targets, any cameras."""

    name: str
    joint_names: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]
    """camera -> (height, width), pixels"""

    def observe(self) -> RobotState:
        """What is seen now."""
        ...

    def send(self, targets: np.ndarray) -> np.ndarray:
        """targets: float32 [N]; returns the targets [N] that the robot's own limits made of them."""
        ...

    def close(self) -> None:
        """Disconnects; a robot that can leaves its motors without torque."""
        ...


class Pace(Protocol):
    """The control loop's clock, see `chunkrl.online.actor.executor.ControlRate`."""

    def start(self) -> None:
        """A stretch of steps begins."""
        ...

    def wait(self) -> float:
        """Waits for the next tick; how late it is, seconds."""
        ...


@dataclass(frozen=True)
class Home:
    """Where the robot goes at an episode's start, slowly, before the episode's clock runs.

    positions: one per joint, finite. max_step: the farthest that a target moves in a control step, above 0.
    tolerance: home is reached within it, at least 0. Units of the positions. timeout_steps: control steps until it is
    given up, at least 1. Raises ChunkRLError for others.
    """

    positions: tuple[float, ...]
    max_step: float
    tolerance: float
    timeout_steps: int = 600

    def __post_init__(self) -> None:
        if not np.isfinite(self.positions).all():
            raise ChunkRLError(
                f"home.positions are {list(self.positions)}: give a finite number for each joint"
            )
        for name, holds, wanted in (
            ("max_step", 0 < self.max_step < np.inf, "above 0: how far a target moves in a step"),
            ("tolerance", self.tolerance >= 0, "at least 0: how near is near enough"),
            ("timeout_steps", self.timeout_steps >= 1, "at least 1"),
        ):
            if not holds:
                raise ChunkRLError(f"home.{name} is {getattr(self, name)}; it must be {wanted}")

    def check_within(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> None:
        """low, high: limits of targets, one per joint or one for all. Raises ChunkRLError unless home is within."""
        positions = np.asarray(self.positions, np.float32)
        for name, limits, sign in (("low", low, 1), ("high", high, -1)):
            if len(limits) not in (1, len(positions)):
                raise ChunkRLError(
                    f"home.positions has {len(positions)} values and {name} {len(limits)}: give one for each joint"
                )
            limit = np.broadcast_to(np.asarray(limits, np.float32), positions.shape)
            beyond = sign * (limit - positions)
            if (beyond > 0).any():
                joint = int(np.argmax(beyond))
                raise ChunkRLError(
                    f"home.positions[{joint}] is {positions[joint]:g}, beyond {name} {limit[joint]:g}, and nothing "
                    f"beyond is ever sent: move home inside, or widen {name}"
                )


class RobotEnvironment:
    """Sends the action, waits for the control loop's next tick, observes.

    What is seen after an action is therefore what a whole control period made of it. The robot knows no success: a
    person says so, and resets the scene before `reset`.
    """

    def __init__(
        self,
        robot: Robot,
        pace: Pace,
        task: str,
        fps: float,
        max_steps: int,
        home: Home | None = None,
        limits: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """
        Args:
            robot: is used and closed from here.
            pace: ticks `fps` times per second.
            task: the task's text.
            max_steps: time limit, steps.
            home: None: an episode starts where the robot stands.
            limits: lowest and highest targets, float32 [N] each, on the way home; None: any. Actions are limited
                before they come here (`chunkrl.envs.action_guard`).

        Raises:
            ChunkRLError: home does not fit the robot, or is outside the limits.
        """
        self._robot, self._pace, self._home = robot, pace, home
        self.name, self.task = robot.name, task
        self.state_dim = self.action_dim = len(robot.joint_names)
        self.state_names = self.action_names = robot.joint_names
        self.max_steps, self.fps = max_steps, fps
        self._num_steps, self._has_sent = 0, False
        self._images: Mapping[str, np.ndarray] = {}
        if home is not None and len(home.positions) != self.action_dim:
            raise ChunkRLError(
                f"home has {len(home.positions)} positions, {robot.name} has the joints {robot.joint_names}"
            )
        endless = np.full(self.action_dim, np.inf, np.float32)
        self._low, self._high = (-endless, endless) if limits is None else limits
        if home is not None:
            home.check_within(self._low, self._high)

    def reset(self, seed: int) -> EnvStep:
        """Goes home. A real scene knows no seed.

        Raises:
            ChunkRLError: home is not reached in time, or the robot stands where no target may be.
        """
        self._pace.start()
        if self._home is not None:
            self._go_home(self._home)
        self._num_steps = 0
        return EnvStep(**self._observe())

    def _go_home(self, home: Home) -> None:
        goal = np.asarray(home.positions, dtype=np.float32)
        target = positions = self._positions()
        if not self._has_sent:  # later it is near a target within the limits, and sags at most
            self._check_start(positions, home.max_step)
        for _ in range(home.timeout_steps):
            if (np.abs(goal - positions) <= home.tolerance).all():
                return
            target = target + np.clip(goal - target, -home.max_step, home.max_step)
            target = np.clip(target, self._low, self._high).astype(np.float32)
            self._robot.send(target)
            self._has_sent = True
            self._pace.wait()
            positions = self._positions()
        worst = int(np.argmax(np.abs(goal - positions)))
        raise ChunkRLError(
            f"{self.name} did not come home in {home.timeout_steps} steps: joint {self.state_names[worst]} is at "
            f"{positions[worst]:g}, home is {goal[worst]:g}: clear its way, or raise tolerance or timeout_steps"
        )

    def _check_start(self, positions: np.ndarray, max_step: float) -> None:
        """Raises ChunkRLError where the first target within the limits would be farther than `max_step`: a jump."""
        beyond = np.maximum(self._low - positions, positions - self._high)
        joint = int(np.argmax(beyond))
        if beyond[joint] > max_step:
            raise ChunkRLError(
                f"{self.name} does not go home: joint {self.state_names[joint]} is at {positions[joint]:g}, outside "
                f"its limits [{self._low[joint]:g}, {self._high[joint]:g}] by more than home.max_step {max_step:g}, "
                "so that it would jump: move it inside by hand, or widen low and high"
            )

    def _positions(self, seen: RobotState | None = None) -> np.ndarray:
        """Where the joints are, [N], now or as `seen`. Raises ChunkRLError where that is no position."""
        positions = (self._robot.observe() if seen is None else seen).positions
        if positions.shape != (self.state_dim,) or not np.isfinite(positions).all():
            raise ChunkRLError(f"{self.name} reports the joint positions {positions}: check its connection")
        return positions

    def _observe(self) -> dict:
        seen = self._robot.observe()
        positions = self._positions(seen)
        for camera, size in self._robot.cameras.items():
            if camera not in seen.images or seen.images[camera].shape != (*size, 3):
                found = seen.images[camera].shape if camera in seen.images else "no image"
                raise ChunkRLError(
                    f"camera {camera!r} of {self.name} gives {found}, declared as {(*size, 3)}"
                )
        images = {f"{CAMERA_PREFIX}{camera}": seen.images[camera] for camera in self._robot.cameras}
        self._images = images
        return {"state": positions.astype(np.float32), "images": images}

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        """One control period with joint targets `action` [N]; raises ValueError on a wrong shape or a NaN.

        Images come with every step, `draw` or not: cameras cost no simulator's time.
        """
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (self.action_dim,) or not np.isfinite(action).all():
            raise ValueError(f"{self.name} takes {self.action_dim} finite joint targets, got {action}")
        executed = self._robot.send(action)
        self._has_sent = True
        self._pace.wait()
        self._num_steps += 1
        return EnvStep(
            **self._observe(),
            truncated=self._num_steps >= self.max_steps,
            executed=np.asarray(executed, dtype=np.float32),
        )

    def render(self) -> np.ndarray:
        """The first camera's newest image. Raises ChunkRLError where there is none."""
        if not self._images:
            raise ChunkRLError(f"{self.name} has no cameras, or was not reset: there is no image of it")
        return next(iter(self._images.values()))

    def close(self) -> None:
        """Disconnects the robot."""
        self._robot.close()


class PacedEnvironment:
    """A simulator on the control loop's clock, so that a person can follow it and latencies are as on a robot."""

    def __init__(self, env, pace: Pace) -> None:
        """env: an `Environment`; used and closed from here."""
        self._env, self._pace = env, pace
        self.name, self.task = env.name, env.task
        self.state_dim, self.action_dim = env.state_dim, env.action_dim
        self.max_steps, self.fps = env.max_steps, env.fps

    def reset(self, seed: int) -> EnvStep:
        """Does as a simulator's; the clock starts."""
        step = self._env.reset(seed)
        self._pace.start()
        return step

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        """Does as a simulator's, on the next tick."""
        step = self._env.step(action, draw)
        self._pace.wait()
        return step

    def render(self) -> np.ndarray:
        """Does as a simulator's."""
        return self._env.render()

    def close(self) -> None:
        """Frees the simulator."""
        self._env.close()
