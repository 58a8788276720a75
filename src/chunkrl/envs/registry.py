"""All simulated environments by name: MetaWorld's tasks, LIBERO's tasks and suites, gym-hil's scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chunkrl.envs.libero_tasks import NUM_INITIAL_STATES, SUITES, InitialStates, find_task, suite_tasks
from chunkrl.envs.offscreen import Rendering, choose_backend
from chunkrl.envs.protocol import Environment
from chunkrl.errors import ChunkRLError, MissingExtraError


@dataclass(frozen=True)
class EnvOptions:
    """What to observe, and where to start.

    max_steps: time limit; None: the task's own. state: one of the environment's states.
    camera_size: side of all cameras' pictures, pixels; 0: none. cameras: what they are called; (): as `EnvInfo` says.
    rendering, initial: of LIBERO (see `chunkrl.envs.libero.LiberoEnv`).
    """

    max_steps: int | None = None
    state: str = "full"
    camera_size: int = 0
    cameras: tuple[str, ...] = ()
    rendering: Rendering = "default"
    initial: InitialStates = "official"


@dataclass(frozen=True)
class EnvInfo:
    """What tasks of one kind have in common.

    kind: for messages. states: name -> names of its entries. cameras: names in `EnvStep.images`.
    max_steps: default time limit of every task. num_initial_states: official ones, numbered from 0; None: any seed.
    default_episodes: of an evaluation. fps: control steps a second. one_context: a process can hold one environment
    with cameras. public_camera_size: side of the pictures in the public data sets, pixels; 0: there are none.
    """

    kind: str
    action_dim: int
    states: Mapping[str, tuple[str, ...]]
    default_state: str
    cameras: tuple[str, ...]
    max_steps: Mapping[str, int]
    num_initial_states: int | None
    default_episodes: int
    fps: float
    one_context: bool
    public_camera_size: int = 0


def is_libero(name: str) -> bool:
    """Whether a task or suite is LIBERO's, by its name."""
    return not is_hil(name) and (name.startswith("libero") or "/" in name)


