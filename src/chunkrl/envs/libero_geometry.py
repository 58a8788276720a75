"""What stands where in a LIBERO scene: collision geometry as oriented boxes, for experts and events.

Every collision geom counts as its bounding box in its own frame (most of LIBERO's are boxes), world frame,
metres. Privileged: no policy that is evaluated reads this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GRIP_SITE = "gripper0_grip_site"
_ROBOT_PREFIXES = ("robot0_", "gripper0_", "mount0_")


class SceneGeometry:
    """Collision boxes of the objects and fixtures of one LIBERO simulator (robosuite's environment object)."""

    def __init__(self, simulator: Any) -> None:
        self._simulator = simulator
        sim = simulator.sim
        model = sim.model._model
        root = {sim.model.body_name2id(simulator.get_object(n).root_body): n for n in simulator.obj_body_id}
        owners = []
        for geom_body in model.geom_bodyid:
            names, body = [], geom_body
            while body > 0:  # up the tree: an object's parts are below its root body
                names.append(root.get(body) or sim.model.body_id2name(body) or "")
                body = model.body_parentid[body]
            found = [name for name in names if name in simulator.obj_body_id]
            robot = any(name.startswith(_ROBOT_PREFIXES) for name in names)
            owners.append("robot" if robot else found[0] if found else "scene")
        solid = ((model.geom_contype > 0) | (model.geom_conaffinity > 0)) & (
            model.geom_type != 0
        )  # no planes
        self._owner = np.array(owners)
        self._geoms = np.flatnonzero(solid & (self._owner != "robot"))
        # of an object, and of all but it: names are compared once
        self._parts: dict[tuple[str, bool], np.ndarray] = {}

    @property
    def _data(self) -> Any:
        return self._simulator.sim.data

    def grip(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] and rotation [3, 3] of the point between the fingers; x closes, z points out."""
        site = self._simulator.sim.model.site_name2id(GRIP_SITE)
        return self._data.site_xpos[site].copy(), self._data.site_xmat[site].reshape(3, 3).copy()

    def position(self, name: str) -> np.ndarray:
        """Position [3] of an object, a fixture or a region, as LIBERO's predicates read it."""
        if name in self._simulator.obj_body_id:
            return self._data.body_xpos[self._simulator.obj_body_id[name]].copy()
        return self._data.get_site_xpos(name).copy()

    def is_region(self, name: str) -> bool:
        """Whether `name` is a region (a site of an object) and not an object or fixture."""
        return name not in self._simulator.obj_body_id

    def parent(self, name: str) -> str:
        """The object that a region belongs to; an object itself."""
        return self._simulator.object_sites_dict[name].parent_name if self.is_region(name) else name

    def holds(self, name: str) -> bool:
        """Whether both fingers touch the object."""
        simulator = self._simulator
        return bool(simulator._check_grasp(simulator.robots[0].gripper, simulator.get_object(name)))

    def _of(self, name: str, others: bool) -> np.ndarray:
        """The geoms of an object, or of all others."""
        if (name, others) not in self._parts:
            own = self._owner[self._geoms] == name
            self._parts[name, others] = self._geoms[~own if others else own]
        return self._parts[name, others]

    def _boxes(self, geoms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre [G, 3], rotation [G, 3, 3] and half size [G, 3]."""
        bounds = self._simulator.sim.model._model.geom_aabb[geoms]
        rotation = self._data.geom_xmat[geoms].reshape(-1, 3, 3)
        centre = self._data.geom_xpos[geoms] + np.einsum("gij,gj->gi", rotation, bounds[:, :3])
        return centre, rotation, bounds[:, 3:]

    def corners(self, name: str) -> np.ndarray:
        """The corners [8 G, 3] of an object's boxes."""
        centre, rotation, half = self._boxes(self._of(name, others=False))
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        local = signs[None] * half[:, None]
        return (centre[:, None] + np.einsum("gij,gkj->gki", rotation, local)).reshape(-1, 3)

    def tops(self, points: np.ndarray, without: str = "") -> np.ndarray:
        """Height [P] of the highest collision box above or below the horizontal points [P, 2]; -inf: none."""
        centre, rotation, half = self._boxes(self._of(without, others=True))
        # boxes that are farther away than their corners reach: most of a scene's, for one grasp
        reach = np.linalg.norm(half, axis=1)[:, None] + 1e-6
        near = (centre[:, :2] + reach >= points.min(0)) & (centre[:, :2] - reach <= points.max(0))
        centre, rotation, half = (values[near.all(1)] for values in (centre, rotation, half))
        lines = np.concatenate([points, np.zeros((len(points), 1))], axis=1)
        # the vertical line of each point in each box's frame: origin + height * direction
        origin = np.einsum("gji,pgj->pgi", rotation, lines[:, None] - centre[None])
        direction = rotation[:, 2, :][None]
        direction = np.where(np.abs(direction) < 1e-9, 1e-9, direction)
        ends = np.stack([(-half - origin) / direction, (half - origin) / direction])
        low, high = ends.min(0).max(-1), ends.max(0).min(-1)
        return np.where(low <= high, high, -np.inf).max(1, initial=-np.inf)
