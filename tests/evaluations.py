"""An evaluation of two tasks that several tests write, read and damage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chunkrl.evaluation.evaluation_result import EpisodeOutcome, Evaluation, EvaluationSettings
from chunkrl.evaluation.rollout import initial_seeds

SETTINGS = EvaluationSettings(
    policy="runs/a/policy",
    fingerprint="f",
    envs=("push-v3", "reach-v3"),
    num_episodes=4,
    seed=0,
    max_steps=(150, 150),
    exec_steps=2,
    horizon=5,
    mode="mode",
    num_candidates=0,
    condition=None,
    guidance=None,
    flow_steps=None,
    state="full",
    camera_size=0,
    rendering="default",
    rename=(),
    batch_size=4,
)


def evaluation(
    *successes: tuple[int, ...], settings: EvaluationSettings = SETTINGS, **more: Any
) -> Evaluation:
    """One tuple of outcomes a task, in the order of the initial states."""
    settings = replace(settings, num_episodes=len(successes[0]))
    seeds = initial_seeds(settings.seed, settings.num_episodes)
    episodes = {
        env: tuple(EpisodeOutcome(seed, bool(s), 10 + s) for seed, s in zip(seeds, row, strict=True))
        for env, row in zip(settings.envs, successes, strict=True)
    }
    return Evaluation(settings, episodes, 60.0, 2, **more)
