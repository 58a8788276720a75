"""Markdown by jinja2 templates: text is escaped, as it is on pages, and what is Markdown says so by its class."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from chunkrl.report.tables import Table

_SPECIAL = re.compile(r"[\\`*_\[\]|~#$]")
_AT_THE_BEGINNING = re.compile(r"^(\d*)([-+=.)])(?=[\s=-]|$)")  # of a list's item, or of a rule


class Markdown(str):
    """Text that is Markdown already."""


def escape(value: object) -> Markdown:
    """Any text as it is, on one line, whatever Markdown or HTML would make of its characters."""
    if isinstance(value, Markdown):
        return value
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _SPECIAL.sub(lambda found: f"\\{found[0]}", text)
    return Markdown(_AT_THE_BEGINNING.sub(r"\1\\\2", text))


def render(template: str, **values: Any) -> str:
    """A template of `templates/` with values, text among them escaped."""
    return _templates().get_template(template).render(**values)


def table(found: Table) -> Markdown:
    """A page's table, sums and means first; columns in which nothing stands are left out."""
    lines = [[cell.text for cell in line] for line in (*found.foot_lines, *found.lines)]
    kept = [i for i in range(len(found.heads)) if any(line[i] for line in lines)]
    heads = [found.heads[i][0] for i in kept]
    marks = ["---:" if found.heads[i][1] == "number" else "---" for i in kept]
    return Markdown(
        "\n".join(
            [_row(map(escape, heads)), _row(marks), *(_row(escape(line[i]) for i in kept) for line in lines)]
        )
    )


def facts(found: Mapping[str, str]) -> Markdown:
    """Names and texts below each other."""
    return Markdown("\n".join(f"- {escape(name)}: {escape(text)}" for name, text in found.items()))


def front_matter(values: Mapping[str, Any]) -> Markdown:
    """The YAML at a card's head, which the Hub reads."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=False)
    return Markdown(f"---\n{text}---\n")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("chunkrl.report"),
        autoescape=False,  # that is for HTML; `escape` is called on every value instead
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(table=table, facts=facts, literal=Markdown)
    return environment
