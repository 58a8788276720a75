"""Steps to success and successes per 1,000 steps of records of jobs, for summaries and tables of the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chunkrl.evaluation.speed import MEDIAN, PER_1000, Speed, point_json, speed_cells


def speed_of(records: Sequence[Mapping[str, Any]], arm: str) -> dict[str, float | None]:
    """Of the arm's episodes in all `records` (success and num_steps by arm); null where one of them was kept without
    steps, or has none because its training failed."""
    steps = [record.get("num_steps", {}).get(arm) for record in records]
    if any(found is None for found in steps):
        return point_json(None)
    success = np.concatenate([np.array(record["success"][arm], dtype=bool) for record in records])
    return point_json(Speed.of(success, np.concatenate([np.array(found) for found in steps])))


def speed_table(places: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> list[str]:
    """places: head of a column -> arm -> what `speed_of` says. Empty cells where it says null."""
    lines = [f"| {MEDIAN}; {PER_1000} | {' | '.join(places)} |", "|---|" + "---|" * len(places)]
    for arm in arms:
        cells = [
            "; ".join(filter(None, speed_cells(Speed.from_json(found[arm])))) for found in places.values()
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines
