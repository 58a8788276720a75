"""What `chunkrl train` and `evaluate` do once their options are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chunkrl import ranks
from chunkrl.build import choose_device
from chunkrl.data.atomic import write_text
from chunkrl.envs.metaworld import MetaWorldEnv
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.rollout import evaluate, initial_seeds
from chunkrl.evaluation.statistics import wilson_interval
from chunkrl.offline import ChunkLevelOfflineRL
from chunkrl.progress import Progress
from chunkrl.train_config import TrainConfig
from chunkrl.training.distributed import process_group
from chunkrl.training.policy_io import ActionMode, ChunkPolicy


def train(config: TrainConfig, progress: Progress) -> None:
    """Trains a policy and says where it is."""
    with process_group(choose_device(config.device)):
        if ranks.is_main():
            _train(config, progress)
        else:
            ChunkLevelOfflineRL(config).train()


def _train(config: TrainConfig, progress: Progress) -> None:
    run = ChunkLevelOfflineRL(config, progress)
    print(
        f"{run.dataset.name}: {run.dataset.num_episodes} episodes, {len(run.dataset)} chunk starts, "
        f"{run.dataset.frame_labels.success.mean():.0%} successful; {config.objective} on {run.device}"
    )
    for dataset in run.dataset.datasets:
        for problem in dataset.table.problems:
            print(f"  set aside: {problem.message}")
    run.train()
    assert run.trainer is not None
    for name, points in run.trainer.history.items():
        if points and name.startswith(("value/", "weight/", "loss/")):
            print(f"  {name:<36} {points[-1][1]:.4g}")
    print(f"policy: {Path(config.output_dir) / 'policy'}")


@dataclass(frozen=True)
class EvaluateCommand:
    """A trained policy on MetaWorld, from fixed initial states."""

    policy: str = "runs/train/policy"
    """A saved policy's folder."""
    env: str = "push-v3"
    """MetaWorld task."""
    num_episodes: int = 100
    """Initial states."""
    seed: int = 0
    """Determines the initial states: equal seeds compare policies on equal states."""
    max_steps: int = 150
    """Time limit, steps."""
    exec_steps: int | None = None
    """Actions executed of each chunk; default: the whole chunk."""
    mode: ActionMode = "mode"
    """mode (most likely chunk), sample, or best_of_n (needs training with --train-q)."""
    num_candidates: int = 16
    """N of best_of_n."""
    num_envs: int = 10
    """Simulators stepped together."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    output: str | None = None
    """JSON file for the result."""


def evaluate_policy(command: EvaluateCommand, progress: Progress) -> None:
    """Prints the success rate with its Wilson interval, and writes it where asked."""
    for name in ("num_episodes", "num_envs", "max_steps", "num_candidates"):
        if getattr(command, name) < 1:
            raise ChunkRLError(f"{name} is {getattr(command, name)}; it must be at least 1")
    if command.seed < 0:
        raise ChunkRLError(f"seed is {command.seed}; it must not be negative")
    policy = ChunkPolicy.load(command.policy, choose_device(command.device))
    envs = [
        MetaWorldEnv(command.env, command.max_steps)
        for _ in range(min(command.num_envs, command.num_episodes))
    ]
    _check_fits(policy, envs[0])
    actor = partial(policy.act, mode=command.mode, num_candidates=command.num_candidates)
    exec_steps = policy.action_horizon if command.exec_steps is None else command.exec_steps
    seeds = initial_seeds(command.seed, command.num_episodes)
    rollouts = evaluate(actor, envs, seeds, exec_steps, progress, f"evaluate {command.env}")
    num_success = int(rollouts.success.sum())
    interval = wilson_interval(num_success, command.num_episodes)
    print(
        f"{command.env}: success {num_success}/{command.num_episodes} = {rollouts.success.mean():.2f}, "
        f"95 % interval [{interval.low:.2f}, {interval.high:.2f}], {exec_steps} actions of each chunk executed"
    )
    if command.output:
        record = {
            "env": command.env,
            "policy": command.policy,
            "mode": command.mode,
            "success": float(rollouts.success.mean()),
            "interval": [interval.low, interval.high],
            "num_episodes": command.num_episodes,
            "seed": command.seed,
            "exec_steps": exec_steps,
            "episodes": [
                {"seed": seed, "success": bool(ok), "num_steps": int(steps)}
                for seed, ok, steps in zip(seeds, rollouts.success, rollouts.num_steps, strict=True)
            ],
        }
        write_text(command.output, json.dumps(record, indent=2) + "\n")


def _check_fits(policy: ChunkPolicy, env: MetaWorldEnv) -> None:
    spec = policy.spec
    if spec.observation.cameras:
        raise ChunkRLError(
            f"the policy needs the cameras {list(spec.observation.cameras)}, and {env.name} gives none: "
            "evaluate a policy trained on state (--cameras with no name)"
        )
    if spec.shape.action_dim != env.action_dim or spec.observation.state_dim not in (0, env.state_dim):
        raise ChunkRLError(
            f"the policy has {spec.shape.action_dim} action and {spec.observation.state_dim} state values, "
            f"{env.name} has {env.action_dim} and {env.state_dim}: it was trained for another environment"
        )
