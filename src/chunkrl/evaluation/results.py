"""What evaluations found: the records that a comparison's page and results.json (`results_file`) are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.speed import (
    Episodes,
    Speed,
    SpeedDifference,
    check_steps,
    measured_speed,
    speed_difference,
)
from chunkrl.statistics import (
    Interval,
    bootstrap_over_seeds,
    bootstrap_over_tasks,
    mcnemar_p_value,
    paired_difference,
    wilson_interval,
)

ALL_TASKS = "mean over tasks"


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One policy, or one method's policies of several training seeds, on one task.

    task: the task's name.
    arm: the method's name, an identifier such as `behaviour_cloning` (shown with spaces).
    success: bool [n], or [num_seeds, n]; column i is initial state i, the same state for every arm of the task.
    seed: the training seed of a single policy, where it is known.
    num_steps: int, the shape of success, environment steps of each episode; None where they are not known.
    fps: control steps per second; None where they are not known.
    """

    task: str
    arm: str
    success: NDArray[Any]
    seed: int | None = 0
    num_steps: NDArray[Any] | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        name = f"success of arm '{self.arm}' on task '{self.task}'"
        array = np.asarray(self.success, dtype=np.float64)
        if array.ndim not in (1, 2) or array.size == 0:
            raise ChunkRLError(
                f"{name}: expected a non-empty array [n] or [num_seeds, n], got shape {list(array.shape)}"
            )
        if not np.isin(array, (0, 1)).all():
            raise ChunkRLError(f"{name} must hold booleans")
        object.__setattr__(self, "success", array.astype(bool))
        if self.num_steps is not None:
            check_steps(array.astype(bool), np.asarray(self.num_steps), self.fps)

    @property
    def by_seed(self) -> NDArray[np.bool_]:
        """bool [num_seeds, n]."""
        return np.atleast_2d(self.success)

    @property
    def num_success(self) -> int:
        return int(self.success.sum())

    @property
    def num_episodes(self) -> int:
        return self.success.size

    @property
    def rate(self) -> float:
        """Success rate, a fraction."""
        return self.num_success / self.num_episodes

    @property
    def episodes(self) -> Episodes | None:
        """Success and steps; None where steps are not known."""
        return None if self.num_steps is None else Episodes(self.success, np.asarray(self.num_steps))

    @cached_property
    def speed(self) -> Speed | None:
        """The speed of all episodes, its intervals from a bootstrap over seeds, then states; None where steps are not
        known."""
        return None if (found := self.episodes) is None else measured_speed([found], self.fps)

    @property
    def interval(self) -> Interval:
        """95 %: Wilson's for a single policy, a bootstrap over seeds, then states, for several."""
        if len(self.by_seed) == 1:
            return wilson_interval(self.num_success, self.num_episodes)
        return bootstrap_over_seeds(self.by_seed, np.zeros(self.by_seed.shape)).interval


@dataclass(frozen=True)
class ArmDifference:
    """success(arm) - success(baseline) on one task, or on `ALL_TASKS`, with its 95 % interval; fractions.

    num_pairs: initial states compared. only_a, only_b: those that the arm alone and the baseline alone solved;
    p_value: the exact McNemar test of the two numbers. None with several training seeds: the test is of two policies.
    speed: how much faster the arm is; None where steps are not known.
    """

    task: str
    arm: str
    baseline: str
    difference: float
    interval: Interval
    num_pairs: int
    only_a: int | None = None
    only_b: int | None = None
    p_value: float | None = None
    speed: SpeedDifference | None = None


def by_task(arms: Sequence[ArmResult]) -> dict[str, dict[str, ArmResult]]:
    """task -> arm -> result, in the order given.

    Raises:
        ChunkRLError: nothing given, an arm twice on a task, or arms of a task on different numbers of states.
    """
    if not arms:
        raise ChunkRLError("no results: evaluate at least one policy first")
    tasks: dict[str, dict[str, ArmResult]] = {}
    for result in arms:
        row = tasks.setdefault(result.task, {})
        if result.arm in row:
            raise ChunkRLError(
                f"two results for arm '{result.arm}' on task '{result.task}': give one of them"
            )
        row[result.arm] = result
    for task, row in tasks.items():
        counts = {name: result.by_seed.shape for name, result in row.items()}
        if len({num_states for _, num_states in counts.values()}) > 1:
            raise ChunkRLError(
                f"task '{task}': every arm needs the same initial states, got "
                f"{ ({name: num_states for name, (_, num_states) in counts.items()}) }"
            )
        if len({num_seeds for num_seeds, _ in counts.values()}) > 1:
            raise ChunkRLError(
                f"task '{task}': every arm needs as many training seeds, got "
                f"{ ({name: num_seeds for name, (num_seeds, _) in counts.items()}) }"
            )
    return tasks


