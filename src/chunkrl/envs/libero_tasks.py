"""LIBERO's suites and tasks: names, texts, time limits and official initial states; no simulator is imported.

Read from the installed package (`hf-libero`, extra `libero`); the numbers follow its own order.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError
from chunkrl.suggest import did_you_mean

# Time limits in environment steps, as openpi's LIBERO evaluation has them (libero_90: 400).
MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
SUITES = tuple(MAX_STEPS)
NUM_INITIAL_STATES = 50  # of every task
InitialStates = Literal["official", "sampled"]


@dataclass(frozen=True)
class LiberoTask:
    """Task `number` of `suite`. file_name: of its BDDL and initial-state files, without the ending."""

    suite: str
    number: int
    file_name: str

    @property
    def name(self) -> str:
        """The name that environments have: `libero_spatial/3`."""
        return f"{self.suite}/{self.number}"

    @property
    def text(self) -> str:
        """The instruction that policies are given, taken from the file's name as LIBERO's benchmark does.

        (The BDDL file's own `:language` differs in places.)
        """
        return re.sub(r"^[A-Z_]+_SCENE\d+_", "", self.file_name).replace("_", " ")

    @property
    def max_steps(self) -> int:
        """The suite's time limit."""
        return MAX_STEPS[self.suite]

    @property
    def bddl_file(self) -> Path:
        """The task's definition."""
        return package_folder() / "bddl_files" / self.suite / f"{self.file_name}.bddl"

    @property
    def initial_states_file(self) -> Path:
        """The official initial states."""
        return package_folder() / "init_files" / self.suite / f"{self.file_name}.pruned_init"


def package_folder() -> Path:
    """The folder of the installed package that holds `bddl_files` and `init_files`; nothing is imported.

    Raises:
        MissingExtraError: LIBERO is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(location) / "libero" / "bddl_files").is_dir():
            return Path(location) / "libero"
    raise MissingExtraError("The LIBERO environment", "hf-libero", "libero")


@cache
def _task_files() -> dict[str, list[str]]:
    """Suite -> file names in order. The map is a file of its own: its package imports torch and asks questions."""
    return runpy.run_path(str(package_folder() / "benchmark" / "libero_suite_task_map.py"))["libero_task_map"]


@cache
def suite_tasks(suite: str) -> tuple[LiberoTask, ...]:
    """The tasks of a suite in its order.

    Raises:
        ChunkRLError: no such suite.
        MissingExtraError: LIBERO is not installed.
    """
    if suite not in SUITES:
        raise ChunkRLError(
            f"LIBERO has no suite {suite!r}{did_you_mean(suite, SUITES)}; it has {', '.join(SUITES)}"
        )
    return tuple(LiberoTask(suite, number, name) for number, name in enumerate(_task_files()[suite]))


def find_task(name: str) -> LiberoTask:
    """The task `suite/number`, e.g. `libero_spatial/3`.

    Raises:
        ChunkRLError: no such suite or number (the message lists what exists).
        MissingExtraError: LIBERO is not installed.
    """
    suite, _, number = name.partition("/")
    tasks = suite_tasks(suite)
    if not number.isdecimal() or int(number) >= len(tasks):
        raise ChunkRLError(
            f"{name!r} is no LIBERO task: {suite} has the tasks {suite}/0 to {suite}/{len(tasks) - 1}"
        )
    return tasks[int(number)]


@cache
def initial_states(task: LiberoTask) -> np.ndarray:
    """The official initial states, float64 [50, 1 + nq + nv]: time, positions and velocities of the whole scene.

    They are torch files with pickled numpy arrays: nothing but such an array is accepted in them.

    Raises:
        ChunkRLError: the file is missing or holds anything else.
    """
    import torch

    reconstruct = np.empty(0).__reduce__()[0]  # numpy's own, wherever this version keeps it
    path = task.initial_states_file
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # as numpy 1 and 2 write it
    allowed: list[Any] = [(reconstruct, f"{module}._reconstruct") for module in modules]
    allowed += [np.ndarray, np.dtype, type(np.dtype("f8"))]
    try:
        with torch.serialization.safe_globals(allowed):
            states = torch.load(path, weights_only=True)
    except Exception as error:
        raise ChunkRLError(
            f"{path} cannot be read, or holds more than an array of numbers ({type(error).__name__}): install the "
            "package again: pip install --force-reinstall --no-deps hf-libero"
        ) from error
    return np.asarray(states, dtype=np.float64)
