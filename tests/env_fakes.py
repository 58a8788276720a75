"""An environment made of arithmetic, with faults that happen once or always; simulator processes import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError


class LargeServant:
    """Its answer is larger than any pipe."""

    def make(self, num_bytes: int) -> bytes:
        return bytes(num_bytes)

    def close(self) -> None:
        pass


class CountEnv:
    """State [seed, sum of the actions' first entries, step]; success where that sum exceeds 1 before `max_steps`.

    fault: what happens at step 3 of the episode with seed 2: "kill", "hang", "raise"; in `make`: "refuse".
    marker: a file that says that it has happened; None: it happens every time.
    """

    task, state_dim, action_dim, max_steps, fps = "count to one", 3, 1, 7, 10.0

    def __init__(self, name: str, fault: str = "", marker: Path | None = None) -> None:
        if fault == "refuse":
            raise ChunkRLError(f"no environment {name}: name another")
        self.name, self._fault, self._marker = name, fault, marker

    def _step(self, **more) -> EnvStep:
        return EnvStep(np.array([self.seed, self.sum, self.num_steps], dtype=np.float32), **more)

    def reset(self, seed: int) -> EnvStep:
        self.seed, self.sum, self.num_steps = seed, 0.0, 0
        return self._step()

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        self.sum += float(action[0])
        self.num_steps += 1
        if self._fault and self.seed == 2 and self.num_steps == 3:
            self._fail()
        success = self.sum > 1
        return self._step(
            success=success, terminated=success, truncated=not success and self.num_steps >= self.max_steps
        )

    def _fail(self) -> None:
        if self._marker is not None:
            if self._marker.exists():
                return
            self._marker.touch()
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault == "hang":
            time.sleep(600)
        raise RuntimeError("the simulator is unwell")

    def render(self) -> np.ndarray:
        return np.full((16, 24, 3), self.num_steps, np.uint8)

    def close(self) -> None:
        pass
