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

from benchmarks.verdict_entries import (
    KINDS,
    Entry,
    HeldOut,
    Kind,
    held_out_data,
    read_jobs,
    read_libero,
    read_pi,
    read_rounds,
)
from benchmarks.verdict_estimators import ESTIMATORS, MEAN, MEDIAN, Group
from chunkrl.data.chunk_semantics import chunk_steps
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.demo.experiment import data_hash
from chunkrl.evaluation.verdict import (
    MIN_SUCCESSES,
    Judged,
    claim_of,
    closeness,
    coverage,
    distances,
    judged_starts,
    nearness,
    policy_chunks,
)
from chunkrl.files.atomic import write_text
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.run.policy_io import load_policy
from chunkrl.statistics import spearman

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
    repeats: int = 5
    """Draws of so many episodes."""
    num_resamples: int = 200

    def section(self, kind: Kind, task: str) -> str:
        """The column of the tables that a task belongs to."""
        if kind != "metaworld":
            return {"libero": "LIBERO-spatial, states", "pi": "tiny pi0.5"}[kind]
        name = task.removesuffix("-episodes")
        if name in self.choosing:
            return "chose: " + ", ".join(self.choosing)
        return "seen by the choice" if name in self.in_sight else "unseen by the choice"


def read_bank(config: BenchmarkConfig) -> list[Entry]:
    """All policies with a known success, in order."""
    own = read_jobs(config.roots) + read_rounds(config.rounds)
    return own + read_libero(config.libero) + read_pi(config.pi)


def make_group(data: ChunkDataset, entries: Sequence[Entry]) -> Group:
    """All that the estimators see of a task's policies."""
    positions = np.arange(len(data))
    steps = chunk_steps(data.starts, data.action_horizon, data.segments)
    batch = data.batch(positions, next_observation=False)
    deviation = batch.actions[batch.action_mask].std(dim=0).numpy()
    chunks, log_prob = [], []
    for entry in entries:
        policy = load_policy(entry.policy)
        assert isinstance(policy, ChunkPolicy)
        with torch.inference_mode():
            chunks.append(policy.act(batch.observation).numpy() / deviation)
            network: Any = policy.policy
            prepared = network.prepare(batch.observation)
            log_prob.append(network.log_prob(prepared, batch.actions, batch.action_mask).numpy())
    assert batch.observation.state is not None
    return Group(
        batch.observation.state.numpy(),
        batch.actions.numpy() / deviation,
        steps.action_mask,
        np.stack(chunks).astype(np.float32),
        np.stack(log_prob),
        data.success,
        data.episode,
        batch.frame_index.numpy(),
        steps.next_row,
        steps.covered_steps,
        steps.terminated | steps.truncated,
    )


def pairs(entries: Sequence[Entry]) -> Iterator[tuple[int, int, float]]:
    """Places of two policies of the same initial states, and the difference of their success."""
    for i, j in itertools.combinations(range(len(entries)), 2):
        if entries[i].states == entries[j].states:
            yield i, j, entries[i].success - entries[j].success


def judge_estimator(values: np.ndarray, entries: Sequence[Entry]) -> dict[str, Any]:
    """Pairs that differ, those of them ordered rightly, and the rank correlation within the same initial states."""
    different = [(i, j, gap) for i, j, gap in pairs(entries) if abs(gap) >= GAP]
    right = sum(float(values[i] - values[j]) * gap > 0 for i, j, gap in different)
    ranks = []
    for states in sorted({entry.states for entry in entries}):
        own = [n for n, entry in enumerate(entries) if entry.states == states]
        success = [entries[n].success for n in own]
        if len(set(success)) > 1:
            ranks.append(spearman(values[own], success))
    return {"pairs": len(different), "right": right, "rank_correlation": ranks}


@dataclass(frozen=True, eq=False)
class Distances:
    """of: float [n], a policy's distances at the starts of the held-out successes; covered: its coverage."""

    of: np.ndarray
    covered: float


