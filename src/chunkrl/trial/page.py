"""The page of a trial: the verdict, how the evidence grew pair by pair, every trial, all numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup

from chunkrl.evaluation.evaluation_result import Rate
from chunkrl.files.atomic import write_text
from chunkrl.report import charts
from chunkrl.report.distributions import Square, state_grid
from chunkrl.report.numbers import percent, signed_points
from chunkrl.report.page import Caption, Card, Facts, Legend, Page, Part, Section, Tile, notes_card
from chunkrl.report.records import Curve
from chunkrl.report.tables import (
    Cell,
    Row,
    Table,
    count_cell,
    interval_cell,
    points_interval,
    rate_cell,
    speed_columns,
    speed_difference_columns,
)
from chunkrl.trial.evidence import confidence_sequence
from chunkrl.trial.result import Compared, TrialResult, told_forecast, told_pending

PAGE_FILE = "report.html"


def write_page(folder: Path, result: TrialResult) -> Path:
    """Writes `report.html`, whole or not at all; it loads nothing. Returns its path."""
    sections = [_success(result), _evidence(result), _trials(result), _numbers(result)]
    title = "chunkrl trial: " + " against ".join(entry.name for entry in result.settings.policies)
    path = folder / PAGE_FILE
    write_text(path, Page(title, [_tile(found) for found in result.compared], sections).render())
    return path


def _tile(found: Compared) -> Tile:
    counts = found.counts
    difference = counts.difference if counts.num_pairs else 0.0
    told = f"{counts.num_pairs} pairs, {counts.only_a} : {counts.only_b} won alone."
    if found.verdict:
        detail = f"{told} Confidence sequence of the difference {points_interval(found.interval)}."
        return Tile(
            signed_points(difference),
            found.verdict_told,
            detail,
            "good" if found.verdict > 0 else "bad",
            "points",
        )
    claim = f"{found.policy} against {found.other}: not decided"
    return Tile(
        signed_points(difference), claim, f"{told} {_sentence(told_forecast(found))}", "open", "points"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _known(result: TrialResult) -> list[tuple[str, Rate]]:
    pairs = zip(result.settings.policies, result.rates, strict=True)
    return [(entry.name, rate) for entry, rate in pairs if rate is not None]


def _success(result: TrialResult) -> Section:
    rows = [
        charts.Row(
            name,
            rate.rate,
            rate.interval,
            f"{rate.num_success}/{rate.num_episodes} · {percent(rate.rate)}",
            emphasised=name == result.name(0),
        )
        for name, rate in _known(result)
    ]
    if not rows:
        return Section("Success", "", [])
    summary = "Success. " + "; ".join(f"{row.label} {row.text}" for row in rows)
    lead = (
        "Trials that succeed. Whiskers: 95 % Wilson intervals, which hold for a number of trials chosen beforehand; "
        "what holds at any time is the confidence sequence below."
    )
    return Section("Success", lead, [Card(result.settings.where, [charts.bar_chart(rows, summary)])])


def _evidence(result: TrialResult) -> Section:
    cards = [
        card
        for found in result.compared
        if found.history
        for card in (_difference_card(found), _evidence_card(found))
    ]
    lead = (
        "After every pair: the difference in success with its confidence sequence, in points, and the evidence for "
        "either direction, as powers of ten. A verdict falls where the evidence reaches what it needs, which is "
        "where the confidence sequence leaves 0 behind."
    )
    return Section("Pair by pair", lead, cards)


def _difference_card(found: Compared) -> Card:
    pairs = np.arange(1, len(found.history) + 1)
    ends = [confidence_sequence(counts, found.error) for counts in found.history]
    lines = {
        "difference": [100 * counts.difference for counts in found.history],
        "lowest": [100 * end.low for end in ends],
        "highest": [100 * end.high for end in ends],
        "no difference": [0.0] * len(ends),
    }
    return _curves(f"{found.policy} minus {found.other}, points", pairs, lines)


def _evidence_card(found: Compared) -> Card:
    pairs = np.arange(1, len(found.history) + 1)
    evidence = [found.evidence(counts) for counts in found.history]
    lines = {
        f"{found.policy} is better": [better for better, _ in evidence],
        f"{found.other} is better": [worse for _, worse in evidence],
        "needed": [found.bar] * len(evidence),
    }
    return _curves("Evidence, log10", pairs, lines)


def _curves(title: str, pairs: np.ndarray, lines: dict[str, list[float]]) -> Card:
    curves = [Curve(name, pairs, values, panel=title, x_label="pair") for name, values in lines.items()]
    keys = [
        (f"s{i % charts.NUM_SERIES_COLOURS}", name, f"{values[-1]:.3g}".replace("-", "−"))
        for i, (name, values) in enumerate(lines.items())
    ]
    summary = f"{title}. " + "; ".join(f"{name} ends at {value}" for _, name, value in keys)
    return Card(title, [Legend(keys), charts.curve_chart(curves, summary)])


def _trials(result: TrialResult) -> Section:
    grids: list[Markup | Part] = []
    for number, (name, rate) in enumerate(_known(result)):
        squares = [
            Square(
                float(trial.success),
                f"{name}, pair {trial.attempt.pair + 1}, episode {trial.attempt.place + 1} of it: "
                f"{trial.attempt.outcome}, {trial.attempt.num_steps} steps",
            )
            for trial in result.trials
            if trial.policy == number
        ]
        told = f"{name}: {rate.num_success} of {rate.num_episodes} trials succeed"
        grids += [Caption(name), state_grid(squares, told)]
    lead = (
        "Every trial, in the order of the pairs, green where it succeeded. The pointer shows which one it is."
    )
    return Section("Trials", lead, [Card("All trials", grids, wide=True)] if grids else [])


def _numbers(result: TrialResult) -> Section:
    cards = []
    if known := _known(result):
        cards.append(Card("All numbers", [Table([_rate_row(*one) for one in known])], wide=True))
    if any(found.history for found in result.compared):
        compared = [found for found in result.compared if found.history]
        cards.append(Card("Differences", [Table([_difference_row(found) for found in compared])], wide=True))
        cards.append(
            Card("Differences in speed", [Table([_speed_row(found) for found in compared])], wide=True)
        )
    cards.append(Card("What was run", [Facts(_facts(result))], wide=True))
    cards.append(notes_card(_notes(result), wide=True))
    return Section("Numbers and settings", "", cards)


def _rate_row(name: str, rate: Rate) -> Row:
    return {
        "policy": name,
        "successes": count_cell(rate.num_success),
        "trials": count_cell(rate.num_episodes),
        "success": rate_cell(rate.rate),
        "95 % interval": interval_cell(rate.interval),
        **speed_columns(rate.speed),
    }


def _difference_row(found: Compared) -> Row:
    counts = found.counts
    return {
        f"{found.policy} minus": found.other,
        "points": Cell(signed_points(counts.difference), counts.difference),
        "confidence sequence": Cell(points_interval(found.interval), found.interval.low),
        "pairs": count_cell(counts.num_pairs),
        "it alone": count_cell(counts.only_a),
        "the other alone": count_cell(counts.only_b),
        "verdict": found.verdict_told,
    }


def _speed_row(found: Compared) -> Row:
    return {f"{found.policy} minus": found.other, **speed_difference_columns(found.speed)}


def _facts(result: TrialResult) -> dict[str, str]:
    settings = result.settings
    neither = ", ".join(f"{number} {outcome}" for outcome, number in sorted(result.num_neither.items()))
    return {
        **{entry.name: f"{entry.folder} ({entry.fingerprint[:12]})" for entry in settings.policies},
        "where": settings.where,
        "executed": f"{settings.exec_steps} actions of each chunk",
        "chunk chosen by": settings.mode,
        "time limit": f"{settings.max_steps} steps",
        "control rate": f"{settings.fps:g} steps per second",
        "error allowed": f"{settings.error:g}"
        + (f", {settings.error_each:.3g} a comparison" if len(result.compared) > 1 else ""),
        "pairs": str(result.num_pairs)
        + (f", and {told_pending(result.num_pending)}" if result.num_pending else ""),
        "made again": neither or "none",
    }


def _notes(result: TrialResult) -> list[str]:
    notes = [
        "The verdict may be looked at after every pair: the error allowed covers all looks together (test by "
        "betting; Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting).",
        "A difference at the moment of a verdict is on the large side; the confidence sequence is not.",
        "Intervals of speeds are bootstraps for a number of trials chosen beforehand.",
    ]
    prints = [entry.fingerprint for entry in result.settings.policies]
    if len(set(prints)) < len(prints):
        notes.append("An A/A trial: two of the policies are the same one.")
    return notes + [
        f"A policy raised {note.rstrip('.')}. That attempt counts as neither." for note in result.crashes
    ]
