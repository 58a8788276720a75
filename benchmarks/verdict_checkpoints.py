"""Tiny pi policies along their training, with their success: a part of the bank of `benchmarks.verdict_bank`.

    python -m benchmarks.verdict_checkpoints       # after benchmarks.pi_metaworld, of the runs that it left

Takes checkpoints of finished trainings, evenly spaced, evaluates each from the initial states of the benchmark (zero
noise), and keeps policy and outcome. What is finished is not done again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.pi_metaworld import BenchmarkConfig as PiConfig
from chunkrl import ChunkLevelOfflineRL
from chunkrl.demo.experiment import NUM_ENVS
from chunkrl.envs.metaworld import MetaWorldEnv
from chunkrl.evaluation.rollout import evaluate, initial_seeds
from chunkrl.files.atomic import write_text
from chunkrl.progress import silent
from chunkrl.run.folder import run_config
from chunkrl.run.policy_io import load_policy


@dataclass(frozen=True)
class CheckpointsConfig:
    """Which checkpoints."""

    pi: str = "runs/pi_metaworld"
    """Output folder of `benchmarks.pi_metaworld`."""
    output_dir: str = "runs/verdict_bank/checkpoints"
    """Policies and outcomes."""
    arms: tuple[str, ...] = ("success_cloning", "weighted")
    num_checkpoints: int = 2
    """Of each training, evenly spaced; its end is in the bank already."""


def checkpoints(run: Path, num: int) -> list[Path]:
    """`num` of a run's checkpoints, evenly spaced, without the last."""
    own = sorted(folder for folder in (run / "checkpoints").iterdir() if folder.name.isdecimal())[:-1]
    return [own[round(place)] for place in np.linspace(0, len(own) - 1, num + 1)[:-1]] if own else []


def evaluate_checkpoint(checkpoint: Path, folder: Path, mixture: str, seed: int, settings: PiConfig) -> None:
    """Leaves policy and outcome in `folder`."""
    run = checkpoint.parent.parent
    training = ChunkLevelOfflineRL(run_config(run / "config.json"), silent)
    training.load(checkpoint)
    training.save(folder / "policy")
    envs = [MetaWorldEnv(settings.env, settings.max_steps, "compact") for _ in range(NUM_ENVS)]
    seeds = initial_seeds(settings.eval_seed, settings.num_eval)
    act = partial(load_policy(folder / "policy").act, mode="mode")
    found = evaluate(act, envs, seeds, settings.horizon)
    for env in envs:
        env.close()
    record = {
        "env": settings.env,
        "mixture": mixture,
        "seed": seed,
        "arm": run.name,
        "update": int(checkpoint.name),
        "eval_seed": settings.eval_seed,
        "success": found.success.astype(int).tolist(),
    }
    write_text(folder / "outcome.json", json.dumps(record) + "\n")


def main(config: CheckpointsConfig) -> None:
    """Evaluates what is missing."""
    torch.set_num_threads(1)
    settings = PiConfig()
    for cell in sorted(Path(config.pi).glob(f"{settings.env}-*-seed*")):
        parts = re.fullmatch(rf"{settings.env}-(\w+)-seed(\d+)", cell.name)
        assert parts is not None
        for arm in config.arms:
            if not (cell / arm / "done").is_file():
                continue
            for checkpoint in checkpoints(cell / arm, config.num_checkpoints):
                folder = Path(config.output_dir) / cell.name / f"{arm}-{checkpoint.name}"
                if not (folder / "outcome.json").is_file():
                    evaluate_checkpoint(checkpoint, folder, parts[1], int(parts[2]), settings)
                outcome = json.loads((folder / "outcome.json").read_text())
                print(f"{cell.name} {arm} {checkpoint.name}: {np.mean(outcome['success']):.2f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(CheckpointsConfig))
