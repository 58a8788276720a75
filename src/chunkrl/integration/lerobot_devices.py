"""LeRobot's robots and teleoperators as this project's (extra `lerobot`; LeRobot 0.4.4).

Any robot whose actions are targets of the scalars that it observes, in one order: SO-100/101, Koch and their kind,
two arms, any cameras. LeRobot is imported only to build devices; the adapters take any object of its interface.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from chunkrl.envs.robot import RobotState
from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError

_POSITION = ".pos"  # how LeRobot's keys of joints end


class RobotDevice(Protocol):
    """What is used of `lerobot.robots.Robot`."""

    observation_features: Any
    action_features: Any
    is_connected: Any
    is_calibrated: Any

    def connect(self, calibrate: bool = True) -> None: ...
    def get_observation(self) -> dict[str, Any]: ...
    def send_action(self, action: dict[str, Any]) -> dict[str, Any]: ...
    def disconnect(self) -> None: ...


class LeaderDevice(Protocol):
    """What is used of `lerobot.teleoperators.Teleoperator`."""

    action_features: Any
    feedback_features: Any
    is_connected: Any
    is_calibrated: Any

    def connect(self, calibrate: bool = True) -> None: ...
    def get_action(self) -> dict[str, Any]: ...
    def send_feedback(self, feedback: dict[str, Any]) -> None: ...
    def disconnect(self) -> None: ...


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError("LeRobot's robots", error.name or "lerobot", "lerobot") from error


def make_device(package: str, config_name: str, settings: Mapping[str, Any]) -> Any:
    """Builds, but does not connect, a LeRobot device.

    package: `robots` or `teleoperators`. config_name: `RobotConfig` or `TeleoperatorConfig`. settings: as on
    LeRobot's command line: `type`, then the device's own, cameras nested with their own `type`.

    Raises MissingExtraError without LeRobot, ChunkRLError for an unknown type or settings it does not take.
    """
    if "type" not in settings:
        raise ChunkRLError(f"settings of one of LeRobot's {package} lack `type`, e.g. so100_follower")
    root = _import(f"lerobot.{package}")
    problems = _register(f"lerobot.{package}")
    if package == "robots":
        _import("lerobot.cameras")
        problems += _register("lerobot.cameras")
    config_class = getattr(root, config_name)
    known = config_class.get_known_choices()
    if settings["type"] not in known:
        raise ChunkRLError(
            f"LeRobot has no {settings['type']!r} among its {package}; there are {', '.join(sorted(known))}"
            + (f"; not importable here: {'; '.join(problems)}" if problems else "")
        )
    draccus = _import("draccus")
    try:
        config = draccus.decode(config_class, dict(settings))
    except Exception as error:  # draccus raises many kinds
        raise ChunkRLError(f"LeRobot refuses the settings {dict(settings)}: {error}") from error
    make = {"robots": "make_robot_from_config", "teleoperators": "make_teleoperator_from_config"}[package]
    try:
        return getattr(_import(f"lerobot.{package}.utils"), make)(config)
    except ImportError as error:
        raise ChunkRLError(
            f"LeRobot's {settings['type']} needs its driver, e.g. lerobot[feetech]: {error}"
        ) from error


def _register(package: str) -> list[str]:
    """LeRobot's devices are known once their modules are imported; those that lack a driver of their own, and why."""
    problems = []
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not module.ispkg:
            continue
        try:
            importlib.import_module(f"{package}.{module.name}")
        except ImportError as error:  # a driver for other hardware
            problems.append(f"{module.name} ({error})")
    return problems


def _connect(device: RobotDevice | LeaderDevice, what: str) -> None:
    """Connects without LeRobot's questions on the terminal, which would stop the control loop."""
    if device.is_connected:
        return
    device.connect(calibrate=False)
    if not device.is_calibrated:
        device.disconnect()
        raise ChunkRLError(
            f"{what} {device} is not calibrated: run lerobot-calibrate for it once, under the same id"
        )


def _values(found: Mapping[str, Any], names: tuple[str, ...], what: str) -> np.ndarray:
    missing = [name for name in names if name not in found]
    if missing:
        raise ChunkRLError(f"{what} gives no {missing[0]!r}, which it says it has")
    return np.array([float(found[name]) for name in names], dtype=np.float32)


