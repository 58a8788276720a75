"""Images of a MuJoCo scene without OpenGL, drawn in numpy.

Library considered: MuJoCo's renderer (by OSMesa 234 ms, by EGL without a GPU 190 ms of processor time for 320 x
240, against about 60 here; and libraries of the system that a fresh machine lacks).

MuJoCo's own renderer needs a display, EGL or OSMesa; a fresh machine has none of them. This one draws
filled, flat-shaded triangles with one directional light, shadows of what moves on what stands still, and
the goal as a translucent ball. Not drawn: textures (their mean colour is), height fields, flexes, skins,
tendons, and sites other than goals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chunkrl.envs.software_geometry import (
    GeomSurface,
    MjData,
    MjModel,
    import_mujoco,
    sphere,
    visible_surfaces,
)
from chunkrl.envs.software_raster import NEARNESS_STEPS, NUMBER_MASK, Flat, clip_near, rasterise

SUPERSAMPLING = 2  # samples a pixel along each axis; they are averaged
NEAR_M = 0.02
BACKGROUND = (236.0, 240.0, 245.0)
LIGHT = np.array([0.15, 0.05, 1.0]) / np.linalg.norm([0.15, 0.05, 1.0])  # towards the light, world frame
AMBIENT = 0.35
DISPLAY_GAMMA = 1.5  # lightens the dark robots and tables that models ship; 1 keeps their colours
SHADOW = 0.7  # brightness left in a shadow
SHADOW_SIZE = 512  # samples of the shadow map along each axis
SHADOW_BIAS_M = 0.004
GOAL_PREFIX = "goal"
GOAL_RADIUS_M = 0.03  # at least: MetaWorld's 2 cm ball would vanish inside the puck that reaches it
GOAL_ALPHA = 0.55


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. position, target: (x, y, z), m, world frame, z up. fov_deg: vertical field of view."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fov_deg: float = 45.0

    def __post_init__(self) -> None:
        if not 0 < self.fov_deg < 180:
            raise ValueError(f"fov_deg must lie between 0 and 180, got {self.fov_deg}")
        if self.position == self.target:
            raise ValueError(f"the camera stands at its target {self.position}: move one of them")


def metaworld_camera() -> Camera:
    """From the right of MetaWorld's table: looks between the fingers, so that they never hide the object."""
    return Camera(position=(0.95, 1.0, 0.62), target=(-0.02, 0.68, 0.14), fov_deg=31.0)


