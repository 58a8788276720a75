"""The software renderer: projection, visibility, colours, shadows, goals, clipping, MetaWorld's scenes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl.envs import software_geometry, software_raster, software_render
from chunkrl.envs.software_render import AMBIENT, DISPLAY_GAMMA, LIGHT, SHADOW, Camera, SoftwareRenderer
from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError

mujoco = pytest.importorskip("mujoco", reason="the extra `sim` is not installed")

FRONT = Camera(position=(0.0, -2.0, 0.0), target=(0.0, 0.0, 0.0), fov_deg=90.0)  # looks along +y
TOWARDS_CAMERA = np.array([0.0, -1.0, 0.0])
BACKGROUND = np.array(software_render.BACKGROUND)


def renderer_of(body: str, camera: Camera = FRONT, assets: str = "", width: int = 320, height: int = 240):
    xml = f"<mujoco><asset>{assets}</asset><worldbody>{body}</worldbody></mujoco>"
    model = mujoco.MjModel.from_xml_string(xml)
    return SoftwareRenderer(model, camera, width, height), model, mujoco.MjData(model)


def picture_of(body: str, camera: Camera = FRONT, assets: str = "") -> np.ndarray:
    renderer, _, data = renderer_of(body, camera, assets)
    return renderer.render(data)


def lit(rgb, normal) -> np.ndarray:
    """The colour of a surface, float [3], 0 to 255."""
    brightness = AMBIENT + (1 - AMBIENT) * (1 + np.dot(normal, LIGHT)) / 2
    return 255 * (np.array(rgb) * brightness) ** (1 / DISPLAY_GAMMA)


def assert_pixel(pixel: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(pixel.astype(float), expected, atol=1.0)


def covered(picture: np.ndarray) -> np.ndarray:
    """bool [height, width]: not background."""
    return (picture != np.rint(BACKGROUND).astype(np.uint8)).any(axis=2)


def test_projects_a_known_point():
    renderer, _, _ = renderer_of("")
    # 90 degrees over 240 rows: focal length 120 pixels.
    assert renderer.project((0.0, 0.0, 0.0)) == pytest.approx((160.0, 120.0))
    assert renderer.project((0.5, 0.0, 0.25)) == pytest.approx((160 + 120 * 0.25, 120 - 120 * 0.125))
    assert renderer.project((0.5, 2.0, 0.25)) == pytest.approx((160 + 120 * 0.125, 120 - 120 * 0.0625))
    with pytest.raises(ValueError, match="behind the camera"):
        renderer.project((0.0, -3.0, 0.0))


def test_a_vertical_view_has_y_upwards():
    renderer, _, _ = renderer_of("", Camera((0.0, 0.0, 2.0), (0.0, 0.0, 0.0), 90.0))
    assert renderer.project((0.5, 0.25, 0.0)) == pytest.approx((190.0, 105.0))


def test_an_empty_scene_is_background():
    picture = picture_of("")
    assert picture.shape == (240, 320, 3)
    assert picture.dtype == np.uint8
    assert not covered(picture).any()


def test_box_covers_exactly_its_projection_in_its_colour():
    picture = picture_of('<geom type="box" size=".25 .5 .5" rgba=".2 .6 .9 1"/>')
    # Its front face stands 1.5 m away: 120 / 1.5 = 80 pixels a metre, and hides the other faces.
    expected = np.zeros((240, 320), dtype=bool)
    expected[80:160, 140:180] = True
    np.testing.assert_array_equal(covered(picture), expected)
    assert_pixel(picture[100, 150], lit((0.2, 0.6, 0.9), TOWARDS_CAMERA))
    assert_pixel(picture[140, 170], lit((0.2, 0.6, 0.9), TOWARDS_CAMERA))


@pytest.mark.parametrize(("side", "front"), [(-2.0, (0.9, 0.1, 0.1)), (2.0, (0.1, 0.1, 0.9))])
def test_a_box_in_front_hides_the_one_behind(side: float, front: tuple[float, float, float]):
    boxes = (
        '<geom type="box" size=".3 .1 .3" pos="0 -.5 0" rgba=".9 .1 .1 1"/>'
        '<geom type="box" size=".3 .1 .3" pos="0 .5 0" rgba=".1 .1 .9 1"/>'
    )
    picture = picture_of(boxes, Camera((0.0, side, 0.0), (0.0, 0.0, 0.0), 90.0))
    assert_pixel(picture[120, 160], lit(front, np.array([0.0, np.sign(side), 0.0])))


def test_interpenetrating_boxes_are_resolved_by_pixel():
    tilted = (
        '<geom type="box" size=".6 .02 .3" euler="0 0 30" rgba="1 0 0 1"/>'
        '<geom type="box" size=".6 .02 .3" euler="0 0 -30" rgba="0 0 1 1"/>'
    )
    picture = picture_of(tilted)
    red, _, blue = picture[120, 130].astype(int)
    assert red > blue + 100  # turned by +30 degrees about z, the left end is the nearer one
    red, _, blue = picture[120, 190].astype(int)
    assert blue > red + 100


@pytest.mark.parametrize(
    ("geom", "half_width", "half_height"),
    [
        ('type="sphere" size=".3"', 0.3, 0.3),
        ('type="ellipsoid" size=".4 .1 .2"', 0.4, 0.2),
        ('type="cylinder" size=".2 .35"', 0.2, 0.35),
        ('type="capsule" size=".15 .2"', 0.15, 0.35),
    ],
)
def test_round_geoms_have_their_size(geom: str, half_width: float, half_height: float):
    renderer, _, data = renderer_of(f"<geom {geom}/>", Camera((0.0, -20.0, 0.0), (0.0, 0.0, 0.0), 4.0))
    mask = covered(renderer.render(data))
    pixels_per_metre = 120 / np.tan(np.deg2rad(2.0)) / 20
    assert mask.any(axis=0).sum() == pytest.approx(2 * half_width * pixels_per_metre, rel=0.04)
    assert mask.any(axis=1).sum() == pytest.approx(2 * half_height * pixels_per_metre, rel=0.04)


def test_mesh_sits_where_mujoco_puts_it():
    vertices = "0 0 0  .4 0 0  0 .4 0  0 0 .4"
    assets = f'<mesh name="m" vertex="{vertices}" face="0 2 1  0 1 3  1 2 3  0 3 2"/>'
    renderer, model, data = renderer_of('<geom type="mesh" mesh="m" rgba="0 1 0 1"/>', assets=assets)
    mask = covered(renderer.render(data))
    # The face y = 0 is a right triangle 2 m away: 60 pixels a metre from the corner at (160, 120).
    assert mask[119, 161]
    assert mask[98, 161]
    assert mask[119, 182]
    assert not mask[118, 158]
    assert not mask[122, 162]
    assert mask.sum() == pytest.approx(24 * 24 / 2, rel=0.1)
    (surface,) = software_geometry.visible_surfaces(model)
    assert not surface.triangles.closed  # drawn from both sides, for meshes with gaps


def test_materials_and_the_mean_colour_of_textures():
    assets = (
        '<texture name="flat" type="2d" builtin="flat" rgb1=".2 .4 .8" width="8" height="8"/>'
        '<material name="plain" rgba=".3 .5 .7 1"/><material name="painted" texture="flat" rgba=".5 1 1 1"/>'
    )
    body = (
        '<geom type="box" size=".2 .1 .2" pos="-.6 0 0" material="plain"/>'
        '<geom type="box" size=".2 .1 .2" pos="0 0 0" material="painted"/>'
        '<geom type="box" size=".2 .1 .2" pos=".6 0 0" material="painted" rgba=".9 .8 .1 1"/>'
    )
    picture = picture_of(body, assets=assets)
    assert_pixel(picture[120, 122], lit((0.3, 0.5, 0.7), TOWARDS_CAMERA))
    assert_pixel(picture[120, 160], lit((0.1, 0.4, 0.8), TOWARDS_CAMERA))
    assert_pixel(picture[120, 198], lit((0.9, 0.8, 0.1), TOWARDS_CAMERA))


@pytest.mark.parametrize("hidden", ['group="3"', 'rgba="1 0 0 0"'])
def test_collision_groups_and_invisible_geoms_are_skipped(hidden: str):
    assert not covered(picture_of(f'<geom type="box" size=".3 .3 .3" {hidden}/>')).any()


def test_a_translucent_geom_mixes_with_what_is_behind():
    picture = picture_of(
        '<geom type="box" size=".3 .1 .3" pos="0 -.5 0" rgba=".9 .1 .1 .25"/>'
        '<geom type="box" size=".6 .1 .1" pos="0 .5 0" rgba=".1 .1 .9 1"/>'
    )
    glass, wall = lit((0.9, 0.1, 0.1), TOWARDS_CAMERA), lit((0.1, 0.1, 0.9), TOWARDS_CAMERA)
    assert_pixel(picture[120, 160], 0.25 * glass + 0.75 * wall)
    assert_pixel(picture[100, 160], 0.25 * glass + 0.75 * BACKGROUND)


def test_a_plane_that_runs_behind_the_camera_fills_the_lower_half():
    picture = picture_of('<geom type="plane" size="0 0 1" pos="0 0 -1" rgba=".4 .6 .5 1"/>')
    assert not covered(picture)[:120].any()
    floor = np.broadcast_to(lit((0.4, 0.6, 0.5), np.array([0.0, 0.0, 1.0])), (108, 320, 3))
    # 18 m ahead the quad ends, 120 / (2 + 18) = 6 rows below the horizon.
    np.testing.assert_allclose(picture[132:].astype(float), floor, atol=1.0)
    assert not covered(picture_of('<geom type="plane" size="1 1 1" pos="0 0 1"/>')).any()  # seen from below


def test_goal_is_a_translucent_ball_and_other_sites_are_not_drawn():
    wall = '<geom type="box" size=".6 .1 .6" pos="0 .5 0" rgba=".1 .1 .9 1"/>'
    sites = (
        '<site name="goal" pos="0 0 0" size=".1" rgba="0 .8 0 1"/><site name="tip" pos=".4 0 0" size=".1"/>'
    )
    with_goal, without = picture_of(wall + sites), picture_of(wall)
    changed = (with_goal != without).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (rows.mean() + 0.5, columns.mean() + 0.5) == pytest.approx((120.0, 160.0), abs=0.3)
    assert changed.sum() == pytest.approx(np.pi * 6**2, rel=0.25)  # radius 0.1 m at 60 pixels a metre
    red, green, blue = with_goal[120, 160].astype(int)
    assert green > without[120, 160, 1] + 50  # green over blue, and the blue still shows
    assert blue > 60
    assert red < 60


def test_a_goal_behind_a_box_is_hidden_and_a_small_one_is_enlarged():
    box = '<geom type="box" size=".3 .1 .3" pos="0 -.5 0"/>'
    goal = '<site name="goal" pos="0 0 0" size=".001" rgba="0 .8 0 1"/>'
    np.testing.assert_array_equal(picture_of(box + goal), picture_of(box))
    assert covered(picture_of(goal)).any(axis=0).sum() >= 2 * software_render.GOAL_RADIUS_M * 60 - 1


def test_a_moving_box_casts_a_shadow_straight_along_the_light():
    body = (
        '<geom type="plane" size="2 2 1" rgba=".5 .5 .5 1"/>'
        '<body pos="0 0 .5"><freejoint/><geom type="box" size=".2 .2 .05" rgba="1 0 0 1"/></body>'
    )
    camera = Camera((0.0, -3.0, 1.5), (0.0, 0.0, 0.25), 45.0)
    renderer, _, data = renderer_of(body, camera)
    picture = renderer.render(data)
    floor = lit((0.5, 0.5, 0.5), np.array([0.0, 0.0, 1.0]))
    middle = np.array([0.0, 0.0, 0.5]) - LIGHT * (0.5 / LIGHT[2])
    column, row = renderer.project(middle)
    assert_pixel(picture[int(row), int(column)], SHADOW * floor)
    for aside in ((0.5, 0.0, 0.0), (-0.5, 0.0, 0.0)):
        column, row = renderer.project(middle + aside)
        assert_pixel(picture[int(row), int(column)], floor)


def test_pictures_follow_the_joints_without_mj_forward_and_without_touching_the_data():
    body = '<body><joint type="slide" axis="1 0 0"/><geom type="box" size=".1 .1 .1" rgba="1 0 0 1"/></body>'
    renderer, _, data = renderer_of(body)
    columns = np.flatnonzero(covered(renderer.render(data)).any(axis=0))
    assert (columns[0], columns[-1]) == (153, 166)  # 160 -+ 120 * .1 / 1.9
    data.qpos[0] = 0.5
    before = data.geom_xpos.copy()
    columns = np.flatnonzero(covered(renderer.render(data)).any(axis=0))
    assert (columns[0], columns[-1]) == (183, 197)  # 160 + 120 * .4 / 2.1 (far corner), 160 + 120 * .6 / 1.9
    np.testing.assert_array_equal(data.geom_xpos, before)


def test_a_fixed_body_that_a_simulator_moves_is_drawn_at_its_new_place():
    renderer, model, data = renderer_of('<body><geom type="box" size=".1 .1 .1"/></body>')
    first = renderer.render(data)
    np.testing.assert_array_equal(renderer.render(data), first)
    model.body_pos[1, 0] = 0.5
    second = renderer.render(data)
    assert covered(first)[120, 160]
    assert not covered(second)[120, 160]
    assert covered(second)[120, 190]


def test_a_height_field_is_refused():
    with pytest.raises(ChunkRLError, match="HFIELD"):
        renderer_of(
            '<geom type="hfield" hfield="h"/>', assets='<hfield name="h" nrow="3" ncol="3" size="1 1 1 1"/>'
        )


def test_a_missing_simulator_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[sim\]'"):
        software_geometry.import_mujoco()


def test_bad_cameras_and_sizes_are_refused():
    with pytest.raises(ValueError, match="fov_deg"):
        Camera((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), 180.0)
    with pytest.raises(ValueError, match="stands at its target"):
        Camera((0.0, 0.0, 1.0), (0.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="at least 1 x 1"):
        renderer_of("", width=0)


def test_data_of_another_model_is_refused():
    renderer, _, _ = renderer_of("")
    _, _, data = renderer_of('<body><freejoint/><geom size=".1"/></body>')
    with pytest.raises(ValueError, match="another model"):
        renderer.render(data)


@settings(max_examples=25)
@given(
    size=st.tuples(*[st.floats(0.01, 2.0)] * 3),
    kind=st.sampled_from(["sphere", "capsule", "cylinder", "box"]),
)
def test_closed_surfaces_are_watertight_and_face_outwards(size: tuple[float, float, float], kind: str):
    numbers = " ".join(f"{value:.6f}" for value in size[: {"sphere": 1, "box": 3}.get(kind, 2)])
    _, model, _ = renderer_of(f'<geom type="{kind}" size="{numbers}"/>')
    (surface,) = software_geometry.visible_surfaces(model)
    corners = surface.triangles.vertices[surface.triangles.faces]
    radius, half = model.geom_size[0, 0], model.geom_size[0, 1]
    expected = {
        "sphere": 4 / 3 * np.pi * radius**3,
        "capsule": 4 / 3 * np.pi * radius**3 + np.pi * radius**2 * 2 * half,
        "cylinder": np.pi * radius**2 * 2 * half,
        "box": 8 * np.prod(model.geom_size[0]),
    }[kind]
    volume = np.linalg.det(corners).sum() / 6  # positive only if the triangles face outwards
    assert volume == pytest.approx(expected, rel=0.04)
    area_vectors = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(area_vectors.sum(axis=0), 0, atol=1e-9 * np.abs(area_vectors).sum())


def brute_force(width: int, height: int, flat: software_raster.Flat) -> np.ndarray:
    """Number of the nearest triangle at each sample, by barycentric coordinates, [height, width]."""
    best, number = np.zeros((height, width)), np.zeros((height, width), dtype=int)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for (a, b, c), nearness, own in zip(flat.points, flat.nearness, flat.numbers, strict=True):
        frame = np.stack([b - a, c - a], axis=1)
        u, v = np.linalg.solve(frame, np.stack([x.ravel() - a[0], y.ravel() - a[1]])).reshape(
            2, height, width
        )
        depth = nearness[0] + u * (nearness[1] - nearness[0]) + v * (nearness[2] - nearness[0])
        nearer = (u >= 0) & (v >= 0) & (u + v <= 1) & (depth > best)
        best, number = np.where(nearer, depth, best), np.where(nearer, own, number)
    return number


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12))
def test_rasteriser_agrees_with_brute_force(seed: int, count: int):
    random = np.random.default_rng(seed)
    width, height = 23, 17
    points = random.uniform(-8, 30, size=(count, 3, 2))
    flat = software_raster.Flat(
        points, random.uniform(0.1, 0.9, size=(count, 3)), 1 + np.arange(count), np.zeros(count, dtype=bool)
    )
    keys = np.zeros(width * height, dtype=np.int64)
    software_raster.rasterise(keys, width, flat)
    numbers = (keys & software_raster.NUMBER_MASK).reshape(height, width)
    np.testing.assert_array_equal(numbers, brute_force(width, height, flat))


def test_rasteriser_culls_clockwise_triangles_and_shares_no_sample():
    quad = np.array([[[0, 0], [0, 8], [8, 8]], [[0, 0], [8, 8], [8, 0]]], dtype=float)  # counter-clockwise
    near, culled = np.full((2, 3), 0.5), np.ones(2, dtype=bool)
    counts = []
    for points in (quad[:1], quad[1:], quad, quad[:, ::-1]):
        keys = np.zeros(100, dtype=np.int64)
        flat = software_raster.Flat(
            points, near[: len(points)], 1 + np.arange(len(points)), culled[: len(points)]
        )
        software_raster.rasterise(keys, 10, flat)
        counts.append(int((keys > 0).sum()))
    assert counts[0] + counts[1] == counts[2] == 64
    assert counts[3] == 0


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6))
def test_clipping_keeps_what_lies_ahead_and_its_orientation(seed: int):
    corners = np.random.default_rng(seed).uniform(-1, 1, size=(20, 3, 3))
    pieces, source = software_raster.clip_near(corners, 0.1)
    assert (pieces[..., 2] >= 0.1 - 1e-12).all()
    assert set(source) == set(np.flatnonzero((corners[..., 2] >= 0.1).any(axis=1)))

    def area_vector(triangles: np.ndarray) -> np.ndarray:
        return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])

    original, cut = area_vector(corners)[source], area_vector(pieces)
    share = (cut * original).sum(axis=1) / (original**2).sum(axis=1)
    np.testing.assert_allclose(cut, share[:, None] * original, atol=1e-9)  # same plane, same side
    assert (share >= 0).all()
    total = np.bincount(source, weights=share, minlength=20)
    dense = np.sort(np.random.default_rng(seed).dirichlet(np.ones(3), size=4000) @ corners[:, :, 2].T, axis=0)
    np.testing.assert_allclose(total, (dense >= 0.1).mean(axis=0), atol=0.06)  # the area ahead, by sampling


@pytest.mark.parametrize("task", ["push-v3", "pick-place-v3"])
def test_metaworld_shows_gripper_object_and_goal(task: str):
    pytest.importorskip("metaworld", reason="the extra `sim` is not installed")
    from chunkrl.envs.metaworld import GOAL, MetaWorldEnv

    environment = MetaWorldEnv(task)
    start = environment.reset(0)
    model, data = environment.mujoco
    renderer = SoftwareRenderer(model, software_render.metaworld_camera())
    first = renderer.render(data)

    column, row = renderer.project(start.state[GOAL])  # at once after the reset, not where the last goal was
    pixel = first[int(row), int(column)].astype(int)
    channel = {"push-v3": 1, "pick-place-v3": 2}[task]  # a green and a blue ball
    assert pixel[channel] == pixel.max()
    assert pixel[channel] > pixel[0] + 50

    column, row = renderer.project(start.state[4:7])  # the red object
    red, green, blue = first[int(row), int(column)].astype(int)
    assert red > 150
    assert max(green, blue) < 60

    for _ in range(5):
        environment.step(np.array([0.0, 1.0, -1.0, 0.0]))
    second = renderer.render(data)
    changed = (first != second).any(axis=2)
    assert 0.01 < changed.mean() < 0.6  # the arm and its shadow moved, table and goal did not
    environment.close()


def test_metaworld_camera_holds_objects_goals_and_gripper():
    renderer, _, _ = renderer_of("", software_render.metaworld_camera())
    corners = [(x, y, z) for x in (-0.2, 0.2) for y in (0.5, 0.95) for z in (0.0, 0.3)]
    columns, rows = zip(*(renderer.project(corner) for corner in corners), strict=True)
    assert min(columns) >= 0
    assert max(columns) < 320
    assert min(rows) >= 0
    assert max(rows) < 240
