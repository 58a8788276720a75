"""What `benchmarks.libero` found, over training seeds, and its tables for docs/results.md."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.metaworld import METHOD
from benchmarks.speed_tables import speed_table
from chunkrl.statistics import bootstrap_over_tasks


def add_intervals(records: list[dict[str, Any]], summary: dict[str, Any], arms: tuple[str, ...]) -> None:
    """Adds every arm's counts by seed and the interval of its success over training seeds, then states."""
    for arm in arms:
        by_task: dict[str, list[list[int]]] = defaultdict(list)
        by_seed: dict[int, list[int]] = defaultdict(list)
        for record in sorted(records, key=lambda record: record["seed"]):
            by_task[record["task"]].append(record["success"][arm])
            by_seed[record["seed"]] += record["success"][arm]
        success = {task: np.array(rows, dtype=float) for task, rows in by_task.items()}
        found = bootstrap_over_tasks(success, {task: np.zeros_like(rows) for task, rows in success.items()})
        summary["mean_over_tasks"].setdefault("over_seeds", {})[arm] = {
            "interval": [found.interval.low, found.interval.high],
            "per_seed": [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)],
            "num_success": sum(map(sum, by_seed.values())),
            "num_episodes": sum(map(len, by_seed.values())),
        }


def markdown(summary: dict[str, Any], arms: tuple[str, ...]) -> str:
    """Tables for docs/results.md: the suite, its speed, then every task."""
    lines = ["| policy | success | 95 % | by seed | difference of " + METHOD + " |", "|---|---|---|---|---|"]
    for arm in arms:
        found = summary["mean_over_tasks"]["over_seeds"][arm]
        gain = summary["mean_over_tasks"].get("difference", {}).get(arm)
        cell = (
            ""
            if gain is None
            else f"{gain['difference']:+.2f} [{gain['interval'][0]:+.2f}, {gain['interval'][1]:+.2f}]"
        )
        count = f"{found['num_success']}/{found['num_episodes']}"
        lines.append(
            f"| {arm} | **{found['num_success'] / found['num_episodes']:.2f}** ({count}) "
            f"| [{found['interval'][0]:.2f}, {found['interval'][1]:.2f}] "
            f"| {' '.join(format(rate, '.2f') for rate in found['per_seed'])} | {cell} |"
        )
    lines += ["", *speed_table({"all episodes": summary["speed_over_all_episodes"]}, arms)]
    tasks = list(summary["tasks"])
    lines += ["", f"| task | {' | '.join(arms)} |", "|---|" + "---|" * len(arms)]
    for task in tasks:
        found = summary["tasks"][task]["success"]
        lines.append(f"| `{task}` | {' | '.join(format(found[arm]['mean'], '.2f') for arm in arms)} |")
    return "\n".join(lines)
