"""Which policy is better, told before a roll-out: estimators against a bank of policies whose success is known.

    python -m benchmarks.verdict_bank            # what `benchmarks.metaworld` and others left under runs/

Takes every policy that the MetaWorld benchmarks trained (their output folders), collects 150 episodes of every task
and mixture that none of them has seen, and asks each estimator which policy of a task is better. One task chooses,
the others report. Prints Markdown, with the claims of `chunkrl verdict` by number of held-out episodes.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.verdict_estimators import ESTIMATORS, Group
from chunkrl.collect.command import CollectConfig, collect_dataset
from chunkrl.data.chunk_semantics import chunk_steps
from chunkrl.data.chunk_settings import ChunkSettings
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.demo.experiment import data_hash
from chunkrl.envs.scripted import MixtureConfig
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
BATCH = 4096


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to judge."""

    roots: tuple[str, ...] = ("runs/benchmark", "runs/b64", "runs/further", "runs/balance_choice")
    """Output folders of `benchmarks.metaworld` and `benchmarks.balance_choice`; those that are not there are left
    out."""
    output_dir: str = "runs/verdict_bank"
    """The held-out episodes."""
    results: str = "benchmarks/results/verdict_bank.json"
    """The tables."""
    choosing: str = "push-v3"
    """The task whose policies chose estimator and margin; the others report."""
    data_seed: int = 1190
    """Of the held-out episodes."""
    num_collect: int = 150
    horizon: int = 5
    held_out: tuple[int, ...] = (150, 40, 20)
    """Numbers of held-out episodes that claims are made from."""
    repeats: int = 5
    """Draws of so many episodes."""
    num_resamples: int = 200


@dataclass(frozen=True)
class Entry:
    """A policy of the bank. task: with its mixture. success: of the initial states with eval_seed."""

    root: str
    task: str
    arm: str
    seed: int
    success: float
    eval_seed: int
    policy: Path


def read_bank(config: BenchmarkConfig) -> list[Entry]:
    """All policies with a known success, in order."""
    found = []
    for root in config.roots:
        for file in sorted(Path(root).glob("jobs/*/*.json")):
            record: dict[str, Any] = json.loads(file.read_text())
            policy = Path(root) / "runs" / file.parent.name / record["arm"] / "policy"
            if record["error"] is None and policy.is_dir():
                success = float(np.mean([flag == "1" for flag in record["success"]]))
                name, seed = record["task"], record["eval_seed"]
                found.append(Entry(root, name, record["arm"], record["seed"], success, seed, policy))
    return found


def held_out_data(config: BenchmarkConfig, task: str) -> ChunkDataset:
    """Episodes of the task that no policy has seen."""
    folder = Path(config.output_dir) / "data" / f"{task}-seed{config.data_seed}"
    if not folder.exists():
        env, is_episodes = task.removesuffix("-episodes"), task.endswith("-episodes")
        collect = CollectConfig(
            env=env,
            mixture=MixtureConfig(mixture="episodes" if is_episodes else "within"),
            num_episodes=config.num_collect,
            max_steps=150,
            seed=config.data_seed,
            num_workers=0,
        )
        temporary = folder.with_name(f".{folder.name}.partial")
        collect_dataset(temporary, collect, overwrite=True)
        temporary.rename(folder)
    return ChunkDataset(folder, ChunkSettings(config.horizon))


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
        if entries[i].eval_seed == entries[j].eval_seed:
            yield i, j, entries[i].success - entries[j].success


