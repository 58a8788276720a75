"""Where the weight of a run lies: by advantage, by third of the successful episodes, over time and value."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from chunkrl.algorithms.balance import episode_steps, equal_count_bins, starts_credit
from chunkrl.algorithms.weight_spread import STARVED, THIRDS, Spread, strata_shares, weight_spread
from chunkrl.algorithms.weights import normalized
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.draws import draw_rates, rate_per_start, trained_starts
from chunkrl.report import distributions
from chunkrl.report.numbers import percent
from chunkrl.report.page import Card
from chunkrl.report.svg import NARROW, chart, element, join, text, title
from chunkrl.report.tables import Cell, Table, count_cell, rate_cell
from chunkrl.report.training_run import TrainingRun

TOP_SHARE = 0.1  # of the frames, whose part of all weight is told
TOLD_STRATA = 5
TIMES, LEVELS = 8, 4  # of the image over time and value


def collection_of(run: TrainingRun) -> ChunkCollection:
    """The run's data sets as it drew from them."""
    return ChunkCollection([part.dataset for part in run.data], run.dataset_weights or None)


def trained_column(run: TrainingRun, name: str) -> np.ndarray:
    """A label of the frames that are trained on, as the run's metrics count them: none after a success."""
    trained = trained_starts(collection_of(run))
    return run.column(name) if trained is None else run.column(name)[trained]


def _rates(data: ChunkCollection) -> np.ndarray:
    """How often each start is drawn, float [len]."""
    rates = draw_rates(data, trained_starts(data))
    return rate_per_start(rates, len(data))


def run_spread(run: TrainingRun) -> Spread | None:
    """How the weight of a run is spread; None where all starts weigh the same, or it is not known."""
    if "weight" not in run.data[0].labels:
        return _recorded_spread(run)
    if np.ptp(run.column("weight")) == 0:
        return None
    data = collection_of(run)
    rates = _rates(data)
    balanced = run.config.method.weighs and run.config.balance.kind != "none"
    credit = starts_credit(data, rates, run.config.balance) if balanced else None
    return weight_spread(run.column("weight"), data, rates, credit)


def _recorded_spread(run: TrainingRun) -> Spread | None:
    """The spread of a run that keeps no labels beside it, as one with --sample-weights."""
    weights, frames = (
        [share for name in THIRDS if (share := run.last(f"weight/{name}_third{end}")) is not None]
        for end in ("", "_frames")
    )
    if len(weights) != len(THIRDS) or len(frames) != len(THIRDS):
        return None
    (a, b, c), (d, e, f) = weights, frames
    on_successes = run.last("weight/on_successes")
    return Spread(on_successes or 0.0, (a, b, c), (d, e, f), graded=on_successes is None)


def weight_cards(run: TrainingRun) -> list[Card]:
    """The cards of a run whose starts differ in weight; none of another."""
    spread = run_spread(run)
    if spread is None:
        return []
    if not run.has_values or "weight" not in run.data[0].labels:
        return [_thirds_card(spread)]
    weight, data = run.column("weight"), collection_of(run)
    rate = _rates(data)
    cards = [
        _advantage_card(weight, run.column("advantage"), rate),
        _thirds_card(spread),
        _place_card(weight, run.column("value"), data, rate),
    ]
    if "stratum" in run.data[0].labels:
        cards.append(_strata_card(run, weight, data, rate))
    return cards


def _advantage_card(weight: np.ndarray, advantage: np.ndarray, rate: np.ndarray) -> Card:
    """How much of all weight lies on the frames of each tenth of the advantages, of those that are drawn."""
    drawn = np.flatnonzero(rate > 0)
    order = drawn[np.argsort(advantage[drawn], kind="stable")[::-1]]
    tenths = np.array_split(order, round(1 / TOP_SHARE))
    mass = rate * weight
    shares = [
        distributions.Share(
            "highest tenth" if i == 0 else "lowest tenth" if i == len(tenths) - 1 else f"{i + 1}.",
            float(mass[rows].sum() / mass.sum()),
        )
        for i, rows in enumerate(tenths)
        if len(rows)
    ]
    _, size = normalized(weight, rate)
    note = (
        f"Tenths of the frames by advantage. Effective sample size: {percent(round(size, 3))} of the frames."
    )
    summary = f"Share of all weight by tenth of the advantages; effective sample size {size:.2f}."
    return Card("Share of all weight", [distributions.share_chart(shares[:3] + shares[-1:], summary)], note)


