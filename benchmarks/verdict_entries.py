"""Policies whose success is known, and episodes that none of them has seen: what `benchmarks.verdict_bank` judges.

Each reader takes what a benchmark left under runs/: `benchmarks.metaworld` and `benchmarks.balance_choice`,
`benchmarks.libero`, `benchmarks.pi_metaworld` with `benchmarks.verdict_checkpoints`, `benchmarks.iterate`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.libero import CAMERA_SIZE, RECIPES, Variant
from benchmarks.metaworld import ARMS
from benchmarks.pi_arms import ARMS as PI_ARMS
from chunkrl.collect.command import CollectConfig, collect_dataset
from chunkrl.data.chunk_settings import ChunkSettings
from chunkrl.data.chunks import ChunkDataset
from chunkrl.envs.scripted import Mixture, MixtureConfig
from chunkrl.models.config import ActionMode

Kind = Literal["metaworld", "libero", "libero images", "pi"]


@dataclass(frozen=True)
class Entry:
    """A policy of the bank.

    task: with its mixture. success: over the initial states that `states` names; policies are compared on equal
    ones. mode: how it acted there, and how it is asked.
    """

    kind: Kind
    root: str
    task: str
    arm: str
    seed: int
    success: float
    states: str
    policy: Path
    mode: ActionMode = "mode"


@dataclass(frozen=True)
class HeldOut:
    """How the episodes of a kind are collected, and what of them is judged.

    num_starts: at most so many starts of successes; None: the policies are asked at every start, and estimators that
    need a state may be fitted. batch: observations of a policy call. camera_size: 0 without cameras.
    """

    horizon: int
    num_episodes: int
    num_starts: int | None
    batch: int
    state: str
    max_steps: int | None
    camera_size: int = 0


KINDS: dict[Kind, HeldOut] = {
    "metaworld": HeldOut(5, 150, None, 4096, "full", 150),
    "libero": HeldOut(10, 100, None, 4096, "privileged", None),
    "libero images": HeldOut(10, 30, 600, 64, "full", None, CAMERA_SIZE),
    "pi": HeldOut(5, 150, 600, 64, "compact", 150),
}
_VARIANTS: dict[Kind, Variant] = {"libero": "state", "libero images": "images"}


def read_jobs(roots: Sequence[str]) -> list[Entry]:
    """Of `benchmarks.metaworld` and its like: a JSON a job and arm."""
    found = []
    for root in roots:
        for file in sorted(Path(root).glob("jobs/*/*.json")):
            record: dict[str, Any] = json.loads(file.read_text())
            policy = _trained(Path(root) / "runs" / file.parent.name, record["arm"])
            if record["error"] is not None or policy is None:
                continue
            success = float(np.mean([flag == "1" for flag in record["success"]]))
            found.append(
                Entry(
                    "metaworld",
                    root,
                    record["task"],
                    record["arm"],
                    record["seed"],
                    success,
                    str(record["eval_seed"]),
                    policy,
                    record.get("settings", {}).get("mode", "mode"),
                )
            )
    return found


def _trained(runs: Path, name: str) -> Path | None:
    """The policy of an arm, which arms that differ in how they act share; None: it is gone."""
    known = {arm.name: arm for arm in ARMS}
    same = [arm.name for arm in ARMS if name in known and arm.training == known[name].training]
    policies = (runs / arm / "policy" for arm in (name, *same))
    return next((policy for policy in policies if policy.is_dir()), None)


def read_libero(root: str) -> list[Entry]:
    """Of `benchmarks.libero`, on states and on images: the mean over tasks and official states."""
    found = []
    for kind, variant in _VARIANTS.items():
        for file in sorted(Path(root).glob(f"{variant}/episodes/seed*-*.jsonl")):
            seed, arm = file.stem.removeprefix("seed").split("-", 1)
            policy = Path(root) / variant / "runs" / f"seed{seed}" / arm / "policy"
            outcomes = [json.loads(line)["success"] for line in file.read_text().splitlines()]
            if policy.is_dir() and outcomes:
                states = f"{len(outcomes)} official"
                success = float(np.mean(outcomes))
                found.append(Entry(kind, root, "libero_spatial", arm, int(seed), success, states, policy))
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


def read_checkpoints(root: str) -> list[Entry]:
    """Of `benchmarks.verdict_checkpoints`: tiny pi policies along their training."""
    found = []
    for file in sorted(Path(root).glob("*-seed*/*/outcome.json")):
        record: dict[str, Any] = json.loads(file.read_text())
        task = f"{record['env']}{'-episodes' if record['mixture'] == 'episodes' else ''}"
        arm, success = f"{record['arm']} at {record['update']}", float(np.mean(record["success"]))
        policy, states = file.parent / "policy", str(record["eval_seed"])
        found.append(Entry("pi", root, task, arm, record["seed"], success, states, policy))
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
                task, success = f"{task}-episodes", float(np.mean(outcome["success"]))
                found.append(Entry("metaworld", root, task, name, record["seed"], success, "iterate", policy))
    return found


def held_out_data(folder: Path, kind: Kind, task: str, seed: int) -> ChunkDataset:
    """Episodes of the task, of a collection seed that no policy's data had; collected unless they are there."""
    held_out, env = KINDS[kind], task.removesuffix("-episodes")
    name = {"pi": f"pi-{task}", "libero images": f"{task}-images"}.get(kind, task)
    folder = folder / "data" / f"{name}-seed{seed}"
    if not folder.exists():
        mixture: Mixture = "episodes" if task.endswith("-episodes") or kind in _VARIANTS else "within"
        collect = CollectConfig(
            env="+".join(RECIPES[_VARIANTS[kind]].tasks) if kind in _VARIANTS else env,
            mixture=MixtureConfig(mixture=mixture),
            num_episodes=held_out.num_episodes,
            max_steps=held_out.max_steps,
            seed=seed,
            num_workers=0,
            state=held_out.state,
            camera_size=held_out.camera_size,
            rendering="fast" if held_out.camera_size else "default",
        )
        temporary = folder.with_name(f".{folder.name}.partial")
        collect_dataset(temporary, collect, overwrite=True)
        temporary.rename(folder)
    return ChunkDataset(folder, ChunkSettings(held_out.horizon))
