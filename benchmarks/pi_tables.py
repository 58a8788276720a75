"""Summary and tables of `benchmarks.pi_metaworld`: success of every seed, speed, and differences with intervals."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.pi_arms import METHODS
from benchmarks.speed_tables import speed_of, speed_table
from chunkrl.statistics import bootstrap_over_tasks

if TYPE_CHECKING:
    from benchmarks.pi_metaworld import BenchmarkConfig

MODES = {"sample": "noise drawn", "mode": "noise zero"}
ALL = "all"  # mixtures together


def summarize(
    config: BenchmarkConfig, records: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    """Success and speed by mixture, noise and name; differences of the methods with drawn noise, intervals over
    seeds and states. Of names that have the same seeds in all mixtures as the first method that is there."""
    by_key = {(r["mixture"], r["seed"], r["name"]): r for r in records}
    mixtures = [m for m in config.mixtures if any(r["mixture"] == m for r in records)]
    seeds = {
        (m, name): [s for s in config.seeds if (m, s, name) in by_key] for m in mixtures for name in names
    }

    def success(mixture: str, name: str, mode: str) -> np.ndarray:
        found = [by_key[mixture, seed, name]["success"][mode] for seed in seeds[mixture, name]]
        return np.array([[int(s) for s in one] for one in found], float)

    summary: dict[str, Any] = {"success": {}, "speed": {}, "differences": {}}
    for mixture in mixtures:
        there = [name for name in names if seeds[mixture, name]]
        summary["success"][mixture] = {
            mode: {name: success(mixture, name, mode).mean(1).tolist() for name in there} for mode in MODES
        }
        summary["speed"][mixture] = {
            mode: {
                name: speed_of(
                    [_speed_record(by_key[mixture, s, name], mode) for s in seeds[mixture, name]], mode
                )
                for name in there
            }
            for mode in MODES
        }
    for place in [*mixtures, ALL] if len(mixtures) > 1 else mixtures:
        of = mixtures if place == ALL else [place]
        summary["differences"][place] = _differences(of, names, seeds, success)
    return summary | {
        "datasets": [
            {"mixture": m, "seed": s} | dict(by_key[m, s, "pretrained"]["dataset"])
            for m in mixtures
            for s in seeds[m, "pretrained"]
        ],
        "config": asdict(config),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "records": list(records),
    }


def _speed_record(record: Mapping[str, Any], mode: str) -> dict[str, Any]:
    success = [int(s) for s in record["success"][mode]]
    return {"success": {mode: success}, "num_steps": {mode: record["num_steps"][mode]}}


def _differences(
    mixtures: Sequence[str], names: Sequence[str], seeds: Mapping[tuple[str, str], list[int]], success: Any
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in METHODS:
        own = [seeds.get((m, method), []) for m in mixtures]
        if not own[0] or any(s != own[0] for s in own):
            continue
        found[method] = {}
        for other in (n for n in names if n != method and all(seeds[m, n] == own[0] for m in mixtures)):
            ours, theirs = ({m: success(m, name, "sample") for m in mixtures} for name in (method, other))
            difference = bootstrap_over_tasks(ours, theirs)
            interval = difference.interval
            found[method][other] = [difference.difference, interval.low, interval.high]
    return found


def markdown(summary: Mapping[str, Any]) -> str:
    """Tables for docs/results.md."""
    lines: list[str] = []
    for mixture, success in summary["success"].items():
        heads = " | ".join(f"{title} | every seed" for title in MODES.values())
        lines += ["", f"| {mixture} | {heads} |", "|---|" + "---|---|" * len(MODES)]
        for name in success["sample"]:
            cells = []
            for mode in MODES:
                rates = success[mode][name]
                cells += [f"**{np.mean(rates):.3f}**", " ".join(f"{rate:.2f}" for rate in rates)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        places = {title: summary["speed"][mixture][mode] for mode, title in MODES.items()}
        lines += ["", *speed_table(places, tuple(success["sample"]))]
    for place, methods in summary["differences"].items():
        for method, others in methods.items():
            lines += ["", f"| {place}: {method} minus | points, 95 % interval |", "|---|---|"]
            for other, (mean, low, high) in others.items():
                lines.append(f"| {other} | {100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] |")
    return "\n".join(lines[1:])
