"""The robot or simulator that an actor acts on, from its file or name: an environment with its limits and clock, and
who corrects there.

A robot as `chunkrl actor --robot FILE` reads it: hardware, task, limits, and who may lead it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chunkrl.config import from_dict, load_config
from chunkrl.envs.action_guard import ActionSpace
from chunkrl.envs.fake_robot import FakeLeader, FakeRobot
from chunkrl.envs.gym_hil_family import GymHilFamily
from chunkrl.envs.protocol import Environment, EnvStep
from chunkrl.envs.registry import family_of, make_env
from chunkrl.envs.robot import CAMERA_PREFIX, Home, PacedEnvironment, Robot, RobotEnvironment
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.observed import fit_policy
from chunkrl.integration.lerobot_devices import LeRobotRobot, lerobot_leader, make_device
from chunkrl.integration.lerobot_processors import ProcessorFiles, processed
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.online.actor.command import ActorCommand
from chunkrl.online.actor.executor import ControlRate, WhenDry
from chunkrl.online.actor.recorder import stream_spec
from chunkrl.online.human.correctors import (
    Handover,
    KeyboardCorrector,
    LeaderArm,
    ScriptedCorrector,
    Teleoperator,
)
from chunkrl.online.human.intervention import Corrector
from chunkrl.online.human.keys import KeySource, key_source
from chunkrl.online.link.records import StreamSpec

FAKE = "fake"


@dataclass(frozen=True)
class HandoverLimits:
    """How far targets may move where an episode begins and where who gives them changes; units of the robot's
    positions."""

    max_step: float
    """Farthest in a control step, above 0."""
    tolerance: float
    """Both agree within it, and from there targets pass unchanged; from 0 to max_step."""

    def __post_init__(self) -> None:
        self.guard()  # whoever reads a file hears of it before a robot is there

    def guard(self) -> Handover:
        """What keeps to them. Raises ChunkRLError where they are none."""
        return Handover(self.max_step, self.tolerance)


@dataclass(frozen=True)
class RobotFile:
    """A robot and what an actor must know of it."""

    robot: dict[str, Any]
    """Settings as on LeRobot's command line: `type`, `port`, `id`, `cameras`. Type `fake` is a robot of arithmetic,
    with `num_joints`, `cameras` (name: [height, width]) and `speed`."""
    task: str
    """The task's text, as in the data."""
    low: tuple[float, ...]
    """Lowest targets, one per joint, or one for all: nothing below is ever sent."""
    high: tuple[float, ...]
    """Highest targets."""
    rate_hz: float | None = None
    """Control steps per second; default: the frame rate of the policy's data."""
    max_steps: int = 600
    """Time limit of an episode, steps."""
    home: Home | None = None
    """Where an episode begins, within low and high; None: where the robot stands."""
    leader: dict[str, Any] | None = None
    """The leader arm's settings, as `robot`."""
    handover: HandoverLimits | None = None
    """Keeps targets from jumping; needed with a leader. None: the policy's first target is sent as it is."""
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
        if self.home is not None:
            self.home.check_within(self.low, self.high)

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
    """Settings of a robot or leader of type `fake`."""

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


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Station:
    """env, space, rate, corrector, handover: as in `chunkrl.online.actor.actor.Actor`. when_dry: what is done
    while no chunk is ready. spec: what every step looks like. keys: where the corrector is a keyboard, what is
    left of its keys for the actor; None: any.
    """

    env: Environment
    space: ActionSpace
    spec: StreamSpec
    when_dry: WhenDry
    rate: ControlRate | None = None
    corrector: Corrector | None = None
    handover: Handover | None = None
    keys: KeySource | None = None

    def close(self) -> None:
        """Closes the parts of a station that no actor took over."""
        self.env.close()
        for part in (self.corrector, self.keys):
            if part is not None:
                part.close()


def open_station(
    command: ActorCommand, *policies: ActingPolicy, names: Sequence[str] = ("the policy",)
) -> Station:
    """Connects to the robot, or starts the simulator.

    Args:
        policies: all that will act there, in turns; a simulator is what the first one sees.
        names: what messages call them.

    Raises:
        ChunkRLError: the first policy does not fit, or a robot without a rate of its own is to follow several.
    """
    if command.robot is not None:
        return _robot(command, dict(zip(names, policies, strict=True)))
    return _on_clock(_simulator(command, policies[0]), command.rate_hz)


def _robot(command: ActorCommand, policies: Mapping[str, ActingPolicy]) -> Station:
    assert command.robot is not None
    first = next(iter(policies.values()))
    file = load_config(RobotFile, command.robot)
    if command.corrector not in ("none", "leader"):
        raise ChunkRLError(f"--corrector {command.corrector} is none of a robot's: use leader, or none")
    with contextlib.ExitStack() as opened:
        robot = open_robot(file)
        opened.callback(robot.close)
        check_fit(first, robot.name, len(robot.joint_names), len(robot.joint_names), robot.cameras)
        low, high = file.limits(robot.joint_names)
        rate_hz = _rate_hz(policies, file.rate_hz, command.robot)
        rate, max_steps = ControlRate(rate_hz), command.max_steps or file.max_steps
        env = RobotEnvironment(robot, rate, file.task, rate_hz, max_steps, file.home, (low, high))
        blank = EnvStep(  # a reset would move the robot
            np.zeros(env.state_dim, np.float32),
            {
                f"{CAMERA_PREFIX}{name}": np.zeros((*size, 3), np.uint8)
                for name, size in robot.cameras.items()
            },
        )
        spec = stream_spec(env, blank, env.state_names, env.action_names, robot.name)
        handover = None if file.handover is None else file.handover.guard()
        space = ActionSpace.joint_targets(low, high)
        station = Station(env, space, spec, when_dry="hold", rate=rate, handover=handover)
        if command.corrector == "leader":
            leader = open_leader(file)
            opened.callback(leader.close)
            assert file.handover is not None
            mirrors = (file.handover.max_step, file.handover.tolerance)
            station = replace(station, corrector=LeaderArm(leader, range(env.action_dim), *mirrors))
        opened.pop_all()
        return station


