"""Policies whose success is known, and episodes that none of them has seen: what `benchmarks.verdict_bank` judges.

Each reader takes what a benchmark left under runs/: `benchmarks.metaworld` and `benchmarks.balance_choice`,
`benchmarks.libero`, `benchmarks.pi_metaworld`, `benchmarks.iterate`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.pi_arms import ARMS as PI_ARMS
from chunkrl.collect.command import CollectConfig, collect_dataset
from chunkrl.data.chunk_settings import ChunkSettings
from chunkrl.data.chunks import ChunkDataset
from chunkrl.envs.scripted import Mixture, MixtureConfig

Kind = Literal["metaworld", "libero", "pi"]


@dataclass(frozen=True)
class Entry:
    """A policy of the bank.

    task: with its mixture. success: over the initial states that `states` names; policies are compared on equal
    ones.
    """

    kind: Kind
    root: str
    task: str
    arm: str
    seed: int
    success: float
    states: str
    policy: Path


@dataclass(frozen=True)
class HeldOut:
    """How the episodes of a kind are collected, and what of them is judged.

    num_starts: at most so many starts of successes. batch: observations of a policy call. has_density: policies have
    a closed log-likelihood and the data a state.
    """

    horizon: int
    num_episodes: int
    num_starts: int
    batch: int
    has_density: bool
    state: str
    max_steps: int | None


KINDS: dict[Kind, HeldOut] = {
    "metaworld": HeldOut(5, 150, 10**9, 4096, True, "full", 150),
    "libero": HeldOut(10, 100, 10**9, 4096, True, "privileged", None),
    "pi": HeldOut(5, 150, 600, 64, False, "compact", 150),
}


def read_jobs(roots: Sequence[str]) -> list[Entry]:
    """Of `benchmarks.metaworld` and its like: a JSON a job and arm."""
    found = []
    for root in roots:
        for file in sorted(Path(root).glob("jobs/*/*.json")):
            record: dict[str, Any] = json.loads(file.read_text())
            policy = Path(root) / "runs" / file.parent.name / record["arm"] / "policy"
            if record["error"] is None and policy.is_dir():
                success = float(np.mean([flag == "1" for flag in record["success"]]))
                states = str(record["eval_seed"])
                found.append(
                    Entry(
                        "metaworld",
                        root,
                        record["task"],
                        record["arm"],
                        record["seed"],
                        success,
                        states,
                        policy,
                    )
                )
    return found


def read_libero(root: str) -> list[Entry]:
    """Of `benchmarks.libero` on states: the mean over tasks and official states."""
    found = []
    for file in sorted(Path(root).glob("state/episodes/seed*-*.jsonl")):
        seed, arm = file.stem.removeprefix("seed").split("-", 1)
        policy = Path(root) / "state" / "runs" / f"seed{seed}" / arm / "policy"
        if policy.is_dir():
            success = float(np.mean([json.loads(line)["success"] for line in file.read_text().splitlines()]))
            found.append(Entry("libero", root, "libero_spatial", arm, int(seed), success, "official", policy))
    return found


def read_pi(root: str) -> list[Entry]:
    """Of `benchmarks.pi_metaworld`: each policy as it acts when loaded, from zero noise."""
    found = []
    names = {"pretrained": "pretrained"} | {
        name: name + next(iter(arm.asked)) for name, arm in PI_ARMS.items()
    }
    for cell in sorted(Path(root).glob("*-seed*")):
        task, seed = cell.name.rsplit("-seed", 1)
        for arm, record in names.items():
            file, policy = cell / "evaluations" / f"{record}.json", cell / arm / "policy"
            if file.is_file() and policy.is_dir():
                outcome: dict[str, Any] = json.loads(file.read_text())
                success = float(np.mean([flag == "1" for flag in outcome["success"]["mode"]]))
                states = str(outcome["settings"]["eval_seed"])
                found.append(
                    Entry("pi", root, task.removesuffix("-within"), arm, int(seed), success, states, policy)
                )
    return found


def read_rounds(root: str) -> list[Entry]:
    """Of `benchmarks.iterate`: the policy of every round of every arm in MetaWorld, and the pretrained one."""
    found = []
    for file in sorted(Path(root).glob("metaworld-seed*/record.json")):
        record: dict[str, Any] = json.loads(file.read_text())
        seen = set()
        for arm, run in record["arms"].items():
            for one in run["rounds"]:
                number = one["round"]
                name = "pretrained" if number == 0 else f"{arm}, round {number}"
                folder = file.parent / "iterate" / arm / f"round-{number:03d}" / "train" / "policy"
                policy = file.parent / "pretraining" / "policy" if number == 0 else folder
                if name in seen or not policy.is_dir():
                    continue
                seen.add(name)
                ((task, outcome),) = one["outcomes"].items()
                success = float(np.mean(outcome["success"]))
                found.append(
                    Entry(
                        "metaworld",
                        root,
                        f"{task}-episodes",
                        name,
                        record["seed"],
                        success,
                        "iterate",
                        policy,
                    )
                )
    return found


def held_out_data(folder: Path, kind: Kind, task: str, seed: int) -> ChunkDataset:
    """Episodes of the task, of a collection seed that no policy's data had; collected unless they are there."""
    held_out = KINDS[kind]
    folder = folder / "data" / f"{'pi-' if kind == 'pi' else ''}{task}-seed{seed}"
    if not folder.exists():
        mixture: Mixture = "episodes" if task.endswith("-episodes") or kind == "libero" else "within"
        collect = CollectConfig(
            env=task.removesuffix("-episodes"),
            mixture=MixtureConfig(mixture=mixture),
            num_episodes=held_out.num_episodes,
            max_steps=held_out.max_steps,
            seed=seed,
            num_workers=0,
            state=held_out.state,
        )
        temporary = folder.with_name(f".{folder.name}.partial")
        collect_dataset(temporary, collect, overwrite=True)
        temporary.rename(folder)
    return ChunkDataset(folder, ChunkSettings(held_out.horizon))
