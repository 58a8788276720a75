"""Tables of a page: rows are records by column, so that no value can stand under another column's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from chunkrl.evaluation.speed import (
    MEDIAN,
    PER_1000,
    PER_HOUR,
    Speed,
    SpeedDifference,
    difference_cells,
    speed_cells,
)
from chunkrl.report.numbers import percent, signed_points
from chunkrl.report.page import Part
from chunkrl.statistics import Estimate, Interval


@dataclass(frozen=True)
class Cell:
    """text: what it says. order: the number that it is sorted by; None: it is sorted by its text, or says nothing.

    link: an address within the page (`#name`), or "".
    """

    text: str
    order: float | None = None
    link: str = ""

    @property
    def sort_key(self) -> str:
        """`order` as the page's script reads it."""
        return "" if self.order is None else repr(float(self.order))


Row = Mapping[str, "Cell | str"]


def count_cell(number: int | None) -> Cell:
    """A whole number, or nothing."""
    return Cell("") if number is None else Cell(str(number), number)


def rate_cell(fraction: float) -> Cell:
    """A fraction as `percent` writes it."""
    return Cell(percent(fraction), fraction)


def interval_cell(interval: Interval) -> Cell:
    """The interval of a rate; sorted by its low end."""
    return Cell(f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %", interval.low)


def points_interval(interval: Interval) -> str:
    """The interval of a difference in success, in points."""
    return f"{signed_points(interval.low)} to {signed_points(interval.high)}"


def speed_columns(speed: Speed | None) -> dict[str, Cell]:
    """The numbers of how fast success comes, with their intervals, by column."""
    orders = (None,) * 3 if speed is None else (speed.median_steps, speed.per_1000_steps, speed.per_hour)
    cells = zip((MEDIAN, PER_1000, PER_HOUR), speed_cells(speed), orders, strict=True)
    return {name: Cell(text, order) for name, text, order in cells}


def speed_difference_columns(difference: SpeedDifference | None) -> dict[str, Cell]:
    """The differences in how fast success comes, with their intervals, by column; a number is sorted by itself."""
    found: Sequence[Estimate | None] = (None,) * 4
    if difference is not None:
        both, per_1000 = difference.steps_where_both, difference.per_1000_steps
        found = (both, difference.median_steps, per_1000, difference.per_hour)
    names = (f"{MEDIAN}, where both succeed", MEDIAN, PER_1000, PER_HOUR)
    return {
        name: Cell(text.replace("-", "−"), None if estimate is None else estimate.value)
        for name, text, estimate in zip(names, difference_cells(difference), found, strict=True)
    }


@dataclass(frozen=True)
class Table(Part):
    """Records with the same columns, in the order of the first row's.

    The page's script sorts `rows` by a click on a column's head; `foot` (sums and means) stays below them.

    Raises:
        ValueError: a row that has other columns than the first: its values would stand under other heads.
    """

    macro: ClassVar[str] = "table"
    rows: Sequence[Row]
    foot: Sequence[Row] = ()

    def __post_init__(self) -> None:
        columns = list([*self.rows, *self.foot][0])
        for row in (*self.rows, *self.foot):
            if list(row) != columns:
                raise ValueError(f"a row has the columns {list(row)}, the first {columns}")

    @cached_property
    def lines(self) -> list[list[Cell]]:
        """The cells of `rows`."""
        return [_cells(row) for row in self.rows]

    @cached_property
    def foot_lines(self) -> list[list[Cell]]:
        """The cells of `foot`."""
        return [_cells(row) for row in self.foot]

    @cached_property
    def heads(self) -> list[tuple[str, str]]:
        """Every column's name, and its class: number or words."""
        columns = zip(
            [*self.rows, *self.foot][0], zip(*self.lines, *self.foot_lines, strict=True), strict=True
        )
        return [
            (name, "number" if any(cell.order is not None for cell in cells) else "words")
            for name, cells in columns
        ]


def _cells(row: Row) -> list[Cell]:
    return [Cell(found) if isinstance(found, str) else found for found in row.values()]
