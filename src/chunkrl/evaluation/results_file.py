"""results.json: what a comparison found, for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.results import ALL_TASKS, ArmDifference, ArmResult, by_task, over_tasks
from chunkrl.evaluation.speed import difference_json, speed_json
from chunkrl.files.atomic import write_text


def results_json(arms: Sequence[ArmResult], differences: Sequence[ArmDifference]) -> dict[str, Any]:
    """What results.json holds; every rate and difference is a fraction.

    {"tasks": {task: {"arms": {arm: {success, interval, num_episodes, seed, ...}},  (`speed_json`)
                      "difference": {baseline: d}, "difference_interval": {baseline: [low, high]},
                      "num_pairs": {baseline: n}, "only_a": {baseline: n}, "only_b": {baseline: n},
                      "p_value": {baseline: p}, "speed": {baseline: ...}}},  (`difference_json`)
     "mean_over_tasks": the same over all tasks' pairs}  (the latter with several tasks)

    only_a, only_b, p_value (McNemar's test, see `ArmDifference`) are null with several training seeds.

    Raises:
        ChunkRLError: differences of more than one arm, of an unknown task, or one that is not finite.
    """
    compared = {d.arm for d in differences}
    if len(compared) > 1:
        raise ChunkRLError(f"results.json states one arm's differences, got those of {sorted(compared)}")
    tasks: dict[str, dict[str, Any]] = {}
    for task, row in by_task(arms).items():
        tasks[task] = {"arms": _arms_json(row.values()), **_differences_json(differences, task)}
    results: dict[str, Any] = {"tasks": tasks}
    if unknown := {d.task for d in differences} - {*tasks, ALL_TASKS}:
        raise ChunkRLError(f"differences of tasks without results: {sorted(unknown)}")
    if any(d.task == ALL_TASKS for d in differences):
        results["mean_over_tasks"] = {
            "arms": _arms_json(over_tasks(arms)),
            **_differences_json(differences, ALL_TASKS),
        }
    return results


def _arms_json(arms: Iterable[ArmResult]) -> dict[str, Any]:
    return {
        result.arm: {
            "success": result.rate,
            "interval": [result.interval.low, result.interval.high],
            "num_episodes": result.num_episodes,
            "seed": result.seed,
            **speed_json(result.speed),
        }
        for result in arms
    }


def _differences_json(differences: Sequence[ArmDifference], task: str) -> dict[str, Any]:
    chosen = [d for d in differences if d.task == task]
    for d in chosen:
        if not all(map(math.isfinite, (d.difference, d.interval.low, d.interval.high))):
            raise ChunkRLError(f"the difference to '{d.baseline}' on '{task}' is not finite: {d}")
    return {
        "difference": {d.baseline: d.difference for d in chosen},
        "difference_interval": {d.baseline: [d.interval.low, d.interval.high] for d in chosen},
        **{
            name: {d.baseline: getattr(d, name) for d in chosen}
            for name in ("num_pairs", "only_a", "only_b", "p_value")
        },
        "speed": {d.baseline: difference_json(d.speed) for d in chosen},
    }


def write_results(path: str | Path, arms: Sequence[ArmResult], differences: Sequence[ArmDifference]) -> None:
    """Write `results_json` to `path`, whole or not at all."""
    write_text(path, json.dumps(results_json(arms, differences), indent=2, allow_nan=False) + "\n")
