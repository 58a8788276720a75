"""A toy environment for LeRobot's own commands: it keeps what it showed and what it was told to do.

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

STATE, ACTION, SIDE, STEPS = 8, 7, 56, 7
CAMERAS = ("front", "wrist")


class ToyEnv(gym.Env):
    """A state that the actions move, and pictures drawn at random from the seed."""

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
        folder = Path(os.environ["CHUNKRL_TOY_LOG"])
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "state": np.stack([step["state"] for step in self.log]),
            "action": np.stack([step["action"] for step in self.log]),
        }
        for name in self.cameras:
            arrays[name] = np.stack([step["pictures"][name] for step in self.log])
        np.savez(folder / f"{len(list(folder.iterdir())):03}.npz", **arrays)
        (folder.parent / "task.json").write_text(json.dumps(self.task))

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
