"""Values of states and actions out of all proportion to the others of their dimension."""

from __future__ import annotations

import numpy as np

from chunkrl.data.frames import FrameTable
from chunkrl.data.label_columns import place_of
from chunkrl.data.large_arrays import blocks
from chunkrl.data.problems import Problem

WIDTHS, TYPICAL_WIDTHS = 100.0, 10.0
"""How far beyond the middle nine tenths of its values a dimension may go: in widths of those, and in widths that are
typical of all dimensions."""
_RARE = 0.01
MIN_ROWS = 20  # of fewer the middle nine tenths leave out none, or too many to speak of the others
_SAMPLE_ROWS = 2**17


def outliers(table: FrameTable) -> list[Problem]:
    """Single values far outside the range of nearly all others of their dimension."""
    description = table.description
    found = []
    for role, values, names in (
        ("action", table.action, description.action_names),
        ("state", table.state, description.state_names),
    ):
        if values is None or len(values) < MIN_ROWS:
            continue
        low, high = robust_range(values)
        for dim, rows in _outside(values, low, high).items():
            if len(rows) > max(3, _RARE * len(values)):
                continue  # not single ones: a range of its own
            worst = rows[np.argmax(np.abs(values[rows, dim] - (low[dim] + high[dim]) / 2))]
            named = f" ({names[dim]})" if names else ""
            others = np.delete(values[:, dim], rows) if len(rows) < len(values) else values[:, dim]
            found.append(
                Problem(
                    f"{place_of(table, int(worst))}: the {role}'s dimension {dim}{named} is "
                    f"{values[worst, dim]:.6g}, out of all proportion to the others ({others.min():.6g} to "
                    f"{others.max():.6g}; {len(rows)} such values): correct it, or leave the episode out",
                    tuple(table.episode_ids[np.unique(table.episode_of(rows))].tolist()),
                )
            )
    return found


def robust_range(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What values [N, D] may be without being out of all proportion: float64 [D], [D]."""
    sample = np.sort(np.asarray(values[:: -(-len(values) // _SAMPLE_ROWS)], np.float64), axis=0)
    last = len(sample) - 1
    low, high = sample[int(np.ceil(0.05 * last))], sample[int(np.floor(0.95 * last))]
    low, high = np.minimum(low, high), np.maximum(low, high)
    width = high - low
    moving = width[width > 0]
    typical = float(np.median(moving)) if len(moving) else 1.0
    still = np.where(width > 0, 0.0, WIDTHS * np.maximum(np.abs(low), 1e-6))
    margin = np.maximum.reduce([WIDTHS * width, np.full_like(width, TYPICAL_WIDTHS * typical), still])
    return low - margin, high + margin


def _outside(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[int, np.ndarray]:
    """Dimension -> the rows of values [N, D] that are below low [D] or above high [D]."""
    found: dict[int, list[np.ndarray]] = {}
    for rows in blocks(len(values)):
        part = np.asarray(values[rows], np.float64)
        outside = (part < low) | (part > high)
        for dim in np.flatnonzero(outside.any(axis=0)).tolist():
            found.setdefault(dim, []).append(rows.start + np.flatnonzero(outside[:, dim]))
    return {dim: np.concatenate(rows) for dim, rows in found.items()}
