"""Both uses of the advantage on a tiny pi0.5 in MetaWorld, with controls.

    python -m benchmarks.pi_metaworld                  # 3 seeds; some 25 minutes of one core a seed
    python -m benchmarks.pi_metaworld --seeds 0 --arms behaviour_cloning advantage_conditioned

A seed has its own data (150 scripted push-v3 episodes of mixed quality) and a tiny pi0.5 that clones all of it from
scratch: the pretrained policy. V is trained once, cross-fitted, on that policy's features. Every arm then trains on
from the pretrained policy, on the same data, for the same number of updates, and is evaluated from the same initial
states. What is finished is kept and not run again, and a training that was killed resumes at its last checkpoint.
Prints Markdown.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.speed_tables import speed_of, speed_table
from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.algorithms.conditioning import ConditioningConfig
from chunkrl.algorithms.value_learner import ValueFit
from chunkrl.data.atomic import write_text
from chunkrl.data.chunk_settings import ChunkSettings
from chunkrl.data.chunks import ChunkDataset
from chunkrl.envs.collect import CollectConfig, collect_dataset
from chunkrl.envs.metaworld import ACTION_DIM, MetaWorldEnv
from chunkrl.envs.scripted import Mixture, MixtureConfig
from chunkrl.errors import CheckpointError
from chunkrl.evaluation.rollout import evaluate, initial_seeds
from chunkrl.evaluation.statistics import auc, bootstrap_over_tasks, spearman
from chunkrl.experiment import NUM_ENVS, data_hash
from chunkrl.integration.pi_training import PiTrainingConfig
from chunkrl.models.pi import load_pretrained, save_pretrained
from chunkrl.models.pi.actor import PiActor
from chunkrl.models.pi.critic import PiCriticConfig
from chunkrl.models.pi.tiny import tiny_policy, tiny_recipe
from chunkrl.models.policy import PolicyConfig
from chunkrl.models.value_head import ValueHead
from chunkrl.train_config import Objective
from chunkrl.training.policy_io import ActionMode
from chunkrl.training.run_folder import find_checkpoint
from chunkrl.training.values_io import load_values

HIGH, LOW = "Advantage: positive", "Advantage: negative"


@dataclass(frozen=True)
class Arm:
    """One training. asked: name -> (condition, guidance), the ways in which the trained policy is asked to act."""

    objective: Objective
    asked: Mapping[str, tuple[str, float]]


PLAIN = {"": ("", 1.0)}
ARMS: dict[str, Arm] = {
    "behaviour_cloning": Arm("behaviour_cloning", PLAIN),
    "success_cloning": Arm("success_cloning", PLAIN),
    "advantage_weighted": Arm("cross_fitted", PLAIN),
    "advantage_conditioned": Arm(
        "advantage_conditioned",
        {
            " high": (HIGH, 1.0),
            " high, guidance 1.5": (HIGH, 1.5),
            " high, guidance 2": (HIGH, 2.0),
            " high, guidance 3": (HIGH, 3.0),
            " low": (LOW, 1.0),
            " not asked": ("", 1.0),
        },
    ),
    "shuffled_conditioning": Arm(
        "shuffled_conditioning", {" high": (HIGH, 1.0), " high, guidance 2": (HIGH, 2.0)}
    ),
}
# chunks from drawn noise, as pi is run, and from zero noise
MODES: tuple[ActionMode, ...] = ("sample", "mode")
METHODS = ("advantage_conditioned high", "advantage_weighted")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to run."""

    output_dir: str = "runs/pi_metaworld"
    """Data, runs and one JSON an evaluation."""
    results: str = "benchmarks/results/pi_metaworld.json"
    """The summary."""
    env: str = "push-v3"
    mixture: Mixture = "episodes"
    """Whole episodes are good or bad; with `within` the controller changes on the way."""
    seeds: tuple[int, ...] = (0, 1, 2)
    data_seed: int = 2000
    """Seed s collects with data_seed + s."""
    eval_seed: int = 20261121
    arms: tuple[str, ...] = tuple(ARMS)
    num_collect: int = 150
    num_eval: int = 100
    max_steps: int = 150
    horizon: int = 5
    pretrain_updates: int = 3000
    value_epochs: float = 4.0
    updates: int = 2000
    """Of every arm."""
    batch_size: int = 64
    lr: float = 1e-3
    num_steps: int = 10
    """Euler steps when acting."""
    state_noise: float = 0.045
    """On the state while policies train: about three of its 256 bins."""
    value_noise: float = 0.3
    """On the state while values train."""
    num_workers: int = 2


