"""An iteration's numbers as rows of text: for the terminal, and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from chunkrl.evaluation.evaluation_result import Rate
from chunkrl.evaluation.speed import speed_cells
from chunkrl.iterate.records import IterateResult, RoundResult
from chunkrl.report.numbers import words
from chunkrl.report.tables import Cell, speed_columns

AUTONOMOUS = "of them without a correction"


def rows(result: IterateResult) -> list[dict[str, Cell]]:
    """One row a policy, by column; the chosen policy of each arm is marked."""
    corrected = has_corrections(result)
    return [
        _row(run.arm, found, found.round == run.chosen, corrected)
        for run in result.arms
        for found in run.rounds
    ]


def has_corrections(result: IterateResult) -> bool:
    """Whether a human or a corrector acted in any roll-out, so that success with and without them differ."""
    return any(found.rollouts and found.rollouts.num_human for run in result.arms for found in run.rounds)


def _row(arm: str, found: RoundResult, is_chosen: bool, corrected: bool) -> dict[str, Cell]:
    evaluation, rollouts = found.evaluation, found.rollouts
    marks = [str(found.round), *["pretrained"] * (found.round == 0), *["chosen"] * is_chosen]
    trained_on = f"{found.num_episodes} roll-outs" if found.num_episodes else ""
    return {
        "arm": Cell(words(arm)),
        "round": Cell(", ".join(marks), found.round),
        "success": _told(None if evaluation is None else evaluation.rate),
        "95 % interval": Cell("") if evaluation is None else _interval(evaluation.rate),
        **speed_columns(None if evaluation is None else evaluation.rate.speed),
        "selection": _told(found.selection),
        "speed there": _speed(found.selection),
        "own roll-outs": _told(None if rollouts is None else rollouts.rate),
        **({AUTONOMOUS: _told(None if rollouts is None else rollouts.autonomous.rate)} if corrected else {}),
        "their speed": _speed(None if rollouts is None else rollouts.rate),
        "trained on": Cell(trained_on, found.num_episodes or None),
    }


def _told(rate: Rate | None) -> Cell:
    if rate is None:
        return Cell("")
    return Cell(f"{rate.rate:.2f} ({rate.num_success}/{rate.num_episodes})", rate.rate)


def _speed(rate: Rate | None) -> Cell:
    if rate is None:
        return Cell("")
    median, per_1000, _ = speed_cells(rate.speed)
    return Cell(f"{median} steps; {per_1000} per 1,000", rate.speed.per_1000_steps)


def _interval(rate: Rate) -> Cell:
    return Cell(f"[{rate.interval.low:.2f}, {rate.interval.high:.2f}]", rate.interval.low)


def format_result(result: IterateResult) -> str:
    """The table, then why each arm ended."""
    found = rows(result)
    columns = list(found[0]) if found else []
    lines = [columns, *([row[column].text for column in columns] for row in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    told = [_joined(line, widths) for line in lines]
    return "\n".join([*told, *(f"{words(run.arm)}: {run.ended}" for run in result.arms if run.ended)])


def _joined(line: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
