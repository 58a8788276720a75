"""Sections that the comparison of policies and the report of a training run have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from chunkrl.report import charts
from chunkrl.report.numbers import compact
from chunkrl.report.page import Card, Facts, Legend, Section
from chunkrl.report.records import Curve, EpisodeTrace
from chunkrl.report.svg import span


def trace_section(traces: Sequence[EpisodeTrace], hint: str = "") -> Section:
    """Value and advantage along episodes; those of one task share their axes. hint: more to say above them."""
    cards = []
    for task in dict.fromkeys(trace.task for trace in traces):
        group = [trace for trace in traces if trace.task == task]
        num_frames = max(len(trace.value) for trace in group)
        values = span([v for trace in group for v in trace.value], pad=0.06)
        advantages = span([v for trace in group for v in trace.advantage], pad=0.06, include=0.0)
        for trace in group:
            outcome = ("good", "success") if trace.success else ("bad", "failure")
            known = trace.value[np.isfinite(trace.value)]
            summary = (
                f"{trace.title}, {outcome[1]}: value {known[0]:.2f} at first, {known[-1]:.2f} at "
                f"the end of {len(trace.value)} frames; advantage positive on {(trace.advantage > 0).sum()}."
            )
            chart = charts.trace_chart(trace, num_frames, values, advantages, summary)
            shades = [
                (f"shade{i % charts.NUM_SHADES}", label, "")
                for i, label in enumerate(charts.segment_labels(trace))
            ]
            parts = [chart, Legend(shades)]
            cards.append(Card(f"{task}: {trace.title}", parts, trace.notes, outcome, link=trace.link))
    lead = (
        "Value and advantage along recorded episodes, from networks that never saw them; one task's episodes "
        "share their axes. Bars above 0 (green): better than expected from here; below (red): worse."
    )
    return Section("What the critic sees", f"{lead} {hint}".rstrip(), cards)


def curve_section(curves: Sequence[Curve], once: Mapping[str, str]) -> Section:
    """A card for every panel of the curves, and one for `once`: names and values of what was recorded once."""
    cards = [Card("Losses, recorded once", [Facts(once)])] if once else []
    for panel in dict.fromkeys(curve.panel for curve in curves):
        group = [curve for curve in curves if curve.panel == panel]
        keys = [(f"s{i % charts.NUM_SERIES_COLOURS}", c.name, last_value(c)) for i, c in enumerate(group)]
        broken = [c.name for c in group if not np.isfinite(c.points[1]).all()]
        note = f"Not finite somewhere: {', '.join(broken)}." if broken else ""
        summary = f"{panel}. " + "; ".join(f"{curve.name} ends at {last_value(curve)}" for curve in group)
        cards.append(Card(panel, [Legend(keys), charts.curve_chart(group, summary)], note))
    lead = (
        "The number beside a name is its last value. Where rank correlations on training and on held-out "
        "episodes stand together, the gap is what the critic memorised."
    )
    return Section("Training", lead, cards, "grid small")


def last_value(curve: Curve) -> str:
    """The value at the largest x, as it is: one that is not finite is said."""
    last = float(curve.points[1][-1])
    return compact(float(f"{last:.3g}")) if math.isfinite(last) else "not finite"
