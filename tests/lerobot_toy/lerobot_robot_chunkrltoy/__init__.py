"""A toy environment and a toy robot for LeRobot's own commands: they keep what they showed and what they were told.

LeRobot imports it by the name of its distribution (`lerobot_robot_`: the older release knows no `lerobot_env_`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.robots import Robot, RobotConfig

from . import human, short_metaworld
from .human import ToyTeleop  # noqa: F401 (LeRobot looks for it here)

STATE, ACTION, SIDE, STEPS = 8, 7, 56, 7
CAMERAS = ("front", "wrist")


def log_folder() -> Path:
    """Where the test looks for what was seen and done."""
    folder = Path(os.environ["CHUNKRL_TOY_LOG"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_episode(arrays: dict[str, np.ndarray]) -> None:
    """Keeps an episode, after those that are there."""
    folder = log_folder()
    np.savez(folder / f"{len(list(folder.iterdir())):03}.npz", **arrays)


class ToyEnv(gym.Env):
    """A state that the actions move, and images drawn at random from the seed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    _max_episode_steps = STEPS
    task = task_description = "push the red cup"

    def __init__(self, render_mode: str | None = None, cameras: tuple[str, ...] = CAMERAS) -> None:
        self.render_mode, self.cameras = render_mode, cameras
        picture = gym.spaces.Box(0, 255, (SIDE, SIDE + 8, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict(dict.fromkeys(cameras, picture)),
                "agent_pos": gym.spaces.Box(-np.inf, np.inf, (STATE,), np.float64),
            }
        )
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (ACTION,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.steps, self.state = 0, self.np_random.normal(size=STATE)
        self.log: list[dict[str, Any]] = []
        return self._observation(), {}

    def _observation(self) -> dict[str, Any]:
        shape = (SIDE, SIDE + 8, 3)
        self.pictures = {name: self.np_random.integers(0, 256, shape, np.uint8) for name in self.cameras}
        return {"pixels": self.pictures, "agent_pos": self.state.copy()}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.log.append({"state": self.state.copy(), "action": np.array(action), "pictures": self.pictures})
        self.state = self.state + 0.1 * np.pad(action, (0, 1))
        self.steps += 1
        if self.steps == STEPS:
            self._write()
        return self._observation(), 0.0, False, self.steps >= STEPS, {"is_success": False}

    def _write(self) -> None:
        arrays = {
            "state": np.stack([step["state"] for step in self.log]),
            "action": np.stack([step["action"] for step in self.log]),
        }
        for name in self.cameras:
            arrays[name] = np.stack([step["pictures"][name] for step in self.log])
        write_episode(arrays)
        (log_folder().parent / "task.json").write_text(json.dumps(self.task))

    def render(self) -> np.ndarray:
        return self.pictures[self.cameras[0]]


@EnvConfig.register_subclass("chunkrltoy")
@dataclass
class ToyConfig(EnvConfig):
    task: str = "toy-v0"
    fps: int = 10
    cameras: str = ",".join(CAMERAS)
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, (ACTION,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (STATE,)),
        }
        self.features_map = {"action": "action", "agent_pos": "observation.state"}
        for name in self.cameras.split(","):
            self.features[f"pixels/{name}"] = PolicyFeature(FeatureType.VISUAL, (SIDE, SIDE + 8, 3))
            self.features_map[f"pixels/{name}"] = f"observation.images.{name}"

    @property
    def package_name(self) -> str:
        return "lerobot_robot_chunkrltoy"

    @property
    def gym_kwargs(self) -> dict:
        return {"cameras": tuple(self.cameras.split(","))}


# without wrappers, behind which LeRobot 0.4.4 does not see the task
gym.register("lerobot_robot_chunkrltoy/toy-v0", ToyEnv, order_enforce=False, disable_env_checker=True)


@RobotConfig.register_subclass("chunkrltoyrobot")
@dataclass
class ToyRobotConfig(RobotConfig):
    """Nothing to set."""


class ToyRobot(Robot):
    """Eight joints that are seen, of which seven are moved, and two cameras."""

    config_class = ToyRobotConfig
    name = "chunkrltoyrobot"
    is_connected = is_calibrated = False
    cameras = CAMERAS  # that LeRobot counts

    def __init__(self, config: ToyRobotConfig) -> None:
        super().__init__(config)
        self.keyboard = human.Keyboard()
        self.random, self.log = np.random.default_rng(0), []
        self.state = self.random.normal(size=STATE).astype(np.float32)

    @property
    def observation_features(self) -> dict:
        joints = {f"j{i}.pos": float for i in range(STATE)}
        return joints | dict.fromkeys(CAMERAS, (SIDE, SIDE + 8, 3))

    @property
    def action_features(self) -> dict:
        return {f"j{i}.pos": float for i in range(ACTION)}

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True
        self.keyboard.plug_in()

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict:
        self.keyboard.look()
        shape = (SIDE, SIDE + 8, 3)
        self.pictures = {name: self.random.integers(0, 256, shape, np.uint8) for name in CAMERAS}
        self.seen = self.state.copy()
        return {f"j{i}.pos": float(v) for i, v in enumerate(self.seen)} | self.pictures

    def send_action(self, action: dict) -> dict:
        values = np.array([action[name] for name in self.action_features], np.float32)
        self.log.append({"state": self.seen, "action": values, **self.pictures})
        self.state[:ACTION] = 0.9 * self.state[:ACTION] + 0.1 * values
        return action

    def disconnect(self) -> None:
        kept = {name: np.stack([step[name] for step in self.log]) for name in self.log[0]}
        np.savez(log_folder() / "robot.npz", **kept)
        self.is_connected = False


if short_metaworld.STEPS in os.environ:
    short_metaworld.shorten(write_episode)
