"""Inline SVG charts for the report: plain functions from numbers to markup.

Every chart is drawn in a fixed coordinate system that scales with its card (two or three cards beside each
other on a wide screen: `WIDTH` or `NARROW` units, so that text keeps its size), takes its
colours from the page's style sheet (so light and dark need no second drawing), and carries a spoken summary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from chunkrl.report.numbers import shorten, signed_points, tick_labels
from chunkrl.report.records import Curve, EpisodeTrace
from chunkrl.report.svg import (
    LEFT,
    NARROW,
    RIGHT,
    WIDTH,
    Range,
    chart,
    element,
    join,
    nice_ticks,
    polyline,
    sign_class,
    span,
    text,
    title,
    whisker,
    y_axis,
)
from chunkrl.statistics import Interval

_MAX_POINTS = 240  # of a drawn curve: about two per pixel column of a card
NUM_SERIES_COLOURS = 6  # that the style sheet has (s0 to s5)
NUM_SHADES = 4  # likewise (shade0 to shade3)


@dataclass(frozen=True)
class Row:
    """One row of a bar or difference chart; `value` and `interval` are fractions.

    `text` are its numbers in short, `detail` (of a difference) what stands beside them. `link` (of a bar): where its
    name leads within the page.
    """

    label: str
    value: float
    interval: Interval
    text: str
    emphasised: bool = False
    detail: str = ""
    link: str = ""


def bar_chart(rows: Sequence[Row], summary: str) -> Markup:
    """Success rates as horizontal bars on 0 to 100 %, each with the whisker of its interval."""
    pitch, bar, top = 46, 16, 4
    parts = []
    for i, row in enumerate(rows):
        y = top + i * pitch
        axis = Range(0, 1)
        low, high = (axis.scale(end, 0, WIDTH) for end in (row.interval.low, row.interval.high))
        middle = y + 20 + bar / 2
        kind = "strong" if row.emphasised else "plain"
        label = text(0, y + 13, shorten(row.label, 40), class_=f"label {kind}")
        marks = (
            (element("a", label, href=row.link) if row.link else label)
            + text(WIDTH, y + 13, row.text, class_=f"number {kind}", text_anchor="end")
            + element("rect", x=0, y=y + 20, width=WIDTH, height=bar, rx=4, class_="track")
            + element(
                "rect",
                x=0,
                y=y + 20,
                width=axis.scale(row.value, 0, WIDTH),
                height=bar,
                rx=4,
                class_=f"bar {kind}",
            )
            + element("path", d=whisker(low, high, middle, 5), class_="whisker")
        )
        parts.append(element("g", title(f"{row.label}: {row.text}") + marks))
    height = top + len(rows) * pitch + 14
    ticks = join(
        text(
            Range(0, 1).scale(tick, 0, WIDTH),
            height - 2,
            f"{tick:.0%}".replace("%", " %"),
            class_="tick",
            text_anchor="start" if tick == 0 else "end" if tick == 1 else "middle",
        )
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    return chart(height, join(parts) + ticks, summary)


def difference_chart(rows: Sequence[Row], axis: Range, summary: str) -> Markup:
    """Differences and intervals against a line at 0; `axis` in fractions, shared by charts to compare."""
    pitch, top = 72, 4
    left, right = 8.0, NARROW - 8.0
    zero = axis.scale(0, left, right)
    bottom = top + len(rows) * pitch
    parts = []
    for i, row in enumerate(rows):
        y = top + i * pitch
        low, high = (axis.scale(end, left, right) for end in (row.interval.low, row.interval.high))
        middle = y + 49
        sign = sign_class(row.interval)
        parts.append(
            element(
                "g",
                title(f"{row.label}: {row.text}")
                + text(0, y + 14, shorten(row.label, 46), class_="label plain")
                + text(0, y + 33, row.text, class_="number strong")
                + text(NARROW, y + 33, row.detail, class_="tick", text_anchor="end")
                + element("path", d=f"M{left} {middle}H{right}", class_="rail")
                + element("path", d=f"M{zero:.1f} {middle - 10}V{middle + 10}", class_="zero")
                + element("path", d=whisker(low, high, middle, 6), class_=f"interval {sign}")
                + element(
                    "circle", cx=axis.scale(row.value, left, right), cy=middle, r=6, class_=f"dot {sign}"
                ),
            )
        )
    numbers = nice_ticks(axis, 5)
    ticks = join(
        text(axis.scale(tick, left, right), bottom + 12, label, class_="tick", text_anchor="middle")
        for tick, label in zip(numbers, tick_labels(numbers, signed_points), strict=True)
        if left + 14 < axis.scale(tick, left, right) < right - 14
    )
    return chart(bottom + 16, join(parts) + ticks, summary, NARROW)


def curve_chart(curves: Sequence[Curve], summary: str) -> Markup:
    """The curves of one panel on common axes; a long curve is drawn as means of `_MAX_POINTS` stretches."""
    top, bottom, height, right = 10, 190, 228, NARROW - RIGHT
    drawn = [_thinned(curve) for curve in curves]
    x_axis = span([float(x) for xs, _ in drawn for x in xs], pad=0)
    y_range = span([float(y) for _, ys in drawn for y in ys if math.isfinite(y)], pad=0.06)
    parts = [y_axis(y_range, top, bottom, right)]
    ticks = nice_ticks(x_axis, 4)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        x = x_axis.scale(tick, LEFT, right)
        anchor = "end" if x > right - 14 else "middle"
        parts.append(text(x, bottom + 16, label, class_="tick", text_anchor=anchor))
    parts.append(text((LEFT + right) / 2, height - 3, curves[0].x_label, class_="tick", text_anchor="middle"))
    for i, (curve, (xs, ys)) in enumerate(zip(curves, drawn, strict=True)):
        colour = f"s{i % NUM_SERIES_COLOURS}"
        points = [
            (x_axis.scale(x, LEFT, right), y_range.scale(y, bottom, top)) for x, y in zip(xs, ys, strict=True)
        ]
        last = next((p for p in reversed(points) if math.isfinite(p[1])), None)
        marks = title(curve.name) + element("path", d=polyline(points), class_=f"line {colour}")
        if last is not None:
            marks += element("circle", cx=last[0], cy=last[1], r=3.5, class_=f"dot {colour}")
        parts.append(element("g", marks))
    return chart(height, join(parts), summary, NARROW)


def trace_chart(
    trace: EpisodeTrace, num_frames: int, values: Range, advantages: Range, summary: str
) -> Markup:
    """Value (line) over advantage (bars by sign) along one episode; axes shared by traces to compare.

    num_frames: length of the common horizontal axis, at least the trace's own length.
    """
    value_top, value_bottom = 22, 118
    adv_top, adv_bottom = 150, 236
    right = WIDTH - RIGHT
    step = (right - LEFT) / num_frames
    parts = [
        text(LEFT, 12, "value V", class_="axis-title"),
        y_axis(values, value_top, value_bottom, right, num_ticks=3),
        text(LEFT, 142, "advantage A", class_="axis-title"),
        y_axis(advantages, adv_top, adv_bottom, right, num_ticks=4),
    ]
    centres = [
        (LEFT + (t + 0.5) * step, values.scale(float(v), value_bottom, value_top))
        for t, v in enumerate(trace.value)
    ]
    parts.append(element("path", d=polyline(centres), class_="line s0"))
    zero = advantages.scale(0, adv_bottom, adv_top)
    parts.append(element("path", d=f"M{LEFT} {zero:.1f}H{right}", class_="zero"))
    for sign, chosen in (("good", trace.advantage > 0), ("bad", trace.advantage < 0)):
        bars = "".join(
            f"M{LEFT + (t + 0.5) * step:.1f} {zero:.1f}"
            f"V{advantages.scale(float(trace.advantage[t]), adv_bottom, adv_top):.1f}"
            for t in np.flatnonzero(chosen)
        )
        if bars:
            parts.append(element("path", d=bars, class_=f"bars {sign}", stroke_width=max(step * 0.8, 0.6)))
    y = adv_bottom + 10
    if trace.segments:
        parts.append(_segment_band(trace, step, y))
        y += 18
    ticks = nice_ticks(Range(0, num_frames), 5, whole=True)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(text(LEFT + tick * step, y + 10, label, class_="tick", text_anchor="middle"))
    parts.append(text(LEFT - 8, y + 10, "frame", class_="tick", text_anchor="end"))
    parts.append(_frame_hints(trace, step, value_top, adv_bottom))
    return chart(y + 14, join(parts), summary)


def segment_labels(trace: EpisodeTrace) -> list[str]:
    """The distinct labels of a trace's segments, in the order of their shades."""
    return sorted({segment.label for segment in trace.segments})


