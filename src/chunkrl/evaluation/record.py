"""Images of single episodes: an environment that is drawn while an actor runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chunkrl.envs.pool import LocalPool
from chunkrl.envs.protocol import Environment
from chunkrl.evaluation.rollout import Actor, Episode, EpisodeResult, RolloutConfig, run_episodes


@dataclass(frozen=True)
class Clip:
    """One recorded episode. frames: uint8 [T, height, width, 3]."""

    frames: np.ndarray
    success: bool


def record(actor: Actor, env: Environment, seed: int, exec_steps: int, every: int = 4) -> Clip:
    """The episode of `actor` from the initial state `seed`: an image of its first, every n-th and last step."""
    found: list[EpisodeResult] = []
    run_episodes(
        actor,
        LocalPool(1, lambda slot, name: env),
        [Episode(env.name, seed, seed)],
        RolloutConfig(exec_steps, 1),
        lambda number, result: found.append(result),
        record_every=every,
    )
    frames = found[0].frames
    assert frames is not None
    return Clip(frames, found[0].success)
