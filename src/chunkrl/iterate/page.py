"""The page of an iteration: success over rounds with intervals, how the policy was chosen, every number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from chunkrl.evaluation.evaluation_result import Rate
from chunkrl.files.atomic import write_text
from chunkrl.iterate.plan import Plan
from chunkrl.iterate.records import ArmRun, IterateResult, RoundResult
from chunkrl.iterate.table import has_corrections, rows
from chunkrl.report import charts
from chunkrl.report.numbers import percent, words
from chunkrl.report.page import Card, Facts, Legend, Page, Part, Section, Tile, notes_card
from chunkrl.report.tables import Cell, Table, count_cell, speed_columns

_RateOf = Callable[[RoundResult], Rate | None]


def write_page(path: Path, result: IterateResult, plan: Plan) -> None:
    """Writes the page of what is known, whole or not at all."""
    title = f"chunkrl iterate: {', '.join(plan.tasks) or plan.root.name}"
    sections = [_curves(result), _tasks(result), _numbers(result, plan)]
    write_text(path, Page(title, _tiles(result), sections).render())


def _reported(found: RoundResult) -> Rate | None:
    return None if found.evaluation is None else found.evaluation.rate


def _of_rollouts(found: RoundResult) -> Rate | None:
    return None if found.rollouts is None else found.rollouts.rate


def _autonomous(found: RoundResult) -> Rate | None:
    return None if found.rollouts is None else found.rollouts.autonomous.rate


def _tiles(result: IterateResult) -> list[Tile]:
    """The chosen policy of the first arm."""
    run = result.arms[0]
    if run.chosen is None:
        return []
    first, found = run.rounds[0], run.rounds[run.chosen]
    rate, before = (_reported(one) or one.selection for one in (found, first))
    if rate is None or before is None:
        return []
    claim = f"no policy of {len(run.rounds) - 1} rounds is chosen: the pretrained one stays"
    if found.round:
        claim = (
            f"round {found.round} of {len(run.rounds) - 1}, after {found.num_episodes} roll-outs; the pretrained "
            f"policy has {percent(before.rate)}"
        )
    by = (
        "other episodes than these"
        if found.evaluation
        else "these episodes themselves, so that the rate is too high"
    )
    low, high = 100 * rate.interval.low, 100 * rate.interval.high
    detail = f"95 % interval (Wilson) {low:.1f} to {high:.1f} %. Chosen by {by}."
    return [Tile(percent(rate.rate), f"{words(run.arm)}: {claim}", detail, unit="success")]


def _curves(result: IterateResult) -> Section:
    """A chart for every kind of success that is known."""
    cards = []
    note = (
        "Episodes of sampled actions, which later rounds train on; of several tasks the mean of their rates"
    )
    own = [("Own roll-outs", _of_rollouts, f"{note}.")]
    if has_corrections(result):
        own = [("Own roll-outs", _of_rollouts, f"{note}, with what a human or a corrector did in them.")]
        own += [
            ("Own roll-outs without a correction", _autonomous, "A corrected episode is no success here.")
        ]
    for title, rate_of, note in (
        (
            "Reported states",
            _reported,
            "What to quote. Rings: the policies that were chosen, without a look at it.",
        ),
        ("Selection", lambda found: found.selection, "What policies are chosen by."),
        *own,
    ):
        if series := [one for run in result.arms if (one := _series(run, rate_of)).points]:
            cards.append(Card(title, _chart(series, title), note))
    lead = "Success over rounds; round 0 is the pretrained policy. Whiskers: 95 % intervals (Wilson) of each policy."
    return Section("Success over rounds", lead, cards)


def _series(run: ArmRun, rate_of: _RateOf) -> charts.RateSeries:
    known = [(found.round, rate) for found in run.rounds if (rate := rate_of(found)) is not None]
    return charts.RateSeries(words(run.arm), [(x, r.rate, r.interval) for x, r in known], run.chosen)


def _chart(series: Sequence[charts.RateSeries], title: str) -> list[Markup | Part]:
    keys = [
        (f"s{i % charts.NUM_SERIES_COLOURS}", one.name, percent(one.points[-1][1]))
        for i, one in enumerate(series)
    ]
    told = "; ".join(f"{name} ends at {value}" for _, name, value in keys)
    return [Legend(keys), charts.rate_chart(series, "round", f"{title}. {told}")]


def _tasks(result: IterateResult) -> Section:
    """Every task of the reported states, where there are several."""
    found = [
        (run.arm, one.round, one.evaluation.tasks)
        for run in result.arms
        for one in run.rounds
        if one.evaluation
    ]
    if not found or len(found[0][2]) < 2:
        return Section("Tasks", "", [])
    names = list(found[0][2])
    by_task = [
        {
            "arm": Cell(words(arm)),
            "round": count_cell(number),
            "task": Cell(name),
            "success": _share(tasks[name]),
            **speed_columns(tasks[name].speed),
        }
        for arm, number, tasks in found
        for name in names
    ]
    return Section(
        "Tasks",
        "Successes of the reported states.",
        [Card("By task", [Table(by_task)], wide=True)],
    )


def _share(rate: Rate) -> Cell:
    return Cell(f"{rate.num_success}/{rate.num_episodes}", rate.rate)


def _numbers(result: IterateResult, plan: Plan) -> Section:
    cards = [Card("All numbers", [Table(rows(result))], wide=True)]
    cards.append(Card("What was run", [Facts(_facts(result, plan))], wide=True))
    notes = list(result.notes)
    notes.append(
        "An interval speaks of other initial states for the same policy, not of another run of the rounds: roll-outs "
        "and training of another seed end elsewhere."
    )
    cards.append(notes_card(notes, wide=True))
    return Section("Numbers and settings", "", cards)


def _facts(result: IterateResult, plan: Plan) -> dict[str, str]:
    config, train = plan.config, plan.config.train
    facts = {
        "pretrained policy": str(plan.pretrained),
        "objective": train.objective,
        "updates per round": str(train.num_updates or f"{train.num_epochs} epochs"),
        "data beside the roll-outs": train.dataset_dir or "none",
        "chosen by": "initial states of its own"
        if config.selection.by == "states"
        else "the next roll-outs, without a correction",
    }
    if config.selection.by == "states":
        facts["selection states"] = f"{config.selection.num_episodes} per task, seed {config.selection.seed}"
    if config.rollouts.folder is not None:
        facts["roll-outs"] = f"brought to {config.rollouts.folder}"
    elif plan.actor is not None:
        facts["roll-outs"] = f"chunkrl actor, {plan.actor.num_episodes or 'any number of'} episodes per round"
    else:
        facts["roll-outs"] = f"{config.collect.num_episodes} per round, mode {config.collect.mode}"
    human = sum(found.rollouts.num_human for run in result.arms for found in run.rounds if found.rollouts)
    if human:
        facts["corrected steps"] = str(human)
    return facts | {f"{words(run.arm)} ended": run.ended for run in result.arms if run.ended}
