"""What `benchmarks.iterate` found, over seeds, and its tables for docs/results.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chunkrl.evaluation.speed import Speed, point_json, speed_cells
from chunkrl.statistics import SeedDifference, bootstrap_over_tasks

Record = dict[str, Any]
Success = dict[str, np.ndarray]  # task -> float [seeds, states]


def outcomes(records: Sequence[Mapping[str, Any]], arm: str, number: int, key: str) -> Success:
    """`success` or `steps` of a round's policies; number -1: of each seed's chosen one."""
    rows: dict[str, list[list[int]]] = {}
    for record in records:
        run = record["arms"][arm]
        one = run["rounds"][run["chosen"] if number < 0 else number]
        for task, found in one["outcomes"].items():
            rows.setdefault(task, []).append(found[key])
    return {task: np.array(found, dtype=float) for task, found in rows.items()}


def packed(record: Mapping[str, Any]) -> Record:
    """A seed's record with a line for each round's outcomes in place of one for each number."""
    return _with_outcomes(
        record,
        lambda found: {
            "success": "".join(map(str, found["success"])),
            "steps": " ".join(map(str, found["steps"])),
        },
    )


def unpacked(record: Mapping[str, Any]) -> Record:
    """The inverse of `packed`."""
    return _with_outcomes(
        record,
        lambda found: {
            "success": [int(digit) for digit in found["success"]],
            "steps": [int(number) for number in found["steps"].split()],
        },
    )


def _with_outcomes(record: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Any]) -> Record:
    arms = {
        arm: run
        | {
            "rounds": [
                one | {"outcomes": {task: change(found) for task, found in one["outcomes"].items()}}
                for one in run["rounds"]
            ]
        }
        for arm, run in record["arms"].items()
    }
    return dict(record) | {"arms": arms}


def summarize(records: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> dict[str, Any]:
    """Success of every arm and round with intervals over seeds and states, what choosing gives, and differences."""
    num_rounds = len(records[0]["arms"][arms[0]]["rounds"])
    table = {
        arm: {
            **{str(number): _cell(records, arm, number) for number in range(num_rounds)},
            "chosen": _cell(records, arm, -1),
            "chosen_rounds": [record["arms"][arm]["chosen"] for record in records],
            "rollouts": [_rollouts(record["arms"][arm]["rounds"]) for record in records],
        }
        for arm in arms
    }
    first, last = arms[0], num_rounds - 1
    base = outcomes(records, first, 0, "success")
    differences = {
        "last round - pretrained": _difference(outcomes(records, first, last, "success"), base),
        "chosen - pretrained": _difference(outcomes(records, first, -1, "success"), base),
    }
    for arm in arms[1:]:
        for name, number in (("last round", last), ("chosen", -1)):
            ours, theirs = (outcomes(records, which, number, "success") for which in (first, arm))
            differences[f"{name} - {name} of {arm}"] = _difference(ours, theirs)
    return {"arms": table, "differences": differences, "num_rounds": num_rounds}


def _rollouts(rounds: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Success of each round's own roll-outs; None where there are none."""
    return [None if one["rollouts"] is None else one["rollouts"]["success"] for one in rounds]


def _cell(records: Sequence[Mapping[str, Any]], arm: str, number: int) -> dict[str, Any]:
    success = outcomes(records, arm, number, "success")
    found = bootstrap_over_tasks(success, {task: np.zeros_like(rows) for task, rows in success.items()})
    steps = outcomes(records, arm, number, "steps")
    pooled = [np.concatenate([rows.ravel() for rows in each.values()]) for each in (success, steps)]
    return {
        "mean": found.difference,
        "interval": [found.interval.low, found.interval.high],
        "per_seed": list(found.per_seed),
        **point_json(Speed.of(pooled[0].astype(bool), pooled[1].astype(np.int64))),
    }


def _difference(ours: Success, theirs: Success) -> dict[str, Any]:
    found: SeedDifference = bootstrap_over_tasks(ours, theirs)
    return {
        "difference": found.difference,
        "interval": [found.interval.low, found.interval.high],
        "per_seed": list(found.per_seed),
    }


def markdown(summary: Mapping[str, Any]) -> str:
    """The rounds of every arm, then the differences of the first one, in points."""
    rounds = [str(number) for number in range(summary["num_rounds"])]
    head = ["arm", "pretrained", *(f"round {number}" for number in rounds[1:]), "chosen", "chosen rounds"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---|" * (len(head) - 1)]
    for arm, found in summary["arms"].items():
        cells = [_told(found[key]) for key in (*rounds, "chosen")]
        chosen = " ".join(map(str, found["chosen_rounds"]))
        lines.append(f"| {arm} | {' | '.join(cells)} | {chosen} |")
    lines += ["", "| median steps to success, successes per 1,000 steps | " + " | ".join(head[1:-1]) + " |"]
    lines.append("|---|" + "---|" * (len(head) - 2))
    for arm, found in summary["arms"].items():
        speeds = [
            ", ".join(filter(None, speed_cells(Speed.from_json(found[key])))) for key in (*rounds, "chosen")
        ]
        lines.append(f"| {arm} | {' | '.join(speeds)} |")
    lines += ["", f"| {next(iter(summary['arms']))} | points | 95 % | by seed |", "|---|---|---|---|"]
    for name, found in summary["differences"].items():
        low, high = (100 * end for end in found["interval"])
        seeds = " ".join(f"{100 * value:+.0f}" for value in found["per_seed"])
        lines.append(
            f"| {name} | **{100 * found['difference']:+.1f}** | [{low:+.1f}, {high:+.1f}] | {seeds} |"
        )
    return "\n".join(lines)


def _told(cell: Mapping[str, Any]) -> str:
    seeds = " ".join(f"{rate:.2f}".removeprefix("0") for rate in cell["per_seed"])
    return f"**{cell['mean']:.2f}** [{cell['interval'][0]:.2f}, {cell['interval'][1]:.2f}] ({seeds})"
