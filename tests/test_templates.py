"""The templates of pages: in the package, strict, and text from outside stays text."""

from __future__ import annotations

import ast
import re
from importlib.resources import files
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from pages import Page as Read
from pages import check_loads_nothing

import chunkrl
from chunkrl.report import page as pages_module
from chunkrl.report.distributions import Share, Square, share_chart, state_grid
from chunkrl.report.page import (
    Caption,
    Card,
    Facts,
    Frame,
    Frames,
    Legend,
    Notes,
    Page,
    Part,
    Section,
    Tile,
    VideoPlayer,
)
from chunkrl.report.svg import element, join, text
from chunkrl.report.tables import Cell, Table

EVIL = "</p><script>alert(1)</script>&\"'"
SOURCES = Path(chunkrl.__file__).parent


def test_templates_are_resources_of_the_package() -> None:
    found = {
        entry.name: entry.read_text(encoding="utf-8")
        for entry in files("chunkrl.report").joinpath("templates").iterdir()
    }
    assert found.keys() == {"page.html", "parts.html", "style.css", "sort.js", "policy.md", "dataset.md"}
    for name in ("page.html", "parts.html", "policy.md", "dataset.md"):
        pages_module._templates().parse(found[name])  # raises where it is no template


def test_a_wheel_contains_every_file_that_is_no_module() -> None:
    text_of_project = (SOURCES.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    section = text_of_project.split("[tool.setuptools.package-data]")[1].split("[tool.")[0]
    patterns = ast.literal_eval(section.split("=", 1)[1].strip())
    packed = {path for pattern in patterns for path in SOURCES.glob(pattern)}
    there = {
        p for p in SOURCES.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".pyi", ".proto")
    }
    assert there == packed


def test_every_part_has_its_macro() -> None:
    template = pages_module._templates().get_template("parts.html")
    parts = Part.__subclasses__()
    assert Table in parts and len(parts) == 7
    assert all(callable(getattr(template.module, part.macro)) for part in parts)


def test_a_name_that_a_template_misspells_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        pages_module._templates().from_string("{{ nothing }}").render()
    with pytest.raises(UndefinedError):
        pages_module._templates().from_string("{{ part.nothing }}").render(part=Caption("a"))


def parts_with(words: str) -> list[Part]:
    """Every part, with `words` at each place for text."""
    return [
        Table([{words: Cell(words, link=words), "b": words}], [{words: Cell(words, 1.0), "b": words}]),
        Facts({words: words}),
        Notes([words]),
        Caption(words),
        Legend([("s0", words, words)]),
        VideoPlayer(b"", words, words),
        Frames([Frame([(words, "data:,")], words, words, words, ("good", words), link=words)]),
    ]


def test_text_from_outside_shows_as_text() -> None:
    card = Card(EVIL, parts_with(EVIL), EVIL, ("good", EVIL), name=EVIL, link=EVIL)
    unlinked = Card(EVIL, [], wide=True)
    page = Page(EVIL, [Tile(EVIL, EVIL, EVIL, unit=EVIL)], [Section(EVIL, EVIL, [card, unlinked])])
    markup = page.render()
    read = Read(markup)
    assert [tag for tag, _ in read.tags].count("script") == 1  # the page's own
    assert re.findall("<script>", markup) == ["<script>"]
    # table: 5, facts 2, notes, caption, legend 2, frame 4; cards 4, section 2, tile 4, title and heading 2
    assert read.text.count(EVIL) == 5 + 2 + 1 + 1 + 2 + 4 + 4 + 2 + 4 + 2
    attributes = [value for _, attrs in read.tags for value in attrs.values()]
    assert (
        attributes.count(EVIL) == 7
    )  # links of cell, frame and card; name; alt; spoken name and type of the video
    assert {attrs.get("class") for tag, attrs in read.tags if tag == "div"} >= {"card", "card wide", "grid"}


def test_text_in_charts_shows_as_text() -> None:
    drawn = [
        share_chart([Share(EVIL, 0.5, EVIL)], EVIL),
        state_grid([Square(1.0, EVIL, EVIL)], EVIL),
        text(0, 0, EVIL),
        element("g", EVIL, class_=EVIL),
        join([EVIL]),
    ]
    for chart in drawn:
        assert isinstance(chart, Markup)
        assert "<script" not in chart and "&lt;script" in chart
        assert not any(tag == "script" for tag, _ in Read(chart).tags)


def test_a_chart_is_markup_and_a_string_is_not() -> None:
    chart = element("svg", viewBox="0 0 1 1")
    shown = Page("t", [], [Section("s", "", [Card("c", [chart])])]).render()
    assert '<svg viewBox="0 0 1 1"/>' in shown
    check_loads_nothing(shown)


def test_a_section_without_cards_is_not_shown() -> None:
    shown = Page("t", [], [Section("empty", "lead", []), Section("full", "lead", [Card("c", [])])]).render()
    assert "empty" not in shown and "<h2>full</h2>" in shown and 'class="hero"' not in shown
