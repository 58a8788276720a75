"""What an iteration found: one record a policy, and results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chunkrl.evaluation.evaluation_result import (
    Evaluation,
    Rate,
    rate_json,
    rate_of,
    suite_rate,
    task_rate,
)
from chunkrl.files.atomic import write_text
from chunkrl.statistics import wilson_interval

RESULTS_FILE = "results.json"
_VERSION = 1


class Outcome(NamedTuple):
    """One roll-out. num_steps: to its success, or its end. is_corrected: a human or a corrector acted in it before it
    had succeeded, so that its success says nothing of the policy."""

    success: bool
    num_steps: int
    is_corrected: bool = False

    @property
    def autonomous(self) -> Outcome:
        """What the policy did by itself: one that was corrected has failed."""
        return self._replace(success=self.success and not self.is_corrected)


@dataclass(frozen=True)
class Rollouts:
    """Episodes that a policy recorded.

    data: their data set. fingerprint: of its contents. labels: of the file of labels that says who succeeded, ""
    where columns do. outcomes: by the task's text. num_frames, num_human: frames, and those of them
    that a human or a corrector chose.
    """

    data: str
    fingerprint: str
    outcomes: Mapping[str, Sequence[Outcome]]
    num_frames: int
    num_human: int
    labels: str = ""

    @property
    def rate(self) -> Rate:
        """Success of the episodes as they were recorded, corrections included: what later rounds learn from."""
        return _over_tasks(self.outcomes)

    @property
    def tasks(self) -> dict[str, Rate]:
        """Success by the task's text."""
        return {task: _rate(outcomes) for task, outcomes in self.outcomes.items()}

    @property
    def autonomous(self) -> Rollouts:
        """The same with the success of the policy alone, which it is chosen by: a corrected episode is none."""
        return replace(
            self, outcomes={t: [one.autonomous for one in found] for t, found in self.outcomes.items()}
        )


def _over_tasks(by_task: Mapping[str, Sequence[Outcome]]) -> Rate:
    """The mean of the tasks' rates, as in an evaluation, which has equally many episodes of each: pooled, a policy
    with more episodes of the easy task would look better than one that is better on every task.

    The interval is Wilson's for as many episodes as a mean over equally frequent tasks with its variance had; of
    equally many of each task these are all of them. Counts and speed are of all episodes.
    """
    counted = [(sum(one.success for one in found), len(found)) for found in by_task.values()]
    rate = sum(Fraction(*one) for one in counted) / len(counted)  # exactly, so that equal ones are equal
    num_episodes = len(counted) ** 2 / sum(Fraction(1, num) for _, num in counted)
    interval = wilson_interval(float(rate * num_episodes), float(num_episodes))
    pooled = _rate([one for found in by_task.values() for one in found])
    return replace(pooled, rate=float(rate), interval=interval)


def _rate(outcomes: Sequence[Outcome]) -> Rate:
    success, num_steps = (
        np.array([getattr(one, name) for one in outcomes]) for name in ("success", "num_steps")
    )
    return rate_of(success, num_steps)


@dataclass(frozen=True)
class Score:
    """Success of an evaluation: of all its episodes and by task."""

    rate: Rate
    tasks: Mapping[str, Rate]

    @staticmethod
    def of(evaluation: Evaluation) -> Score:
        """The score of `evaluation`."""
        tasks = {env: task_rate(evaluation, env) for env in evaluation.settings.envs}
        return Score(suite_rate(evaluation), tasks)


@dataclass(frozen=True)
class RoundResult:
    """One policy: the pretrained one (round 0) or that of a round.

    policy: its folder. num_episodes: of the roll-outs that it was trained on. evaluation: what is reported; None
    where nothing is evaluated. selection: what it is chosen by; None where that is not known yet. rollouts: its own;
    None where it made none.
    """

    round: int
    policy: str
    num_episodes: int
    evaluation: Score | None = None
    selection: Rate | None = None
    rollouts: Rollouts | None = None


@dataclass(frozen=True)
class ArmRun:
    """An arm's rounds so far, the pretrained policy first.

    chosen: the round whose policy is used; None while no selection is known. ended: why no further round begins; ""
    while it goes on.
    """

    arm: str
    rounds: Sequence[RoundResult]
    chosen: int | None = None
    ended: str = ""


@dataclass(frozen=True)
class IterateResult:
    """All arms. notes: what a reader should know."""

    arms: Sequence[ArmRun]
    notes: Sequence[str] = field(default=())


def to_json(result: IterateResult) -> dict[str, Any]:
    """What results.json holds; rates are fractions, intervals 95 % (Wilson)."""

    def rates(all_tasks: Rate, tasks: Mapping[str, Rate]) -> dict[str, Any]:
        return {**rate_json(all_tasks), "tasks": {task: rate_json(rate) for task, rate in tasks.items()}}

    def one(found: RoundResult) -> dict[str, Any]:
        evaluation, rollouts = found.evaluation, found.rollouts
        return {
            "round": found.round,
            "policy": found.policy,
            "trained_on_rollouts": found.num_episodes,
            "evaluation": None if evaluation is None else rates(evaluation.rate, evaluation.tasks),
            "selection": None if found.selection is None else rate_json(found.selection),
            "rollouts": None
            if rollouts is None
            else {
                **rates(rollouts.rate, rollouts.tasks),
                "data": rollouts.data,
                "num_frames": rollouts.num_frames,
                "num_human": rollouts.num_human,
                "autonomous": rates(rollouts.autonomous.rate, rollouts.autonomous.tasks),
            },
        }

    return {
        "version": _VERSION,
        "arms": {
            run.arm: {
                "chosen": run.chosen,
                "ended": run.ended,
                "rounds": [one(found) for found in run.rounds],
            }
            for run in result.arms
        },
        "notes": list(result.notes),
    }


def write_results(folder: Path, result: IterateResult) -> Path:
    """Writes results.json, whole or not at all."""
    path = folder / RESULTS_FILE
    write_text(path, json.dumps(to_json(result), indent=1, allow_nan=False) + "\n")
    return path
