"""An episode's curves as the report draws them, and where each step is in the drawing, for the page's cursor."""

from __future__ import annotations

from typing import Any

import numpy as np

from chunkrl.browser.values import Values
from chunkrl.label.marks import EpisodeMarks
from chunkrl.report.charts import NUM_SERIES_COLOURS, curve_chart, trace_chart
from chunkrl.report.page import Legend
from chunkrl.report.records import Curve, EpisodeTrace, Segment
from chunkrl.report.svg import LEFT, NARROW, RIGHT, WIDTH, span


def value_chart(values: Values, marks: EpisodeMarks, rows: slice) -> dict[str, Any]:
    """Value and advantage along an episode; steps without any are left out. Axes are those of the whole data set."""
    known, length = values.known[rows], rows.stop - rows.start
    trace = EpisodeTrace(
        task="",
        title="value and advantage",
        success=bool(marks.success),
        value=np.where(known, values.value[rows], np.nan),
        advantage=np.where(known, values.advantage[rows], np.nan),
        segments=tuple(Segment(first, last + 1, "human") for first, last in marks.human),
    )
    of_all = values.advantage[values.known]
    drawn = trace_chart(
        trace,
        length,
        span([values.low, values.high], pad=0.06),
        span([float(of_all.min()), float(of_all.max())], pad=0.06, include=0.0),
        "value and advantage at every step",
    )
    # a step's middle, as in `trace_chart`
    step = (WIDTH - RIGHT - LEFT) / length
    return _told("value", "Value and advantage", drawn, "", LEFT + step / 2, WIDTH - RIGHT - step / 2)


def curve_charts(name: str, values: np.ndarray, names: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """The entries of a vector float [T, D] along an episode, as many in a chart as there are colours."""
    steps, charts = np.arange(len(values)), []
    for first in range(0, values.shape[1], NUM_SERIES_COLOURS):
        chosen = range(first, min(first + NUM_SERIES_COLOURS, values.shape[1]))
        titles = [str(names[i]) if names else f"{name} {i}" for i in chosen]
        curves = [
            Curve(title, steps, values[:, i], panel=name, x_label="step")
            for i, title in zip(chosen, titles, strict=True)
        ]
        legend = Legend([(f"s{i}", title, "") for i, title in enumerate(titles)]).__html__()
        drawn = curve_chart(curves, f"{name}: {', '.join(titles)}")
        title = f"{name} {first} to {chosen[-1]}" if values.shape[1] > NUM_SERIES_COLOURS else name
        charts.append(_told(name, title, drawn, legend, LEFT, NARROW - RIGHT))
    return charts


def _told(kind: str, title: str, drawn: str, legend: str, first: float, last: float) -> dict[str, Any]:
    """first, last: where the episode's first and last step are, in the drawing's units."""
    return {
        "kind": kind,
        "title": title,
        "svg": str(drawn),
        "legend": str(legend),
        "first": first,
        "last": last,
    }
