"""What has been reached in a LIBERO simulator: the conjuncts of the task's BDDL goal, grasp and lift of its objects.

The conjuncts are LIBERO's own predicates (On, In, Open, ...): the task succeeds when all of them are true at once.
Grasp: both fingers touch the object. Lift: it is `LIFT_M` above where it was at first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from chunkrl.data.onsets import first_onset
from chunkrl.envs.libero_geometry import SceneGeometry
from chunkrl.errors import ChunkRLError

SubgoalKind = Literal["goal", "grasp", "lift"]
KINDS: tuple[SubgoalKind, ...] = get_args(SubgoalKind)
LIFT_M = 0.03
HOLD_STEPS: Mapping[str, int] = {"goal": 1, "grasp": 3, "lift": 3}  # against flicker of contacts


def check_kinds(kinds: Iterable[str]) -> None:
    """Raises ChunkRLError unless there is one kind at least and all are known."""
    kinds = tuple(kinds)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ChunkRLError(f"sub-goals {list(kinds)}: choose at least one of {', '.join(KINDS)}")


class LiberoGoals:
    """Reads one simulator; `begin` takes note of where the objects are at first."""

    def __init__(self, simulator: Any) -> None:
        """simulator: robosuite's environment object of a LIBERO task."""
        self._simulator = simulator
        self._conjuncts = [list(conjunct) for conjunct in simulator.parsed_problem["goal_state"]]
        movable = simulator.objects_dict
        self._objects = list(dict.fromkeys(c[1] for c in self._conjuncts if c[1] in movable))
        self.begin()

    def begin(self) -> None:
        """An episode begins with the simulator's present state."""
        self._scene = SceneGeometry(self._simulator)
        self._heights = {name: float(self._scene.position(name)[2]) for name in self._objects}

    def flags(self) -> dict[str, bool]:
        """`goal:(on bowl plate)`, `grasp:bowl`, `lift:bowl`, ... -> whether it is true now."""
        found = {f"goal:({' '.join(c)})": bool(self._simulator._eval_predicate(c)) for c in self._conjuncts}
        for name in self._objects:
            found[f"grasp:{name}"] = self._scene.holds(name)
            found[f"lift:{name}"] = bool(self._scene.position(name)[2] > self._heights[name] + LIFT_M)
        return found


def onset_kinds(flags: list[dict[str, bool]]) -> dict[SubgoalKind, np.ndarray]:
    """Kind -> bool [T]: actions that first reached a condition of that kind. flags: before and after T actions."""
    kinds: dict[SubgoalKind, np.ndarray] = {kind: np.zeros(len(flags) - 1, dtype=bool) for kind in KINDS}
    for name in flags[0]:
        kind = name.partition(":")[0]
        onset = first_onset(np.array([observed[name] for observed in flags]), HOLD_STEPS[kind])
        if onset is not None:
            kinds[kind][onset] = True  # type: ignore[index]  # names are made by LiberoGoals.flags
    return kinds
