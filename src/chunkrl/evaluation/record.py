"""Pictures of single episodes: an environment that draws itself while an actor runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chunkrl.envs.metaworld import MetaWorldEnv
from chunkrl.envs.protocol import EnvStep
from chunkrl.envs.software_render import SoftwareRenderer, metaworld_camera
from chunkrl.evaluation.rollout import Actor, evaluate


class RecordingEnv(MetaWorldEnv):
    """A MetaWorld task that keeps a picture of every `every`-th step (uint8 [height, width, 3])."""

    def __init__(self, name: str, max_steps: int, every: int = 4, size: tuple[int, int] = (320, 240)) -> None:
        super().__init__(name, max_steps)
        self._renderer = SoftwareRenderer(self.mujoco[0], metaworld_camera(), *size)
        self._every = every
        self._steps = 0
        self.frames: list[np.ndarray] = []

    def _draw(self) -> None:
        self.frames.append(self._renderer.render(self.mujoco[1]))

    def reset(self, seed: int) -> EnvStep:
        """Starts an episode and its pictures."""
        first = super().reset(seed)
        self._steps, self.frames = 0, []
        self._draw()
        return first

    def step(self, action: np.ndarray) -> EnvStep:
        """One action; draws where due, and always at the end."""
        following = super().step(action)
        self._steps += 1
        if self._steps % self._every == 0 or following.done:
            self._draw()
        return following


@dataclass(frozen=True)
class Clip:
    """One recorded episode. frames: uint8 [T, height, width, 3]."""

    frames: np.ndarray
    success: bool


def record(actor: Actor, env: RecordingEnv, seed: int, exec_steps: int) -> Clip:
    """The episode of `actor` from the initial state `seed`."""
    rollouts = evaluate(actor, [env], [seed], exec_steps)
    return Clip(np.stack(env.frames), bool(rollouts.success[0]))
