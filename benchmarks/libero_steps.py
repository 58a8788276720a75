"""Steps per CPU-second of LIBERO: chunkrl's environment beside LIBERO's own, in one run.

    python -m benchmarks.libero_steps
    python -m benchmarks.libero_steps --task libero_object/0 --num-steps 50

Every row runs in a process of its own (one rendering context each), on one episode from official initial state 0 with
the same random actions. `every 10th` draws where a policy that executes 10 actions of each chunk looks.
Prints Markdown.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from chunkrl.envs.libero import ACTION_DIM, NO_MOTION, NUM_SETTLING_STEPS, LiberoEnv
from chunkrl.envs.libero_package import import_libero
from chunkrl.envs.libero_tasks import find_task, initial_states
from chunkrl.envs.offscreen import Rendering, choose_backend

BACKEND_CONTEXTS = {"osmesa": "OSMesaGLContext", "egl": "EGLGLContext", "glfw": "GLFWGLContext"}


@dataclass(frozen=True)
class StepsConfig:
    """What to run."""

    task: str = "libero_spatial/4"
    """A LIBERO task."""
    num_steps: int = 100
    """Steps of each row, after the settling ones."""
    sizes: tuple[int, ...] = (128, 256)
    """Sides of the images, pixels, two cameras each."""


@dataclass(frozen=True)
class Row:
    """camera_size: 0: states only. every: draws every n-th step; upstream: LIBERO's own environment."""

    camera_size: int
    upstream: bool = False
    rendering: Rendering = "default"
    every: int = 1

    def __str__(self) -> str:
        seen = f"2 x {self.camera_size} px, {self.rendering}" if self.camera_size else "states"
        return f"| {'LIBERO' if self.upstream else 'chunkrl'} | {seen}{', every 10th' if self.every > 1 else ''} |"


def upstream_environment(task: str, camera_size: int) -> Any:
    """LIBERO's own environment (`ControlEnv`), as openpi and LeRobot make it; camera_size 0: without images."""
    import_libero()
    wrappers = importlib.import_module("libero.libero.envs.env_wrapper")
    if camera_size:
        backend = choose_backend()
        contexts = importlib.import_module(f"robosuite.renderers.context.{backend}_context")
        binding: Any = importlib.import_module("robosuite.utils.binding_utils")
        binding.GLContext = getattr(contexts, BACKEND_CONTEXTS[backend])
    return wrappers.ControlEnv(
        bddl_file_name=str(find_task(task).bddl_file),
        use_camera_obs=bool(camera_size),
        has_offscreen_renderer=bool(camera_size),
        camera_heights=camera_size or 128,
        camera_widths=camera_size or 128,
    )


def measure(task: str, row: Row, num_steps: int) -> float:
    """Steps per CPU-second of this process, the making of the environment not counted."""
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (num_steps, ACTION_DIM))
    if row.upstream:
        env = upstream_environment(task, row.camera_size)
        env.env.hard_reset = False  # a second context in the process would draw garbage
        env.reset()
        env.set_init_state(initial_states(find_task(task))[0])
        for _ in range(NUM_SETTLING_STEPS):
            env.step(NO_MOTION)
        start = time.process_time()
        for action in actions:
            env.step(action)
    else:
        env = LiberoEnv(task, camera_size=row.camera_size, rendering=row.rendering)
        env.reset(0)
        start = time.process_time()
        for number, action in enumerate(actions, start=1):
            env.step(action, draw=number % row.every == 0)
    return num_steps / (time.process_time() - start)


def main(config: StepsConfig) -> None:
    """Prints the table."""
    rows = [Row(0, upstream=True), Row(0)]
    for size in config.sizes:
        rows += [Row(size, upstream=True), Row(size), Row(size, rendering="fast")]
        rows += [Row(size, every=10), Row(size, rendering="fast", every=10)]
    context = multiprocessing.get_context("spawn")
    print(f"{config.task}, {config.num_steps} steps, MUJOCO_GL={choose_backend()}\n")
    print("| environment | seen | steps per CPU-second |\n|---|---|---|")
    for row in rows:
        with context.Pool(1) as pool:
            rate = pool.apply(measure, (config.task, row, config.num_steps))
        print(f"{row} {rate:.1f} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main(tyro.cli(StepsConfig))
