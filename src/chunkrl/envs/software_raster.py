"""A z-buffer rasteriser in numpy: triangles to samples, the nearest one kept.

The buffer is one int64 key a sample: nearness in the upper 32 bits, the triangle's number in the lower, so
that one maximum keeps the nearest triangle. 0 stands for an empty sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUMBER_MASK = (1 << 32) - 1
NEARNESS_STEPS = 2.0**30  # of the range (0, 1]; a key stays within int64


@dataclass(frozen=True)
class Flat:
    """Triangles on an image.

    points: float64 [F, 3, 2], (column, row) of the corners in samples, y down. nearness: float64 [F, 3] in
    (0, 1], affine over the image (near / z, or a linear function of depth in a parallel projection).
    numbers: int64 [F], from 1. culled: bool [F], drawn only if the corners run counter-clockwise.
    """

    points: np.ndarray
    nearness: np.ndarray
    numbers: np.ndarray
    culled: np.ndarray


def clip_near(corners: np.ndarray, near_m: float) -> tuple[np.ndarray, np.ndarray]:
    """The parts of triangles with z >= near_m.

    corners: float64 [F, 3, 3], camera frame, z forward, m. Returns corners [G, 3, 3], same orientation, and
    int64 [G], the row each came from: a triangle cut to a quadrilateral becomes two.
    """
    inside = corners[:, :, 2] >= near_m
    rows = [np.flatnonzero(inside.sum(axis=1) == count) for count in range(4)]

    def lone_first(row: np.ndarray, lone: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = (np.argmax(lone, axis=1)[:, None] + np.arange(3)) % 3
        turned = np.take_along_axis(corners[row], order[:, :, None], axis=1)
        return turned[:, 0], turned[:, 1], turned[:, 2]

    def cut(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        share = (near_m - a[:, 2]) / (b[:, 2] - a[:, 2])
        return a + share[:, None] * (b - a)

    a, b, c = lone_first(rows[1], inside[rows[1]])
    pieces = [corners[rows[3]], np.stack([a, cut(a, b), cut(a, c)], axis=1)]
    a, b, c = lone_first(rows[2], ~inside[rows[2]])
    ab, ac = cut(a, b), cut(a, c)
    pieces += [np.stack([ab, b, c], axis=1), np.stack([ab, c, ac], axis=1)]
    return np.concatenate(pieces), np.concatenate([rows[3], rows[1], rows[2], rows[2]])


def rasterise(keys: np.ndarray, width: int, flat: Flat) -> None:
    """Draws triangles into `keys`, int64 [height * width], in place.

    A sample at (column + 0.5, row + 0.5) belongs to a triangle if its row crosses it left (included) to right
    (excluded), so neighbours share no sample and leave no gap.
    """
    height = len(keys) // width
    a, b, c = flat.points[:, 0], flat.points[:, 1], flat.points[:, 2]
    edge_b, edge_c = b - a, c - a
    area = edge_b[:, 0] * edge_c[:, 1] - edge_b[:, 1] * edge_c[:, 0]  # y is down: < 0 is counter-clockwise
    # Pairwise: numpy reduces over an axis of length 3 many times slower.
    first = _first_sample(np.minimum(np.minimum(a, b), c), (width, height))
    last = _first_sample(np.maximum(np.maximum(a, b), c), (width, height))
    facing = (area < 0) | ((area > 0) & ~flat.culled)
    drawn = np.flatnonzero(facing & (first[:, 0] < last[:, 0]) & (first[:, 1] < last[:, 1]))
    points, numbers, area = flat.points[drawn], flat.numbers[drawn], area[drawn]
    edge_b, edge_c, first, last = edge_b[drawn], edge_c[drawn], first[drawn, 1], last[drawn, 1]
    near = flat.nearness[drawn, 0]
    near_b, near_c = flat.nearness[drawn, 1] - near, flat.nearness[drawn, 2] - near
    step_x = (near_b * edge_c[:, 1] - near_c * edge_b[:, 1]) / area
    step_y = (near_c * edge_b[:, 0] - near_b * edge_c[:, 0]) / area

    triangle, row = _expand(first, last)
    left, right = _crossings(points, triangle, row + 0.5)
    start = np.clip(np.ceil(left - 0.5), 0, width).astype(np.int64)
    stop = np.clip(np.ceil(right - 0.5), 0, width).astype(np.int64)
    x, y = points[triangle, 0, 0], points[triangle, 0, 1]
    at_zero = near[triangle] + (row + 0.5 - y) * step_y[triangle] + (0.5 - x) * step_x[triangle]

    span, column = _expand(start, stop)
    owner = triangle[span]
    steps = ((at_zero[span] + column * step_x[owner]) * NEARNESS_STEPS).astype(np.int64)
    np.clip(steps, 1, int(NEARNESS_STEPS), out=steps)  # rounding at an edge-on triangle may leave the range
    np.maximum.at(keys, row[span] * width + column, (steps << 32) | numbers[owner])


def _first_sample(edge: np.ndarray, limit: tuple[int, int]) -> np.ndarray:
    """Index of the first sample centre at or after `edge`, within [0, limit]."""
    return np.clip(np.ceil(edge - 0.5), 0, limit).astype(np.int64)


def _expand(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every range [start, stop): its index, repeated, and the integers in it."""
    lengths = np.maximum(stop - start, 0)
    index = np.repeat(np.arange(len(start)), lengths)
    offset = np.cumsum(lengths) - lengths
    return index, np.arange(len(index)) + (start - offset)[index]


def _crossings(points: np.ndarray, triangle: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the horizontal lines `y` enter and leave their triangles; enter > leave where they miss."""
    left, right = np.full(len(y), np.inf), np.full(len(y), -np.inf)
    for corner in range(3):
        a, b = points[:, corner], points[:, (corner + 1) % 3]
        rise = b[:, 1] - a[:, 1]
        slope = np.divide(b[:, 0] - a[:, 0], rise, out=np.zeros_like(rise), where=rise != 0)
        from_y = a[triangle, 1]
        crossed = (from_y <= y) != (b[triangle, 1] <= y)
        x = a[triangle, 0] + (y - from_y) * slope[triangle]
        left = np.where(crossed, np.minimum(left, x), left)
        right = np.where(crossed, np.maximum(right, x), right)
    return left, right
