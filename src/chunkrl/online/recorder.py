"""Turns control steps into records, one step late: the last one's flags are known when its outcome is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from chunkrl.envs.protocol import Environment, EnvStep
from chunkrl.envs.robot import CAMERA_PREFIX
from chunkrl.online.records import EpisodeSummary, Item, Outcome, StepRecord, StreamSpec, new_id


class StepSink(Protocol):
    """Where records go: the actor's spool, or a list."""

    def append(self, item: Item, /) -> object:
        """Takes the next record over; what it returns is not looked at."""
        ...


def stream_spec(
    env: Environment,
    step: EnvStep,
    state_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    robot_type: str = "",
) -> StreamSpec:
    """What all steps of an actor on `env` look like. step: any of them. Names: None for state_0, action_0, ..."""
    return StreamSpec(
        fps=float(env.fps),
        state_names=tuple(state_names or (f"state_{i}" for i in range(env.state_dim))),
        action_names=tuple(action_names or (f"action_{i}" for i in range(env.action_dim))),
        cameras={
            name.removeprefix(CAMERA_PREFIX): (picture.shape[0], picture.shape[1])
            for name, picture in step.images.items()
        },
        robot_type=robot_type or env.name,
    )


@dataclass(frozen=True)
class Executed:
    """What one control step did. proposed: float32 [A], the policy's, or None. action: float32 [A], executed.
    human, held, policy_version: as in `StepRecord`."""

    proposed: np.ndarray | None
    action: np.ndarray
    human: bool
    held: bool
    policy_version: int


class EpisodeRecorder:
    """Records of one episode.

    Attributes:
        num_steps: steps so far; num_human: of these, chosen by a human.
    """

    def __init__(self, sink: StepSink, actor_id: str, task: str) -> None:
        self._sink, self._actor_id, self._task = sink, actor_id, task
        self._episode_id = new_id()
        self._last: StepRecord | None = None  # not in the sink yet
        self._env_success = False
        self._total_reward = 0.0
        self.num_steps = self.num_human = 0

    def add(self, before: EnvStep, executed: Executed, after: EnvStep) -> None:
        """One step: the world before, what was done, the world after. The step before it goes to the sink."""
        record = StepRecord(
            actor_id=self._actor_id,
            episode_id=self._episode_id,
            step_index=self.num_steps,
            task=self._task,
            state=np.asarray(before.state, dtype=np.float32),
            images={name.removeprefix(CAMERA_PREFIX): image for name, image in before.images.items()},
            proposed_action=executed.action if executed.proposed is None else executed.proposed,
            executed_action=executed.action,
            human=executed.human,
            policy_version=executed.policy_version,
            reward=float(after.reward),
            success=False,
            terminated=False,
            truncated=False,
            held=executed.held,
        )
        self._emit_last()
        self._last, self._env_success = record, after.success
        self.num_steps += 1
        self.num_human += executed.human

    def finish(self, outcome: Outcome, num_interventions: int, success_reward: float) -> EpisodeSummary:
        """The episode is over. The reward of a success that a human declared is `success_reward`; one that the
        environment declared has the environment's, and none if a human says that it was no success."""
        assert self._last is not None, "an episode has at least one step"
        reward = self._last.reward
        if outcome == "success" and not self._env_success:
            reward = success_reward
        elif self._env_success and outcome in ("failure", "timeout"):
            reward = 0.0
        self._last = replace(
            self._last,
            reward=reward,
            success=outcome == "success",
            terminated=outcome in ("success", "failure"),
            truncated=outcome in ("timeout", "discarded"),
        )
        self._emit_last()
        summary = EpisodeSummary(
            self._actor_id, self._episode_id, self.num_steps, outcome, self._total_reward, num_interventions
        )
        self._sink.append(summary)
        return summary

    def _emit_last(self) -> None:
        if self._last is not None:
            self._sink.append(self._last)
            self._total_reward += self._last.reward
            self._last = None
