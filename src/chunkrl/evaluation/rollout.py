"""Runs a policy from fixed initial states: the same states for every policy, results independent of batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chunkrl.envs.protocol import Environment, EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.progress import Progress, silent
from chunkrl.types import Observation

# (observations of B episodes, B generators) -> chunks [B, H, A]
Actor = Callable[[Observation, Sequence[torch.Generator]], Tensor]


@dataclass(frozen=True)
class Rollouts:
    """Outcome of n episodes in the order of their seeds.

    success: bool [n]; num_steps: int [n], environment steps; seeds: the initial states;
    exec_steps: actions executed of each chunk before the next one.
    """

    success: np.ndarray
    num_steps: np.ndarray
    seeds: tuple[int, ...]
    exec_steps: int


def initial_seeds(seed: int, num_episodes: int) -> tuple[int, ...]:
    """`num_episodes` environment seeds that `seed` determines; different seeds share none in practice."""
    return tuple(int(s) for s in np.random.default_rng([seed, 0xE7A1]).integers(2**31, size=num_episodes))


def batch_observation(steps: Sequence[EnvStep], task: str) -> Observation:
    """The observations of several environments as one batch."""
    cameras = steps[0].images
    images = {
        name: torch.from_numpy(np.stack([s.images[name].transpose(2, 0, 1) for s in steps]))
        for name in cameras
    }
    state = torch.from_numpy(np.stack([s.state for s in steps]).astype(np.float32))
    return Observation(images=images, state=state, task=(task,) * len(steps))


@dataclass
class _Episode:
    """An episode under way: which one, its environment, its noise."""

    number: int
    env: Environment
    step: EnvStep
    generator: torch.Generator
    num_steps: int = 0


def evaluate(
    actor: Actor,
    envs: Sequence[Environment],
    seeds: Sequence[int],
    exec_steps: int,
    progress: Progress = silent,
    stage: str = "evaluate",
) -> Rollouts:
    """One episode from each seed. `envs` are several instances of one task; they run in step, so that the
    policy sees batches. Each episode draws its noise from a generator of its own."""
    if not envs or not seeds:
        raise ChunkRLError("evaluation needs at least one environment and one episode")
    if exec_steps < 1:
        raise ChunkRLError(f"exec_steps is {exec_steps}; at least 1 action of each chunk must be executed")
    success = np.zeros(len(seeds), dtype=bool)
    num_steps = np.zeros(len(seeds), dtype=np.int64)
    waiting = iter(range(len(seeds)))
    num_done = 0

    def start(env: Environment) -> _Episode | None:
        number = next(waiting, None)
        if number is None:
            return None
        generator = torch.Generator().manual_seed(seeds[number])
        return _Episode(number, env, env.reset(seeds[number]), generator)

    running = [episode for env in envs if (episode := start(env)) is not None]
    while running:
        observation = batch_observation([e.step for e in running], envs[0].task)
        with torch.no_grad():
            chunks = actor(observation, [e.generator for e in running]).cpu().numpy()
        if exec_steps > chunks.shape[1]:
            raise ChunkRLError(f"exec_steps {exec_steps} is longer than the policy's chunk {chunks.shape[1]}")
        still: list[_Episode] = []
        for episode, chunk in zip(running, chunks, strict=True):
            _execute(episode, chunk[:exec_steps])
            if not episode.step.done:
                still.append(episode)
                continue
            success[episode.number] = episode.step.success
            num_steps[episode.number] = episode.num_steps
            num_done += 1
            progress(stage, num_done, len(seeds))
            if (following := start(episode.env)) is not None:
                still.append(following)
        running = still
    return Rollouts(success, num_steps, tuple(seeds), exec_steps)


def _execute(episode: _Episode, chunk: np.ndarray) -> None:
    for action in chunk:
        episode.step = episode.env.step(action)
        episode.num_steps += 1
        if episode.step.done:
            return
