"""SVG primitives: elements, axes and ticks. What is not `Markup` is escaped here.

Libraries considered: matplotlib (102 MB, 2.9 s to start, 185 ms and 18 kB a curve, colours that cannot follow
light and dark; here 5 ms and 3.5 kB), altair (22 MB, needs a script of its own in the page) and plotly (76 MB, 4.8
MB of script a page).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from chunkrl.report.numbers import tick_labels
from chunkrl.statistics import Interval

WIDTH = 520  # of a chart, two beside each other on a wide screen
NARROW = 360  # three beside each other
LEFT, RIGHT = 46, 14  # margins of charts with a vertical axis


@dataclass(frozen=True)
class Range:
    """The low and high end of an axis, low < high."""

    low: float
    high: float

    def scale(self, value: float, start: float, stop: float) -> float:
        """Where `value` lies between the coordinates start (low) and stop (high)."""
        return start + (value - self.low) / (self.high - self.low) * (stop - start)


def element(tag: str, content: str = "", **attributes: object) -> Markup:
    """One XML element; `_` in an attribute's name stands for `-`, a trailing one is dropped.

    Values are escaped, and so is `content` unless it is `Markup`, as every element is.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for name, value in attributes.items()
    )
    return Markup(f"<{tag}{written}>{escape(content)}</{tag}>" if content else f"<{tag}{written}/>")


def join(parts: Iterable[str]) -> Markup:
    """Elements one after the other; what is not `Markup` is escaped."""
    return Markup("").join(parts)


def text(x: float, y: float, content: str, **attributes: object) -> Markup:
    """A text element at (x, y)."""
    return element("text", content, x=x, y=y, **attributes)


def title(content: str) -> Markup:
    """What the pointer shows over the element that holds it."""
    return element("title", content)


def span(values: Sequence[float], pad: float = 0.05, include: float | None = None) -> Range:
    """The range of finite values, widened by `pad` of its width; a single value gets room around it."""
    finite = [v for v in values if math.isfinite(v)] + ([] if include is None else [include])
    if not finite:
        return Range(0, 1)
    low, high = min(finite), max(finite)
    if low == high:
        room = abs(low) / 2 or 0.5
        return Range(low - room, high + room)
    return Range(low - pad * (high - low), high + pad * (high - low))


def nice_ticks(axis: Range, num: int, whole: bool = False) -> list[float]:
    """About `num` round numbers within `axis` (steps of 1, 2 or 5 times a power of ten), all different.

    whole: of what is counted, no fractions.
    """
    raw = (axis.high - axis.low) / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    if whole:
        step = max(1, round(step))
    first = math.ceil(axis.low / step - 1e-9)
    decimals = 2 - math.floor(math.log10(step))  # of a multiple of the step: the rest is rounding
    ticks = [round(i * step, decimals) + 0.0 for i in range(first, math.floor(axis.high / step + 1e-9) + 1)]
    return list(dict.fromkeys(ticks))  # where the axis is shorter than numbers of its size can tell apart


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def polyline(points: Sequence[tuple[float, float]]) -> str:
    """Path data of a polyline that lifts the pen over points that are not finite."""
    parts, pen_down = [], False
    for x, y in points:
        if math.isfinite(y):
            parts.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = math.isfinite(y)
    return "".join(parts)


def whisker(low: float, high: float, y: float, cap: float) -> str:
    """A horizontal interval with upright ends, as path data."""
    return f"M{low:.1f} {y - cap}V{y + cap}M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - cap}V{y + cap}"


def sign_class(interval: Interval) -> str:
    """`good` or `bad` where the interval lies on one side of 0, else `open`."""
    return "good" if interval.low > 0 else "bad" if interval.high < 0 else "open"


def y_axis(
    axis: Range, top: float, bottom: float, right: float, num_ticks: int = 4, whole: bool = False
) -> Markup:
    """Grid lines across to `right` and their numbers, from `bottom` up to `top`; whole: of counts."""
    parts = []
    ticks = nice_ticks(axis, num_ticks, whole)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        y = axis.scale(tick, bottom, top)
        parts.append(element("path", d=f"M{LEFT} {y:.1f}H{right}", class_="grid-line"))
        parts.append(text(LEFT - 6, y + 4, label, class_="tick", text_anchor="end"))
    return join(parts)


def chart(height: float, content: Markup, summary: str, width: float = WIDTH) -> Markup:
    """The whole image, with its spoken summary. One with links is no image to a reader."""
    role = "group" if "<a " in content else "img"
    return element("svg", content, viewBox=f"0 0 {width} {height:g}", role=role, aria_label=summary)
