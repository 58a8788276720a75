"""The page of a comparison: what one policy gains over others, on every task and in every state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.results import (
    ALL_TASKS,
    ArmDifference,
    ArmResult,
    by_task,
    over_tasks,
)
from chunkrl.files.atomic import write_text
from chunkrl.report import charts
from chunkrl.report.distributions import Square, state_grid
from chunkrl.report.numbers import percent, signed_points, words
from chunkrl.report.page import Caption, Card, Facts, Page, Part, Section, Tile, VideoPlayer, notes_card
from chunkrl.report.records import ClipPair, Curve, EpisodeTrace
from chunkrl.report.sections import curve_section, trace_section
from chunkrl.report.svg import sign_class, span
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
from chunkrl.statistics import Interval

_FASTER = (
    "Fewer steps and more successes are faster. Paired bootstrap intervals, 95 %, over the same initial states. The "
    "medians are each of the states that its own policy solves; where both succeed, the states are the same."
)


def render_report(
    path: str | Path,
    *,
    title: str,
    arms: Sequence[ArmResult],
    differences: Sequence[ArmDifference],
    curves: Sequence[Curve] = (),
    traces: Sequence[EpisodeTrace] = (),
    clips: Sequence[ClipPair] = (),
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page to `path`, whole or not at all. It loads nothing, and without its script all is there to read.

    Args:
        arms: every policy's result on every task.
        differences: from `compare_arms`; the first baseline is the headline.
        curves: grouped into panels by `Curve.panel`.
        traces: of one task they share their axes; give a good and a bad episode.
        clips: videos from `chunkrl.evaluation.video.side_by_side`.
        facts: what was run, as short name and value pairs.
        notes: sentences a reader needs to judge the numbers.

    Raises:
        ChunkRLError: no arms, no differences, or results that do not fit together (`by_task`).
    """
    if not differences:
        raise ChunkRLError("a report needs a comparison: pass compare_arms(arms, arm, baselines)")
    tasks = by_task(arms)
    method = differences[0].arm
    sections = [
        _success_section(tasks, method),
        _difference_section(differences),
        _state_section(tasks),
        _clip_section(clips),
        trace_section(traces),
        curve_section(curves, {}),
        _number_section(tasks, differences, facts or {}, notes),
    ]
    write_text(path, Page(title, _tiles(differences, tasks), sections).render())


def _tiles(differences: Sequence[ArmDifference], tasks: Mapping[str, Mapping[str, ArmResult]]) -> list[Tile]:
    """One large number a baseline: the gain over all tasks where there are several."""
    over_all = [d for d in differences if d.task == ALL_TASKS]
    tiles = []
    for d in over_all or differences:
        rows = list(tasks.values()) if d.task == ALL_TASKS else [tasks[d.task]]
        where = f"mean of {len(rows)} tasks" if d.task == ALL_TASKS else d.task
        rates = [math.fsum(row[name].rate for row in rows) / len(rows) for name in (d.arm, d.baseline)]
        detail = (
            f"{percent(rates[0])} against {percent(rates[1])} success, {where}. 95 % interval "
            f"{points_interval(d.interval)}; {_verdict(d.interval)}."
        )
        claim = f"{words(d.arm)} over {words(d.baseline)}"
        tiles.append(Tile(signed_points(d.difference), claim, detail, sign_class(d.interval), "points"))
    return tiles


def _with_mean(tasks: Mapping[str, Mapping[str, ArmResult]]) -> dict[str, Mapping[str, ArmResult]]:
    """The mean over tasks, where there are several, then the tasks."""
    mean = over_tasks([result for row in tasks.values() for result in row.values()])
    return ({ALL_TASKS: {result.arm: result for result in mean}} if mean else {}) | dict(tasks)


def _success_section(tasks: Mapping[str, Mapping[str, ArmResult]], method: str) -> Section:
    cards = []
    for task, row in _with_mean(tasks).items():
        rows = [
            charts.Row(
                label=words(name),
                value=result.rate,
                interval=result.interval,
                text=f"{result.num_success}/{result.num_episodes} · {percent(result.rate)} "
                f"[{100 * result.interval.low:.0f}, {100 * result.interval.high:.0f}]",
                emphasised=name == method,
            )
            for name, result in row.items()
        ]
        summary = f"Success on {task}. " + "; ".join(f"{r.label} {r.text}" for r in rows)
        cards.append(Card(task, [charts.bar_chart(rows, summary)], link=_states(tasks).get(task, "")))
    lead = (
        "Episodes that succeed, every policy from the same initial states. Whiskers: 95 % intervals, Wilson's for "
        "one training seed, a bootstrap over seeds and states for several. A task's name leads to its states."
    )
    return Section("Success", lead, cards)


def _states(tasks: Mapping[str, Mapping[str, ArmResult]]) -> dict[str, str]:
    """Every task -> the address of its states on the page."""
    return {task: f"#states-{i}" for i, task in enumerate(tasks)}


def _state_section(tasks: Mapping[str, Mapping[str, ArmResult]]) -> Section:
    cards = []
    for task, row in tasks.items():
        grids: list[Markup | Part] = []
        for name, result in row.items():
            num_seeds, num_states = result.by_seed.shape
            of = "" if num_seeds == 1 else f" of {num_seeds} training seeds"
            squares = [
                Square(
                    float(solved.mean()),
                    f"{words(name)}, initial state {number} of {num_states}: "
                    + (f"{solved.sum()}{of} succeed" if of else "success" if solved[0] else "failure"),
                )
                for number, solved in enumerate(result.by_seed.T, start=1)
            ]
            told = f"{words(name)} on {task}: {result.num_success} of {result.num_episodes} episodes succeed"
            grids += [Caption(words(name)), state_grid(squares, told)]
        cards.append(Card(task, grids, name=_states(tasks)[task].removeprefix("#")))
    lead = (
        "Every initial state, in the same order for every policy: green where the episode succeeded, red where it "
        "did not, grey where some training seeds succeeded. The pointer shows which one it is."
    )
    return Section("Initial states", lead, cards, "grid small")


