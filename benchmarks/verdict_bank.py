"""Which policy is better, told before a roll-out: estimators against a bank of policies whose success is known.

    python -m benchmarks.verdict_bank            # what `benchmarks.metaworld` and others left under runs/

Takes every policy that the benchmarks trained (their output folders), collects episodes of every task and mixture
that none of them has seen, and asks each estimator which policy of a task is better. One task chose, the others
report. LIBERO's episodes need the extra `libero`. Prints Markdown, with the claims of `chunkrl verdict` by number of
held-out episodes.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.verdict_asking import Asked, ask
from benchmarks.verdict_entries import (
    KINDS,
    Entry,
    Kind,
    held_out_data,
    read_checkpoints,
    read_jobs,
    read_libero,
    read_pi,
    read_rounds,
)
from benchmarks.verdict_estimators import ESTIMATORS, FITTED
from chunkrl.demo.experiment import data_hash
from chunkrl.evaluation.verdict import MARGIN, MIN_SUCCESSES, claim_of, closeness
from chunkrl.files.atomic import write_text
from chunkrl.statistics import spearman

SECTIONS: dict[Kind, str] = {
    "libero": "LIBERO-spatial, states",
    "libero images": "LIBERO-spatial, images",
    "pi": "tiny pi0.5",
}
GAP = 0.0999  # a difference of success from which a pair counts as different


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to judge."""

    roots: tuple[str, ...] = ("runs/benchmark", "runs/b64", "runs/further", "runs/balance_choice")
    """Output folders of `benchmarks.metaworld` and `benchmarks.balance_choice`; those that are not there are left
    out, here and below."""
    libero: str = "runs/libero"
    """That of `benchmarks.libero`."""
    pi: str = "runs/pi_metaworld"
    """That of `benchmarks.pi_metaworld`."""
    checkpoints: str = "runs/verdict_bank/checkpoints"
    """That of `benchmarks.verdict_checkpoints`."""
    rounds: str = "runs/iterate-benchmark"
    """That of `benchmarks.iterate`."""
    output_dir: str = "runs/verdict_bank"
    """The held-out episodes."""
    results: str = "benchmarks/results/verdict_bank.json"
    """The tables."""
    choosing: tuple[str, ...] = ("push-v3",)
    """The tasks whose policies chose estimator and margin."""
    in_sight: tuple[str, ...] = ("pick-place-v3", "door-open-v3")
    """Tasks that were looked at when the median was found."""
    data_seed: int = 1190
    """Of the held-out episodes."""
    held_out: tuple[int, ...] = (150, 40, 20)
    """Numbers of held-out episodes that claims are made from."""
    margins: tuple[float, ...] = (MARGIN, 0.1, 0.2)
    """Margins of claims; the first is that of `chunkrl verdict`."""
    repeats: int = 5
    """Draws of so many episodes."""
    num_resamples: int = 200

    def section(self, kind: Kind, task: str) -> str:
        """The column of the tables that a task belongs to."""
        if kind != "metaworld":
            return SECTIONS[kind]
        name = task.removesuffix("-episodes")
        if name in self.choosing:
            return "chose: " + ", ".join(self.choosing)
        return "seen by the choice" if name in self.in_sight else "unseen by the choice"


def read_bank(config: BenchmarkConfig) -> list[Entry]:
    """All policies with a known success, in order."""
    own = read_jobs(config.roots) + read_rounds(config.rounds)
    return own + read_libero(config.libero) + read_pi(config.pi) + read_checkpoints(config.checkpoints)


def pairs(entries: Sequence[Entry]) -> Iterator[tuple[int, int, float]]:
    """Places of two policies of the same initial states, which act in the same mode, as `chunkrl verdict` asks them;
    and the difference of their success."""
    for i, j in itertools.combinations(range(len(entries)), 2):
        if entries[i].states == entries[j].states and entries[i].mode == entries[j].mode:
            yield i, j, entries[i].success - entries[j].success


def judge_estimator(values: np.ndarray, entries: Sequence[Entry]) -> dict[str, Any]:
    """Pairs that differ, those of them ordered rightly, and the rank correlation within the same initial states."""
    known = np.isfinite(values)
    different = [(i, j, gap) for i, j, gap in pairs(entries) if abs(gap) >= GAP and known[i] and known[j]]
    right = sum(float(values[i] - values[j]) * gap > 0 for i, j, gap in different)
    ranks = []
    for group in sorted({(entry.states, entry.mode) for entry in entries}):
        own = [n for n, entry in enumerate(entries) if (entry.states, entry.mode) == group and known[n]]
        success = [entries[n].success for n in own]
        if len(set(success)) > 1:
            ranks.append(spearman(values[own], success))
    return {"pairs": len(different), "right": right, "rank_correlation": ranks}


