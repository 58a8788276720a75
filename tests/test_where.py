"""docs/design/where.md names files and symbols that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import chunkrl

SOURCES = Path(chunkrl.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "design" / "where.md"


def names(body: list[ast.stmt]) -> set[str]:
    """Defined in a module or class: functions, classes with their members, variables."""
    found: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name, body=members):
                found |= {name} | {f"{name}.{member}" for member in names(members)}
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def test_what_the_page_names_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py):([\w.]+)`", text)
    assert len(named) >= 30
    for file, symbol in named:
        module = ast.parse((SOURCES / file).read_text(encoding="utf-8"))
        assert symbol in names(module.body), f"{file} has no {symbol}"


def test_lines_that_an_addition_took() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = re.findall(r"tests/(toy_\w+\.py) \| (\d+) lines and one", text)
    assert {name for name, _ in told} == {"toy_method.py", "toy_env.py"}
    for name, lines in told:
        assert len((Path(__file__).parent / name).read_text().splitlines()) == int(lines)


def test_hand_written_parts_name_the_library_that_was_considered() -> None:
    text = (PAGE.parent / "libraries.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| `([\w/]+\.py)` \| (`[^|]+`) \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) >= 20 and len({file for file, _, _ in rows}) == len(rows)
    for file, considered, _ in rows:
        told = ast.get_docstring(ast.parse((SOURCES / file).read_text(encoding="utf-8"))) or ""
        for library in re.findall(r"`([^`]+)`", considered):
            assert library.lower() in told.lower(), f"{file} does not name {library}"
    named = {file for file, _, _ in rows}
    for path in SOURCES.rglob("*.py"):
        told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if re.search(r"^Librar(y|ies) considered:", told, re.MULTILINE):
            assert path.relative_to(SOURCES).as_posix() in named, f"{path} is not in docs/design/libraries.md"