class LeRobotRobot:
    """A LeRobot robot as `chunkrl.envs.robot.Robot`; joints and cameras are named as LeRobot names them."""

    def __init__(self, device: RobotDevice) -> None:
        """Connects `device` if it is not. Raises ChunkRLError where its state is not what its actions are targets of,
        or it is not calibrated."""
        self.name = str(getattr(device, "name", type(device).__name__))
        _connect(device, "the robot")
        try:
            self._take_features(device)
        except BaseException:
            device.disconnect()
            raise
        self._device = device

    def _take_features(self, device: RobotDevice) -> None:
        observed = device.observation_features
        actions = tuple(device.action_features)
        scalars = tuple(k for k, v in observed.items() if not isinstance(v, tuple))
        if actions != scalars or not actions:
            raise ChunkRLError(
                f"{self.name} takes targets for {list(actions)} and observes {list(scalars)}: only robots that "
                "observe just what they take targets for, in one order, can be driven"
            )
        self.joint_names = actions
        self.cameras: Mapping[str, tuple[int, int]] = {
            name: (shape[0], shape[1]) for name, shape in observed.items() if isinstance(shape, tuple)
        }

    def observe(self) -> RobotState:
        """Positions in the device's units, newest images."""
        seen = self._device.get_observation()
        images = {name: np.asarray(seen[name], dtype=np.uint8) for name in self.cameras if name in seen}
        return RobotState(_values(seen, self.joint_names, self.name), images)

    def send(self, targets: np.ndarray) -> np.ndarray:
        """What the device made of the targets (`max_relative_target` and the like)."""
        action = {name: float(value) for name, value in zip(self.joint_names, targets, strict=True)}
        return _values(self._device.send_action(action), self.joint_names, self.name)

    def close(self) -> None:
        """Disconnects."""
        if self._device.is_connected:
            self._device.disconnect()


class LeRobotLeader:
    """A LeRobot leader arm as `chunkrl.online.human.correctors.Teleoperator`.

    LeRobot 0.4.4's leaders take no feedback (`feedback_features` is empty, the SO leader's `send_feedback` raises),
    so the leader is driven over its own motors: torque and goal positions of `bus`, or of the buses of a pair of
    arms (`left_arm`, `right_arm`). A leader that does take feedback for every joint gets it instead of goal
    positions.
    """

    def __init__(self, device: LeaderDevice) -> None:
        """Connects `device` if it is not. Raises ChunkRLError where it cannot be driven or is not calibrated."""
        name = str(getattr(device, "name", type(device).__name__))
        self.joint_names = tuple(device.action_features)
        self._name, self._device = name, device
        self._feedback = set(self.joint_names) <= set(device.feedback_features)
        self._buses = _motor_buses(device)
        wrong = [joint for joint in self.joint_names if not joint.endswith(_POSITION)]
        if not self._buses or wrong:
            why = f"gives {wrong[0]!r}, no joint position" if wrong else "has no motors of its own"
            raise ChunkRLError(
                f"{name} {why}: it cannot mirror the follower; use a leader arm of the follower's kind"
            )
        _connect(device, "the leader")

    def positions(self) -> np.ndarray:
        """Where it is, in the device's units."""
        return _values(self._device.get_action(), self.joint_names, self._name)

    def set_torque(self, on: bool) -> None:
        """Switches the torque of all its motors."""
        for bus in self._buses.values():
            if on:
                bus.enable_torque()
            else:
                bus.disable_torque()

    def drive(self, positions: np.ndarray) -> None:
        """Goal positions of all its motors."""
        goals = {name: float(value) for name, value in zip(self.joint_names, positions, strict=True)}
        if self._feedback:
            self._device.send_feedback(goals)
            return
        for prefix, bus in self._buses.items():
            arm = {k[len(prefix) : -len(_POSITION)]: v for k, v in goals.items() if k.startswith(prefix)}
            bus.sync_write("Goal_Position", arm)

    def close(self) -> None:
        """Lets the arm go and disconnects."""
        if self._device.is_connected:
            self.set_torque(False)
            self._device.disconnect()


def _motor_buses(device: LeaderDevice) -> dict[str, Any]:
    """Prefix of the joints' names -> motor bus."""
    if hasattr(device, "bus"):
        return {"": device.bus}  # pyright: ignore[reportAttributeAccessIssue]
    arms = {prefix: getattr(device, f"{prefix}arm", None) for prefix in ("left_", "right_")}
    return {prefix: arm.bus for prefix, arm in arms.items() if arm is not None and hasattr(arm, "bus")}


def lerobot_robot(settings: Mapping[str, Any]) -> LeRobotRobot:
    """A connected robot from LeRobot's own settings: {"type": "so100_follower", "port": ..., "cameras": {...}}."""
    return LeRobotRobot(make_device("robots", "RobotConfig", settings))


def lerobot_leader(settings: Mapping[str, Any]) -> LeRobotLeader:
    """A connected leader from LeRobot's own settings, e.g. {"type": "so100_leader", "port": ...}."""
    return LeRobotLeader(make_device("teleoperators", "TeleoperatorConfig", settings))
