"""Mixed-quality scripted behaviour on MetaWorld: the frozen data recipe of the demo and the benchmark.

Two mixtures. `within`: the controller is drawn anew every 8 to 15 steps, so quality changes within an
episode, failures hold useful pieces and successes hold detours. `episodes`: one controller for a whole
episode, so episodes are good or bad as a whole. The recipe was fixed before any learning result was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from chunkrl.envs.metaworld import GOAL
from chunkrl.errors import ChunkRLError

Mixture = Literal["within", "episodes"]
CONTROLLERS = ("expert", "shifted_target", "early_release", "random_bursts")
EXPERT, SHIFTED, RELEASE, BURSTS = range(4)
Expert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class MixtureConfig:
    """How a mixture draws its controllers.

    mixture: `within` (re-drawn every `segment_steps`) or `episodes` (one a whole episode).
    expert_probability: `within` draws one of these for each episode; a segment is the expert with it.
    bad_within: relative weights of the controllers in the other segments.
    episode_controllers: `episodes`: probability of each controller of `CONTROLLERS`.
    segment_steps: lowest and highest length of a segment, steps.
    shift_m: lowest and highest length of the horizontal shift of the target, metres.
    noise_std: lowest and highest action noise (Gaussian, action units), drawn for each episode.
    """

    mixture: Mixture = "within"
    expert_probability: tuple[float, ...] = (0.2, 0.4, 0.6)
    bad_within: tuple[float, ...] = (0.0, 0.65, 0.35, 0.0)
    episode_controllers: tuple[float, ...] = (0.35, 0.35, 0.15, 0.15)
    segment_steps: tuple[int, int] = (8, 15)
    shift_m: tuple[float, float] = (0.12, 0.15)
    noise_std: tuple[float, float] = (0.05, 0.2)

    def __post_init__(self) -> None:
        if self.mixture not in get_args(Mixture):
            raise ChunkRLError(f"mixture is {self.mixture!r}; it must be one of {get_args(Mixture)}")
        for name in ("bad_within", "episode_controllers"):
            weights = getattr(self, name)
            if len(weights) != len(CONTROLLERS) or min(weights) < 0 or sum(weights) <= 0:
                raise ChunkRLError(
                    f"{name} is {weights}; it must hold a weight for each of {CONTROLLERS}, not all of them 0"
                )
        if not 1 <= self.segment_steps[0] <= self.segment_steps[1]:
            raise ChunkRLError(f"segment_steps is {self.segment_steps}; it must be 1 <= lowest <= highest")


class MixtureController:
    """Acts for one episode. `act` returns the executed action [4] in [-1, 1] and the controller's number."""

    def __init__(self, expert: Expert, config: MixtureConfig, rng: np.random.Generator) -> None:
        self._expert, self._config, self._rng = expert, config, rng
        self._expert_probability = rng.choice(config.expert_probability)
        self._noise_std = rng.uniform(*config.noise_std)
        self._steps_left = 0
        self._controller = EXPERT
        self._shift = np.zeros(3)
        self._release_height = 0.0
        if config.mixture == "episodes":
            self._draw(config.episode_controllers)

    def _draw(self, probabilities: tuple[float, ...]) -> None:
        weights = np.asarray(probabilities) / np.sum(probabilities)
        self._controller = int(self._rng.choice(len(CONTROLLERS), p=weights))
        angle = self._rng.uniform(0, 2 * np.pi)
        length = self._rng.uniform(*self._config.shift_m)
        self._shift = length * np.array([np.cos(angle), np.sin(angle), 0.0])
        self._release_step = int(self._rng.integers(15, 45))  # `episodes`: when an early release begins
        self._steps = 0

    def _redraw(self) -> None:
        low, high = self._config.segment_steps
        self._steps_left = int(self._rng.integers(low, high + 1))
        if self._rng.random() < self._expert_probability:
            self._controller = EXPERT
        else:
            self._draw(self._config.bad_within)

    def act(self, state: np.ndarray) -> tuple[np.ndarray, int]:
        """state: float [39] of a MetaWorld task."""
        if self._config.mixture == "within":
            if self._steps_left == 0:
                self._redraw()
            self._steps_left -= 1
        action = self._controlled_action(state)
        noise = self._noise_std * self._rng.standard_normal(action.shape)
        return np.clip(action + noise, -1.0, 1.0).astype(np.float32), self._controller

    def _controlled_action(self, state: np.ndarray) -> np.ndarray:
        if self._controller == SHIFTED:
            shifted = state.copy()
            shifted[GOAL] += self._shift.astype(state.dtype)
            return np.clip(self._expert(shifted), -1.0, 1.0)
        action = np.clip(self._expert(state), -1.0, 1.0)
        if self._controller == RELEASE:
            self._steps += 1
            whole_episode = self._config.mixture == "episodes"
            if not whole_episode or self._steps > self._release_step:
                return np.array([0.0, 0.0, 0.5, -1.0])  # open the gripper and lift
        if self._controller == BURSTS and self._burst():
            return self._burst_action
        return action

    def _burst(self) -> bool:
        """Random bursts: every 8 to 15 steps, with probability one half, a constant random action."""
        if self._steps_left == 0:
            self._steps_left = int(self._rng.integers(*self._config.segment_steps, endpoint=True))
            self._bursting = self._rng.random() < 0.5
            self._burst_action = self._rng.uniform(-1.0, 1.0, size=4)
        self._steps_left -= 1
        return bool(self._bursting)
