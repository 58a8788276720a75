"""All simulated environments by name: the families of simulators, and what is asked of a task's."""

from __future__ import annotations

from collections.abc import Sequence

from chunkrl.envs.family import EnvFamily, EnvInfo, EnvOptions
from chunkrl.envs.gym_hil_family import GymHilFamily
from chunkrl.envs.libero_family import LiberoFamily
from chunkrl.envs.metaworld_family import MetaWorldFamily
from chunkrl.envs.offscreen import Rendering, choose_backend
from chunkrl.envs.protocol import Environment
from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError

FAMILIES: list[EnvFamily] = [GymHilFamily(), LiberoFamily(), MetaWorldFamily()]
"""In this order: a name is of the first that it matches, and the last matches all."""


def family_of(name: str) -> EnvFamily:
    """The kind of simulator of a task or suite."""
    return next(family for family in FAMILIES if family.matches(name))


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Tasks of the names given: a suite stands for all its tasks.

    Raises:
        ChunkRLError: no such task or suite, one given twice, or none at all.
    """
    found: list[str] = []
    for name in names:
        family = family_of(name)
        try:
            found += family.expand(name)
        except MissingExtraError:
            raise
        except ChunkRLError as error:
            if family is not FAMILIES[-1]:
                raise
            others = "; ".join(f"{other.kind}: {other.examples}" for other in FAMILIES[:-1])
            raise ChunkRLError(f"{error}; or a task of another simulator ({others})") from error
    if not found:
        known = "; ".join(f"{family.kind}: {family.examples}" for family in reversed(FAMILIES))
        raise ChunkRLError(f"no task: give some of one simulator ({known})")
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise ChunkRLError(f"the tasks {', '.join(twice)} are given twice: give each once")
    return tuple(found)


def prepare(tasks: Sequence[str]) -> None:
    """Fetches what the simulators of these tasks need, once and before processes start whose time is limited.

    Raises:
        ChunkRLError: LIBERO's assets are missing (says how to get them).
    """
    for family in _families(tasks):
        family.prepare()


def asset_fingerprint(tasks: Sequence[str]) -> str:
    """Which meshes and textures these tasks' simulators draw and collide; "" where their package brings them along.

    Raises:
        ChunkRLError: LIBERO's assets are missing (says how to get them).
    """
    found = [family.asset_fingerprint() for family in _families(tasks)]
    return next((fingerprint for fingerprint in found if fingerprint), "")


def opengl_library(tasks: Sequence[str]) -> str:
    """What draws the images of these tasks' cameras here; "" where they are drawn without OpenGL.

    Raises:
        ChunkRLError: there is none (says how to install one).
    """
    return choose_backend() if any(family.uses_opengl for family in _families(tasks)) else ""


def _families(tasks: Sequence[str]) -> list[EnvFamily]:
    return [family for family in FAMILIES if any(family_of(task) is family for task in tasks)]


def describe(tasks: Sequence[str]) -> EnvInfo:
    """The description of tasks of one kind (from `expand`).

    Raises:
        ChunkRLError: tasks of two kinds, whose policies cannot be one.
    """
    if len(_families(tasks)) > 1:
        raise ChunkRLError(
            f"{', '.join(tasks)} are tasks of different simulators: no policy fits both, evaluate apart"
        )
    return family_of(tasks[0]).describe(tasks)


def check_rendering(tasks: Sequence[str], rendering: Rendering) -> None:
    """Raises ChunkRLError where a rendering is asked for that the simulator of the tasks does not have.

    tasks: of `expand`.
    """
    family = family_of(tasks[0])
    if rendering not in family.renderings:
        able = " and ".join(other.kind for other in FAMILIES if rendering in other.renderings)
        raise ChunkRLError(
            f"--rendering {rendering} is of {able}, and {family.kind} draws in one way: leave it out"
        )


def make_env(name: str, options: EnvOptions) -> Environment:
    """The environment of a task.

    Raises:
        ChunkRLError: no such task, missing assets, no OpenGL for cameras, or (LIBERO) cameras in a process that has
            an environment with cameras already.
        MissingExtraError: the simulator is not installed.
    """
    return family_of(name).make(name, options)