def _segment_band(trace: EpisodeTrace, step: float, y: float) -> Markup:
    """Stretches under the traces; equal labels share a shade."""
    labels = segment_labels(trace)
    parts = []
    for segment in trace.segments:
        x, width = LEFT + segment.start * step, (segment.stop - segment.start) * step
        shade = f"shade{labels.index(segment.label) % NUM_SHADES}"
        marks = title(segment.label) + element(
            "rect", x=x + 0.5, y=y, width=max(width - 1, 0.5), height=12, rx=3, class_=shade
        )
        parts.append(element("g", marks))
    return join(parts)


def _frame_hints(trace: EpisodeTrace, step: float, top: float, bottom: float) -> Markup:
    """Invisible columns whose titles give a frame's numbers under the pointer."""
    return join(
        element(
            "rect",
            title(f"frame {t}: V {value:.3f}, A {advantage:+.3f}"),
            x=LEFT + t * step,
            y=top,
            width=step,
            height=bottom - top,
            class_="hint",
        )
        for t, (value, advantage) in enumerate(zip(trace.value, trace.advantage, strict=True))
        if math.isfinite(value) and math.isfinite(advantage)
    )


def _thinned(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve in order of x, as means of stretches where it is long; a non-finite y spoils its stretch."""
    x, y = curve.points
    if len(x) <= _MAX_POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(x)), _MAX_POINTS)
    return np.array([x[s].mean() for s in stretches]), np.array([y[s].mean() for s in stretches])


@dataclass(frozen=True)
class RateSeries:
    """Success rates at whole numbers (rounds), each with its interval; all fractions.

    marked: the number whose point is drawn as the chosen one, or None.
    """

    name: str
    points: Sequence[tuple[int, float, Interval]]
    marked: int | None = None


def rate_chart(series: Sequence[RateSeries], x_label: str, summary: str) -> Markup:
    """Success rates over rounds on 0 to 100 %, with upright whiskers; series stand a little beside each other."""
    top, bottom, height, right = 10, 220, 258, WIDTH - RIGHT
    numbers = sorted({x for one in series for x, _, _ in one.points})
    x_axis, rates = Range(numbers[0] - 0.4, numbers[-1] + 0.4), Range(0, 1)
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = rates.scale(tick, bottom, top)
        parts.append(element("path", d=f"M{LEFT} {y:.1f}H{right}", class_="grid-line"))
        parts.append(text(LEFT - 6, y + 4, f"{100 * tick:.0f} %", class_="tick", text_anchor="end"))
    for number in numbers:
        x = x_axis.scale(number, LEFT, right)
        parts.append(text(x, bottom + 16, str(number), class_="tick", text_anchor="middle"))
    parts.append(text((LEFT + right) / 2, height - 3, x_label, class_="tick", text_anchor="middle"))
    for i, one in enumerate(series):
        shift = 9 * (i - (len(series) - 1) / 2)
        parts.append(_rate_marks(one, f"s{i % NUM_SERIES_COLOURS}", shift, x_axis, (bottom, top)))
    return chart(height, join(parts), summary)


def _rate_marks(
    series: RateSeries, colour: str, shift: float, x_axis: Range, ends: tuple[float, float]
) -> Markup:
    """Line, whiskers and points of one series, moved sideways by `shift`; ends: coordinates of 0 and 1."""
    rates, right = Range(0, 1), WIDTH - RIGHT
    places = [
        (x_axis.scale(x, LEFT, right) + shift, rates.scale(rate, *ends)) for x, rate, _ in series.points
    ]
    marks = element("path", d=polyline(places), class_=f"line {colour}")
    for (x, y), (number, rate, interval) in zip(places, series.points, strict=True):
        low, high = (rates.scale(end, *ends) for end in (interval.low, interval.high))
        told = f"{series.name}, {number}: {100 * rate:.1f} %, {100 * interval.low:.1f} to {100 * interval.high:.1f} %"
        whiskers = f"M{x - 3:.1f} {low:.1f}h6M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {high:.1f}h6"
        point = element("path", d=whiskers, class_="whisker")
        if number == series.marked:
            point += element("circle", cx=x, cy=y, r=8, class_=f"line {colour}")
        point += element("circle", cx=x, cy=y, r=4, class_=f"dot {colour}")
        marks += element("g", title(told) + point)
    return element("g", marks)
