"""gym-hil as a kind of simulator."""

from __future__ import annotations

from collections.abc import Sequence

from chunkrl.envs import gym_hil
from chunkrl.envs.family import EnvFamily, EnvInfo, EnvOptions
from chunkrl.envs.protocol import Environment
from chunkrl.errors import ChunkRLError


class GymHilFamily(EnvFamily):
    """A scene of LeRobot's gym-hil, in which a person intervenes."""

    kind = "gym-hil"
    examples = gym_hil.TASK
    uses_opengl = True
    moves_by_keyboard = True
    hold = gym_hil.HOLD

    def matches(self, name: str) -> bool:
        """Recognises the package's name."""
        return name.startswith("gym_hil/")

    def describe(self, tasks: Sequence[str]) -> EnvInfo:
        """One state, two cameras."""
        limits = dict.fromkeys(tasks, gym_hil.MAX_STEPS)
        states = {"full": gym_hil.STATE_NAMES}
        size, cameras = gym_hil.ACTION_DIM, gym_hil.CAMERAS
        return EnvInfo(self.kind, size, states, "full", cameras, limits, None, 100, gym_hil.FPS, True)

    def make(self, name: str, options: EnvOptions) -> Environment:
        """Makes a scene with its own names of the cameras alone."""
        if options.cameras not in ((), gym_hil.CAMERAS):
            raise ChunkRLError(f"gym-hil's cameras are called {gym_hil.CAMERAS}, not {options.cameras}")
        max_steps = gym_hil.MAX_STEPS if options.max_steps is None else options.max_steps
        return gym_hil.GymHilEnv(name, max_steps, options.camera_size)
