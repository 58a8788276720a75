"""An iteration's numbers as rows of text: for the terminal, and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from chunkrl.evaluation.evaluation_result import Rate
from chunkrl.evaluation.sections import words
from chunkrl.evaluation.speed import MEDIAN, PER_1000, speed_cells
from chunkrl.iterate.records import IterateResult, RoundResult

HEAD = (
    *("arm", "round", "success", "95 % interval", MEDIAN, PER_1000),
    *("selection", "own roll-outs", "trained on"),
)


def rows(result: IterateResult) -> list[tuple[str, ...]]:
    """One row a policy, as `HEAD` names them; the chosen policy of each arm is marked."""
    return [
        _row(run.arm, found, is_chosen=found.round == run.chosen)
        for run in result.arms
        for found in run.rounds
    ]


def _row(arm: str, found: RoundResult, is_chosen: bool) -> tuple[str, ...]:
    evaluation, rollouts = found.evaluation, found.rollouts
    marks = [str(found.round), *["pretrained"] * (found.round == 0), *["chosen"] * is_chosen]
    return (
        words(arm),
        ", ".join(marks),
        _told(None if evaluation is None else evaluation.rate),
        "" if evaluation is None else _interval(evaluation.rate),
        *speed_cells(None if evaluation is None else evaluation.rate.speed),
        _told(found.selection),
        _told(None if rollouts is None else rollouts.rate),
        f"{found.num_episodes} roll-outs" if found.num_episodes else "",
    )


def _told(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate.rate:.2f} ({rate.num_success}/{rate.num_episodes})"


def _interval(rate: Rate) -> str:
    return f"[{rate.interval.low:.2f}, {rate.interval.high:.2f}]"


def format_result(result: IterateResult) -> str:
    """The table, then why each arm ended."""
    lines = [HEAD, *rows(result)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    told = [_joined(line, widths) for line in lines]
    return "\n".join([*told, *(f"{words(run.arm)}: {run.ended}" for run in result.arms if run.ended)])


def _joined(line: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
