"""The page of `chunkrl improve`: the story of the steps so far."""

from __future__ import annotations

import shlex

from chunkrl.evaluation.verdict import MARGIN
from chunkrl.files.atomic import write_text
from chunkrl.improve.plan import PAGE_FILE, POLICY, Plan
from chunkrl.improve.recipe import TABLE
from chunkrl.improve.records import ImproveResult
from chunkrl.report import charts
from chunkrl.report.numbers import percent, signed, words
from chunkrl.report.page import Card, Facts, Legend, Notes, Page, Section, Tile
from chunkrl.report.records import Curve
from chunkrl.report.tables import Cell, Table
from chunkrl.run.plan import minutes
from chunkrl.training.metrics import METRICS_FILE, read_records

_KINDS = {"better": "good", "worse": "bad", "cannot tell": "open"}


def write_page(plan: Plan, result: ImproveResult) -> None:
    """Writes the page of what is known, whole or not at all."""
    sections = [
        _verdict(plan, result),
        _data(result),
        _diagnosis(plan, result),
        _training(plan, result),
        _next(plan, result),
        _steps(result),
    ]
    page = Page(f"chunkrl improve: {plan.config.data}", _tiles(result), sections)
    write_text(plan.root / PAGE_FILE, page.render())


def _tiles(result: ImproveResult) -> list[Tile]:
    tiles, judgement, recipe = [], result.judgement, result.recipe
    if judgement is not None and recipe is not None:
        claim = judgement.reason
        if not claim:
            claim = f"than {words(recipe.control or '')}, on {judgement.num_episodes} held-out successes"
        used = "the control's policy is used" if result.chosen == "control" else "the recipe's policy is used"
        tiles.append(Tile(judgement.claim, claim, used, _KINDS[judgement.claim]))
    if recipe is not None:
        tiles.append(Tile(words(recipe.objective), "is the recipe", recipe.reason))
    if (data := result.data) is not None:
        share = percent(round(data.num_success / data.num_episodes, 3))
        tiles.append(
            Tile(share, "of the episodes succeed", f"{data.num_episodes} episodes, by {data.labels}")
        )
    return tiles


def _verdict(plan: Plan, result: ImproveResult) -> Section:
    judgement, recipe = result.judgement, result.recipe
    if judgement is None or recipe is None:
        return Section("Verdict", "", [])
    facts = {"claim": judgement.claim}
    if judgement.reason:
        facts["reason"] = judgement.reason
    if not judgement.num_episodes:
        return Section("Verdict", "", [Card("No verdict", [Facts(facts)], wide=True)])
    low, high = judgement.interval
    facts |= {
        "nearer to what succeeded": f"{signed(100 * judgement.closer, 1)} %",
        "95 % interval": f"{signed(100 * low, 1)} to {signed(100 * high, 1)} %",
        "held-out episodes that succeeded": str(judgement.num_episodes),
    }
    note = (
        "Nearness to what succeeded is no success rate. A difference below "
        f"{MARGIN:.0%} is never a claim. The title leads to the verdict's own page."
    )
    link = f"{plan.folder('verdict').name}/verdict.html"
    card = Card(
        f"{words(recipe.objective)} against {words(recipe.control or '')}", [Facts(facts)], note, link=link
    )
    return Section("Verdict", "Recipe and control, on episodes that neither was trained on.", [card])


def _data(result: ImproveResult) -> Section:
    cards, data = [], result.data
    if data is not None:
        facts = {
            "data": data.name,
            "who succeeded is said by": data.labels,
            "episodes": f"{data.num_episodes}, {data.num_frames:,} frames",
            "succeed": str(data.num_success),
            "held out": f"{data.num_held_out}, of which {data.num_held_out_success} succeed",
            "tasks": str(data.num_tasks),
        }
        cards.append(Card("Data and labels", [Facts(facts)]))
    if result.problems:
        cards.append(Card("Problems in the data", [Notes(result.problems)], wide=True))
    return Section("Data", "What was recorded, and what says who succeeded.", cards)