def run_seed(config: BenchmarkConfig, seed: int) -> list[str]:
    """All that is missing of one seed; returns the names of what it evaluated."""
    torch.set_num_threads(1)
    root = Path(config.output_dir) / f"{config.env}-{config.mixture}-seed{seed}"
    _collect(config, seed, root / "data")
    _make_tiny(config, seed, root)
    common = _train_config(config, seed, root)
    pretrained = replace(
        common,
        objective="behaviour_cloning",
        pi0_config="scratch",
        pi0_checkpoints_dir=str(root),
        num_updates=config.pretrain_updates,
        output_dir=str(root / "pretrained"),
    )
    _train(pretrained)
    _train(replace(common, objective="value", output_dir=str(root / "value")))
    _write_diagnostics(config, root)
    done = _evaluate(config, root, root / "pretrained", "pretrained", PLAIN)
    for name in config.arms:
        arm = ARMS[name]
        uses_values = arm.objective not in ("behaviour_cloning", "success_cloning")
        values = str(root / "value") if uses_values else None
        _train(replace(common, objective=arm.objective, values=values, output_dir=str(root / name)))
        done += _evaluate(config, root, root / name, name, arm.asked)
    return done


def _collect(config: BenchmarkConfig, seed: int, folder: Path) -> None:
    if folder.exists():
        return
    collect = CollectConfig(
        env=config.env,
        mixture=MixtureConfig(mixture=config.mixture),
        num_episodes=config.num_collect,
        max_steps=config.max_steps,
        seed=config.data_seed + seed,
        num_workers=0,
        state="compact",
    )
    temporary = folder.with_name(".data.partial")
    collect_dataset(temporary, collect, overwrite=True)
    temporary.rename(folder)


def _make_tiny(config: BenchmarkConfig, seed: int, root: Path) -> None:
    """The untrained tiny pi0.5, with the data's statistics, as a checkpoint folder."""
    if (root / "scratch").exists():
        return
    data = ChunkDataset(root / "data", ChunkSettings(config.horizon))
    recipe = tiny_recipe(data.state_dim, data.action_dim, config.horizon)
    policy = tiny_policy(recipe, data.state_statistics(), data.action_statistics(), seed)
    save_pretrained(policy, root / "scratch")


def _train_config(config: BenchmarkConfig, seed: int, root: Path) -> TrainConfig:
    return TrainConfig(
        dataset_dir=str(root / "data"),
        action_horizon=config.horizon,
        action_dim=ACTION_DIM,
        batch_size=config.batch_size,
        num_updates=config.updates,
        value_epochs=config.value_epochs,
        lr=config.lr,
        betas=(0.9, 0.95),
        grad_clip=1.0,
        schedule="cosine",
        warmup_updates=100,
        final_lr_ratio=0.02,
        ema_decay=0.99,
        seed=seed,
        device="cpu",
        save_interval=1,
        policy=PolicyConfig(kind="pi"),
        pi0_config="policy",
        pi0_checkpoints_dir=str(root / "pretrained"),
        pi=PiTrainingConfig(
            num_noise=4,
            state_noise=config.state_noise,
            critic=PiCriticConfig(
                depth=2, num_queries=4, head_width=64, dropout=0.3, state_noise=config.value_noise
            ),
        ),
        fit=ValueFit(head=ValueHead("hl_gauss")),
        conditioning=ConditioningConfig(),
    )


def _train(settings: TrainConfig) -> None:
    """Trains unless it is done, from the last checkpoint if there is one."""
    run_dir = Path(settings.output_dir)
    if (run_dir / "done").exists():
        return
    try:
        find_checkpoint(run_dir)
        settings = replace(settings, resume=str(run_dir))
    except CheckpointError:
        pass  # nothing to take up: a fresh run
    started = time.process_time()
    ChunkLevelOfflineRL(settings).train()
    write_text(run_dir / "done", f"{time.process_time() - started:.1f} CPU seconds since the last start\n")


def _write_diagnostics(config: BenchmarkConfig, root: Path) -> None:
    """What the data is, and what the values are worth: the expert's steps against the others', unseen in training."""
    if (root / "diagnostics.json").exists():
        return
    data = ChunkDataset(root / "data", ChunkSettings(config.horizon))
    expert = np.asarray(data.table.column("complementary_info.controller")).reshape(-1) == 0
    values = load_values(root / "value", data)
    found = {
        "sha256": data_hash(data.table),
        "episodes": data.num_episodes,
        "frames": data.num_frames,
        "success": float(data.frame_labels.success.mean()),
        "rank_correlation_held_out": spearman(values.value, values.returns),
        "rank_correlation_seen": spearman(values.value_seen, values.returns),
        "advantage_auc_expert": auc(values.advantage[expert], values.advantage[~expert]),
    }
    write_text(root / "diagnostics.json", json.dumps(found, indent=1) + "\n")