def _thirds_card(spread: Spread) -> Card:
    """The thirds of the successful episodes, beside what cloning of the successes would give them."""
    if np.isnan(spread.frames).any():
        return Card("Weight along the episodes", [], "No episode succeeds.")
    shares = [
        distributions.Share(f"{name} third", weight, f"{percent(round(frames, 3))} of the frames")
        for name, weight, frames in zip(THIRDS, spread.thirds, spread.frames, strict=True)
    ]
    starved = f" Starved: {', '.join(spread.starved)}." if spread.starved else ""
    told = "Counted by the episodes' returns." if spread.graded else ""
    if not spread.graded or spread.on_successes > 0:
        told = f"{percent(round(spread.on_successes, 3))} of all weight lies on successful episodes. {told}".rstrip()
    note = f"{told}{starved}"
    summary = "; ".join(f"{one.label} {percent(round(one.share, 3))} of the weight" for one in shares)
    name = "Weight along the episodes" if spread.graded else "Weight along successful episodes"
    return Card(name, [distributions.share_chart(shares, summary)], note)


def _strata_card(run: TrainingRun, weight: np.ndarray, data: ChunkCollection, rate: np.ndarray) -> Card:
    """The strata of successes in which the fewest starts carry the weight."""
    index, value = run.column("stratum"), run.column("value")
    step, task = episode_steps(data)[0], np.asarray(data.task)
    found = strata_shares(weight, index, rate, starts_credit(data, rate, run.config.balance))
    good = np.flatnonzero(found.successes > 0)
    rows = []
    for stratum in good[np.argsort(found.size[good], kind="stable")][:TOLD_STRATA]:
        own = np.flatnonzero((index == stratum) & (rate > 0))
        rows.append(
            {
                "task": Cell(data.tasks[int(task[own[0]])]),
                "steps": Cell(f"{step[own].min()} to {step[own].max()}", int(step[own].min())),
                "held-out value": Cell(
                    f"{value[own].min():.2f} to {value[own].max():.2f}", float(value[own].min())
                ),
                "starts": count_cell(len(own)),
                "of all weight": rate_cell(round(float(found.weight[stratum]), 3)),
                "effective sample size": rate_cell(round(float(found.size[stratum]), 3)),
            }
        )
    note = f"Those of the {len(good)} strata with successes in which the fewest starts carry the weight."
    return Card("Strata", [Table(rows)], note, wide=True)


def _place_card(weight: np.ndarray, value: np.ndarray, data: ChunkCollection, rate: np.ndarray) -> Card:
    """A grid over time and held-out value: the share of the weight, marked where it is below the successes' share."""
    step, length = episode_steps(data)
    time = np.minimum(TIMES * step // np.maximum(length, 1), TIMES - 1)
    level = equal_count_bins(value, rate, LEVELS)
    place = level * TIMES + time
    good = rate * np.asarray(data.success)
    shares, due = (
        np.bincount(place, weights=mass, minlength=TIMES * LEVELS) / max(mass.sum(), 1e-300)
        for mass in (rate * weight, good)
    )
    note = (
        "Across: from the beginning of the episode to its end or success. Upwards: quarters of the held-out values. "
        f"Numbers: per cent of all weight; outlined: less than {percent(STARVED)} of what the successful episodes' "
        "frames there would have."
    )
    return Card("Weight over time and value", [place_chart(shares, due)], note)


def place_chart(shares: np.ndarray, due: np.ndarray) -> Markup:
    """shares, due: float [LEVELS * TIMES], of all weight, and of the frames of successful episodes."""
    cell, gap, top = NARROW / TIMES, 3, 4
    parts = []
    for number, (share, fair) in enumerate(zip(shares.tolist(), due.tolist(), strict=True)):
        x, y = (number % TIMES) * cell, top + (LEVELS - 1 - number // TIMES) * cell
        words = (
            f"{percent(round(share, 3))} of the weight, {percent(round(fair, 3))} of the successes' frames"
        )
        box = {"x": x + gap / 2, "y": y + gap / 2, "width": cell - gap, "height": cell - gap, "rx": 4}
        parts.append(
            element(
                "g",
                title(words)
                + element("rect", **box, class_="track")
                + element(
                    "rect",
                    **box,
                    class_="bar strong",
                    fill_opacity=min(0.75, share / max(shares.max(), 1e-9)),
                )
                + (element("rect", **box, class_="starved") if share < STARVED * fair else Markup(""))
                + text(
                    x + cell / 2, y + cell / 2 + 4, f"{100 * share:.1f}", class_="tick", text_anchor="middle"
                ),
            )
        )
    summary = "Share of the weight over time and value."
    return chart(top + LEVELS * cell, join(parts), summary, NARROW)
