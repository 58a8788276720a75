"""What an actor works at: an environment with its limits and clock, and who corrects there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from chunkrl.config import load_config
from chunkrl.envs.metaworld import ACTION_DIM, CAMERA, STATE_NAMES, MetaWorldEnv, State
from chunkrl.envs.protocol import Environment, EnvStep
from chunkrl.envs.robot import CAMERA_PREFIX, PacedEnvironment, RobotEnvironment
from chunkrl.errors import ChunkRLError
from chunkrl.models.pi.actor import PiActor
from chunkrl.online.action_guard import ActionSpace
from chunkrl.online.actor_command import ActorCommand
from chunkrl.online.chunk_executor import WhenDry
from chunkrl.online.control import ControlRate
from chunkrl.online.intervention import Corrector
from chunkrl.online.leader_arm import Handover, LeaderArm
from chunkrl.online.recorder import stream_spec
from chunkrl.online.records import StreamSpec
from chunkrl.online.robot_file import RobotFile, open_leader, open_robot
from chunkrl.online.scripted_corrector import ScriptedCorrector


class Observer(Protocol):
    """What of a policy decides what it must be shown."""

    @property
    def action_dim(self) -> int:
        """A."""
        ...

    @property
    def state_dim(self) -> int:
        """S; 0 for a policy without state."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that observations must have."""
        ...


@dataclass(frozen=True)
class Station:
    """env, space, rate, corrector, handover: as in `chunkrl.online.actor.Actor`. when_dry: what is done while no
    chunk is ready. spec: what every step looks like."""

    env: Environment
    space: ActionSpace
    spec: StreamSpec
    when_dry: WhenDry
    rate: ControlRate | None = None
    corrector: Corrector | None = None
    handover: Handover | None = None

    def close(self) -> None:
        """Of a station that no actor took over."""
        self.env.close()
        if self.corrector is not None:
            self.corrector.close()


def open_station(command: ActorCommand, policy: Observer) -> Station:
    """Connects to the robot, or starts the simulator. Raises ChunkRLError where the policy does not fit it."""
    if command.robot is not None:
        return _robot(command, policy)
    return _on_clock(_metaworld(command, policy), command.rate_hz)


def _robot(command: ActorCommand, policy: Observer) -> Station:
    assert command.robot is not None
    file = load_config(RobotFile, command.robot)
    if command.corrector not in ("none", "leader"):
        raise ChunkRLError(f"--corrector {command.corrector} is none of a robot's: use leader, or none")
    robot = open_robot(file)
    try:
        _check_fit(policy, robot.name, len(robot.joint_names), len(robot.joint_names), robot.cameras)
        low, high = file.limits(robot.joint_names)
        rate = ControlRate(file.rate_hz)
        env = RobotEnvironment(
            robot, rate, file.task, file.rate_hz, command.max_steps or file.max_steps, file.home
        )
    except BaseException:
        robot.close()
        raise
    blank = EnvStep(  # a reset would move the robot
        np.zeros(env.state_dim, np.float32),
        {f"{CAMERA_PREFIX}{name}": np.zeros((*size, 3), np.uint8) for name, size in robot.cameras.items()},
    )
    station = Station(
        env,
        ActionSpace.joint_targets(low, high),
        stream_spec(env, blank, env.state_names, env.action_names, robot.name),
        when_dry="hold",
        rate=rate,
    )
    if command.corrector == "none":
        return station
    try:
        leader = open_leader(file)
        assert file.handover is not None
        limits = (file.handover.max_step, file.handover.tolerance)
        arm = LeaderArm(leader, range(env.action_dim), *limits)
    except BaseException:
        robot.close()
        raise
    return replace(station, corrector=arm, handover=Handover(*limits))


def _metaworld(command: ActorCommand, policy: Observer) -> Station:
    assert command.env is not None
    if command.corrector not in ("none", "scripted"):
        raise ChunkRLError(f"--corrector {command.corrector} is none of MetaWorld's: use scripted, or none")
    states: dict[int, State] = {len(names): state for state, names in STATE_NAMES.items()}
    state = states.get(policy.state_dim, "full")
    size = command.camera_size
    if policy.cameras and size is None:
        if not isinstance(policy, PiActor):
            raise ChunkRLError(
                "the policy has a camera: say with --camera-size how large the pictures of its data were, as in "
                "chunkrl collect"
            )
        size = policy.policy.recipe.config.vision.image_size
    env = MetaWorldEnv(command.env, command.max_steps or 150, state, size or 0)
    camera = {CAMERA.removeprefix(CAMERA_PREFIX): (size, size)} if size else {}
    try:
        _check_fit(policy, f"MetaWorld's {command.env}", ACTION_DIM, env.state_dim, camera)
        spec = stream_spec(env, env.reset(0), STATE_NAMES[state], robot_type=f"metaworld:{command.env}")
        corrector = None
        if command.corrector == "scripted":
            corrector = ScriptedCorrector.for_metaworld(env, command.correction)
    except BaseException:
        env.close()
        raise
    return Station(env, ActionSpace.simulator(ACTION_DIM), spec, "wait", corrector=corrector)


def _on_clock(station: Station, rate_hz: float | None) -> Station:
    """A simulator at a control rate where one is given."""
    if rate_hz is None:
        return station
    rate = ControlRate(rate_hz)
    return replace(station, env=PacedEnvironment(station.env, rate), rate=rate, when_dry="hold")


def _check_fit(policy: Observer, name: str, action_dim: int, state_dim: int, cameras) -> None:
    """Raises ChunkRLError unless the policy may act there. cameras: names without prefix."""
    if policy.action_dim != action_dim or policy.state_dim not in (0, state_dim):
        raise ChunkRLError(
            f"the policy has {policy.action_dim} action and {policy.state_dim} state values, {name} has {action_dim} "
            f"and {state_dim}: it was trained for something else"
        )
    missing = [camera for camera in policy.cameras if camera.removeprefix(CAMERA_PREFIX) not in cameras]
    if missing:
        raise ChunkRLError(
            f"the policy needs the camera {missing[0]!r}, and {name} has {sorted(cameras) or 'none'}: name the "
            "cameras as the policy's data does"
        )
