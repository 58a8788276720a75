"""What `--use-pi0-actions` does in MetaWorld, on the pretrained tiny pi0.5 of `benchmarks.pi_metaworld`.

    python -m benchmarks.pi_metaworld        # makes data and pretrained policies
    python -m benchmarks.pi_candidates       # some 5 minutes of one core a seed

Q, V and a Gaussian policy learn (objective iql) from the recorded chunks; from the pi policy's chunks in their place,
as the chunk-level document has it; and from the recorded chunks with the pi policy's as candidates. Same data,
updates and initial states. It also asks how well Q tells the expert's recorded chunks from others. Prints Markdown.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.kept import check_settings
from benchmarks.pi_metaworld import BenchmarkConfig as PretrainingConfig
from benchmarks.pi_metaworld import Cell
from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.demo.experiment import NUM_ENVS
from chunkrl.envs.metaworld import ACTION_DIM, MetaWorldEnv
from chunkrl.evaluation.rollout import evaluate, initial_seeds
from chunkrl.files.atomic import write_text
from chunkrl.integration.config import PiChunkConfig
from chunkrl.statistics import auc, bootstrap_over_tasks

ARMS: dict[str, PiChunkConfig | None] = {
    "recorded chunks": None,
    "pi's in their place": PiChunkConfig("replace", batch_size=256),
    "pi's as candidates": PiChunkConfig("candidates", num_candidates=4, batch_size=256),
}


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to run, on which runs of `benchmarks.pi_metaworld`."""

    pretraining: PretrainingConfig = PretrainingConfig()
    """Where data and pretrained policies are, and the initial states."""
    results: str = "benchmarks/results/pi_candidates.json"
    """The summary."""
    num_updates: int = 4000
    batch_size: int = 256


def run_arm(config: BenchmarkConfig, root: Path, seed: int, name: str) -> dict[str, Any]:
    """Trains and evaluates one arm, unless it is done."""
    folder = root / "candidates" / name
    record = folder / "result.json"
    if record.exists():
        return json.loads(record.read_text())
    source, chunks = config.pretraining, ARMS[name]
    settings = TrainConfig(
        dataset_dir=str(root / "data"),
        action_horizon=source.horizon,
        action_dim=ACTION_DIM,
        batch_size=config.batch_size,
        num_updates=config.num_updates,
        objective="iql",
        num_folds=1,
        seed=seed,
        device="cpu",
        save_interval=0,
        output_dir=str(folder),
        overwrite=True,  # it has no result
    )
    if chunks is not None:
        pi = {
            "use_pi0_actions": True,
            "pi0_config": "policy",
            "pi0_checkpoints_dir": str(root / "pretrained"),
        }
        settings = replace(settings, pi0=chunks, **pi)
    run = ChunkLevelOfflineRL(settings)
    run.train()
    envs = [MetaWorldEnv(source.env, source.max_steps, "compact") for _ in range(NUM_ENVS)]
    seeds = initial_seeds(source.eval_seed, source.num_eval)
    rollouts = evaluate(partial(run.chunk_policy().act, mode="mode"), envs, seeds, source.horizon)
    for env in envs:
        env.close()
    found = {"success": rollouts.success.astype(int).tolist(), "auc": q_auc(run)}
    write_text(record, json.dumps(found) + "\n")
    return found


@torch.no_grad()
def q_auc(run: ChunkLevelOfflineRL) -> float:
    """How often Q - V ranks a recorded chunk that the expert began above one that it did not."""
    table = run.dataset.datasets[0].table
    expert = np.asarray(table.column("complementary_info.controller")).reshape(-1) == 0
    rows = np.random.default_rng(0).permutation(len(run.dataset))[:4096]
    recorded = ChunkLevelOfflineRL(replace(run.config, use_pi0_actions=False, pi0_config=None)).dataset
    batch = recorded.batch(rows, next_observation=False)
    q = run.algorithm.q_ensemble()
    value = run.algorithm.value.networks[0].eval()(batch.observation)
    advantage = (q(batch.observation, batch.actions[:, None])[:, 0] - value).numpy()
    return auc(advantage[expert[rows]], advantage[~expert[rows]])


def _settings(config: BenchmarkConfig) -> dict[str, Any]:
    """What results are of."""
    source = config.pretraining
    names = ("data_seed", "eval_seed", "num_eval", "num_collect", "max_steps", "horizon", "pretrain_updates")
    used = {name: getattr(source, name) for name in names}
    arms = {name: None if chunks is None else asdict(chunks) for name, chunks in ARMS.items()}
    return used | {"num_updates": config.num_updates, "batch_size": config.batch_size, "arms": arms}


def main(config: BenchmarkConfig) -> None:
    """Runs what is missing, then prints and writes the summary."""
    torch.set_num_threads(1)
    source = config.pretraining
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in source.seeds:
        root = Cell("episodes", seed).folder(source)
        check_settings(root / "candidates", _settings(config), "*/result.json")
        for name in ARMS:
            found[name].append(run_arm(config, root, seed, name))
            print(f"seed {seed}, {name}: {np.mean(found[name][-1]['success']):.2f}", flush=True)
    success = {name: np.array([one["success"] for one in runs], float) for name, runs in found.items()}
    base = success["recorded chunks"]
    summary: dict[str, Any] = {"config": asdict(config), "arms": {}}
    print(
        "\n| Q, V and policy learn from | success | minus recorded, points | AUC of Q - V on recorded chunks |"
    )
    print("|---|---|---|---|")
    for name, values in success.items():
        difference = bootstrap_over_tasks({"": values}, {"": base})
        interval = [difference.interval.low, difference.interval.high]
        aucs = [one["auc"] for one in found[name]]
        summary["arms"][name] = {
            "success": values.mean(1).tolist(),
            "difference": [difference.difference, *interval],
            "auc": aucs,
        }
        per_seed = " ".join(f"{rate:.2f}" for rate in values.mean(1))
        shift = f"{100 * difference.difference:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
        print(f"| {name} | **{values.mean():.3f}** ({per_seed}) | {shift} | {np.mean(aucs):.2f} |")
    write_text(config.results, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