def _evaluate(
    config: BenchmarkConfig, root: Path, run_dir: Path, name: str, asked: Mapping[str, tuple[str, float]]
) -> list[str]:
    done = []
    for suffix, (condition, guidance) in asked.items():
        record = root / "evaluations" / f"{name}{suffix}.json"
        done.append(name + suffix)
        if record.exists():
            continue
        policy = load_pretrained(run_dir / "policy")
        actor = PiActor(policy, config.num_steps, condition, guidance)
        envs = [MetaWorldEnv(config.env, config.max_steps, "compact") for _ in range(NUM_ENVS)]
        seeds = initial_seeds(config.eval_seed, config.num_eval)
        found: dict[str, Any] = {"num_steps": {}}
        for mode in MODES:
            rollouts = evaluate(partial(actor.act, mode=mode), envs, seeds, config.horizon)
            found[mode] = rollouts.success.astype(int).tolist()
            found["num_steps"][mode] = rollouts.num_steps.tolist()
        write_text(record, json.dumps(found) + "\n")
        for env in envs:
            env.close()
    return done


def summarize(config: BenchmarkConfig, names: Sequence[str]) -> dict[str, Any]:
    """Success of every seed and speed, in both modes; differences (drawn noise), intervals over seeds and states."""
    folders = [Path(config.output_dir) / f"{config.env}-{config.mixture}-seed{seed}" for seed in config.seeds]
    records = {
        name: [json.loads((folder / "evaluations" / f"{name}.json").read_text()) for folder in folders]
        for name in names
    }
    success = {
        mode: {name: np.array([record[mode] for record in found], float) for name, found in records.items()}
        for mode in MODES
    }
    runs = {
        name: [{"success": record, "num_steps": record.get("num_steps", {})} for record in found]
        for name, found in records.items()
    }
    differences: dict[str, Any] = {}
    drawn = success["sample"]
    for method in (m for m in METHODS if m in drawn):
        differences[method] = {}
        for other in (n for n in names if n != method):
            found = bootstrap_over_tasks({"": drawn[method]}, {"": drawn[other]})
            differences[method][other] = [found.difference, found.interval.low, found.interval.high]
    return {
        "success": {
            mode: {name: values.mean(1).tolist() for name, values in found.items()}
            for mode, found in success.items()
        },
        "speed": {mode: {name: speed_of(found, mode) for name, found in runs.items()} for mode in MODES},
        "differences": differences,
        "diagnostics": [json.loads((folder / "diagnostics.json").read_text()) for folder in folders],
        "config": asdict(config),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }


def markdown(summary: Mapping[str, Any]) -> str:
    """Tables for docs/results.md."""
    lines = ["| policy | noise drawn | every seed | noise zero | every seed |", "|---|---|---|---|---|"]
    for name in summary["success"]["sample"]:
        cells = []
        for mode in MODES:
            seeds = summary["success"][mode][name]
            cells += [f"**{np.mean(seeds):.3f}**", " ".join(f"{rate:.2f}" for rate in seeds)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    speed = summary["speed"]
    places = {"noise drawn": speed["sample"], "noise zero": speed["mode"]}
    lines += ["", *speed_table(places, tuple(speed["sample"]))]
    for method, others in summary["differences"].items():
        lines += ["", f"| {method} minus | points, 95 % interval |", "|---|---|"]
        for other, (mean, low, high) in others.items():
            lines.append(f"| {other} | {100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] |")
    return "\n".join(lines)


def main(config: BenchmarkConfig) -> None:
    """Runs what is missing, then prints and writes the summary."""
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    names: list[str] = []
    with ProcessPoolExecutor(config.num_workers, mp_context=context) as pool:
        futures = [pool.submit(run_seed, config, seed) for seed in config.seeds]
        for number, future in enumerate(as_completed(futures), start=1):
            names = future.result()
            spent = time.monotonic() - started
            left = spent / number * (len(futures) - number)
            print(
                f"{number} of {len(futures)} seeds, {spent / 60:.0f} min, about {left / 60:.0f} left",
                flush=True,
            )
    summary = summarize(config, names)
    write_text(config.results, json.dumps(summary, indent=1) + "\n")
    print(markdown(summary))


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
