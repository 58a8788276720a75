"""Both uses of the advantage on a tiny pi0.5 in MetaWorld, with controls.

    python -m benchmarks.pi_metaworld                  # 2 mixtures x 3 seeds; some 45 minutes of one core each
    python -m benchmarks.pi_metaworld --seeds 0 --mixtures episodes --arms success_cloning conditioned

A seed of a mixture has its own data (150 scripted push-v3 episodes of mixed quality) and a tiny pi0.5 that clones all
of it from scratch: the pretrained policy. V is trained once, cross-fitted, on that policy's features. Every arm then
trains on from the pretrained policy, on the same data, for the same number of updates, and is evaluated from the same
initial states. What is finished is kept, in the output folder and in the results, and is not run again, so that a
fresh clone goes on from results that were committed; a training that was killed resumes at its last checkpoint.
Prints Markdown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.kept import refuse_other_settings
from benchmarks.pi_arms import ARMS, CANDIDATES, PRETRAINED, Arm, by_question
from benchmarks.pi_tables import markdown, summarize
from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.values_io import load_values
from chunkrl.collect.command import CollectConfig, collect_dataset
from chunkrl.data.chunk_settings import ChunkSettings
from chunkrl.data.chunks import ChunkDataset
from chunkrl.demo.experiment import NUM_ENVS, data_hash
from chunkrl.demo.workers import in_processes
from chunkrl.envs.metaworld import ACTION_DIM, MetaWorldEnv
from chunkrl.envs.scripted import Mixture, MixtureConfig
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.evaluation.rollout import evaluate, initial_seeds
from chunkrl.files.atomic import write_text
from chunkrl.integration.config import PiTrainingConfig
from chunkrl.models.config import ActionMode, PolicyConfig
from chunkrl.models.pi import load_pretrained, save_pretrained
from chunkrl.models.pi.actor import PiActor
from chunkrl.models.pi.config import PiCriticConfig
from chunkrl.models.pi.tiny import tiny_policy, tiny_recipe
from chunkrl.models.value_head import ValueHead
from chunkrl.run.folder import find_checkpoint
from chunkrl.statistics import auc, spearman

# chunks from drawn noise, as pi is run, and from zero noise
MODES: tuple[ActionMode, ...] = ("sample", "mode")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to run."""

    output_dir: str = "runs/pi_metaworld"
    """Data, runs and one JSON an evaluation."""
    results: str = "benchmarks/results/pi_metaworld.json"
    """The summary, with all records."""
    env: str = "push-v3"
    mixtures: tuple[Mixture, ...] = ("episodes", "within")
    """With `episodes` whole episodes are good or bad; with `within` the controller changes on the way."""
    seeds: tuple[int, ...] = (0, 1, 2)
    data_seed: int = 2100
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


@dataclass(frozen=True)
class Cell:
    """A mixture and a seed: its data, pretrained policy, values and arms."""

    mixture: Mixture
    seed: int

    def folder(self, config: BenchmarkConfig) -> Path:
        """Where all of it is."""
        return Path(config.output_dir) / f"{config.env}-{self.mixture}-seed{self.seed}"


Key = tuple[str, int, str]  # mixture, seed, name of an arm and how it was asked


def cells(config: BenchmarkConfig) -> list[Cell]:
    """All of a configuration, one mixture after the other within a seed."""
    return [Cell(mixture, seed) for seed in config.seeds for mixture in config.mixtures]


def chosen_arms(config: BenchmarkConfig) -> dict[str, Arm]:
    """The arms that are asked for, by name. Raises ChunkRLError for names of no arm."""
    known = ARMS | CANDIDATES
    unknown = set(config.arms) - set(known)
    if unknown:
        raise ChunkRLError(f"unknown arms {sorted(unknown)}; there are {list(known)}")
    return {name: known[name] for name in config.arms}


def run_cell(config: BenchmarkConfig, cell: Cell, known: frozenset[str]) -> None:
    """All of one cell that is not among the names `known`; a record an evaluation is left in its folder."""
    torch.set_num_threads(1)
    root = cell.folder(config)
    _collect(config, cell, root / "data")
    _make_tiny(config, cell.seed, root)
    common = _train_config(config, cell.seed, root)
    pretrained = replace(
        common.with_objective("behaviour_cloning"),
        pi0_config="scratch",
        pi0_checkpoints_dir=str(root),
        num_updates=config.pretrain_updates,
        output_dir=str(root / "pretrained"),
    )
    _train(pretrained)
    _train(replace(common.with_objective("value"), output_dir=str(root / "value")))
    found = _describe(config, root)
    _evaluate(config, cell, known, "pretrained", PRETRAINED, found)
    for name, arm in chosen_arms(config).items():
        if all(name + suffix in known for suffix in arm.asked):
            continue
        settings = replace(
            common,
            conditioning=arm.conditioning,
            balance=arm.balance,
            fit=replace(common.fit, draw=arm.draw, advantage_scale=arm.scale),
            values=str(root / "value"),
            output_dir=str(root / name),
        )
        _train(settings.with_objective(arm.objective))
        _evaluate(config, cell, known, name, arm, found)


