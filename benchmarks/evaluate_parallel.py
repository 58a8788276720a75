"""Episodes per second of an evaluation: simulators in processes against the same loop in one process.

python -m benchmarks.evaluate_parallel --tasks push-v3 libero_spatial/0 --num-workers 2

The policy is a small network with random weights; noise fails everywhere, so that every episode has the full length.
Kinds run in turns, the median of the rounds counts; starting the processes is not counted, and said apart. The
machine's load counts against the processes: run it where nothing else does, or read the ratio with care.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
import tyro
from torch import Tensor, nn

from chunkrl.envs.family import EnvOptions
from chunkrl.envs.pool import EnvPool, LocalPool
from chunkrl.envs.registry import describe, make_env
from chunkrl.envs.workers import WorkerPool
from chunkrl.evaluation.rollout import Episode, RolloutConfig, run_episodes
from chunkrl.types import Observation


@dataclass(frozen=True)
class Config:
    """What is measured."""

    tasks: tuple[str, ...] = ("push-v3",)
    """Tasks, each measured by itself."""
    num_workers: int = len(os.sched_getaffinity(0))
    """Simulator processes."""
    num_episodes: int = 16
    """Episodes per round."""
    max_steps: int = 150
    """Steps of an episode."""
    horizon: int = 10
    """Actions of a chunk, executed whole."""
    hidden_dim: int = 256
    """Of the policy's three layers."""
    camera_size: int = 0
    """Side of the cameras' images, pixels; drawn, and not looked at."""
    rounds: int = 3
    """Turns of each kind."""


def make_actor(state_dim: int, action_dim: int, config: Config):
    """(observation, generators) -> chunks [B, H, A] of a random network and noise."""
    torch.manual_seed(0)
    width, out = config.hidden_dim, config.horizon * action_dim
    network = nn.Sequential(
        nn.Linear(state_dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out)
    )

    def act(observation: Observation, generators: Sequence[torch.Generator]) -> Tensor:
        assert observation.state is not None
        shape = (config.horizon, action_dim)
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        return (network(observation.state).reshape(-1, *shape) + noise).clamp(-1, 1)

    return act


def seconds(pool: EnvPool, actor, task: str, num_episodes: int, config: Config) -> float:
    """Wall time of `num_episodes` episodes."""
    episodes = [Episode(task, number, number) for number in range(num_episodes)]
    started = time.perf_counter()
    run_episodes(actor, pool, episodes, RolloutConfig(config.horizon, 4), lambda number, result: None)
    return time.perf_counter() - started


def measure(task: str, config: Config) -> dict[str, float | str]:
    """Episodes per second of both kinds on one task."""
    info = describe((task,))
    actor = make_actor(len(info.states[info.default_state]), info.action_dim, config)
    make = partial(
        make_env,
        options=EnvOptions(config.max_steps, info.default_state, config.camera_size, rendering="fast"),
    )
    num_local = 1 if info.one_context and config.camera_size else 4
    times: dict[str, list[float]] = {"process": [], "workers": []}
    with (
        closing(LocalPool(num_local, lambda slot, name: make(name))) as local,
        closing(WorkerPool(config.num_workers, make)) as workers,
    ):
        started = time.perf_counter()
        seconds(local, actor, task, num_local, config)
        warm = time.perf_counter()
        seconds(workers, actor, task, config.num_workers, config)
        ready = time.perf_counter()
        for _ in range(config.rounds):
            times["process"].append(seconds(local, actor, task, config.num_episodes, config))
            times["workers"].append(seconds(workers, actor, task, config.num_episodes, config))
    rate = {kind: config.num_episodes / statistics.median(found) for kind, found in times.items()}
    return {
        "task": task,
        "episodes/s in one process": rate["process"],
        "episodes/s with workers": rate["workers"],
        "ratio": rate["workers"] / rate["process"],
        "first episodes in one process, s": warm - started,
        "first episodes with workers, s": ready - warm,
    }


def main() -> None:
    """Prints one JSON line per task."""
    config = tyro.cli(Config)
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    for task in config.tasks:
        print(
            json.dumps(
                measure(task, config)
                | {"workers": config.num_workers, "cores": cores, "load": os.getloadavg()[0]}
            )
        )


if __name__ == "__main__":
    main()
