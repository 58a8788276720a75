"""Tables of a page: rows are records by column, so that no value can stand under another column's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from chunkrl.evaluation.speed import MEDIAN, PER_1000, Speed, speed_cells
from chunkrl.report.sections import percent
from chunkrl.report.svg import element
from chunkrl.statistics import Interval


@dataclass(frozen=True)
class Cell:
    """text: what it says. order: the number that it is sorted by; None: it is sorted by its text, or says nothing.

    link: an address within the page (`#name`), or "".
    """

    text: str
    order: float | None = None
    link: str = ""


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


def speed_columns(speed: Speed | None) -> dict[str, Cell]:
    """Both numbers of how fast success comes, by column."""
    median, per_1000 = speed_cells(speed)
    if speed is None:
        return {MEDIAN: Cell(median), PER_1000: Cell(per_1000)}
    return {MEDIAN: Cell(median, speed.median_steps), PER_1000: Cell(per_1000, speed.per_1000_steps)}


def table(rows: Sequence[Row], foot: Sequence[Row] = ()) -> str:
    """A table of records with the same columns, in the order of the first row's.

    The page's script sorts `rows` by a click on a column's head; `foot` (sums and means) stays below them.

    Raises:
        ValueError: a row that has other columns than the first: its values would stand under other heads.
    """
    everything = [*rows, *foot]
    columns = list(everything[0])
    for row in everything:
        if list(row) != columns:
            raise ValueError(f"a row has the columns {list(row)}, the first {columns}")
    cells = [[_cell(row[column]) for column in columns] for row in everything]
    kinds = [
        "number" if any(row[place].order is not None for row in cells) else "words"
        for place in range(len(columns))
    ]
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(name)}</th>'
        for name, kind in zip(columns, kinds, strict=True)
    )
    lines = ["<tr>" + "".join(map(_drawn, row, kinds)) + "</tr>" for row in cells]
    body = f"<tbody>{''.join(lines[: len(rows)])}</tbody>"
    if foot:
        body += f"<tfoot>{''.join(lines[len(rows) :])}</tfoot>"
    # the box scrolls, and can be reached by the keyboard; the page around it stays where it is
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table: {escape(", ".join(columns))}">'
        f"<table><thead><tr>{head}</tr></thead>{body}</table></div>"
    )


def _cell(found: Cell | str) -> Cell:
    return Cell(found) if isinstance(found, str) else found


def _drawn(cell: Cell, kind: str) -> str:
    content = escape(cell.text)
    if cell.link:
        content = element("a", content, href=cell.link)
    order = "" if cell.order is None else f' data-order="{float(cell.order)!r}"'
    return f'<td class="{kind}"{order}>{content}</td>'
