"""Success against steps over training seeds: intervals, a table and an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from chunkrl.report.numbers import compact
from chunkrl.report.svg import Range, element, join, nice_ticks, polyline, text
from chunkrl.statistics import Interval, SeedDifference, bootstrap_over_seeds

_COLOURS = ("#1f6feb", "#d4622a", "#6b7280", "#2e8b57")
_WIDTH, _HEIGHT = 720.0, 380.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 24.0, 40.0, 300.0


@dataclass(frozen=True)
class SuccessCurve:
    """name: of the arm. steps: environment steps (or what they would be) at each point, ascending.
    success: one array a point, bool [seeds, states]; the same states at all points and in all arms."""

    name: str
    steps: Sequence[int]
    success: Sequence[np.ndarray]

    def rate(self, point: int) -> tuple[float, Interval]:
        """Mean over seeds and states, and its interval: bootstrap over seeds, then states."""
        found = bootstrap_over_seeds(self.success[point], np.zeros_like(self.success[point]))
        return found.difference, found.interval


def difference(ours: SuccessCurve, theirs: SuccessCurve) -> SeedDifference:
    """Of the last points, paired by seed and state."""
    return bootstrap_over_seeds(ours.success[-1], theirs.success[-1])


def _points(rate: float) -> str:
    return f"{100 * rate:+.1f}"


def table(curves: Sequence[SuccessCurve]) -> str:
    """Markdown: an arm a row, a point a column; then the differences at the last point."""
    steps = curves[0].steps
    lines = [
        "| arm | " + " | ".join(f"{count} steps" for count in steps) + " |",
        "|---|" + "---|" * len(steps),
    ]
    for curve in curves:
        cells = []
        for point, success in enumerate(curve.success):
            rate, interval = curve.rate(point)
            seeds = " ".join(f"{value:.2f}".removeprefix("0") for value in success.mean(axis=1))
            cells.append(f"**{rate:.2f}** [{interval.low:.2f}, {interval.high:.2f}] ({seeds})")
        lines.append(f"| {curve.name} | " + " | ".join(cells) + " |")
    lines += ["", "| at the end, points | difference |", "|---|---|"]
    for i, ours in enumerate(curves):
        for theirs in curves[i + 1 :]:
            found = difference(ours, theirs)
            low, high = found.interval.low, found.interval.high
            lines.append(
                f"| {ours.name} minus {theirs.name} | {_points(found.difference)} [{_points(low)}, {_points(high)}] |"
            )
    return "\n".join(lines)


def picture(curves: Sequence[SuccessCurve], title: str, marks: Mapping[str, str] | None = None) -> str:
    """A standalone SVG: lines of means, bands of intervals. marks: arm -> what else to say of it in the legend."""
    x_axis = Range(0.0, float(max(curve.steps[-1] for curve in curves)))
    y_axis = Range(0.0, 1.0)
    parts = [element("rect", x=0, y=0, width=_WIDTH, height=_HEIGHT, fill="#ffffff")]
    parts.append(text(_LEFT, 22, title, font_size=15, fill="#111827", font_weight="600"))
    right = _WIDTH - _RIGHT
    for tick in nice_ticks(y_axis, 5):
        y = y_axis.scale(tick, _BOTTOM, _TOP)
        parts.append(element("path", d=f"M{_LEFT} {y:.1f}H{right}", stroke="#e5e7eb", fill="none"))
        parts.append(text(_LEFT - 8, y + 4, f"{tick:.0%}", font_size=12, fill="#4b5563", text_anchor="end"))
    for tick in nice_ticks(x_axis, 6):
        x = x_axis.scale(tick, _LEFT, right)
        parts.append(text(x, _BOTTOM + 18, compact(tick), font_size=12, fill="#4b5563", text_anchor="middle"))
    label = "environment steps (offline only: the same number of updates)"
    parts.append(
        text((_LEFT + right) / 2, _BOTTOM + 36, label, font_size=12, fill="#4b5563", text_anchor="middle")
    )
    for i, curve in enumerate(curves):
        parts.append(_line(curve, _COLOURS[i % len(_COLOURS)], x_axis, y_axis, right))
        x = _LEFT + i * 225
        parts.append(element("rect", x=x, y=_HEIGHT - 28, width=14, height=4, fill=_COLOURS[i]))
        said = curve.name + (f" ({marks[curve.name]})" if marks and curve.name in marks else "")
        parts.append(text(x + 20, _HEIGHT - 22, said, font_size=12, fill="#111827"))
    content = join(parts)
    namespace = "http://www.w3.org/2000/svg"
    return (
        element(
            "svg",
            content,
            xmlns=namespace,
            viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
            width=_WIDTH,
            height=_HEIGHT,
            font_family="system-ui, sans-serif",
        )
        + "\n"
    )


def _line(curve: SuccessCurve, colour: str, x_axis: Range, y_axis: Range, right: float) -> Markup:
    rates = [curve.rate(point) for point in range(len(curve.steps))]
    xs = [x_axis.scale(count, _LEFT, right) for count in curve.steps]

    def place(value: float) -> float:
        return y_axis.scale(value, _BOTTOM, _TOP)

    upper = [(x, place(interval.high)) for x, (_, interval) in zip(xs, rates, strict=True)]
    lower = [(x, place(interval.low)) for x, (_, interval) in zip(xs, rates, strict=True)]
    middle = [(x, place(rate)) for x, (rate, _) in zip(xs, rates, strict=True)]
    band = element("path", d=polyline([*upper, *reversed(lower)]) + "Z", fill=colour, fill_opacity=0.13)
    line = element("path", d=polyline(middle), stroke=colour, stroke_width=2.5, fill="none")
    dots = join(element("circle", cx=x, cy=y, r=3.5, fill=colour) for x, y in middle)
    return element("g", band + line + dots)