def _diagnosis(plan: Plan, result: ImproveResult) -> Section:
    cards, values, recipe = [], result.values, result.recipe
    if result.data is not None:
        told = [str(finding) for finding in result.findings] or ["Nothing stands in the way."]
        cards.append(Card("What to know", [Notes(told)], wide=True))
    if values is not None:
        ranks = [one if one is None else signed(one) for one in (values.held_out, values.seen)]
        facts = {
            "rank correlation with the return, held out": ranks[0] or "constant",
            "the same, on episodes trained on": ranks[1] or "constant",
            "effective sample size of the weights": percent(round(values.effective_sample_size, 3)),
            "weight on successful episodes": percent(round(values.on_successes, 3)),
        }
        link = f"{plan.folder('diagnosis').name}/values.html"
        cards.append(Card("Values", [Facts(facts)], "The title leads to their page.", link=link))
    if recipe is not None:
        facts = {
            "method": recipe.objective,
            "because": recipe.reason,
            "control": recipe.control or "none: it would be the same",
            "what the rule follows": TABLE,
        }
        cards.append(Card("Recipe", [Facts(facts)]))
    return Section("Diagnosis", "What can be learned from these data, and how.", cards)


def _training(plan: Plan, result: ImproveResult) -> Section:
    """The policies' losses, of the trainings that are over."""
    done = {step.name for step in result.steps if step.seconds is not None}
    curves, recipe = [], result.recipe
    if recipe is None:
        return Section("Training", "", [])
    for name, method in (("train", recipe.objective), ("control", recipe.control)):
        if name not in done or method is None:
            continue
        records = read_records(plan.run(name) / METRICS_FILE)
        points = [(r.update, r.scalars["loss/policy"]) for r in records if "loss/policy" in r.scalars]
        if len(points) > 1:
            updates, losses = zip(*points, strict=True)
            curves.append(Curve(words(method), updates, losses, "policy loss"))
    if not curves:
        return Section("Training", "", [])
    keys = [(f"s{number}", curve.name, "") for number, curve in enumerate(curves)]
    chart = charts.curve_chart(curves, "Loss of the policies along their training.")
    note = "Losses of two methods are of other weights: they say whether a training has settled, not which is better."
    return Section(
        "Training",
        "Both with the same updates, episodes and seed.",
        [Card("Policy loss", [Legend(keys), chart], note)],
    )


def next_steps(plan: Plan, result: ImproveResult) -> list[str]:
    """What to do with the policy."""
    if not result.policy:
        return []
    found = [
        f"{result.policy} is the policy: load_policy reads it, and LeRobot with our plug-in; chunkrl serve --policy "
        f"{shlex.quote(result.policy)} serves it to robots (docs/deploy.md).",
    ]
    if result.recipe is not None and result.recipe.control is not None:
        recipe, control = (shlex.quote(str(plan.run(step) / POLICY)) for step in ("train", "control"))
        found.append(
            f"Which is better on the robot, with few trials: chunkrl trial recipe={recipe} control={control} --robot "
            "ROBOT.json"
        )
    found.append(
        "Each step can be repeated, or changed, by hand: the commands stand below, and a training takes another "
        "--output-dir."
    )
    return found


def _next(plan: Plan, result: ImproveResult) -> Section:
    notes = next_steps(plan, result)
    return Section("What next", "", [Card("The policy", [Notes(notes)], wide=True)] if notes else [])


def _steps(result: ImproveResult) -> Section:
    rows = [
        {
            "step": step.name,
            "command": step.command or f"left out: {step.skipped}",
            "time": Cell(
                "" if step.seconds is None else minutes(step.seconds).removeprefix("about "), step.seconds
            ),
        }
        for step in result.steps
    ]
    return Section("Steps", "", [Card("What was run", [Table(rows)], wide=True)] if rows else [])