def compare_arms(arms: Sequence[ArmResult], arm: str, baselines: Sequence[str]) -> tuple[ArmDifference, ...]:
    """`arm` against each of `baselines`: on every task, then (with several tasks) the mean over tasks.

    Raises:
        ChunkRLError: an arm has no result on a task, or what `by_task` refuses.
    """
    tasks = by_task(arms)
    for task, row in tasks.items():
        for name in (arm, *baselines):
            if name not in row:
                raise ChunkRLError(f"arm '{name}' has no result on task '{task}'; there are {sorted(row)}")
    found = [
        _difference(task, row[arm], row[baseline]) for task, row in tasks.items() for baseline in baselines
    ]
    if len(tasks) > 1:
        num_pairs = sum(row[arm].by_seed.shape[1] for row in tasks.values())
        for baseline in baselines:
            mean = bootstrap_over_tasks(
                {task: row[arm].by_seed for task, row in tasks.items()},
                {task: row[baseline].by_seed for task, row in tasks.items()},
            )
            pairs = [d for d in found if d.baseline == baseline and d.only_a is not None]
            counts = _mcnemar(sum(d.only_a or 0 for d in pairs), sum(d.only_b or 0 for d in pairs))
            found.append(
                ArmDifference(
                    ALL_TASKS,
                    arm,
                    baseline,
                    mean.difference,
                    mean.interval,
                    num_pairs,
                    **(counts if pairs else {}),
                    speed=_speed_difference(
                        [row[arm] for row in tasks.values()], [row[baseline] for row in tasks.values()]
                    ),
                )
            )
    return tuple(found)


def _speed_difference(ours: Sequence[ArmResult], theirs: Sequence[ArmResult]) -> SpeedDifference | None:
    """Over the tasks given; None where steps of one are not known."""
    a, b = ([found for arm in arms if (found := arm.episodes) is not None] for arms in (ours, theirs))
    if not len(a) == len(b) == len(ours):
        return None
    rates = {arm.fps for arm in (*ours, *theirs)}
    return speed_difference(a, b, rates.pop() if len(rates) == 1 else None)


def _mcnemar(only_a: int, only_b: int) -> dict[str, Any]:
    return {"only_a": only_a, "only_b": only_b, "p_value": mcnemar_p_value(only_a, only_b)}


def over_tasks(arms: Sequence[ArmResult]) -> tuple[ArmResult, ...]:
    """Every arm's episodes of all tasks as one result on `ALL_TASKS`; () with one task.

    Arms that lack a task are left out, and all where tasks differ in their number of states: the mean over tasks is
    then not the rate of all episodes. The interval takes episodes as draws from the mixture of tasks.
    """
    tasks = by_task(arms)
    if len(tasks) == 1 or len({result.by_seed.shape for result in arms}) > 1:
        return ()
    names = dict.fromkeys(result.arm for result in arms)
    return tuple(
        _joined([row[name] for row in tasks.values()])
        for name in names
        if all(name in row for row in tasks.values())
    )


def _joined(results: Sequence[ArmResult]) -> ArmResult:
    """One arm's results of all tasks as one."""
    success = np.concatenate([result.by_seed for result in results], axis=1)
    steps = [np.atleast_2d(result.num_steps) for result in results if result.num_steps is not None]
    num_steps = np.concatenate(steps, axis=1) if len(steps) == len(results) else None
    rates = {result.fps for result in results}
    fps = rates.pop() if len(rates) == 1 else None
    return ArmResult(ALL_TASKS, results[0].arm, success, None, num_steps, fps)


def _difference(task: str, arm: ArmResult, baseline: ArmResult) -> ArmDifference:
    """The difference on one task; McNemar's test is of two policies, and so has none for several seeds."""
    return replace(_success_difference(task, arm, baseline), speed=_speed_difference([arm], [baseline]))


def _success_difference(task: str, arm: ArmResult, baseline: ArmResult) -> ArmDifference:
    if len(arm.by_seed) > 1:
        mean = bootstrap_over_seeds(arm.by_seed, baseline.by_seed)
        num_pairs = arm.by_seed.shape[1]
        return ArmDifference(task, arm.arm, baseline.arm, mean.difference, mean.interval, num_pairs)
    pair = paired_difference(arm.by_seed[0], baseline.by_seed[0])
    return ArmDifference(
        task,
        arm.arm,
        baseline.arm,
        pair.difference,
        pair.interval,
        pair.num_pairs,
        pair.only_a,
        pair.only_b,
        pair.p_value,
    )