def claims(
    config: BenchmarkConfig,
    asked: Asked,
    entries: Sequence[Entry],
    num_episodes: int,
    num: int,
) -> dict[str, Any]:
    """What `chunkrl verdict` claims from `num` of the held-out episodes: pairs, claims, and wrong ones."""
    counts: dict[str, Any] = defaultdict(int)
    judged, covered = asked.judged, asked.covered
    counts["least_coverage"] = min(covered)
    episodes = np.arange(num_episodes)
    repeats = 1 if num >= len(episodes) else config.repeats
    for repeat in range(repeats):
        chosen = episodes
        if repeats > 1:
            chosen = np.random.default_rng(repeat).choice(episodes, num, replace=False)
        rows = np.isin(judged.episode, chosen)
        if len(np.unique(judged.episode[rows])) < MIN_SUCCESSES:
            continue
        for i, j, gap in pairs(entries):
            closer, interval = closeness(
                asked.of[i, rows],
                asked.of[j, rows],
                judged.episode[rows],
                judged.task[rows],
                config.num_resamples,
                0,
            )
            is_different = abs(gap) >= GAP
            counts["pairs"] += 1
            counts["different"] += is_different
            counts["ordered"] += is_different and closer * gap > 0
            for margin in config.margins:
                claim, _ = claim_of(closer, interval, (covered[i], covered[j]), margin)
                claimed, by = claim != "cannot tell", "" if margin == MARGIN else f" by {margin:.0%}"
                counts[f"claims{by}"] += claimed
                counts[f"claims_of_different{by}"] += claimed and is_different
                counts[f"wrong{by}"] += claimed and closer * gap < 0
    return dict(counts)


def judge_task(config: BenchmarkConfig, kind: Kind, task: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """What all estimators say of a task's policies, and what is claimed of them: as JSON."""
    held_out = KINDS[kind]
    data = held_out_data(Path(config.output_dir), kind, task, config.data_seed)
    asked = ask(held_out, data, entries)
    estimators = ESTIMATORS if asked.group.whole is None else {**ESTIMATORS, **FITTED}
    estimates = {name: estimator(asked.group) for name, estimator in estimators.items()}
    bank = []
    for n, entry in enumerate(entries):
        known = {name: value for name, value in vars(entry).items() if name not in ("policy", "kind", "task")}
        found = {name: float(values[n]) for name, values in estimates.items()}
        bank.append(known | {"estimates": {n: v if np.isfinite(v) else None for n, v in found.items()}})
    return {
        "section": config.section(kind, task),
        "sha256": data_hash(data.table),
        "episodes": data.num_episodes,
        "estimators": {name: judge_estimator(values, entries) for name, values in estimates.items()},
        "claims": {
            str(num): claims(config, asked, entries, data.num_episodes, num) for num in config.held_out
        },
        "bank": bank,
    }


def main(config: BenchmarkConfig) -> None:
    """Judges all estimators, prints and writes the tables."""
    torch.set_num_threads(1)
    started = time.process_time()
    by_task: dict[tuple[Kind, str], list[Entry]] = defaultdict(list)
    for entry in read_bank(config):
        by_task[entry.kind, entry.task].append(entry)
    result: dict[str, Any] = {}
    for (kind, task), entries in sorted(by_task.items()):
        result[f"{kind} {task}"] = judge_task(config, kind, task, entries)
        print(f"{task}: {len(entries)} policies, {time.process_time() - started:.0f} CPU seconds", flush=True)
    write_text(Path(config.results), json.dumps({"tasks": result}, indent=1) + "\n")
    print(markdown(config, result))


def _sum(tasks: Sequence[Mapping[str, Any]], part: str, name: str) -> dict[str, float]:
    """Counts of several tasks together."""
    total: dict[str, float] = defaultdict(float)
    for task in tasks:
        numbers = dict(task[part].get(name, {}))
        ranks = numbers.pop("rank_correlation", [])
        total["ranks"] += sum(ranks)
        total["num_ranks"] += len(ranks)
        for key, value in numbers.items():
            total[key] += value
    return total


def markdown(config: BenchmarkConfig, result: Mapping[str, Any]) -> str:
    """The tables: pairs that were ordered rightly with the rank correlation, and claims, for each section."""
    sections: dict[str, list[Any]] = defaultdict(list)
    for task in result.values():
        sections[task["section"]].append(task)
    lines = [
        f"| estimator: pairs of 10 points and more ordered rightly (rank correlation) | {' | '.join(sections)} |",
        "|" + "---|" * (1 + len(sections)),
    ]
    for name in (*ESTIMATORS, *FITTED):
        cells = []
        for tasks in sections.values():
            found = _sum(tasks, "estimators", name)
            share = found["right"] / max(found["pairs"], 1)
            rank = found["ranks"] / max(found["num_ranks"], 1)
            text = f"{found['right']:.0f}/{found['pairs']:.0f} = {share:.2f} ({rank:.2f})"
            cells.append(text if found["pairs"] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for margin in config.margins:
        by = "" if margin == MARGIN else f" by {margin:.0%}"
        lines += [
            "",
            f"| held-out episodes; margin {margin:.0%} | tasks | claims of pairs | of those that differ | wrong |",
            "|---|---|---|---|---|",
        ]
        for num in config.held_out:
            for name, tasks in sections.items():
                found = _sum(tasks, "claims", str(num))
                claims_made, wrong = found[f"claims{by}"], found[f"wrong{by}"]
                lines.append(
                    f"| {num} | {name} | {claims_made / max(found['pairs'], 1):.2f} | "
                    f"{found[f'claims_of_different{by}'] / max(found['different'], 1):.2f} | "
                    f"{wrong:.0f} of {claims_made:.0f} claims, {found['pairs']:.0f} pairs |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
