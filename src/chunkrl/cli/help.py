"""Help texts, from the records of the options: their names, types, defaults and the texts beside their fields."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import get_args, get_origin

from chunkrl.cli.commands import COMMANDS, Command
from chunkrl.settings import Setting, Settings

_COLUMN = 30  # where texts begin
_WORDS = {str: "TEXT", int: "INT", float: "NUMBER"}


def usage() -> str:
    """What `chunkrl --help` prints."""
    rows = "\n".join(f"  {command.name:<15}{command.summary}" for command in COMMANDS.values())
    return (
        f"usage: chunkrl COMMAND [options]\n\n{rows}\n\n"
        "chunkrl COMMAND --help shows what most people set, --help-all every option; each can also stand in a file:\n"
        "--config FILE.json or FILE.yaml. chunkrl --version says which version this is."
    )


def command_help(command: Command, shows_all: bool) -> str:
    """What `chunkrl COMMAND --help` or `--help-all` prints."""
    cls = command.options_class()
    settings = Settings(cls())
    places = [setting for setting in settings.all if setting.is_positional]
    shown = [setting for setting in settings.all if setting.flag]
    if command.common and not shows_all:
        shown = [found for name in command.common for found in settings.matches(name)]
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    words = "".join(f" [{_place(setting)}]" for setting in places)
    lines = [f"usage: chunkrl {command.name}{words} [options]", ""]
    lines += [*textwrap.wrap(" ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()), width), ""]
    lines += [row for setting in places for row in _row(_place(setting), setting, width)]
    sections: dict[str, list[Setting]] = {}
    for setting in shown:
        name = setting.flag.removeprefix("--").rpartition(".")[0] if shows_all else ""
        sections.setdefault(name, []).append(setting)
    for name, members in sorted(sections.items(), key=lambda pair: pair[0] != ""):
        lines += ["", f"{name.replace('.', ' ')}:"] if name else []
        for setting in members:
            lines += _row(_flag(setting, width), setting, width)
    lines.append("")
    lines += _row("--config FILE", "Options from a JSON or YAML file; flags on top of it win.", width)
    if len(shown) < len(settings.all) - len(places):
        text = f"All {len(settings.all)} options."
        lines += _row("--help-all", text, width)
    return "\n".join(lines)


def describe(setting: Setting) -> str:
    """The text beside the setting's field, in one line; "" where there is none, or no source to read."""
    return _texts(setting.owner).get(setting.name, "")


def _row(name: str, what: Setting | str, width: int) -> list[str]:
    text = what if isinstance(what, str) else f"{describe(what)}{_default(what)}".strip()
    if not isinstance(what, str) and what.choices and "{" not in name:
        text = f"{text} One of {', '.join(what.choices)}."
    lines = textwrap.wrap(text, max(width - _COLUMN, 30)) or [""]
    first = [f"  {name}"] if len(name) > _COLUMN - 4 else []
    if not first:
        first, lines = [f"  {name:<{_COLUMN - 2}}{lines[0]}"], lines[1:]
    return [*first, *(" " * _COLUMN + line for line in lines)]


def _place(setting: Setting) -> str:
    return setting.name.upper() + (" ..." if get_origin(setting.kind) is tuple else "")


def _flag(setting: Setting, width: int) -> str:
    if setting.is_switch:
        return f"{setting.flag}, {setting.off_flag}"
    flag = f"{setting.flag} {_kind(setting)}"
    return flag if len(flag) < width - 2 else f"{setting.flag} CHOICE"


def _kind(setting: Setting) -> str:
    kind, several = setting.kind, ""
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if Ellipsis not in kinds:
            return " ".join(_WORDS.get(part, "TEXT") for part in kinds)
        kind, several = kinds[0], " ..."
    if setting.choices:
        return "{" + ",".join(setting.choices) + "}" + several
    return _WORDS.get(kind, "TEXT") + several


def _default(setting: Setting) -> str:
    value = setting.default
    if value is None or value in ("", ()) or setting.is_positional:
        return ""
    if setting.is_switch:
        return f" [{'on' if value else 'off'}]"
    words = value if isinstance(value, tuple) else (value,)
    return f" [{' '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in words)}]"


@cache
def _texts(cls: type) -> dict[str, str]:
    """Field -> its text: the string below it, or its entry `name: text` in the class's docstring."""
    node = _classes(cls.__module__).get(cls.__name__)
    if node is None:
        return {}
    names = [
        n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    ]
    found = _entries(ast.get_docstring(node) or "", names)
    for field, text in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    file = getattr(sys.modules[module], "__file__", None)
    if file is None or not Path(file).is_file():
        return {}
    tree = ast.parse(Path(file).read_bytes())
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _entries(text: str, names: Sequence[str]) -> dict[str, str]:
    """`name: text` or `name, other: text` of a docstring; each name's first occurrence begins its entry."""
    one = "|".join(map(re.escape, names))
    starts: list[tuple[re.Match[str], list[str]]] = []
    seen: set[str] = set()
    for match in re.finditer(rf"(?<![\w`-])((?:{one})(?:, (?:{one}))*): ", text) if names else ():
        fresh = match[1].split(", ")
        line = text[
            text.rfind("\n", 0, match.start()) + 1 :
        ]  # an indented line describes values of a setting
        if seen.isdisjoint(fresh) and not line.startswith(" "):
            seen.update(fresh)
            starts.append((match, fresh))
    found = {}
    for number, (match, fresh) in enumerate(starts):
        end = starts[number + 1][0].start() if number + 1 < len(starts) else len(text)
        words = " ".join(text[match.end() : end].split())
        is_value = re.match(r"\W|[\w.]+:", words)  # of a setting that has a few, as it is written
        found |= dict.fromkeys(fresh, words if is_value else words[:1].upper() + words[1:])
    return found
