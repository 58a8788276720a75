"""Numbers and names as a reader sees them: text, never markup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


def compact(value: float, digits: int = 3) -> str:
    """A short number of at least `digits` digits where it has as many: 0.25, 12, 3.5k, 2M; 1e+09 with two less."""
    if abs(value) >= 1e9 or 0 < abs(value) < 1e-3:
        return f"{value:.{digits - 3}e}".replace("-", "−", 1 if value < 0 else 0)
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.{digits + 3}g}{unit}".replace("-", "−")
    rounded = f"{value:.{digits}g}"
    if "e" in rounded:  # 999.9 is 1k
        return compact(float(rounded), digits)
    return rounded.replace("-", "−")


def tick_labels(ticks: Sequence[float], form: Callable[[float, int], str] | None = None) -> list[str]:
    """A short text for each of different numbers, no two the same: as many digits as that takes.

    form: (number, digits) -> text, `compact` by default.
    """
    form = form or compact
    for digits in range(3, 20):
        labels = [form(tick, digits) for tick in ticks]
        if len(set(labels)) == len(ticks):
            return labels
    raise ValueError(f"ticks are not different: {list(ticks)}")


def signed_points(fraction: float, digits: int = 3) -> str:
    """A difference in percentage points with its sign, to a tenth (`digits` - 2 decimals): +12, 0, −3.5."""
    points = round(100 * fraction, digits - 2)
    return f"{points:+.{digits - 2}f}".removesuffix(".0").replace("-", "−") if points else "0"


def shorten(label: str, max_characters: int) -> str:
    """`label`, or its beginning where it would run into what stands beside it."""
    return label if len(label) <= max_characters else label[: max_characters - 1].rstrip() + "…"


def signed(value: float, decimals: int = 3) -> str:
    """A number with its sign: +0.250, −0.031."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def percent(fraction: float) -> str:
    """A rate without decimals where it has none, else with one: 81 %, 66.7 %."""
    return f"{100 * fraction:.1f}".removesuffix(".0") + " %"


def words(name: str) -> str:
    """An identifier as words."""
    return name.replace("_", " ")


def short_names(folders: Sequence[str | Path]) -> list[str]:
    """A name for each of different folders, no two the same: the last part of its path, or as many as that takes."""
    paths = [Path(folder).absolute() for folder in folders]

    def name(path: Path) -> str:
        for num in range(1, len(path.parts)):
            if sum(other.parts[-num:] == path.parts[-num:] for other in paths) == 1:
                return "/".join(path.parts[-num:])
        return str(path)

    return [name(path) for path in paths]