class SoftwareRenderer:
    """Draws one model from one camera: triangles are made once, each image moves them."""

    def __init__(self, model: MjModel, camera: Camera, width: int = 320, height: int = 240) -> None:
        """width, height: pixels. Raises ChunkRLError for a geom type that cannot be drawn."""
        if width < 1 or height < 1:
            raise ValueError(f"an image is at least 1 x 1 pixels, got {width} x {height}")
        self.camera, self.width, self.height = camera, width, height
        self._columns, self._rows = width * SUPERSAMPLING, height * SUPERSAMPLING
        tangent = np.tan(np.deg2rad(camera.fov_deg) / 2)
        self._focal = self._rows / 2 / tangent
        self._eye = np.asarray(camera.position, dtype=np.float64)
        ahead = np.asarray(camera.target, dtype=np.float64) - self._eye
        self._axes = _view_axes(ahead)
        self._light_axes = _view_axes(-LIGHT)
        self._shadow_half_m = 1.2 * np.linalg.norm(ahead) * tangent * max(1.0, width / height)

        surfaces = visible_surfaces(model)
        opaque = [surface for surface in surfaces if surface.rgba[3] >= 1]
        self._fixed = _Layer([surface for surface in opaque if not surface.moving], first_number=1)
        moving = [surface for surface in opaque if surface.moving]
        self._moving = _Layer(moving, first_number=1 + len(self._fixed.faces))
        self._clear = [_Layer([surface]) for surface in surfaces if surface.rgba[3] < 1]
        self._goals = _goal_layers(model)
        self._backdrop: _Backdrop | None = None
        self._mujoco, self._model = import_mujoco(), model
        self._pose = self._mujoco.MjData(model)

    def project(self, point: Sequence[float] | np.ndarray) -> tuple[float, float]:
        """(column, row), pixels from the top left corner, of a world point (m); ValueError if it is behind."""
        seen = self._axes @ (np.asarray(point, dtype=np.float64) - self._eye)
        if seen[2] < NEAR_M:
            raise ValueError(f"{point} lies behind the camera at {self.camera.position}")
        column, row = self._to_image(seen[None])[0] / SUPERSAMPLING
        return float(column), float(row)

    def render(self, data: MjData) -> np.ndarray:
        """The scene as uint8 [height, width, 3], in the pose that `data`'s joints and mocap bodies hold.

        Raises ValueError if `data` belongs to another model.
        """
        pose = self._kinematics(data)
        backdrop = self._draw_backdrop(pose)
        moving = self._moving.place(pose.geom_xpos, pose.geom_xmat)
        keys = backdrop.keys.copy()
        self._draw(keys, moving)
        image = np.concatenate([backdrop.colours, moving.colours])[keys & NUMBER_MASK]

        upright = np.tile(np.eye(3).ravel(), (len(pose.site_xpos), 1))
        goals = [layer.place(pose.site_xpos, upright) for layer in self._goals]
        shadow_map = self._shadow_map([moving, *goals])  # a goal's shadow tells how high it hangs
        in_shadow = shadow_map[backdrop.shadow_cell] > backdrop.shadow_nearness
        image[np.flatnonzero(in_shadow & (keys == backdrop.keys))] *= SHADOW

        clear = [(GOAL_ALPHA, goal) for goal in goals]
        clear += [(layer.alpha, layer.place(pose.geom_xpos, pose.geom_xmat)) for layer in self._clear]
        clear.sort(key=lambda item: -np.linalg.norm(item[1].vertices.mean(axis=0) - self._eye))
        for alpha, placed in clear:  # far to near, each over what is there
            own = np.zeros_like(keys)
            self._draw(own, placed)
            front = np.flatnonzero(own > keys)
            image[front] += alpha * (placed.colours[(own[front] & NUMBER_MASK) - 1] - image[front])
        samples = image.reshape(self.height, SUPERSAMPLING, self.width, SUPERSAMPLING, 3)
        total = sum(samples[:, i, :, j] for i in range(SUPERSAMPLING) for j in range(SUPERSAMPLING))
        return np.rint(total / SUPERSAMPLING**2).astype(np.uint8)

    def _kinematics(self, data: MjData) -> MjData:
        """Current positions of geoms and sites, computed in a copy.

        After a reset MetaWorld's own data still holds the goal of the episode before, and mj_forward there
        would write into the simulation.
        """
        pose = self._pose
        if data.qpos.shape != pose.qpos.shape or data.mocap_pos.shape != pose.mocap_pos.shape:
            raise ValueError(
                "data belongs to another model than this renderer: make a renderer for that model"
            )
        pose.qpos, pose.mocap_pos, pose.mocap_quat = data.qpos, data.mocap_pos, data.mocap_quat
        self._mujoco.mj_kinematics(self._model, pose)
        return pose

    def _draw_backdrop(self, data: MjData) -> _Backdrop:
        """What stands still, drawn again only when a simulator moved it (MetaWorld does so at a reset)."""
        frames = self._fixed.frames
        poses = np.concatenate([data.geom_xpos[frames], data.geom_xmat[frames]], axis=1)
        if self._backdrop is None or not np.array_equal(self._backdrop.poses, poses):
            placed = self._fixed.place(data.geom_xpos, data.geom_xmat)
            keys = np.zeros(self._rows * self._columns, dtype=np.int64)
            self._draw(keys, placed)
            colours = np.concatenate([np.array([BACKGROUND], dtype=np.float32), placed.colours])
            self._backdrop = _Backdrop(poses, keys, colours, *self._shadow_receivers(keys))
        return self._backdrop

    def _draw(self, keys: np.ndarray, placed: _Placed) -> None:
        seen = (placed.vertices - self._eye) @ self._axes.T
        if (seen[:, 2] >= NEAR_M).all():  # the common case: a vertex is projected once, not once a triangle
            points, nearness = self._to_image(seen), NEAR_M / seen[:, 2]
            flat = Flat(points[placed.faces], nearness[placed.faces], placed.numbers, placed.culled)
        else:
            corners, source = clip_near(seen[placed.faces], NEAR_M)
            points, nearness = self._to_image(corners), NEAR_M / corners[..., 2]
            flat = Flat(points, nearness, placed.numbers[source], placed.culled[source])
        rasterise(keys, self._columns, flat)

    def _to_image(self, seen: np.ndarray) -> np.ndarray:
        """Camera frame [..., 3] (right, down, forward; m) to samples [..., 2] (column, row)."""
        centre = (self._columns / 2, self._rows / 2)
        return seen[..., :2] * (self._focal / seen[..., 2:]) + centre

    def _to_light(self, world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points [..., 3] to shadow-map points [..., 2] and nearness [...]: 1 / 2 at the target."""
        seen = (world - np.asarray(self.camera.target)) @ self._light_axes.T
        points = (seen[..., :2] / self._shadow_half_m + 1) * (SHADOW_SIZE / 2)
        return points, 0.5 - seen[..., 2] / (8 * self._shadow_half_m)

    def _shadow_map(self, casters: Sequence[_Placed]) -> np.ndarray:
        """Nearness of the casters to the light, [SHADOW_SIZE^2]; 0 where there is none."""
        keys = np.zeros(SHADOW_SIZE**2, dtype=np.int64)
        for placed in casters:
            points, nearness = self._to_light(placed.vertices)
            flat = Flat(points[placed.faces], nearness[placed.faces], placed.numbers, placed.culled)
            rasterise(keys, SHADOW_SIZE, flat)
        return (keys >> 32) / NEARNESS_STEPS

    def _shadow_receivers(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each sample of the backdrop: its cell of the shadow map and the nearness that shadows it."""
        row, column = np.divmod(np.arange(len(keys)), self._columns)
        steps = np.maximum(keys >> 32, 1)
        depth = NEAR_M * NEARNESS_STEPS / steps
        x = (column + 0.5 - self._columns / 2) * depth / self._focal
        y = (row + 0.5 - self._rows / 2) * depth / self._focal
        points, nearness = self._to_light(self._eye + np.stack([x, y, depth], axis=1) @ self._axes)
        lit = (keys == 0) | (points < 0).any(axis=1) | (points >= SHADOW_SIZE).any(axis=1)
        points[lit] = 0
        cell = points[:, 1].astype(np.int64) * SHADOW_SIZE + points[:, 0].astype(np.int64)
        shadowed_above = np.maximum(nearness + SHADOW_BIAS_M / (8 * self._shadow_half_m), 0.0)
        return cell, np.where(lit, np.inf, shadowed_above)


@dataclass(frozen=True)
class _Placed:
    """Triangles in the world.

    vertices: float64 [V, 3], m. faces: int64 [F, 3]. numbers: int64 [F]. culled: bool [F], not seen from behind.
    colours: float32 [F, 3], 0 to 255.
    """

    vertices: np.ndarray
    faces: np.ndarray
    numbers: np.ndarray
    culled: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True)
