"""What an environment must offer for collection, evaluation and (later) the actor loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class EnvStep:
    """The world after a reset or after one action.

    state: float32 [S]; images: camera -> uint8 [height, width, 3].
    reward: the reward of the action just taken (0 after a reset).
    success: the task is done. terminated: the task ended (success, or a failure the environment declares).
    truncated: the time limit was reached without termination.
    executed: float32 [A], what was done where the robot changed the action (its own limits); None: the action.
    """

    state: np.ndarray
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    reward: float = 0.0
    success: bool = False
    terminated: bool = False
    truncated: bool = False
    executed: np.ndarray | None = None

    @property
    def done(self) -> bool:
        """The episode is over, for whatever reason."""
        return self.terminated or self.truncated


class Environment(Protocol):
    """One environment instance: one task, reproducible initial states by integer seed."""

    name: str
    task: str
    state_dim: int
    action_dim: int
    max_steps: int
    fps: float

    def reset(self, seed: int) -> EnvStep:
        """Starts the episode whose initial state `seed` determines, whatever ran before."""
        ...

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        """Executes one action, float [A] in [-1, 1]; raises ValueError on a wrong shape or a NaN.

        draw: with images. A simulator saves the time where nobody looks: between the chunks of a policy.
        """
        ...

    def render(self) -> np.ndarray:
        """An image of the world for videos, uint8 [height, width, 3]; policies never see it."""
        ...

    def close(self) -> None:
        """Frees the simulator."""
        ...
