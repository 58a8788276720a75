"""Triangles and colours of a MuJoCo model's visible geoms, for `chunkrl.envs.software_render`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError

MjModel = Any  # mujoco's classes live in an extension module without type information
MjData = Any
NUM_SEGMENTS = 28  # corners of a tessellated circle
INFINITE_PLANE_M = 20.0  # half side of the quad drawn for a plane of unlimited size
MAX_VISIBLE_GROUP = 2  # MuJoCo's viewer hides geom groups 3 to 5: collision shapes
UNSET_RGBA = (0.5, 0.5, 0.5, 1.0)  # a geom's compiled colour when the model gives none: the material's holds


@dataclass(frozen=True)
class Triangles:
    """A tessellated surface in its own frame, corners counter-clockwise seen from outside.

    vertices: float64 [V, 3], m. faces: int64 [F, 3], rows of `vertices`. normals: float64 [F, 3], unit, outward.
    closed: no triangle is ever seen from behind. Meshes are not: between a robot's panels are gaps that show
    the inside.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    closed: bool


@dataclass(frozen=True)
class GeomSurface:
    """What is drawn for one geom (or one goal site).

    frame: the geom's index in the model, or the site's. rgba: float64 [4] in [0, 1].
    moving: False for what is fixed to the world (a mocap body and its children move).
    """

    frame: int
    triangles: Triangles
    rgba: np.ndarray
    moving: bool


def import_mujoco() -> Any:
    """The `mujoco` module; raises MissingExtraError (extra `sim`) where it is not installed."""
    try:
        import mujoco
    except ImportError as error:
        raise MissingExtraError("The software renderer", error.name or "mujoco", "sim") from error
    return mujoco


def visible_surfaces(model: MjModel) -> list[GeomSurface]:
    """Surfaces of the geoms that MuJoCo's viewer draws by default: groups 0 to 2, alpha above 0.

    Raises ChunkRLError for a height field, the one geom type not tessellated here.
    """
    surfaces = []
    for geom in range(model.ngeom):
        rgba = _geom_rgba(model, geom)
        if model.geom_group[geom] > MAX_VISIBLE_GROUP or rgba[3] <= 0:
            continue
        body = model.geom_bodyid[geom]
        mocap = model.body_mocapid[model.body_rootid[body]] >= 0
        moving = bool(mocap or model.body_weldid[body] != 0)
        surfaces.append(GeomSurface(geom, _tessellate(model, geom), rgba, moving))
    return surfaces


def sphere(radius_m: float) -> Triangles:
    """A ball around the origin."""
    return _revolve(_arc(radius_m, -90, 90))


def _geom_rgba(model: MjModel, geom: int) -> np.ndarray:
    """The geom's own colour, else its material's times the mean colour of the material's texture."""
    own = np.asarray(model.geom_rgba[geom], dtype=np.float64)
    material = model.geom_matid[geom]
    if material < 0 or not np.allclose(own, UNSET_RGBA):
        return own
    rgba = np.asarray(model.mat_rgba[material], dtype=np.float64)
    texture = int(np.max(model.mat_texid[material]))
    if texture < 0:
        return rgba
    if hasattr(model, "tex_data"):
        texels, channels = model.tex_data, model.tex_nchannel[texture]
    else:  # MuJoCo 3.1 and the first 3.2 releases hold RGB only, under another name
        texels, channels = model.tex_rgb, 3
    start, count = model.tex_adr[texture], model.tex_height[texture] * model.tex_width[texture]
    texels = texels[start : start + count * channels].reshape(-1, channels)
    mean = texels.mean(axis=0)[:3] / 255.0  # one grey value broadcasts over the three channels
    return np.concatenate([rgba[:3] * mean, rgba[3:]])


def _tessellate(model: MjModel, geom: int) -> Triangles:
    kinds = import_mujoco().mjtGeom
    kind, size = model.geom_type[geom], np.asarray(model.geom_size[geom], dtype=np.float64)
    if kind == kinds.mjGEOM_PLANE:
        return _plane(*np.where(size[:2] > 0, size[:2], INFINITE_PLANE_M))
    if kind == kinds.mjGEOM_BOX:
        return _box(size)
    if kind == kinds.mjGEOM_SPHERE:
        return sphere(size[0])
    if kind == kinds.mjGEOM_ELLIPSOID:
        unit = sphere(1.0)
        return _with_normals(unit.vertices * size, unit.faces)
    radius, half_length = size[0], size[1]
    if kind == kinds.mjGEOM_CYLINDER:
        return _revolve([(0, -half_length), (radius, -half_length), (radius, half_length), (0, half_length)])
    if kind == kinds.mjGEOM_CAPSULE:
        return _revolve(_arc(radius, -90, 0, -half_length) + _arc(radius, 0, 90, half_length))
    if kind in (kinds.mjGEOM_MESH, kinds.mjGEOM_SDF):
        mesh = model.geom_dataid[geom]
        first_vertex, first_face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
        vertices = model.mesh_vert[first_vertex : first_vertex + model.mesh_vertnum[mesh]]
        faces = model.mesh_face[first_face : first_face + model.mesh_facenum[mesh]]
        return _with_normals(vertices, faces, closed=False)
    raise ChunkRLError(
        f"geom {geom} ({model.geom(geom).name!r}) is a {kinds(kind).name}, which the software renderer does not "
        "draw: give it a group above 2 or replace it by a mesh"
    )


def _with_normals(vertices: np.ndarray, faces: np.ndarray, closed: bool = True) -> Triangles:
    """Adds flat normals and drops triangles without an area (poles, degenerate mesh faces)."""
    vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    cross = np.cross(b - a, c - a)
    length = np.linalg.norm(cross, axis=1)
    solid = length > 0
    return Triangles(vertices, faces[solid], cross[solid] / length[solid, None], closed)


def _plane(half_x: float, half_y: float) -> Triangles:
    corners = [(-half_x, -half_y, 0), (half_x, -half_y, 0), (half_x, half_y, 0), (-half_x, half_y, 0)]
    return _with_normals(np.array(corners), np.array([(0, 1, 2), (0, 2, 3)]))


def _box(half_sizes: np.ndarray) -> Triangles:
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])  # corner 4x + 2y + z
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    return _with_normals(signs * half_sizes, np.array(faces))


def _arc(radius: float, first_deg: float, last_deg: float, height: float = 0.0) -> list[tuple[float, float]]:
    """Profile points (distance from the axis, z) of a sphere's latitudes, centre at z = height."""
    count = round(NUM_SEGMENTS * (last_deg - first_deg) / 360) + 1
    angles = np.deg2rad(np.linspace(first_deg, last_deg, count))
    return [(radius * np.cos(angle), height + radius * np.sin(angle)) for angle in angles]


def _revolve(profile: list[tuple[float, float]]) -> Triangles:
    """The surface that `profile`, points (distance from the axis, z) from bottom to top, sweeps about z."""
    angles = np.arange(NUM_SEGMENTS) * (2 * np.pi / NUM_SEGMENTS)
    rings = [
        np.stack([r * np.cos(angles), r * np.sin(angles), np.full(NUM_SEGMENTS, z)], 1) for r, z in profile
    ]
    here = np.arange(NUM_SEGMENTS)
    after = (here + 1) % NUM_SEGMENTS
    faces = []
    for ring in range(len(profile) - 1):
        low, high = ring * NUM_SEGMENTS, (ring + 1) * NUM_SEGMENTS
        faces += [np.stack([low + here, low + after, high + after], 1)]
        faces += [np.stack([low + here, high + after, high + here], 1)]
    return _with_normals(np.concatenate(rings), np.concatenate(faces))
