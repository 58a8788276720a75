"""Finished evaluations on the same initial states against each other: the numbers of `chunkrl compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.aggregates import Aggregates, aggregate
from chunkrl.evaluation.evaluation_result import Evaluation, read_evaluation
from chunkrl.evaluation.results import (
    ALL_TASKS,
    ArmDifference,
    ArmResult,
    by_task,
    over_tasks,
)
from chunkrl.evaluation.speed import MEDIAN, PER_1000, PER_HOUR, difference_cells, speed_cells
from chunkrl.files.json_files import as_json
from chunkrl.statistics import Estimate

COMPARISON_FILE = "comparison.json"
_FEWEST_STATES = 6  # that one side alone solves: of fewer no McNemar test is below .05
_Key = TypeVar("_Key")
# Settings that make two evaluations answer the same question; the rest is the policies' own business.
_SAME = ("envs", "num_episodes", "seed", "max_steps", "exec_steps")


def group(evaluations: Sequence[str]) -> dict[str, list[Evaluation]]:
    """Method -> its evaluations, one a training seed, in the order given.

    Raises:
        ChunkRLError: fewer than two methods, other numbers of seeds, one policy as several seeds, an evaluation
            twice, other states, tasks or executed steps, or images of other assets or OpenGL libraries.
    """
    methods: dict[str, list[Evaluation]] = {}
    first: tuple[str, Evaluation] | None = None
    folders: dict[Path, str] = {}
    policies: dict[tuple[str, str], str] = {}
    for given in evaluations:
        name, folder = ("", given) if Path(given).exists() or "=" not in given else given.split("=", 1)
        evaluation = read_evaluation(folder)
        first = first or (folder, evaluation)
        _check_same(first, (folder, evaluation))
        name = name or folder.rstrip("/")
        _check_new(folders, Path(folder).resolve(), given, "the same evaluation: give each folder once")
        _check_new(
            policies,
            (name, evaluation.settings.fingerprint),
            given,
            f"the same policy (fingerprint {evaluation.settings.fingerprint}), which is one training seed of {name}, "
            "not two: give the evaluation of another training run, or another name",
        )
        methods.setdefault(name, []).append(evaluation)
    if len(methods) < 2:
        raise ChunkRLError(
            f"compare needs evaluations of at least two methods, got {list(methods) or 'none'}: "
            "chunkrl compare NEW OLD"
        )
    _check_same_images(methods, "assets", "meshes and textures", "LIBERO_ASSETS")
    _check_same_images(methods, "opengl", "OpenGL libraries", "MUJOCO_GL")
    counts = {name: len(found) for name, found in methods.items()}
    if len(set(counts.values())) > 1:
        raise ChunkRLError(
            f"every method needs as many training seeds, got {counts}: give as many folders of each"
        )
    return methods


def _check_new(seen: dict[_Key, str], key: _Key, given: str, why: str) -> None:
    """Raises ChunkRLError where `key` has been seen, and notes who has it."""
    if key in seen:
        raise ChunkRLError(f"{seen[key]} and {given} are {why}")
    seen[key] = given


def _check_same(first: tuple[str, Evaluation], second: tuple[str, Evaluation]) -> None:
    settings, others = first[1].settings, second[1].settings
    different = [name for name in _SAME if getattr(settings, name) != getattr(others, name)]
    if different or any(first[1].seeds(env) != second[1].seeds(env) for env in settings.envs):
        told = "; ".join(
            f"{name} {getattr(settings, name)!r} and {getattr(others, name)!r}" for name in different
        )
        raise ChunkRLError(
            f"{first[0]} and {second[0]} cannot be compared: {told or 'other initial states'}. Evaluate both with "
            "the same tasks, seed, episodes, time limit and --exec-steps"
        )


def _check_same_images(
    methods: Mapping[str, Sequence[Evaluation]], setting: str, what: str, cure: str
) -> None:
    """Policies on images of another `setting` were asked something else; those on states alone were not."""
    seen = {
        found: f"{name} ({setting} {found or 'not recorded'})"
        for name, evaluations in methods.items()
        for evaluation in evaluations
        if evaluation.settings.camera_size
        for found in [getattr(evaluation.settings, setting)]
    }
    if len(seen) > 1 and "" in seen:
        raise ChunkRLError(
            f"{' and '.join(seen.values())} cannot be compared: whether their images are of the same {what} is not "
            f"known. Evaluate {seen['']} again"
        )
    if len(seen) > 1:
        raise ChunkRLError(
            f"{' and '.join(seen.values())} cannot be compared: their images are of different {what}. Evaluate all "
            f"with the same {cure} (chunkrl doctor tells which there are)"
        )


def told_setting(methods: Mapping[str, Sequence[Evaluation]], setting: str) -> str:
    """A setting's value, each method's where they differ; "" where no result says it."""
    values = {
        name: " and ".join(sorted({getattr(e.settings, setting) or "not recorded" for e in evaluations}))
        for name, evaluations in methods.items()
    }
    if len(set(values.values())) > 1:
        return ", ".join(f"{name}: {value}" for name, value in values.items())
    (value,) = set(values.values())
    return "" if value == "not recorded" else value


def arm_results(methods: Mapping[str, Sequence[Evaluation]]) -> list[ArmResult]:
    """Every method on every task, training seeds as rows."""
    envs = next(iter(methods.values()))[0].settings.envs
    return [
        ArmResult(
            env,
            name,
            np.stack([e.success(env) for e in evaluations]),
            seed=None,
            num_steps=np.stack([e.num_steps(env) for e in evaluations]),
            fps=_one_rate(evaluations),
        )
        for env in envs
        for name, evaluations in methods.items()
    ]


def _one_rate(evaluations: Sequence[Evaluation]) -> float | None:
    """The control rate, where all results say the same."""
    rates = {evaluation.fps for evaluation in evaluations}
    return rates.pop() if len(rates) == 1 else None


def few_states(differences: Sequence[ArmDifference]) -> list[str]:
    """A sentence where so few states tell two policies apart that the bootstrap of their difference is too narrow:
    where none does, its interval has no width, however few states there were."""
    thin = [
        f"{d.task} ({d.baseline}: {d.only_a + d.only_b} of {d.num_pairs})"
        for d in differences
        if d.only_a is not None and d.only_b is not None and d.only_a + d.only_b < _FEWEST_STATES
    ]
    if not thin:
        return []
    return [
        "Few states tell the policies apart, and the interval of their difference is too narrow there: "
        f"{', '.join(thin)}. Go by McNemar's p, and evaluate more states (--num-episodes)."
    ]


def compared_settings(methods: Mapping[str, Sequence[Evaluation]]) -> dict[str, Any]:
    """What was compared, as JSON."""
    return as_json({name: [asdict(e.settings) for e in evaluations] for name, evaluations in methods.items()})


def aggregates_of(arms: Sequence[ArmResult], method: str) -> Aggregates:
    tasks = by_task(arms)
    names = list(next(iter(tasks.values())))
    scores = {
        name: np.stack([row[name].by_seed.mean(axis=1) for row in tasks.values()], axis=1) for name in names
    }
    return aggregate(scores, method)


def format_comparison(arms: Sequence[ArmResult], differences: Sequence[ArmDifference]) -> str:
    """Success and speed of every method on every task and over all, then what the first gains in success."""
    width = max(len(text) for arm in arms for text in (arm.task, arm.arm, ALL_TASKS)) + 2
    every = (*arms, *over_tasks(arms))
    speeds = _padded((MEDIAN, PER_1000, PER_HOUR), [speed_cells(arm.speed) for arm in every])
    lines = [f"{'task':<{width}}{'method':<{width}}{'success':>8}   95 % interval   {speeds[0]}"]
    for arm, speed in zip(every, speeds[1:], strict=True):
        low, high = arm.interval.low, arm.interval.high
        lines.append(
            f"{arm.task:<{width}}{arm.arm:<{width}}{arm.rate:>8.2f}   [{low:.2f}, {high:.2f}]    {speed}"
        )
    head = f"{differences[0].arm} minus"
    lines.append(f"\n{'task':<{width}}{head:<{width}}{'points':>8}   95 % interval (same initial states)")
    for d in differences:
        low, high = 100 * d.interval.low, 100 * d.interval.high
        p_value = "" if d.p_value is None else f"   McNemar p = {d.p_value:.3g} ({d.only_a} : {d.only_b})"
        lines.append(
            f"{d.task:<{width}}{d.baseline:<{width}}{100 * d.difference:>+8.1f}   [{low:+.1f}, {high:+.1f}]{p_value}"
        )
    if known := [d for d in differences if d.speed is not None]:
        names = (f"{MEDIAN}, where both succeed", MEDIAN, PER_1000, PER_HOUR)
        speeds = _padded(names, [difference_cells(d.speed) for d in known])
        lines.append(f"\n{'task':<{width}}{head:<{width}}{speeds[0]}")
        lines += [
            f"{d.task:<{width}}{d.baseline:<{width}}{speed}"
            for d, speed in zip(known, speeds[1:], strict=True)
        ]
    return "\n".join(lines)


def _padded(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table's right part; columns in which nothing stands are left out."""
    columns = [column for column in zip(heads, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return [
        "   ".join(f"{cell:>{size}}" for cell, size in zip(line, widths, strict=True))
        for line in zip(*columns, strict=True)
    ] or [""] * (len(rows) + 1)


def told_aggregates(aggregates: Aggregates, method: str) -> dict[str, str]:
    """What each number is -> the number with its interval."""

    def told(estimate: Estimate) -> str:
        return f"{estimate.value:.3f} [{estimate.interval.low:.3f}, {estimate.interval.high:.3f}]"

    numbers = {}
    for name, found in aggregates.methods.items():
        numbers[f"{name}: mean"] = told(found.mean)
        numbers[f"{name}: interquartile mean"] = told(found.iqm)
        numbers[f"{name}: optimality gap"] = told(found.optimality_gap)
    for name, estimate in aggregates.improvement.items():
        numbers[f"probability that a seed of {method} beats one of {name}"] = told(estimate)
    return numbers
