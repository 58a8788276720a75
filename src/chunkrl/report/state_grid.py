"""Initial states as squares: which ones end in success, and where each one's film is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from chunkrl.report.svg import WIDTH, chart, element

_IN_A_ROW = 25


@dataclass(frozen=True)
class Square:
    """A state. share: of its episodes, those that succeed, 0 to 1. told: what the pointer shows. link: its film's
    address within the page, or ""."""

    share: float
    told: str
    link: str = ""


def state_grid(squares: Sequence[Square], summary: str) -> str:
    """The states in order, 25 a row: green where all episodes succeed, red where none does, grey between."""
    pitch = WIDTH / _IN_A_ROW
    drawn = []
    for i, square in enumerate(squares):
        kind = {1.0: "good", 0.0: "bad"}.get(square.share, "open")
        box = element(
            "rect",
            f"<title>{escape(square.told)}</title>",
            x=i % _IN_A_ROW * pitch + 1.5,
            y=i // _IN_A_ROW * pitch + 1.5,
            width=pitch - 3,
            height=pitch - 3,
            rx=3,
            class_=f"bar {kind}" + (" filmed" if square.link else ""),
        )
        drawn.append(element("a", box, href=square.link) if square.link else box)
    return chart(-(-len(squares) // _IN_A_ROW) * pitch, "".join(drawn), summary)
