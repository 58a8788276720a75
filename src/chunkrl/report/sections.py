"""Cards and sections that the comparison of policies and the report of a training run have in common."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from chunkrl.evaluation.results import Curve, EpisodeTrace
from chunkrl.report import charts
from chunkrl.report.page import card, section
from chunkrl.report.svg import compact, span


def trace_section(traces: Sequence[EpisodeTrace], hint: str = "") -> str:
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
            chart += legend(
                [
                    (f"shade{i % charts.NUM_SHADES}", label, "")
                    for i, label in enumerate(charts.segment_labels(trace))
                ]
            )
            cards.append(card(f"{task}: {trace.title}", chart, trace.notes, outcome, link=trace.link))
    lead = (
        "Value and advantage along recorded episodes, from networks that never saw them; one task's episodes "
        "share their axes. Bars above 0 (green): better than expected from here; below (red): worse."
    )
    return section("What the critic sees", f"{lead} {hint}".rstrip(), cards)


def curve_section(curves: Sequence[Curve], once: Mapping[str, str]) -> str:
    """A card for every panel of the curves, and one for `once`: names and values of what was recorded once."""
    cards = [facts_card("Losses, recorded once", once)] if once else []
    for panel in dict.fromkeys(curve.panel for curve in curves):
        group = [curve for curve in curves if curve.panel == panel]
        keys = [(f"s{i % charts.NUM_SERIES_COLOURS}", c.name, last_value(c)) for i, c in enumerate(group)]
        broken = [c.name for c in group if not np.isfinite(c.points[1]).all()]
        note = f"Not finite somewhere: {', '.join(broken)}." if broken else ""
        summary = f"{panel}. " + "; ".join(f"{curve.name} ends at {last_value(curve)}" for curve in group)
        cards.append(card(panel, legend(keys) + charts.curve_chart(group, summary), note))
    lead = (
        "The number beside a name is its last value. Where rank correlations on training and on held-out "
        "episodes stand together, the gap is what the critic memorised."
    )
    return section("Training", lead, cards, "grid small")


def legend(keys: Sequence[tuple[str, str, str]]) -> str:
    """Keys (class of the swatch, name, value), or nothing where there are none."""
    items = "".join(
        f'<li><span class="key {swatch}"></span>{escape(name)} <b>{value}</b></li>'
        for swatch, name, value in keys
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def facts_card(title: str, facts: Mapping[str, str], wide: bool = False) -> str:
    """Short names and values, side by side."""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return card(title, f"<dl>{items}</dl>", wide=wide)


def notes_card(notes: Sequence[str], wide: bool = False) -> str:
    """Sentences a reader needs to judge the numbers."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return card("Read with care", f'<ul class="notes">{items}</ul>', wide=wide)


def video(content: bytes, mime: str, label: str) -> str:
    """A video within the page, with its spoken name."""
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<video controls loop muted autoplay playsinline aria-label="{escape(label)}">'
        f'<source src="data:{escape(mime)};base64,{data}" type="{escape(mime)}"></video>'
    )


def words(name: str) -> str:
    """An identifier as words."""
    return name.replace("_", " ")


def signed(value: float, decimals: int = 3) -> str:
    """A number with its sign: +0.250, −0.031."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def percent(fraction: float) -> str:
    """A rate without decimals where it has none, else with one: 81 %, 66.7 %."""
    return f"{100 * fraction:.1f}".removesuffix(".0") + " %"


def last_value(curve: Curve) -> str:
    """The value at the largest x, as it is: one that is not finite is said."""
    last = float(curve.points[1][-1])
    return compact(float(f"{last:.3g}")) if math.isfinite(last) else "not finite"
