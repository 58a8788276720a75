"""Collision boxes of a scene, without LIBERO: a simulator that is arrays alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from chunkrl.envs.libero_geometry import SceneGeometry


def scene(centres: np.ndarray, rotations: np.ndarray, halves: np.ndarray) -> SceneGeometry:
    """One body a box, named by its number. centres, halves: [G, 3], metres; rotations: [G, 3, 3]."""
    num = len(centres)
    names = [f"{number}" for number in range(num)]
    model = SimpleNamespace(
        geom_bodyid=np.arange(1, num + 1),
        body_parentid=np.zeros(num + 1, int),
        geom_contype=np.ones(num, int),
        geom_conaffinity=np.ones(num, int),
        geom_type=np.full(num, 6),
        geom_aabb=np.concatenate([np.zeros((num, 3)), halves], axis=1),
    )
    bodies = {name: 1 + number for number, name in enumerate(names)}
    simulator: Any = SimpleNamespace(
        obj_body_id=bodies,
        get_object=lambda name: SimpleNamespace(root_body=name),
        sim=SimpleNamespace(
            model=SimpleNamespace(_model=model, body_name2id=bodies.get, body_id2name=lambda body: ""),
            data=SimpleNamespace(geom_xpos=centres, geom_xmat=rotations.reshape(num, 9)),
        ),
    )
    return SceneGeometry(simulator)


def highest_face(point: np.ndarray, centre: np.ndarray, rotation: np.ndarray, half: np.ndarray) -> float:
    """Where a vertical line meets the box's faces at its highest, by their planes; -inf: nowhere."""
    found = -np.inf
    for axis in range(3):
        for side in (-1.0, 1.0):
            normal = rotation[:, axis]
            on_plane = centre + side * half[axis] * normal
            height = on_plane[2] - (normal[:2] @ (point - on_plane[:2])) / normal[2]
            local = rotation.T @ (np.append(point, height) - centre)
            others = [other for other in range(3) if other != axis]
            if (np.abs(local[others]) <= half[others]).all():
                found = max(found, height)
    return found


def test_heights_are_those_of_the_boxes_faces() -> None:
    """Points far apart and close together: boxes that are out of reach change nothing."""
    rng = np.random.default_rng(0)
    num_met = 0
    for spread in (0.01, 0.1, 0.5):
        for _ in range(20):
            rotations = np.linalg.qr(rng.normal(size=(30, 3, 3)))[0]
            centres, halves = rng.uniform(-0.5, 0.5, (30, 3)), rng.uniform(0.01, 0.2, (30, 3))
            points = rng.uniform(-0.4, 0.4, 2) + spread * rng.normal(size=(12, 2))
            boxes = list(zip(centres, rotations, halves, strict=True))
            expected = [max(highest_face(point, *box) for box in boxes) for point in points]
            found = scene(centres, rotations, halves).tops(points)
            np.testing.assert_allclose(found, expected, atol=1e-9)
            num_met += np.isfinite(found).sum()
    assert 300 < num_met < 720  # both kinds were there


def test_an_object_is_left_out_and_a_scene_may_have_nothing_below_a_point() -> None:
    centres = np.array([[0.0, 0.0, 0.5], [0.0, 0.0, 0.1]])
    halves = np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.1]])
    two = scene(centres, np.stack([np.eye(3)] * 2), halves)
    points = np.array([[0.05, 0.05], [0.15, 0.15], [0.25, 0.25]])
    np.testing.assert_allclose(two.tops(points), [0.6, 0.2, -np.inf])
    np.testing.assert_allclose(two.tops(points, without="0"), [0.2, 0.2, -np.inf])
    np.testing.assert_allclose(two.tops(points + 5.0), [-np.inf] * 3)
    np.testing.assert_allclose(two.corners("1").max(0), [0.2, 0.2, 0.2])
