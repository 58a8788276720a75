"""One kind of simulator: what its tasks are called, have and need. `registry.FAMILIES` lists them.

To add a simulator, write an `Environment` (`chunkrl.envs.protocol`) and, beside it, an `EnvFamily`, and list that.
Nobody else knows simulators by name: whoever must tell them apart asks their family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chunkrl.data.hold_action import HoldAction
from chunkrl.envs.libero_tasks import InitialStates
from chunkrl.envs.offscreen import Rendering
from chunkrl.envs.protocol import Environment
from chunkrl.envs.scripted import ScriptedExpert
from chunkrl.errors import ChunkRLError


@dataclass(frozen=True)
class EnvOptions:
    """What to observe, and where to start.

    max_steps: time limit; None: the task's own. state: one of the environment's states.
    camera_size: side of all cameras' images, pixels; 0: none. cameras: what they are called; (): as `EnvInfo` says.
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
    default_episodes: of an evaluation. fps: control steps per second. one_context: a process can hold one environment
    with cameras. public_camera_size: side of the images in the public data sets, pixels; 0: there are none.
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


@dataclass(frozen=True)
class Correction:
    """What a scripted corrector (`chunkrl.online.human.correctors`) needs of an environment.

    expert: full state [39] -> action [4]. full_state: the full state now, whatever the policy sees of it.
    """

    expert: Callable[[np.ndarray], np.ndarray]
    full_state: Callable[[], np.ndarray]


class EnvFamily(ABC):
    """What is true of most simulators; a family says what differs.

    kind: for messages. examples: of tasks' names, for messages. renderings: ways to draw. uses_opengl: for cameras.
    has_official_states: initial states that its makers number, beside sampled ones. has_goals: it says which
    conditions of a goal hold. has_openpi_names: openpi's data sets have names for its columns.
    moves_by_keyboard: a person's keys move its gripper. hold: what its robot does while it waits.
    """

    kind = ""
    examples = ""
    renderings: tuple[Rendering, ...] = ("default",)
    uses_opengl = False
    has_official_states = False
    has_goals = False
    has_openpi_names = False
    moves_by_keyboard = False
    hold = HoldAction("delta")

    @abstractmethod
    def matches(self, name: str) -> bool:
        """Whether a task or suite is of this kind, by its name."""

    def expand(self, name: str) -> Sequence[str]:
        """The tasks that a name stands for. Raises ChunkRLError: there is none."""
        return (name,)

    @abstractmethod
    def describe(self, tasks: Sequence[str]) -> EnvInfo:
        """The description of tasks of this kind."""

    @abstractmethod
    def make(self, name: str, options: EnvOptions) -> Environment:
        """The environment of a task. Raises ChunkRLError or MissingExtraError: it cannot be had here."""

    def prepare(self) -> None:  # noqa: B027  # optional
        """Fetches what its simulators need, before processes start whose time is limited."""

    def asset_fingerprint(self) -> str:
        """Which meshes and textures it draws and collides; "" where its package brings them along."""
        return ""

    def expert(self, env: Any) -> ScriptedExpert:
        """The privileged expert of an environment. Raises ChunkRLError where its task has none."""
        raise ChunkRLError(
            f"{env.name} has no scripted expert: collect with a policy alone (--mixture.policy-share 1)"
        )

    def goals(self, env: Any) -> Any:
        """What follows the conditions of its goal (`has_goals`), else None."""
        return None

    def correction(self, env: Any) -> Correction | None:
        """What a scripted corrector needs; None: there is none for it."""
        return None
