"""A simulator of one file, as one is added: a point that shall come to a place on a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chunkrl.data.hold_action import HoldAction
from chunkrl.envs.family import EnvFamily, EnvInfo, EnvOptions
from chunkrl.envs.protocol import EnvStep

STATE_NAMES = ("position", "goal")
MAX_STEPS, FPS = 12, 10.0


class ToyEnv:
    """A point moves by up to 0.5 per step."""

    task = "come to the goal"
    state_dim, action_dim, fps = len(STATE_NAMES), 1, FPS
    state_names, action_names = STATE_NAMES, ("motion",)

    def __init__(self, name: str, max_steps: int) -> None:
        self.name, self.max_steps = name, max_steps

    def reset(self, seed: int) -> EnvStep:
        """A goal in [-1, 1]."""
        self._state = np.array([0.0, np.random.default_rng(seed).uniform(-1, 1)], np.float32)
        self._count = 0
        return EnvStep(self._state.copy())

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        """Success within 0.2 of the goal."""
        self._state[0] += 0.5 * np.clip(action[0], -1, 1)
        self._count += 1
        success = bool(abs(self._state[0] - self._state[1]) < 0.2)
        late = self._count >= self.max_steps and not success
        return EnvStep(self._state.copy(), {}, float(success), success, success, late)

    def render(self) -> np.ndarray:
        """A white point on black."""
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[16, int(np.clip(16 + 8 * self._state[0], 0, 31))] = 255
        return picture

    def close(self) -> None:
        """Nothing to free."""


class ToyExpert:
    """Goes to the goal."""

    release = np.zeros(1)

    def __init__(self, env: Any) -> None:
        self._env = env

    def reset(self) -> None:
        """It remembers nothing."""

    def act(self, shift: np.ndarray) -> np.ndarray:
        """Half the way, to a goal that is misplaced by shift [3]."""
        position, goal = self._env._state
        return np.array([goal + 5 * shift[0] - position])


class ToyFamily(EnvFamily):
    """Tasks are called toy/line."""

    kind = "Toy"
    examples = "toy/line"
    hold = HoldAction("delta", ())

    def matches(self, name: str) -> bool:
        """By its prefix."""
        return name.startswith("toy/")

    def describe(self, tasks: Sequence[str]) -> EnvInfo:
        """Two numbers, no camera."""
        limits = dict.fromkeys(tasks, MAX_STEPS)
        return EnvInfo(self.kind, 1, {"full": STATE_NAMES}, "full", (), limits, None, 20, FPS, False)

    def make(self, name: str, options: EnvOptions) -> ToyEnv:
        """The one task."""
        return ToyEnv(name, MAX_STEPS if options.max_steps is None else options.max_steps)

    def expert(self, env: Any) -> ToyExpert:
        """Half the way."""
        return ToyExpert(env)
