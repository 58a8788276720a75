"""Charts of distributions: histograms, calibration, shares, grids of initial states. As `charts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from chunkrl.algorithms.value_quality import Calibration
from chunkrl.report.numbers import compact, percent, shorten, tick_labels
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
    span,
    text,
    title,
    y_axis,
)
from chunkrl.training.algorithm import Histogram

_IN_A_ROW = 25  # squares of a grid of states


@dataclass(frozen=True)
class Share:
    """A labelled part of the whole (a fraction), and what else to say of it."""

    label: str
    share: float
    detail: str = ""


def histogram_chart(histogram: Histogram, x_label: str, summary: str, by_sign: bool = False) -> Markup:
    """Columns; `by_sign` colours those above 0 good and those below 0 bad."""
    top, bottom, height, right = 10, 190, 228, NARROW - RIGHT
    edges = histogram.edges
    x_range = Range(edges[0], edges[-1])
    counts = Range(0, max(1, *histogram.counts) * 1.04)
    parts = [y_axis(counts, top, bottom, right, whole=True)]
    for count, low, high in zip(histogram.counts, edges, edges[1:], strict=False):
        if not count:
            continue
        left, width = x_range.scale(low, LEFT, right), (high - low) / (edges[-1] - edges[0]) * (right - LEFT)
        y = counts.scale(count, bottom, top)
        kind = ("good" if low + high > 0 else "bad") if by_sign else "plain"
        column = element(
            "rect",
            x=left + 0.5,
            y=y,
            width=max(width - 1, 0.5),
            height=bottom - y,
            class_=f"bar {kind}",
        )
        parts.append(element("g", title(f"{compact(low)} to {compact(high)}: {count}") + column))
    if x_range.low < 0 < x_range.high:
        parts.append(element("path", d=f"M{x_range.scale(0, LEFT, right):.1f} {top}V{bottom}", class_="zero"))
    parts.append(_x_axis(x_range, bottom, height, right, x_label))
    return chart(height, join(parts), summary, NARROW)


def calibration_chart(found: Calibration, summary: str) -> Markup:
    """Mean return over mean value of every bin, beside the line on which they are equal."""
    top, bottom, height, right = 10, 250, 288, NARROW - RIGHT
    both = span([*found.predicted, *found.actual], pad=0.06)
    corners = [(both.scale(v, LEFT, right), both.scale(v, bottom, top)) for v in (both.low, both.high)]
    parts = [
        y_axis(both, top, bottom, right, num_ticks=6),
        element(
            "path", d="M{:.1f} {:.1f}L{:.1f} {:.1f}".format(*corners[0], *corners[1]), class_="zero dashed"
        ),
    ]
    points = [
        (both.scale(float(x), LEFT, right), both.scale(float(y), bottom, top))
        for x, y in zip(found.predicted, found.actual, strict=True)
    ]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    parts.append(element("path", d=f"M{path}", class_="line s0"))
    for (x, y), predicted, actual, count in zip(
        points, found.predicted, found.actual, found.counts, strict=True
    ):
        words = f"value {predicted:.3f}, return {actual:.3f}, {count} frames"
        circle = element("circle", cx=x, cy=y, r=5, class_="dot s0")
        parts.append(element("g", title(words) + circle))
    parts.append(_x_axis(both, bottom, height, right, "value (upwards: mean return)"))
    return chart(height, join(parts), summary, NARROW)


def share_chart(shares: Sequence[Share], summary: str) -> Markup:
    """Shares of the whole as horizontal bars, each with its detail."""
    pitch, bar, top = 46, 14, 4
    whole = Range(0, 1)
    parts = []
    for number, one in enumerate(shares):
        y = top + number * pitch
        numbers = percent(one.share) + (f" · {one.detail}" if one.detail else "")
        parts.append(
            element(
                "g",
                title(f"{one.label}: {numbers}")
                + text(0, y + 13, shorten(one.label, 22), class_="label plain")
                + text(NARROW, y + 13, numbers, class_="number plain", text_anchor="end")
                + element("rect", x=0, y=y + 20, width=NARROW, height=bar, rx=4, class_="track")
                + element(
                    "rect",
                    x=0,
                    y=y + 20,
                    width=whole.scale(one.share, 0, NARROW),
                    height=bar,
                    rx=4,
                    class_="bar strong",
                ),
            )
        )
    return chart(top + len(shares) * pitch, join(parts), summary, NARROW)


def _x_axis(axis: Range, bottom: float, height: float, right: float, label: str) -> Markup:
    numbers = nice_ticks(axis, 6)
    ticks = join(
        text(axis.scale(tick, LEFT, right), bottom + 16, label, class_="tick", text_anchor="middle")
        for tick, label in zip(numbers, tick_labels(numbers), strict=True)
    )
    return ticks + text((LEFT + right) / 2, height - 3, label, class_="tick", text_anchor="middle")


@dataclass(frozen=True)
class Square:
    """A state. share: of its episodes, those that succeed, 0 to 1. told: what the pointer shows. link: its video's
    address within the page, or ""."""

    share: float
    told: str
    link: str = ""


def state_grid(squares: Sequence[Square], summary: str) -> Markup:
    """The states in order, 25 per row: green where all episodes succeed, red where none does, grey between."""
    pitch = WIDTH / _IN_A_ROW
    drawn = []
    for i, square in enumerate(squares):
        kind = {1.0: "good", 0.0: "bad"}.get(square.share, "open")
        box = element(
            "rect",
            title(square.told),
            x=i % _IN_A_ROW * pitch + 1.5,
            y=i // _IN_A_ROW * pitch + 1.5,
            width=pitch - 3,
            height=pitch - 3,
            rx=3,
            class_=f"bar {kind}" + (" has-video" if square.link else ""),
        )
        drawn.append(element("a", box, href=square.link) if square.link else box)
    return chart(-(-len(squares) // _IN_A_ROW) * pitch, join(drawn), summary)