def _rate_hz(policies: Mapping[str, ActingPolicy], given: float | None, file: str) -> float:
    """Control steps per second, for all policies by name. Raises ChunkRLError where the file does not say it, and
    neither do the policies, or not the same."""
    rates = {name: policy.fps for name, policy in policies.items() if policy.fps is not None}
    if given is not None:
        for name, fps in rates.items():
            if not _alike(given, fps):
                _LOG.warning(
                    "%s: rate_hz is %g, and %s's data had %g frames per second: it moves %.3g times as fast",
                    *(file, given, name, fps, given / fps),
                )
        return given
    for name in policies:
        if name not in rates:
            raise ChunkRLError(
                f"{file} gives no rate_hz, and {name} does not say how many frames per second its data had: give it"
            )
    slowest, fastest = min(rates.values()), max(rates.values())
    if not _alike(slowest, fastest):
        told = ", ".join(f"{name} {fps:g}" for name, fps in rates.items())
        raise ChunkRLError(
            f"{file} gives no rate_hz, and the policies' data had different frames per second ({told}): a robot has "
            "one rate, at which some would move faster or slower than their data; give rate_hz to choose it"
        )
    return slowest  # whichever policy is named first


def _alike(rate: float, other: float) -> bool:
    """Whether nobody would see the difference of two rates."""
    return abs(rate / other - 1) <= 0.02


def _simulator(command: ActorCommand, policy: ActingPolicy) -> Station:
    assert command.env is not None
    if command.corrector == "leader":
        raise ChunkRLError("--corrector leader is a robot's: use scripted (MetaWorld) or keyboard (gym-hil)")
    request = fit_policy(policy, [command.env], command.max_steps, command.camera_size, command.rename)
    if len(request.envs) > 1:
        raise ChunkRLError(f"{command.env} is {len(request.envs)} tasks; give one: {', '.join(request.envs)}")
    name, info, options = next(iter(request.envs)), request.info, request.options
    if request.rename:  # records and policy call cameras by the same names
        theirs = dict(request.rename)
        options = replace(options, cameras=tuple(theirs.get(camera, camera) for camera in info.cameras))
    with contextlib.ExitStack() as opened:
        env = make_env(name, replace(options, initial="sampled"))  # the official states are for evaluation
        opened.callback(env.close)
        state_names = info.states[options.state]
        spec = stream_spec(env, env.reset(0), state_names, robot_type=f"{info.kind.lower()}:{name}")
        space = replace(ActionSpace.simulator(env.action_dim), hold=family_of(name).hold)
        station = Station(env, space, spec, "wait", **_simulated_corrector(command, env))
        opened.pop_all()
        return station


def _simulated_corrector(command: ActorCommand, env: Environment) -> dict[str, Any]:
    """`corrector` and `keys` of a simulator's station."""
    if command.corrector == "scripted":
        correction = family_of(env.name).correction(env)
        if correction is None:
            raise ChunkRLError(
                f"--corrector scripted is MetaWorld's expert, and {env.name} is none of its tasks"
            )
        return {"corrector": ScriptedCorrector.of(correction, command.correction)}
    if command.corrector == "keyboard":
        if not family_of(env.name).moves_by_keyboard:
            raise ChunkRLError(
                f"--corrector keyboard moves gym-hil's gripper ({GymHilFamily.examples}), not {env.name}"
            )
        if command.key_source == "none":
            raise ChunkRLError(
                "--corrector keyboard needs keys: give --rate-hz 10, or --keys terminal or pynput"
            )
        corrector = KeyboardCorrector(key_source(command.key_source), env.action_dim)
        return {"corrector": corrector, "keys": corrector.keys}
    return {}


def _on_clock(station: Station, rate_hz: float | None) -> Station:
    """A simulator at a control rate where one is given."""
    if rate_hz is None:
        return station
    rate = ControlRate(rate_hz)
    return replace(station, env=PacedEnvironment(station.env, rate), rate=rate, when_dry="hold")


def check_fit(
    policy: ActingPolicy,
    name: str,
    action_dim: int,
    state_dim: int,
    cameras: Mapping[str, tuple[int, int]],
) -> None:
    """Raises ChunkRLError unless the policy may act there. cameras: names without prefix -> (height, width)."""
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
    for camera in policy.takes.cameras:
        policy.takes.check_size(camera, cameras[camera.name.removeprefix(CAMERA_PREFIX)])
