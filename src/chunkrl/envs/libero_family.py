"""LIBERO as a kind of simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chunkrl.envs.family import EnvFamily, EnvInfo, EnvOptions
from chunkrl.envs.libero_tasks import NUM_INITIAL_STATES, SUITES, find_task, suite_tasks
from chunkrl.envs.protocol import Environment
from chunkrl.envs.scripted import ScriptedExpert


class LiberoFamily(EnvFamily):
    """Tasks are called libero_spatial/3; a suite stands for all its tasks."""

    kind = "LIBERO"
    examples = ", ".join((*SUITES, "libero_10/3"))
    renderings = ("default", "fast")
    uses_opengl = True
    has_official_states = True
    has_goals = True
    has_openpi_names = True

    def matches(self, name: str) -> bool:
        """Recognises the suite's name."""
        return name.startswith("libero") or "/" in name

    def expand(self, name: str) -> Sequence[str]:
        """A task, or all of a suite."""
        if "/" in name:
            return (find_task(name).name,)
        return [task.name for task in suite_tasks(name)]

    def describe(self, tasks: Sequence[str]) -> EnvInfo:
        """Each suite has its time limit."""
        from chunkrl.envs import libero

        return EnvInfo(
            self.kind,
            libero.ACTION_DIM,
            dict(libero.STATES),
            "full",
            libero.CAMERAS,
            {task: find_task(task).max_steps for task in tasks},
            NUM_INITIAL_STATES,
            NUM_INITIAL_STATES,
            libero.FPS,
            True,
            libero.PUBLIC_CAMERA_SIZE,
        )

    def make(self, name: str, options: EnvOptions) -> Environment:
        """Raises also where a process has an environment with cameras already."""
        from chunkrl.envs import libero

        cameras = options.cameras or libero.CAMERAS
        state: Any = options.state  # checked by the environment
        return libero.LiberoEnv(
            name,
            options.max_steps,
            options.camera_size,
            cameras,
            options.rendering,
            options.initial,
            state,
        )

    def prepare(self) -> None:
        """Fetches its meshes and textures, which its package lacks."""
        from chunkrl.envs.libero_package import find_assets

        find_assets()

    def asset_fingerprint(self) -> str:
        """The fingerprint of the meshes and textures."""
        from chunkrl.envs.libero_package import assets_fingerprint, find_assets

        return assets_fingerprint(find_assets())

    def expert(self, env: Any) -> ScriptedExpert:
        """Picks one object and places it."""
        from chunkrl.envs.libero_expert import LiberoExpert

        return LiberoExpert(env.domain)

    def goals(self, env: Any) -> Any:
        """`LiberoGoals` of the task."""
        from chunkrl.envs.libero_goals import LiberoGoals

        return LiberoGoals(env.domain)
