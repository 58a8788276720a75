"""Pictures of a MuJoCo scene without OpenGL: a z-buffer rasteriser in numpy.

MuJoCo's own renderer needs a display, EGL or OSMesa; a fresh machine has none of them. This one draws
filled, flat-shaded triangles with one directional light, shadows of what moves on what stands still, and
the goal as a translucent ball. Not drawn: textures (their mean colour is), height fields, flexes, skins,
tendons and sites other than goals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chunkrl.envs.software_geometry import Triangles, sphere, visible_surfaces

if TYPE_CHECKING:
    import mujoco

SUPERSAMPLING = 2  # samples a pixel along each axis; they are averaged
NEAR_M = 0.02
BACKGROUND = (236, 240, 245)
AMBIENT = 0.45
SHADOW = 0.68  # brightness left in a shadow
SHADOW_SIZE = 512  # samples of the shadow map along each axis
SHADOW_BIAS_M = 0.004
LIGHT = np.array([0.18, 0.12, 1.0]) / np.linalg.norm([0.18, 0.12, 1.0])  # towards the light, world frame
GOAL_PREFIX = "goal"
GOAL_RADIUS_M = 0.03  # at least: a ball as small as MetaWorld's 2 cm site vanishes inside the puck it waits for
GOAL_ALPHA = 0.55
NEARNESS_STEPS = 2.0**31  # a sample's key is its nearness in these steps, then 32 bits of triangle number


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. position, target: (x, y, z), m, world frame, z up; fov_deg: vertical field of view."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fov_deg: float = 45.0

    def __post_init__(self) -> None:
        if not 0 < self.fov_deg < 180:
            raise ValueError(f"fov_deg must lie in (0, 180), got {self.fov_deg}")
        if np.allclose(self.position, self.target):
            raise ValueError(f"camera position and target are the same point {self.position}: move one of them")


def metaworld_camera() -> Camera:
    """From the front right of MetaWorld's table: gripper, object and goal in view, the arm behind them."""
    return Camera(position=(0.62, 1.42, 0.62), target=(0.0, 0.66, 0.13), fov_deg=38.0)


@dataclass(frozen=True)
class _Part:
    """One drawn surface; `first_face` is the global number of its first triangle."""

    geom: int
    triangles: Triangles
    rgba: np.ndarray
    first_face: int


@dataclass(frozen=True)
class _StaticLayer:
    """What stands still, drawn once: poses it was drawn at, sample keys, and each sample in the light's frame."""

    poses: np.ndarray
    keys: np.ndarray
    shadow_cell: np.ndarray
    shadow_depth: np.ndarray
