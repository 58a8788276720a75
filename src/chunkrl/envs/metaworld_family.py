"""MetaWorld as a kind of simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chunkrl.envs import metaworld
from chunkrl.envs.family import Correction, EnvFamily, EnvInfo, EnvOptions
from chunkrl.envs.protocol import Environment
from chunkrl.envs.scripted import ScriptedExpert
from chunkrl.errors import ChunkRLError


class MetaWorldFamily(EnvFamily):
    """All names that are nobody else's: tasks are called push-v3."""

    kind = "MetaWorld"
    examples = "push-v3"

    def matches(self, name: str) -> bool:
        """Whatever is nobody else's; `expand` says what is none of its tasks."""
        return True

    def expand(self, name: str) -> Sequence[str]:
        """The task itself."""
        metaworld.check_task(name)
        return (name,)

    def describe(self, tasks: Sequence[str]) -> EnvInfo:
        """Its tasks have one time limit."""
        limits = dict.fromkeys(tasks, metaworld.MAX_STEPS)
        states = dict[str, tuple[str, ...]](metaworld.STATE_NAMES.items())
        return EnvInfo(
            self.kind,
            metaworld.ACTION_DIM,
            states,
            "full",
            (metaworld.CAMERA,),
            limits,
            None,
            100,
            metaworld.FPS,
            False,
        )

    def make(self, name: str, options: EnvOptions) -> Environment:
        """Makes a task with one camera, which our own rasteriser draws."""
        if options.cameras not in ((), (metaworld.CAMERA,)):
            raise ChunkRLError(
                f"MetaWorld's one camera is called {metaworld.CAMERA!r}, not {options.cameras}"
            )
        state: Any = options.state  # checked by the environment
        max_steps = metaworld.MAX_STEPS if options.max_steps is None else options.max_steps
        return metaworld.MetaWorldEnv(name, max_steps, state, options.camera_size)

    def expert(self, env: Any) -> ScriptedExpert:
        """MetaWorld's own."""
        return metaworld.MetaWorldExpert(env)

    def correction(self, env: Any) -> Correction:
        """The correction by MetaWorld's own expert of the task."""
        return Correction(metaworld.make_expert(env.name), lambda: env.full_state)
