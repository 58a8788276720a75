"""One collected episode, a function of the configuration and the episode's number alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chunkrl.collect.config import CONTROLLER, INITIAL_SEED, SUBGOAL_KINDS, CollectPlan
from chunkrl.envs.libero_goals import KINDS, LiberoGoals, onset_kinds
from chunkrl.envs.pool import CannotServeError
from chunkrl.envs.protocol import EnvStep
from chunkrl.envs.registry import family_of, make_env
from chunkrl.envs.scripted import LearnedController, MixtureController, ScriptedExpert
from chunkrl.errors import ChunkRLError


@dataclass(frozen=True)
class CollectedEpisode:
    """One episode: columns by feature name, each [T, ...], its task text, its environment and its outcome.

    num_restarts: simulators that were lost over it, with all that they had done of it.
    """

    columns: Mapping[str, np.ndarray]
    task: str
    env: str
    success: bool
    num_restarts: int = 0


@dataclass(frozen=True)
class _Stage:
    """A task's environment with what acts and looks in it."""

    env: Any
    expert: ScriptedExpert | None
    policy: LearnedController | None
    goals: LiberoGoals | None


class EpisodeMaker:
    """Makes episodes in this process (`chunkrl.envs.workers.Servant`); holds the simulators between them."""

    def __init__(self, plan: CollectPlan) -> None:
        self._plan = plan
        self._stages: dict[str, _Stage] = {}
        self._policy: Any = None  # loaded once, however often simulators change

    def make(self, number: int) -> CollectedEpisode:
        """Episode `number`. Raises CannotServeError where its environment, expert or policy cannot be had."""
        config, name = self._plan.config, self._plan.task_of(number)
        stage = self._stage(name)
        rng = np.random.default_rng([config.seed, number])
        controller = MixtureController(stage.expert, config.mixture, rng, stage.policy)
        seed = int(rng.integers(2**31))
        step = stage.env.reset(seed)
        if stage.expert is not None:
            stage.expert.reset()
        if stage.goals is not None:
            stage.goals.begin()
        observed, actions, controllers, steps = [], [], [], []
        flags = [] if stage.goals is None else [stage.goals.flags()]
        while not step.done:
            action, acting = controller.act(step)
            observed.append(step)
            actions.append(action)
            controllers.append(acting)
            step = stage.env.step(action)
            steps.append(step)
            if stage.goals is not None:
                flags.append(stage.goals.flags())
        columns = self._columns(observed, actions, steps) | {CONTROLLER: _column(controllers, np.int64)}
        if stage.goals is not None:
            columns |= self._goal_columns(flags) | {INITIAL_SEED: np.full((len(actions), 1), seed)}
        return CollectedEpisode(columns, stage.env.task, name, step.success)

    def _columns(
        self, observed: list[EnvStep], actions: list[np.ndarray], steps: list[EnvStep]
    ) -> dict[str, np.ndarray]:
        """observed: before each action; steps: after it."""
        plan = self._plan
        pictures = {camera: np.stack([s.images[camera] for s in observed]) for camera in observed[0].images}
        return pictures | {
            plan.state_column: np.stack([s.state for s in observed]),
            plan.action_column: np.stack(actions),
            "next.reward": _column([s.reward for s in steps], np.float32),
            "next.success": _column([s.success for s in steps], bool),
            "next.done": _column([s.done for s in steps], bool),
            "next.truncated": _column([s.truncated for s in steps], bool),
        }

    def _goal_columns(self, flags: list[dict[str, bool]]) -> dict[str, np.ndarray]:
        """`subgoal`, and which kinds of onset an action has: bit k for `KINDS[k]`, asked for or not."""
        onsets = onset_kinds(flags)
        kinds = sum(onsets[kind].astype(np.int64) << bit for bit, kind in enumerate(KINDS))
        subgoal = np.any([onsets[kind] for kind in self._plan.config.subgoals], axis=0)
        return {"subgoal": subgoal[:, None], SUBGOAL_KINDS: np.asarray(kinds)[:, None]}

    def _stage(self, name: str) -> _Stage:
        if name not in self._stages:
            if self._plan.config.camera_size:
                self.close()  # one rendering context per process
            try:
                self._stages[name] = self._make_stage(name)
            except ChunkRLError as error:
                raise CannotServeError(str(error)) from error
        return self._stages[name]

    def _make_stage(self, name: str) -> _Stage:
        config = self._plan.config
        env = make_env(name, self._plan.options)
        policy = None
        if config.policy is not None:
            from chunkrl.collect.learned import load_acting, make_controller  # imports torch

            if self._policy is None:
                self._policy = load_acting(config)
            policy = make_controller(self._plan, self._policy, name, env.task)
        family = family_of(name)
        expert = family.expert(env) if config.mixture.policy_share < 1 else None
        goals = family.goals(env)
        return _Stage(env, expert, policy, goals)

    def close(self) -> None:
        """Frees the simulators."""
        for stage in self._stages.values():
            stage.env.close()
        self._stages = {}


def _column(values: list[Any], dtype: Any) -> np.ndarray:
    return np.asarray(values, dtype=dtype)[:, None]
