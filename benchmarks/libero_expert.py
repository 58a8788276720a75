"""Success of the scripted LIBERO expert without noise, by task, from official and from sampled initial states.

    python -m benchmarks.libero_expert                                 # both suites, 10 states of each kind
    python -m benchmarks.libero_expert --suites libero_spatial/4 --num-states 3 --initial official

No images are drawn. Prints Markdown: successes, and steps of the successful episodes.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
import tyro

from chunkrl.demo.workers import in_processes
from chunkrl.envs.libero_tasks import InitialStates, find_task
from chunkrl.envs.registry import expand

SAMPLED_SEED = 777000  # sampled placements of this seed and the following ones


@dataclass(frozen=True)
class ExpertConfig:
    """What to run."""

    suites: tuple[str, ...] = ("libero_spatial", "libero_object")
    """Suites or tasks."""
    num_states: int = 10
    """Initial states of each kind a task: official 0, 1, ...; sampled with seeds 777000, 777001, ..."""
    initial: tuple[InitialStates, ...] = ("official", "sampled")
    """Kinds of initial states."""
    num_workers: int = 2
    """Processes."""


def run_task(name: str, initial: InitialStates, num_states: int) -> list[int]:
    """Steps to success of each initial state; 0: it failed within the suite's limit."""
    from chunkrl.envs.libero import LiberoEnv
    from chunkrl.envs.libero_expert import LiberoExpert

    env = LiberoEnv(name, initial=initial)
    expert = LiberoExpert(env.domain)
    outcomes = []
    for number in range(num_states):
        step = env.reset(number if initial == "official" else SAMPLED_SEED + number)
        expert.reset()
        num_steps = 0
        while not step.done:
            step = env.step(expert.act(np.zeros(3)))
            num_steps += 1
        outcomes.append(num_steps if step.success else 0)
    env.close()
    return outcomes


def main(config: ExpertConfig) -> None:
    """Runs all tasks and prints the table."""
    tasks = expand(config.suites)
    started = time.monotonic()
    cells: dict[tuple[str, InitialStates], list[int]] = {}
    names: list[tuple[str, InitialStates]] = [(task, i) for task in tasks for i in config.initial]
    jobs = [(name, (*name, config.num_states)) for name in names]
    for name, found in in_processes(run_task, jobs, config.num_workers):
        cells[name] = found
        print(*name, found, file=sys.stderr, flush=True)
    print(f"| task | {' | '.join(f'{i}: success | steps' for i in config.initial)} |")
    print("|---|" + "---|---|" * len(config.initial))
    for task in tasks:
        row = []
        for initial in config.initial:
            steps = [n for n in cells[task, initial] if n]
            row += [f"{len(steps)}/{config.num_states}", f"{np.median(steps):.0f}" if steps else "-"]
        text = find_task(task).text.removeprefix("pick up the ")
        print(f"| `{task}` {text} | {' | '.join(row)} |")
    for suite in dict.fromkeys(task.partition("/")[0] for task in tasks):
        for initial in config.initial:
            found = [
                n > 0
                for (task, i), ns in cells.items()
                if task.startswith(suite) and i == initial
                for n in ns
            ]
            print(f"{suite}, {initial} states: {sum(found)}/{len(found)} = {np.mean(found):.2f}")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(ExpertConfig))