def is_hil(name: str) -> bool:
    """Whether a task is gym-hil's, by its name."""
    return name.startswith("gym_hil/")


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Tasks of the names given: a suite stands for all its tasks.

    Raises:
        ChunkRLError: no such task or suite, one given twice, or none at all.
    """
    from chunkrl.envs.metaworld import check_task

    found: list[str] = []
    for name in names:
        if is_hil(name):
            found.append(name)
        elif not is_libero(name):
            try:
                check_task(name)
            except MissingExtraError:
                raise
            except ChunkRLError as error:
                raise ChunkRLError(f"{error}; or of LIBERO {', '.join(SUITES)}, libero_10/3, ...") from error
            found.append(name)
        elif "/" in name:
            found.append(find_task(name).name)
        else:
            found += [task.name for task in suite_tasks(name)]
    if not found:
        raise ChunkRLError(
            f"no task: give MetaWorld tasks (push-v3) or LIBERO's ({', '.join(SUITES)}, libero_10/3)"
        )
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise ChunkRLError(f"the tasks {', '.join(twice)} are given twice: give each once")
    return tuple(found)


def prepare(tasks: Sequence[str]) -> None:
    """Fetches what the simulators of these tasks need, once and before processes start whose time is limited.

    Raises:
        ChunkRLError: LIBERO's assets are missing (says how to get them).
    """
    if any(is_libero(task) for task in tasks):
        from chunkrl.envs.libero_package import find_assets

        find_assets()


def asset_fingerprint(tasks: Sequence[str]) -> str:
    """Which meshes and textures these tasks' simulators draw and collide; "" where their package brings them along.

    Raises:
        ChunkRLError: LIBERO's assets are missing (says how to get them).
    """
    if not any(is_libero(task) for task in tasks):
        return ""
    from chunkrl.envs.libero_package import assets_fingerprint, find_assets

    return assets_fingerprint(find_assets())


def opengl_library(tasks: Sequence[str]) -> str:
    """What draws the pictures of these tasks' cameras here; "" where they are drawn without OpenGL.

    Raises:
        ChunkRLError: there is none (says how to install one).
    """
    return choose_backend() if any(is_libero(task) or is_hil(task) for task in tasks) else ""


def describe(tasks: Sequence[str]) -> EnvInfo:
    """Of tasks of one kind (from `expand`).

    Raises:
        ChunkRLError: tasks of two kinds, whose policies cannot be one.
    """
    if len({(is_libero(task), is_hil(task)) for task in tasks}) > 1:
        raise ChunkRLError(
            f"{', '.join(tasks)} are tasks of different simulators: no policy fits both, evaluate apart"
        )
    if is_hil(tasks[0]):
        from chunkrl.envs import gym_hil

        limits = dict.fromkeys(tasks, gym_hil.MAX_STEPS)
        states = {"full": gym_hil.STATE_NAMES}
        size, cameras = gym_hil.ACTION_DIM, gym_hil.CAMERAS
        return EnvInfo("gym-hil", size, states, "full", cameras, limits, None, 100, gym_hil.FPS, True)
    if is_libero(tasks[0]):
        from chunkrl.envs import libero

        limits = {task: find_task(task).max_steps for task in tasks}
        names = dict(libero.STATES)
        return EnvInfo(
            "LIBERO",
            libero.ACTION_DIM,
            names,
            "full",
            libero.CAMERAS,
            limits,
            NUM_INITIAL_STATES,
            NUM_INITIAL_STATES,
            libero.FPS,
            True,
            libero.PUBLIC_CAMERA_SIZE,
        )
    from chunkrl.envs import metaworld

    limits = dict.fromkeys(tasks, metaworld.MAX_STEPS)
    states = dict[str, tuple[str, ...]](metaworld.STATE_NAMES.items())
    return EnvInfo(
        "MetaWorld",
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


def check_rendering(tasks: Sequence[str], rendering: Rendering) -> None:
    """Raises ChunkRLError where a rendering is asked for that the simulator of the tasks does not have.

    tasks: of `expand`.
    """
    if rendering != "default" and not is_libero(tasks[0]):
        raise ChunkRLError(
            f"--rendering {rendering} is of LIBERO, and {describe(tasks).kind} draws in one way: leave it out"
        )


def make_env(name: str, options: EnvOptions) -> Environment:
    """The environment of a task.

    Raises:
        ChunkRLError: no such task, missing assets, no OpenGL for cameras, or (LIBERO) cameras in a process that has
            an environment with cameras already.
        MissingExtraError: the simulator is not installed.
    """
    if is_libero(name):
        from chunkrl.envs import libero

        cameras = options.cameras or libero.CAMERAS
        libero_state: Any = options.state  # checked by the environment
        return libero.LiberoEnv(
            name,
            options.max_steps,
            options.camera_size,
            cameras,
            options.rendering,
            options.initial,
            libero_state,
        )
    if is_hil(name):
        from chunkrl.envs import gym_hil

        if options.cameras not in ((), gym_hil.CAMERAS):
            raise ChunkRLError(f"gym-hil's cameras are called {gym_hil.CAMERAS}, not {options.cameras}")
        max_steps = gym_hil.MAX_STEPS if options.max_steps is None else options.max_steps
        return gym_hil.GymHilEnv(name, max_steps, options.camera_size)
    from chunkrl.envs import metaworld

    if options.cameras not in ((), (metaworld.CAMERA,)):
        raise ChunkRLError(f"MetaWorld's one camera is called {metaworld.CAMERA!r}, not {options.cameras}")
    state: Any = options.state  # checked by the environment
    max_steps = metaworld.MAX_STEPS if options.max_steps is None else options.max_steps
    return metaworld.MetaWorldEnv(name, max_steps, state, options.camera_size)
