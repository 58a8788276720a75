"""A page is a record of what stands on it, drawn by the jinja2 templates of this package (`templates/*.html`).

The templates hold all HTML. Text is `str`, which they escape; markup is `Markup`, which they do not. A name that a
template misspells is an error. The page loads nothing: its style sheet for light and dark, its videos and its script
are in it. Without the script everything is there to read; with it, tables can be sorted.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


class Part:
    """What stands in a card: a record that the macro of `templates/parts.html` named `macro` draws."""

    macro: ClassVar[str]

    def __html__(self) -> Markup:
        return getattr(_templates().get_template("parts.html").module, self.macro)(self)


@dataclass(frozen=True)
class Facts(Part):
    """Short names and values, side by side."""

    macro: ClassVar[str] = "facts"
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Notes(Part):
    """Sentences a reader needs to judge the numbers."""

    macro: ClassVar[str] = "notes"
    notes: Sequence[str]


@dataclass(frozen=True)
class Caption(Part):
    """A line above one of several charts of a card."""

    macro: ClassVar[str] = "caption"
    text: str


@dataclass(frozen=True)
class Legend(Part):
    """Keys (class of the swatch, name, value) of a chart; nothing where there are none."""

    macro: ClassVar[str] = "legend"
    keys: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class VideoPlayer(Part):
    """A video within the page. content: the file's bytes. label: its spoken name."""

    macro: ClassVar[str] = "video_player"
    content: bytes
    mime: str
    label: str

    @property
    def base64(self) -> str:
        return base64.b64encode(self.content).decode("ascii")


@dataclass(frozen=True)
class Frame:
    """A frame of an episode. shots: (what it shows, `data:` address) of each camera. figure: what it is shown for.

    detail: more numbers. where: its place. pill: (class, text) of the outcome. link: the episode's video, or "".
    """

    shots: Sequence[tuple[str, str]]
    figure: str
    detail: str
    where: str
    pill: tuple[str, str]
    link: str = ""


@dataclass(frozen=True)
class Frames(Part):
    """Frames beside each other."""

    macro: ClassVar[str] = "frames"
    frames: Sequence[Frame]


@dataclass(frozen=True)
class Card:
    """parts: charts (`Markup`) and `Part`s, below each other.

    pill: (class, text) beside the title. wide: it takes the whole row. name: links lead to `#name`. link: where its
    title leads within the page.
    """

    title: str
    parts: Sequence[Markup | Part]
    note: str = ""
    pill: tuple[str, str] | None = None
    wide: bool = False
    name: str = ""
    link: str = ""


@dataclass(frozen=True)
class Section:
    """Cards under a title; one without cards is not shown. grid: class of how they stand, `grid` or `grid small`."""

    title: str
    lead: str
    cards: Sequence[Card]
    grid: str = "grid"


@dataclass(frozen=True)
class Tile:
    """A large number at the page's head, what it says, and what to know of it. kind: good, bad, open or ""."""

    figure: str
    claim: str
    detail: str
    kind: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Page:
    """The whole page."""

    title: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]

    def render(self) -> str:
        """The HTML document."""
        style, script = (_asset(name) for name in ("style.css", "sort.js"))
        template = _templates().get_template("page.html")
        return template.render(page=self, style=style, script=script, policy=_policy(script))


def notes_card(notes: Sequence[str], wide: bool = False) -> Card:
    """Sentences a reader needs to judge the numbers."""
    return Card("Read with care", [Notes(notes)], wide=wide)


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("chunkrl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _asset(name: str) -> Markup:
    """A style sheet or script beside the templates: of ours, so that it is markup."""
    environment = _templates()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _policy(script: str) -> Markup:
    """Nothing may be fetched: a page that asked for something else would show a hole, here and offline alike. And no
    script but `script` may run: a task's name is from outside."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    rules = ["default-src 'none'", "style-src 'unsafe-inline'", "media-src data:", "img-src data:"]
    return Markup("; ".join([*rules, f"script-src 'sha256-{digest}'"]))
