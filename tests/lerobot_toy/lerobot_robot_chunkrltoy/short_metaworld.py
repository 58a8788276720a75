"""LeRobot's own MetaWorld with episodes of a few steps, as drawing takes seconds, and a log of them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

STEPS = "CHUNKRL_TOY_METAWORLD"
"""Environment variable: steps of an episode."""


def shorten(write: Any) -> None:
    """write: keeps the episode's arrays."""
    from lerobot.envs import metaworld

    steps = int(os.environ[STEPS])

    class ShortMetaworld(metaworld.MetaworldEnv):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self._max_episode_steps = steps

        def reset(self, *arguments: Any, **settings: Any) -> Any:
            seen, info = super().reset(*arguments, **settings)
            self.log, self.state = [], seen["agent_pos"]
            return seen, info

        def step(self, action: np.ndarray) -> Any:
            self.log.append((self.state.copy(), np.array(action)))
            if len(self.log) == steps:
                states, actions = map(np.stack, zip(*self.log, strict=True))
                write({"state": states, "action": actions})
            result = super().step(action)
            self.state = result[0]["agent_pos"]
            return result

    metaworld.MetaworldEnv = ShortMetaworld