def _collect(config: BenchmarkConfig, cell: Cell, folder: Path) -> None:
    if folder.exists():
        return
    collect = CollectConfig(
        env=config.env,
        mixture=MixtureConfig(mixture=cell.mixture),
        num_episodes=config.num_collect,
        max_steps=config.max_steps,
        seed=config.data_seed + cell.seed,
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
        settings = replace(settings, overwrite=True)  # nothing to take up: a fresh run
    started = time.process_time()
    ChunkLevelOfflineRL(settings).train()
    write_text(run_dir / "done", f"{time.process_time() - started:.1f} CPU seconds since the last start\n")


def _describe(config: BenchmarkConfig, root: Path) -> dict[str, Any]:
    """What the data is, and what the values are worth: the expert's steps against the others', unseen in training."""
    data = ChunkDataset(root / "data", ChunkSettings(config.horizon))
    expert = np.asarray(data.table.column("complementary_info.controller")).reshape(-1) == 0
    values = load_values(root / "value", data)
    return {
        "sha256": data_hash(data.table),
        "episodes": data.num_episodes,
        "frames": data.num_frames,
        "success": float(data.frame_labels.success.mean()),
        "rank_correlation_held_out": spearman(values.value, values.returns),
        "rank_correlation_seen": spearman(values.value_seen, values.returns),
        "advantage_auc_expert": auc(values.advantage[expert], values.advantage[~expert]),
    }


def _settings(config: BenchmarkConfig, cell: Cell, arm: Arm) -> dict[str, Any]:
    """What a record of the arm was run with; another number here is another record."""
    return {
        "data_seed": config.data_seed + cell.seed,
        "eval_seed": config.eval_seed,
        "num_eval": config.num_eval,
        "num_collect": config.num_collect,
        "pretrain_updates": config.pretrain_updates,
        "updates": config.updates,
        "batch_size": config.batch_size,
        "arm": arm.settings(),
    }


def _record_path(config: BenchmarkConfig, cell: Cell, name: str) -> Path:
    return cell.folder(config) / "evaluations" / f"{name}.json"


def _evaluate(
    config: BenchmarkConfig,
    cell: Cell,
    known: frozenset[str],
    name: str,
    arm: Arm,
    dataset: Mapping[str, Any],
) -> None:
    """Evaluates the arm's policy as often as it is asked something that is not `known`."""
    todo = {name + suffix: asked for suffix, asked in arm.asked.items() if name + suffix not in known}
    seeds = initial_seeds(config.eval_seed, config.num_eval)
    for full, asked in todo.items():
        policy = load_pretrained(cell.folder(config) / name / "policy")
        settings = replace(policy.recipe.settings, guidance_from=asked.away)
        policy.recipe = replace(policy.recipe, settings=settings)
        actor = PiActor(policy, config.num_steps, asked.condition, asked.guidance)
        envs = [MetaWorldEnv(config.env, config.max_steps, "compact") for _ in range(NUM_ENVS)]
        found: dict[str, Any] = {
            "mixture": cell.mixture,
            "seed": cell.seed,
            "name": full,
            "settings": _settings(config, cell, arm),
            "dataset": dict(dataset),
            "success": {},
            "num_steps": {},
        }
        for mode in MODES:
            rollouts = evaluate(partial(actor.act, mode=mode), envs, seeds, config.horizon)
            found["success"][mode] = "".join(str(int(s)) for s in rollouts.success)
            found["num_steps"][mode] = rollouts.num_steps.tolist()
        write_text(_record_path(config, cell, full), json.dumps(found) + "\n")
        for env in envs:
            env.close()


def known_records(config: BenchmarkConfig) -> dict[Key, dict[str, Any]]:
    """What is finished: in the output folder, or in the results file.

    Raises:
        ChunkRLError: a record of other settings.
    """
    results = Path(config.results)
    kept = json.loads(results.read_text()).get("records", []) if results.is_file() else []
    of_results = {(record["mixture"], record["seed"], record["name"]): record for record in kept}
    found: dict[Key, dict[str, Any]] = {}
    for cell in cells(config):
        for name, arm in by_question(chosen_arms(config)).items():
            key = (cell.mixture, cell.seed, name)
            path = _record_path(config, cell, name)
            record = json.loads(path.read_text()) if path.exists() else of_results.get(key)
            if record is None:
                continue
            now = _settings(config, cell, arm)
            wrong = [field for field in now if record["settings"].get(field) != now[field]]
            refuse_other_settings(f"{name} on {cell.mixture}, seed {cell.seed},", wrong)
            found[key] = record
    return found


def main(config: BenchmarkConfig) -> None:
    """Runs what is missing, then prints and writes the summary."""
    started = time.monotonic()
    names = list(by_question(chosen_arms(config)))
    finished = known_records(config)
    todo = {}
    for cell in cells(config):
        known = frozenset(name for name in names if (cell.mixture, cell.seed, name) in finished)
        if len(known) < len(names):
            todo[cell] = known
    jobs = [(f"{cell.mixture}, seed {cell.seed}", (config, cell, known)) for cell, known in todo.items()]
    for number, _ in enumerate(in_processes(run_cell, jobs, config.num_workers), start=1):
        spent = time.monotonic() - started
        left = spent / number * (len(jobs) - number)
        print(f"{number} of {len(jobs)}, {spent / 60:.0f} min, about {left / 60:.0f} left", flush=True)
        _write(config, names)  # what is there can be committed, and a fresh clone goes on from it
    print(markdown(_write(config, names)))


def _write(config: BenchmarkConfig, names: list[str]) -> dict[str, Any]:
    """The results as they stand."""
    summary = summarize(config, list(known_records(config).values()), names)
    write_text(config.results, json.dumps(summary, indent=1) + "\n")
    return summary


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
