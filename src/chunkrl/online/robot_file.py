"""A robot as `chunkrl actor --robot FILE` reads it: hardware, task, limits, and who may lead it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chunkrl.config import from_dict
from chunkrl.envs.fake_robot import FakeLeader, FakeRobot
from chunkrl.envs.robot import Home, Robot
from chunkrl.errors import ChunkRLError
from chunkrl.integration.lerobot_devices import LeRobotRobot, lerobot_leader, make_device
from chunkrl.integration.lerobot_processors import ProcessorFiles, processed
from chunkrl.online.leader_arm import Teleoperator

FAKE = "fake"


@dataclass(frozen=True)
class HandoverLimits:
    """How far targets may move where who gives them changes; units of the robot's positions."""

    max_step: float
    """Farthest in a control step."""
    tolerance: float
    """Both agree within it, and from there targets pass unchanged."""


@dataclass(frozen=True)
class RobotFile:
    """A robot and what an actor must know of it."""

    robot: dict[str, Any]
    """Settings as on LeRobot's command line: `type`, `port`, `id`, `cameras`. Type `fake` is a robot of arithmetic,
    with `num_joints`, `cameras` (name: [height, width]) and `speed`."""
    task: str
    """The task's text, as in the data."""
    low: tuple[float, ...]
    """Lowest targets, one a joint, or one for all: nothing below is ever sent."""
    high: tuple[float, ...]
    """Highest targets."""
    rate_hz: float | None = None
    """Control steps a second; default: the frame rate of the policy's data."""
    max_steps: int = 600
    """Time limit of an episode, steps."""
    home: Home | None = None
    """Where an episode begins; None: where the robot stands."""
    leader: dict[str, Any] | None = None
    """The leader arm's settings, as `robot`."""
    handover: HandoverLimits | None = None
    """Needed with a leader."""
    processors: ProcessorFiles = field(default_factory=ProcessorFiles)
    """LeRobot's processor pipelines between the robot and the policy."""

    def __post_init__(self) -> None:
        if not self.task.strip():
            raise ChunkRLError("task is empty: say what the robot is to do, as the data does")
        if (self.rate_hz is not None and not self.rate_hz > 0) or self.max_steps < 1:
            raise ChunkRLError(f"rate_hz {self.rate_hz} and max_steps {self.max_steps}: above 0, at least 1")
        if self.leader is not None and self.processors != ProcessorFiles():
            raise ChunkRLError("a leader mirrors the robot's own joints: leave out leader, or processors")
        if self.leader is not None and self.handover is None:
            raise ChunkRLError("a leader needs `handover` with max_step and tolerance, so that nothing jumps")

    def limits(self, joint_names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """low and high, float32 [N]. Raises ChunkRLError where their number does not fit."""
        result = []
        for name in ("low", "high"):
            values = getattr(self, name)
            if len(values) not in (1, len(joint_names)):
                raise ChunkRLError(
                    f"{name} has {len(values)} values, the robot has the joints {list(joint_names)}: give one for "
                    "each, or one for all"
                )
            result.append(np.broadcast_to(np.asarray(values, np.float32), len(joint_names)).copy())
        return result[0], result[1]


@dataclass(frozen=True)
class _FakeSettings:
    """Of a robot or leader of type `fake`."""

    type: str
    num_joints: int
    cameras: Mapping[str, tuple[int, int]] | None = None
    speed: float = 1.0


def open_robot(file: RobotFile) -> Robot:
    """The robot, connected. Raises ChunkRLError where it cannot be had."""
    if file.robot.get("type") != FAKE:
        device = make_device("robots", "RobotConfig", file.robot)
        return LeRobotRobot(processed(device, file.processors))
    if file.processors != ProcessorFiles():
        raise ChunkRLError("the fake robot has no LeRobot processors: leave processors out")
    settings = from_dict(_FakeSettings, file.robot)
    return FakeRobot(settings.num_joints, settings.cameras, settings.speed)


def open_leader(file: RobotFile) -> Teleoperator:
    """The leader, connected. Raises ChunkRLError where the file names none, or it cannot be had."""
    if file.leader is None:
        raise ChunkRLError("the robot's file names no `leader`: add one, or choose another --corrector")
    if file.leader.get("type") != FAKE:
        return lerobot_leader(file.leader)
    return FakeLeader(from_dict(_FakeSettings, file.leader).num_joints)