def judge_estimator(values: np.ndarray, entries: Sequence[Entry]) -> dict[str, Any]:
    """Pairs that differ, those of them ordered rightly, and the rank correlation within the same initial states."""
    different = [(i, j, gap) for i, j, gap in pairs(entries) if abs(gap) >= GAP]
    right = sum(float(values[i] - values[j]) * gap > 0 for i, j, gap in different)
    ranks = []
    for seed in sorted({entry.eval_seed for entry in entries}):
        own = [n for n, entry in enumerate(entries) if entry.eval_seed == seed]
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
    config: BenchmarkConfig, data: ChunkDataset, entries: Sequence[Entry]
) -> tuple[Judged, list[Distances]]:
    """Every start of a held-out success, and each policy's distances there; coverage is of 2000 of them."""
    collection = ChunkCollection([data])
    judged = judged_starts(collection, 10**9, config.horizon)
    thin = judged_starts(collection, 2000, config.horizon)
    thin_state = nearness(collection, thin)
    found = []
    for entry in entries:
        policy = load_policy(entry.policy)
        chunk = policy_chunks(policy, collection, judged, "mode", BATCH, 0)
        near = policy_chunks(policy, collection, thin, "mode", BATCH, 0)
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


def main(config: BenchmarkConfig) -> None:
    """Judges all estimators, prints and writes the tables."""
    torch.set_num_threads(1)
    started = time.process_time()
    by_task: dict[str, list[Entry]] = defaultdict(list)
    for entry in read_bank(config):
        by_task[entry.task].append(entry)
    result: dict[str, Any] = {"tasks": {}, "bank": []}
    for task, entries in sorted(by_task.items()):
        data = held_out_data(config, task)
        group = make_group(data, entries)
        estimates = {name: estimator(group) for name, estimator in ESTIMATORS.items()}
        judged, found = all_distances(config, data, entries)
        result["tasks"][task] = {
            "sha256": data_hash(data.table),
            "policies": len(entries),
            "estimators": {name: judge_estimator(values, entries) for name, values in estimates.items()},
            "claims": {
                str(num): claims(config, judged, found, entries, data.num_episodes, num)
                for num in config.held_out
            },
        }
        for n, entry in enumerate(entries):
            numbers = {name: float(values[n]) for name, values in estimates.items()}
            result["bank"].append(
                {
                    "root": entry.root,
                    "task": task,
                    "arm": entry.arm,
                    "seed": entry.seed,
                    "success": entry.success,
                }
                | {"estimates": numbers}
            )
        print(f"{task}: {len(entries)} policies, {time.process_time() - started:.0f} CPU seconds", flush=True)
    write_text(Path(config.results), json.dumps(result, indent=1) + "\n")
    print(markdown(config, result))


def _sum(
    config: BenchmarkConfig, result: dict[str, Any], chooses: bool, of: Sequence[str]
) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for task, found in result["tasks"].items():
        if (task.removesuffix("-episodes") == config.choosing) == chooses:
            numbers = dict(found[of[0]][of[1]])
            ranks = numbers.pop("rank_correlation", [])
            total["ranks"] += sum(ranks)
            total["num_ranks"] += len(ranks)
            for name, value in numbers.items():
                total[name] += value
    return total


def markdown(config: BenchmarkConfig, result: dict[str, Any]) -> str:
    """The tables."""
    lines = [
        f"| estimator | {config.choosing}: pairs of 10 points and more ordered rightly | rank correlation | "
        "other tasks: ordered rightly | rank correlation |",
        "|---|---|---|---|---|",
    ]
    for name in ESTIMATORS:
        cells = []
        for chooses in (True, False):
            found = _sum(config, result, chooses, ("estimators", name))
            share = found["right"] / max(found["pairs"], 1)
            cells += [f"{found['right']:.0f}/{found['pairs']:.0f} = {share:.2f}"]
            cells += [f"{found['ranks'] / max(found['num_ranks'], 1):.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| held-out episodes | tasks | claims of pairs | of those that differ | ordered | wrong claims |",
        "|---|---|---|---|---|---|",
    ]
    for num in config.held_out:
        for chooses, name in ((True, config.choosing), (False, "others")):
            found = _sum(config, result, chooses, ("claims", str(num)))
            different = max(found["different"], 1)
            lines.append(
                f"| {num} | {name} | {found['claims'] / max(found['pairs'], 1):.2f} | "
                f"{found['claims_of_different'] / different:.2f} | {found['ordered'] / different:.2f} | "
                f"{found['wrong']:.0f} of {found['claims']:.0f} claims, {found['pairs']:.0f} pairs |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
