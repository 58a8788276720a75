"""The privileged state of a LIBERO pick-and-place task: where the object and its target are, for policies without
cameras.

Entries have one meaning in all tasks with such a goal, so that one policy can serve a whole suite. Positions relative
to the hand stand beside absolute ones: a small network need not learn differences.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chunkrl.envs.libero_expert import goal_text, pick_place_goal
from chunkrl.envs.libero_geometry import SceneGeometry
from chunkrl.errors import ChunkRLError

_XYZ = ("x", "y", "z")
PRIVILEGED_NAMES = (
    *(f"closing_{axis}" for axis in _XYZ),  # along which the fingers close; axis times angle jumps near pi
    *(f"object_{axis}" for axis in _XYZ),
    *(f"object_{entry}" for entry in ("qw", "qx", "qy", "qz")),
    *(f"hand_to_object_{axis}" for axis in _XYZ),
    *(f"object_to_target_{axis}" for axis in _XYZ),
)


class PrivilegedState:
    """Reads one simulator."""

    def __init__(self, simulator: Any) -> None:
        """simulator: robosuite's environment object of a LIBERO task. Raises ChunkRLError for other goals."""
        goal_state = simulator.parsed_problem["goal_state"]
        goal = pick_place_goal(goal_state)
        if goal is None:
            raise ChunkRLError(
                "the state 'privileged' is of one object and the one place where it belongs; this task's goal is "
                f"{goal_text(goal_state)}: use a task of libero_spatial or libero_object, or the state 'full'"
            )
        self._goal, self._scene, self._simulator = goal, SceneGeometry(simulator), simulator

    def read(self) -> np.ndarray:
        """float64 [16], named by `PRIVILEGED_NAMES`: metres, world frame; the quaternion's largest entry > 0."""
        hand, rotation = self._scene.grip()
        place, target = self._scene.position(self._goal.object), self._scene.position(self._goal.target)
        body = self._simulator.obj_body_id[self._goal.object]
        quaternion = self._simulator.sim.data.body_xquat[body]
        quaternion = quaternion * np.sign(quaternion[np.argmax(np.abs(quaternion))])
        return np.concatenate([rotation[:, 0], place, quaternion, place - hand, target - place])
