"""What a MetaWorld evaluation costs with stored initial states and contacts read as arrays, against MetaWorld alone.

    python -m benchmarks.initial_states

Scripted experts run from the same initial states both ways, in turn. As several arms of an experiment evaluate in one
process: the first arm simulates each reset, those after it restore the state.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import tyro

from chunkrl.envs.metaworld import MetaWorldEnv, make_expert
from chunkrl.evaluation.rollout import initial_seeds


@dataclass(frozen=True)
class Config:
    """What is measured."""

    tasks: tuple[str, ...] = (
        "push-v3",
        "pick-place-v3",
        "reach-v3",
        "door-open-v3",
        "drawer-close-v3",
        "soccer-v3",
    )
    """Tasks whose experts work."""
    num_episodes: int = 10
    """Initial states."""
    num_arms: int = 5
    """Evaluations from them."""


def evaluate(env: MetaWorldEnv, seeds: tuple[int, ...]) -> tuple[float, float, np.ndarray]:
    """Seconds in resets, seconds in steps, and every state that was seen [T, 39]."""
    expert = make_expert(env.name)
    reset_s = step_s = 0.0
    seen = []
    for seed in seeds:
        started = perf_counter()
        step = env.reset(seed)
        reset_s += perf_counter() - started
        seen.append(step.state)
        while not step.done:
            action = expert(step.state)
            started = perf_counter()
            step = env.step(action)
            step_s += perf_counter() - started
            seen.append(step.state)
    return reset_s, step_s, np.stack(seen)


def measure(task: str, config: Config) -> dict[str, float | str]:
    """Times of both ways on one task, seconds of `num_arms` evaluations."""
    seeds = initial_seeds(0, config.num_episodes)
    envs = {"plain": MetaWorldEnv(task, plain=True), "quick": MetaWorldEnv(task)}
    times = {name: np.zeros((config.num_arms, 2)) for name in envs}
    for arm in range(config.num_arms):
        seen = {}
        for name, env in envs.items():
            *times[name][arm], seen[name] = evaluate(env, seeds)
        assert np.array_equal(seen["plain"], seen["quick"]), f"{task}: the quick way is another simulation"
    for env in envs.values():
        env.close()
    plain, quick = times["plain"], times["quick"]
    return {
        "task": task,
        "plain_s": plain.sum(),
        "quick_s": quick.sum(),
        "ratio": quick.sum() / plain.sum(),
        "ratio_first_arm": quick[0].sum() / plain[0].sum(),
        "ratio_later_arms": quick[1:].sum() / plain[1:].sum(),
        "ratio_reset_restored": quick[1:, 0].sum() / plain[1:, 0].sum(),
        "ratio_step": quick[:, 1].sum() / plain[:, 1].sum(),
        "plain_share_of_resets": plain[:, 0].sum() / plain.sum(),
    }


def main() -> None:
    """Prints one JSON line per task."""
    config = tyro.cli(Config)
    for task in config.tasks:
        found = {
            name: round(v, 3) if isinstance(v, float) else v for name, v in measure(task, config).items()
        }
        print(json.dumps(found | {"load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