class _Backdrop:
    """The image without what moves.

    poses: where the geoms were, [G, 12]. keys: the z-buffer. colours: of triangle number n in row n.
    shadow_cell, shadow_nearness: for each sample its cell of the shadow map, and the nearness to the light
    above which a moving surface shadows it.
    """

    poses: np.ndarray
    keys: np.ndarray
    colours: np.ndarray
    shadow_cell: np.ndarray
    shadow_nearness: np.ndarray


class _Layer:
    """Surfaces drawn together, their triangles numbered from `first_number`."""

    def __init__(self, surfaces: Sequence[GeomSurface], first_number: int = 1) -> None:
        self.frames = np.array([surface.frame for surface in surfaces], dtype=np.int64)
        self.alpha = float(surfaces[0].rgba[3]) if surfaces else 1.0
        self._surfaces = surfaces
        starts = np.cumsum([0] + [len(surface.triangles.vertices) for surface in surfaces])
        faces = [s.triangles.faces + start for s, start in zip(surfaces, starts[:-1], strict=True)]
        self.faces = np.concatenate([np.zeros((0, 3), dtype=np.int64), *faces])
        self._numbers = first_number + np.arange(len(self.faces))
        closed = [np.full(len(s.triangles.faces), s.triangles.closed) for s in surfaces]
        self._culled = np.concatenate([np.zeros(0, dtype=bool), *closed])

    def place(self, positions: np.ndarray, rotations: np.ndarray) -> _Placed:
        """Moves each surface to row `frame` of positions [N, 3] (m) and rotations [N, 9], and lights it."""
        vertices, colours = [np.zeros((0, 3))], [np.zeros((0, 3), dtype=np.float32)]
        for surface in self._surfaces:
            rotation = rotations[surface.frame].reshape(3, 3)
            vertices.append(surface.triangles.vertices @ rotation.T + positions[surface.frame])
            facing = surface.triangles.normals @ (LIGHT @ rotation)  # cosine of the angle to the light
            brightness = AMBIENT + (1 - AMBIENT) * (1 + facing) / 2  # wrapped: unlit sides keep their form
            light = brightness[:, None] * surface.rgba[:3]
            colours.append((255 * light ** (1 / DISPLAY_GAMMA)).astype(np.float32))
        placed = np.concatenate(vertices)
        return _Placed(placed, self.faces, self._numbers, self._culled, np.concatenate(colours))


def _goal_layers(model: MjModel) -> list[_Layer]:
    goals = []
    for site in range(model.nsite):
        rgba = np.asarray(model.site_rgba[site], dtype=np.float64)
        if model.site(site).name.startswith(GOAL_PREFIX) and rgba[3] > 0:
            ball = sphere(max(float(model.site_size[site, 0]), GOAL_RADIUS_M))
            goals.append(_Layer([GeomSurface(site, ball, rgba, moving=True)]))
    return goals


def _view_axes(ahead: np.ndarray) -> np.ndarray:
    """Rows right, down, forward of a view along `ahead` with world z upwards (y where `ahead` is vertical)."""
    forward = ahead / np.linalg.norm(ahead)
    up = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.999 else np.array([0.0, 1.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])
