"""What can be learned from a data set, in plain sentences with numbers, and what to do where that is little."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from chunkrl.algorithms.value_quality import MIN_RANK_CORRELATION, quality_warnings
from chunkrl.evaluation.verdict import MIN_SUCCESSES

FEW_EPISODES = 15
"""Episodes to train on below which the outcome alone chooses: the smallest data sets that were measured have 15
(docs/results.md, "The scale of weights")."""
MIN_EFFECTIVE_SIZE = 0.05
"""Part of the starts that carries the weight. Measured: .13 to .24 weigh well, below .01 nothing is learned."""

FindingName = Literal[
    "no_success",
    "no_failures",
    "nothing_to_rank",
    "task_without_success",
    "few_episodes",
    "values",
    "effective_sample_size",
    "starved_third",
    "no_verdict",
]


@dataclass(frozen=True)
class DataFacts:
    """A data set as training reads it.

    labels: what says who succeeded, for people. num_held_out, num_held_out_success: of the episodes, those that
    nothing is trained on. silent_tasks: texts of tasks of which no episode succeeds that is trained on.
    returns_differ: whether episodes differ in what they return from the same step on; where not, values have nothing
    to tell apart. gamma: a step's discount.
    """

    name: str
    labels: str
    num_episodes: int
    num_success: int
    num_frames: int
    num_held_out: int
    num_held_out_success: int
    held_out: float
    num_tasks: int
    silent_tasks: tuple[str, ...]
    returns_differ: bool
    gamma: float

    @property
    def num_trained(self) -> int:
        """Episodes to train on."""
        return self.num_episodes - self.num_held_out

    @property
    def can_judge(self) -> bool:
        """Whether enough held-out episodes succeed for a verdict."""
        return self.num_held_out_success >= MIN_SUCCESSES

    @property
    def all_succeed(self) -> bool:
        """Whether no episode fails."""
        return self.num_success == self.num_episodes


@dataclass(frozen=True)
class ValueFacts:
    """What values are worth, and the weights that they would give.

    held_out, seen: rank correlation with the return, of episodes that a value network never saw, and trained on; None
    where values or returns are constant. effective_sample_size: the part of the starts that carries the weight.
    on_successes: the part of it on successful episodes. starved: sentences, of thirds of these with too little of it.
    """

    held_out: float | None
    seen: float | None
    effective_sample_size: float
    on_successes: float
    starved: tuple[str, ...]

    @property
    def rank(self) -> bool:
        """Whether values order episodes that they never saw."""
        return self.held_out is not None and self.held_out >= MIN_RANK_CORRELATION


@dataclass(frozen=True)
class Finding:
    """text: what is the case. cure: what to do; "" where the text says it. is_fatal: nothing can be learned."""

    name: FindingName
    text: str
    cure: str = ""
    is_fatal: bool = False

    def __str__(self) -> str:
        return " ".join(part for part in (self.text, self.cure) if part)


def diagnose(data: DataFacts, values: ValueFacts | None) -> tuple[Finding, ...]:
    """What to know before training. values: None where there are none yet, or nothing is to be learned from them."""
    return (*_of_outcomes(data), *_of_numbers(data), *(() if values is None else _of_values(values)))


def _of_outcomes(data: DataFacts) -> Iterator[Finding]:
    if data.num_success == 0:
        yield Finding(
            "no_success",
            f"None of the {data.num_episodes} episodes succeeds (by {data.labels}): nothing says what is better.",
            "Record some that do, or correct the labels (chunkrl label).",
            is_fatal=True,
        )
        return
    if data.num_success == data.num_held_out_success:
        yield Finding(
            "no_success",
            f"Every episode that succeeds ({data.num_success}) is among the {data.num_held_out} that are held out "
            "for the verdict: nothing is left that says what is better.",
            "Hold out less (--held-out 0: no verdict then), or record more that succeed.",
            is_fatal=True,
        )
        return
    if data.all_succeed:
        yield Finding(
            "no_failures",
            f"All {data.num_episodes} episodes succeed: only speed can be learned (a step later counts "
            f"{data.gamma:g} times as much), not what leads to failure.",
            "Add failed or interrupted episodes, such as roll-outs of the policy (chunkrl iterate, chunkrl actor).",
        )
    if not data.returns_differ:
        yield Finding(
            "nothing_to_rank",
            "All episodes return the same from the same step on: there is nothing to learn for values, which are "
            "left out.",
            "Add failures, or successes that take longer.",
        )
    if data.silent_tasks:
        names = ", ".join(repr(name) for name in data.silent_tasks[:5])
        more = " and others" if len(data.silent_tasks) > 5 else ""
        yield Finding(
            "task_without_success",
            f"No episode of {names}{more} that is trained on succeeds: nothing is known of what is better there, and "
            "weights clone its chunks all alike.",
            "Record some that do, or leave the task out.",
        )


def _of_numbers(data: DataFacts) -> Iterator[Finding]:
    if data.num_trained < FEW_EPISODES:
        yield Finding(
            "few_episodes",
            f"{data.num_trained} episodes to train on are few: values say little of an unseen one then, and the "
            "smallest data sets that were measured have 15.",
            "Record more.",
        )
    if data.num_success and not data.can_judge:
        yield Finding("no_verdict", *_too_few_held_out(data))


def _too_few_held_out(data: DataFacts) -> tuple[str, str]:
    if not data.held_out:
        return (
            "No episode is held out, so that no verdict is possible before the robot moves.",
            "Leave --held-out at .2, or compare with chunkrl trial.",
        )
    missing = MIN_SUCCESSES - data.num_held_out_success
    more = math.ceil(missing / (data.num_success / data.num_episodes * data.held_out))
    cure = f"About {more} more episodes like these would do"
    part = MIN_SUCCESSES / data.num_success
    if data.held_out < part <= 0.5:
        cure += f", or --held-out {math.ceil(20 * part) / 20:g} of those that there are"
    return (
        f"{data.num_held_out_success} of the {data.num_held_out} held-out episodes succeed, and a verdict needs "
        f"{MIN_SUCCESSES}: there will be none.",
        f"{cure}; chunkrl trial compares policies on the robot.",
    )


def _of_values(values: ValueFacts) -> Iterator[Finding]:
    held_out, seen = (math.nan if one is None else one for one in (values.held_out, values.seen))
    for sentence in quality_warnings(held_out, seen):
        yield Finding("values", sentence)
    if values.effective_sample_size < MIN_EFFECTIVE_SIZE:
        yield Finding(
            "effective_sample_size",
            f"The weights rest on {values.effective_sample_size:.1%} of the starts (effective sample size; less than "
            f"{MIN_EFFECTIVE_SIZE:.0%} is too little).",
            "More episodes, a smaller --beta, or --balance.success-mix .5 spread them.",
        )
    for sentence in values.starved:
        yield Finding("starved_third", sentence)
