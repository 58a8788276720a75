"""Real-time chunking in a simulator: chunks that come late, with and without the guide that makes them go on.

    python -m benchmarks.real_time --policy runs/x/policy --env reach-v3        # a flow policy's folder
    python -m benchmarks.real_time --policy runs/x/policy --env push-v3 --delays 0 2 4 --exec-steps 6

Every `exec_steps` actions the next chunk is asked for, and comes `delay` steps later: meanwhile the last one is
executed, and then the new one from its place `delay` on. Guided, the new chunk is told what is left of the last one
(`models/overlap.py`); plain, it is not. The same states and noise for all. Writes JSON, prints Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from chunkrl.envs.family import EnvOptions
from chunkrl.envs.protocol import Environment
from chunkrl.envs.registry import family_of
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.rollout import batch_observation, initial_seeds
from chunkrl.files.atomic import write_text
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.config import ActionMode
from chunkrl.models.overlap import Overlap
from chunkrl.run.policy_io import load_policy


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to run."""

    policy: str
    env: str = "reach-v3"
    state: str = "full"
    """What the environment shows of itself: as in the policy's data."""
    delays: tuple[int, ...] = (1, 2, 4)
    """Steps from a question to its chunk."""
    exec_steps: int = 5
    """Steps from one question to the next; with the longest delay not beyond the chunk."""
    num_episodes: int = 20
    mode: ActionMode = "sample"
    eval_seed: int = 20261129
    output: str | None = None
    """JSON file, e.g. benchmarks/results/real_time.json."""


@dataclass(frozen=True)
class RealTimeEpisode:
    """An episode with late chunks.

    executed: float [T, A], every action. joints: int [J], the steps at which a new chunk took over.
    frozen: float [J, d, A], what was still to be executed of the last chunk when the new one was asked for.
    begun: float [J, d, A], the new chunk's own actions at these steps, which are never executed.
    """

    success: bool
    executed: np.ndarray
    joints: np.ndarray
    frozen: np.ndarray
    begun: np.ndarray

    def jumps(self) -> tuple[np.ndarray, np.ndarray]:
        """Euclidean distances of an action to the one before, at joints and elsewhere."""
        steps = np.linalg.norm(np.diff(self.executed, axis=0), axis=1)
        at_joint = np.zeros(len(steps), bool)
        at_joint[self.joints[(self.joints > 0) & (self.joints <= len(steps))] - 1] = True
        return steps[at_joint], steps[~at_joint]


def run_episode(
    policy: ActingPolicy,
    env: Environment,
    seed: int,
    exec_steps: int,
    delay: int,
    guided: bool,
    mode: ActionMode = "sample",
) -> RealTimeEpisode:
    """One episode from an initial state; its noise is the seed's.

    Raises:
        ChunkRLError: the chunk is too short for exec_steps and delay.
    """
    if not 0 <= delay <= exec_steps or exec_steps + delay > policy.action_horizon:
        raise ChunkRLError(
            f"exec_steps {exec_steps} and delay {delay}: the delay must not be longer than exec_steps, and both "
            f"together not than the policy's chunk, {policy.action_horizon}"
        )
    generators = [torch.Generator().manual_seed(seed)] if mode == "sample" else []
    step = env.reset(seed)
    chunk = policy.act(batch_observation([step], [env.task]), generators, mode)[0]
    executed: list[np.ndarray] = []
    joints, frozen, begun = [], [], []
    place = 0
    while not step.done:
        if place == exec_steps:
            seen, left = batch_observation([step], [env.task]), chunk[place:]
            overlap = Overlap(left[None], delay, len(left))
            new = (
                policy.act_on(seen, overlap, generators, mode)
                if guided
                else policy.act(seen, generators, mode)
            )[0]
            frozen.append(left[:delay].numpy())
            begun.append(new[:delay].numpy())
            joints.append(len(executed) + delay)
            # the last chunk's actions until the new one is there, and then its own
            chunk, place = torch.cat([left[:delay], new[delay:]]), 0
        action = chunk[place].numpy()
        step = env.step(action)
        executed.append(action)
        place += 1
    shape = (len(joints), delay, policy.action_dim)
    return RealTimeEpisode(
        bool(step.success),
        np.stack(executed),
        np.array(joints, dtype=np.int64),
        np.reshape(frozen, shape),
        np.reshape(begun, shape),
    )


@dataclass(frozen=True)
class Measured:
    """Of one delay, guided or plain, over all episodes. joint, elsewhere: mean jump of an action, at joints and
    elsewhere. prefix: mean distance between the new chunk's first `delay` actions and what was executed there."""

    delay: int
    guided: bool
    success: float
    num_joints: int
    joint: float
    elsewhere: float
    prefix: float


def summarize(episodes: Sequence[RealTimeEpisode], delay: int, guided: bool) -> Measured:
    """The means of what was measured."""
    jumps = [episode.jumps() for episode in episodes]
    at, off = (np.concatenate([pair[i] for pair in jumps]) for i in range(2))
    away = np.concatenate([np.linalg.norm(e.begun - e.frozen, axis=2).ravel() for e in episodes])
    success = float(np.mean([episode.success for episode in episodes]))
    prefix = float(away.mean()) if len(away) else 0.0
    return Measured(delay, guided, success, len(at), float(at.mean()), float(off.mean()), prefix)


def run(config: BenchmarkConfig) -> list[Measured]:
    """Every delay, plain and guided."""
    policy = load_policy(config.policy)
    if not policy.takes_overlap:
        raise ChunkRLError(f"{config.policy} has no flow that could be guided: use --policy.kind flow or pi")
    env = family_of(config.env).make(config.env, EnvOptions(state=config.state))
    found = []
    try:
        for delay in config.delays:
            for guided in (False, True):
                episodes = [
                    run_episode(policy, env, seed, config.exec_steps, delay, guided, config.mode)
                    for seed in initial_seeds(config.eval_seed, config.num_episodes)
                ]
                found.append(summarize(episodes, delay, guided))
    finally:
        env.close()
    return found


def main(config: BenchmarkConfig) -> None:
    """Runs, prints, writes."""
    found = run(config)
    print("| delay | guide | success | joints | jump at joints | elsewhere | prefix |")
    print("|---|---|---|---|---|---|---|")
    for m in found:
        print(
            f"| {m.delay} | {'yes' if m.guided else 'no'} | {m.success:.2f} | {m.num_joints} | {m.joint:.3g} | "
            f"{m.elsewhere:.3g} | {m.prefix:.3g} |"
        )
    if config.output:
        policy = "/".join(Path(config.policy).parts[-2:])  # its place on this machine says nothing
        records = {"config": asdict(config) | {"policy": policy}, "measured": [asdict(m) for m in found]}
        write_text(Path(config.output), json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