def all_distances(
    held_out: HeldOut, data: ChunkDataset, entries: Sequence[Entry]
) -> tuple[Judged, list[Distances]]:
    """Every start of a held-out success, and each policy's distances there; coverage is of 2000 of them."""
    collection = ChunkCollection([data])
    judged = judged_starts(collection, held_out.num_starts, held_out.horizon)
    thin = judged_starts(collection, min(2000, held_out.num_starts), held_out.horizon)
    thin_state = nearness(collection, thin)
    found = []
    for entry in entries:
        policy = load_policy(entry.policy)
        chunk = policy_chunks(policy, collection, judged, "mode", held_out.batch, 0)
        near = policy_chunks(policy, collection, thin, "mode", held_out.batch, 0)
        found.append(Distances(distances(chunk, judged.chunk, judged.mask), coverage(near, thin, thin_state)))
    return judged, found


def claims(
    config: BenchmarkConfig,
    judged: Judged,
    found: Sequence[Distances],
    entries: Sequence[Entry],
    num_episodes: int,
    num: int,
) -> dict[str, Any]:
    """What `chunkrl verdict` claims from `num` of the held-out episodes: pairs, claims, and wrong ones."""
    counts: dict[str, Any] = defaultdict(int)
    counts["least_coverage"] = min(policy.covered for policy in found)
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
                found[i].of[rows],
                found[j].of[rows],
                judged.episode[rows],
                judged.task[rows],
                config.num_resamples,
                0,
            )
            claimed = claim_of(closer, interval, (found[i].covered, found[j].covered))[0] != "cannot tell"
            is_different = abs(gap) >= GAP
            counts["pairs"] += 1
            counts["different"] += is_different
            counts["ordered"] += is_different and closer * gap > 0
            counts["claims"] += claimed
            counts["claims_of_different"] += claimed and is_different
            counts["wrong"] += claimed and closer * gap < 0
    return dict(counts)


def judge_task(config: BenchmarkConfig, kind: Kind, task: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """What all estimators say of a task's policies, and what is claimed of them: as JSON."""
    held_out = KINDS[kind]
    data = held_out_data(Path(config.output_dir), kind, task, config.data_seed)
    judged, found = all_distances(held_out, data, entries)
    if held_out.has_density:
        group = make_group(data, entries)
        estimates = {name: estimator(group) for name, estimator in ESTIMATORS.items()}
    else:
        estimates = {
            MEDIAN: np.array([-np.median(policy.of) for policy in found]),
            MEAN: np.array([-policy.of.mean() for policy in found]),
        }
    bank = []
    for n, entry in enumerate(entries):
        known = {name: value for name, value in vars(entry).items() if name not in ("policy", "kind", "task")}
        bank.append(known | {"estimates": {name: float(values[n]) for name, values in estimates.items()}})
    return {
        "section": config.section(kind, task),
        "sha256": data_hash(data.table),
        "episodes": data.num_episodes,
        "estimators": {name: judge_estimator(values, entries) for name, values in estimates.items()},
        "claims": {
            str(num): claims(config, judged, found, entries, data.num_episodes, num)
            for num in config.held_out
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
    for name in ESTIMATORS:
        cells = []
        for tasks in sections.values():
            found = _sum(tasks, "estimators", name)
            share = found["right"] / max(found["pairs"], 1)
            rank = found["ranks"] / max(found["num_ranks"], 1)
            text = f"{found['right']:.0f}/{found['pairs']:.0f} = {share:.2f} ({rank:.2f})"
            cells.append(text if found["pairs"] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| held-out episodes | tasks | claims of pairs | of those that differ | ordered | wrong claims |",
        "|---|---|---|---|---|---|",
    ]
    for num in config.held_out:
        for name, tasks in sections.items():
            found = _sum(tasks, "claims", str(num))
            different = max(found["different"], 1)
            lines.append(
                f"| {num} | {name} | {found['claims'] / max(found['pairs'], 1):.2f} | "
                f"{found['claims_of_different'] / different:.2f} | {found['ordered'] / different:.2f} | "
                f"{found['wrong']:.0f} of {found['claims']:.0f} claims, {found['pairs']:.0f} pairs |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