def _difference_section(differences: Sequence[ArmDifference]) -> Section:
    ends = [end for d in differences for end in (d.interval.low, d.interval.high, d.difference)]
    axis = span(ends, pad=0.12, include=0.0)
    cards = []
    for task, group in groupby(sorted(differences, key=lambda d: d.task != ALL_TASKS), key=lambda d: d.task):
        rows = [
            charts.Row(
                label=f"over {words(d.baseline)}",
                value=d.difference,
                interval=d.interval,
                text=f"{signed_points(d.difference)} [{signed_points(d.interval.low)}, "
                f"{signed_points(d.interval.high)}]",
                detail="" if d.p_value is None else f"{_p_value(d.p_value)} ({d.only_a} : {d.only_b})",
            )
            for d in group
        ]
        summary = f"Difference in success, {task}. " + "; ".join(f"{r.label} {r.text} points" for r in rows)
        cards.append(Card(task, [charts.difference_chart(rows, axis, summary)]))
    lead = (
        f"What {words(differences[0].arm)} gains, in percentage points, on the same initial states; right "
        "of the mark at 0 is better. Lines: 95 % paired bootstrap intervals. p: exact McNemar test, the "
        "stricter of the two, of the states that either side alone solved (in brackets)."
    )
    return Section("Paired differences", lead, cards, "grid small")


def _clip_section(clips: Sequence[ClipPair]) -> Section:
    cards = []
    for clip in clips:
        label = f"{clip.task}: {clip.left_label} on the left, {clip.right_label} on the right"
        cards.append(Card(f"{clip.task}: {clip.title}", [VideoPlayer(clip.video, clip.mime, label)]))
    lead = "The same initial state under both. A border marks an episode's end: green success, red failure."
    return Section("Side by side", lead, cards)


def _number_section(
    tasks: Mapping[str, Mapping[str, ArmResult]],
    differences: Sequence[ArmDifference],
    facts: Mapping[str, str],
    notes: Sequence[str],
) -> Section:
    cards = [
        Card("All numbers", [number_table(tasks)], wide=True),
        Card("All differences", [difference_table(differences)], wide=True),
    ]
    if any(d.speed for d in differences):
        cards.append(Card("Differences in speed", [speed_table(differences)], _FASTER, wide=True))
    if facts:
        cards.append(Card("What was run", [Facts(facts)]))
    if notes:
        cards.append(notes_card(notes))
    return Section("Numbers and settings", "", cards)


def number_table(tasks: Mapping[str, Mapping[str, ArmResult]]) -> Table:
    """Rates and speeds of every policy (`by_task`), and their means over tasks."""
    means, rows = (
        [
            _number_row(Cell(task, link=_states(tasks).get(task, "")), result)
            for task, row in _with_mean(tasks).items()
            for result in row.values()
            if (task == ALL_TASKS) == of_all
        ]
        for of_all in (True, False)
    )
    return Table(rows, means)


def _number_row(task: Cell, result: ArmResult) -> Row:
    return {
        "task": task,
        "policy": words(result.arm),
        "successes": count_cell(result.num_success),
        "episodes": count_cell(result.num_episodes),
        "success": rate_cell(result.rate),
        "95 % interval": interval_cell(result.interval),
        "training seed": _training_seed(result),
        **speed_columns(result.speed),
    }


def difference_table(differences: Sequence[ArmDifference]) -> Table:
    """What one policy gains over others, by task and over all."""
    means, rows = (
        [_difference_row(d) for d in differences if (d.task == ALL_TASKS) == of_all]
        for of_all in (True, False)
    )
    return Table(rows, means)


def _difference_row(d: ArmDifference) -> Row:
    return {
        "task": d.task,
        f"{words(d.arm)} over": words(d.baseline),
        "points": Cell(signed_points(d.difference), d.difference),
        "95 % interval": Cell(points_interval(d.interval), d.interval.low),
        "states": count_cell(d.num_pairs),
        "it alone": count_cell(d.only_a),
        "the other alone": count_cell(d.only_b),
        "McNemar": "" if d.p_value is None else Cell(_p_value(d.p_value), d.p_value),
    }


def speed_table(differences: Sequence[ArmDifference]) -> Table:
    """How much faster one policy is than others, by task and over all."""
    means, rows = (
        [_speed_row(d) for d in differences if (d.task == ALL_TASKS) == of_all] for of_all in (True, False)
    )
    return Table(rows, means)


def _speed_row(d: ArmDifference) -> Row:
    return {
        "task": d.task,
        f"{words(d.arm)} minus": words(d.baseline),
        **speed_difference_columns(d.speed),
    }


def _training_seed(result: ArmResult) -> Cell:
    """One policy's seed, or how many there are."""
    if len(result.by_seed) > 1:
        return Cell(f"{len(result.by_seed)} seeds")
    return count_cell(result.seed)


def _verdict(interval: Interval) -> str:
    return {"good": "all above 0", "bad": "all below 0", "open": "0 is not excluded"}[sign_class(interval)]


def _p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
