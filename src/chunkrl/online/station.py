"""What an actor works at: an environment with its limits and clock, and who corrects there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chunkrl.config import load_config
from chunkrl.envs.gym_hil_family import GymHilFamily
from chunkrl.envs.protocol import Environment, EnvStep
from chunkrl.envs.registry import family_of, make_env
from chunkrl.envs.robot import CAMERA_PREFIX, PacedEnvironment, RobotEnvironment
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.observed import fit_policy
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.online.action_guard import ActionSpace
from chunkrl.online.actor_command import ActorCommand
from chunkrl.online.chunk_executor import WhenDry
from chunkrl.online.control import ControlRate
from chunkrl.online.intervention import Corrector
from chunkrl.online.keyboard_corrector import KeyboardCorrector
from chunkrl.online.keys import KeySource, key_source
from chunkrl.online.leader_arm import Handover, LeaderArm
from chunkrl.online.recorder import stream_spec
from chunkrl.online.records import StreamSpec
from chunkrl.online.robot_file import RobotFile, open_leader, open_robot
from chunkrl.online.scripted_corrector import ScriptedCorrector

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Station:
    """env, space, rate, corrector, handover: as in `chunkrl.online.actor.Actor`. when_dry: what is done while no
    chunk is ready. spec: what every step looks like. keys: where the corrector is a keyboard, what is left of
    its keys for the actor; None: any.
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
        """Of a station that no actor took over."""
        self.env.close()
        for part in (self.corrector, self.keys):
            if part is not None:
                part.close()


def open_station(command: ActorCommand, policy: ActingPolicy) -> Station:
    """Connects to the robot, or starts the simulator. Raises ChunkRLError where the policy does not fit it."""
    if command.robot is not None:
        return _robot(command, policy)
    return _on_clock(_simulator(command, policy), command.rate_hz)


def _robot(command: ActorCommand, policy: ActingPolicy) -> Station:
    assert command.robot is not None
    file = load_config(RobotFile, command.robot)
    if command.corrector not in ("none", "leader"):
        raise ChunkRLError(f"--corrector {command.corrector} is none of a robot's: use leader, or none")
    with contextlib.ExitStack() as opened:
        robot = open_robot(file)
        opened.callback(robot.close)
        _check_fit(policy, robot.name, len(robot.joint_names), len(robot.joint_names), robot.cameras)
        low, high = file.limits(robot.joint_names)
        rate_hz = _rate_hz(policy, file.rate_hz, command.robot)
        rate, max_steps = ControlRate(rate_hz), command.max_steps or file.max_steps
        env = RobotEnvironment(robot, rate, file.task, rate_hz, max_steps, file.home)
        blank = EnvStep(  # a reset would move the robot
            np.zeros(env.state_dim, np.float32),
            {
                f"{CAMERA_PREFIX}{name}": np.zeros((*size, 3), np.uint8)
                for name, size in robot.cameras.items()
            },
        )
        spec = stream_spec(env, blank, env.state_names, env.action_names, robot.name)
        station = Station(env, ActionSpace.joint_targets(low, high), spec, when_dry="hold", rate=rate)
        if command.corrector == "leader":
            leader = open_leader(file)
            opened.callback(leader.close)
            assert file.handover is not None
            limits = (file.handover.max_step, file.handover.tolerance)
            arm = LeaderArm(leader, range(env.action_dim), *limits)
            station = replace(station, corrector=arm, handover=Handover(*limits))
        opened.pop_all()
        return station


def _rate_hz(policy: ActingPolicy, given: float | None, file: str) -> float:
    """Control steps a second. Raises ChunkRLError where neither the file nor the policy says it."""
    if given is None:
        if policy.fps is None:
            raise ChunkRLError(
                f"{file} gives no rate_hz, and the policy does not say how many frames a second its data had: give it"
            )
        return policy.fps
    if policy.fps is not None and abs(given / policy.fps - 1) > 0.02:
        _LOG.warning(
            "%s: rate_hz is %g, and the policy's data had %g frames a second: it moves %.3g times as fast",
            *(file, given, policy.fps, given / policy.fps),
        )
    return given


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


def _check_fit(
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
