"""A command's options from flags, on top of those of `--config FILE`: every name that `chunkrl.settings` knows.

Libraries considered: tyro, which parses; it takes 0.4 s to import, so that help and completion (0.17 s) are made
without it; and Hydra (9 MB, 0.8 s, with a layout of configuration files of its own).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, get_origin

from chunkrl.cli.commands import Command
from chunkrl.cli.help import describe
from chunkrl.errors import ChunkRLError
from chunkrl.settings import Setting, Settings
from chunkrl.suggest import did_you_mean

_SPELT = {"true", "false", "yes", "no", "on", "off", "1", "0"}


def parse(command: Command, arguments: Sequence[str]) -> Any:
    """The options of a command: from flags, on top of `--config FILE` or else of the run that `--resume` names.

    Raises:
        ChunkRLError: an unknown or ambiguous name, a switch with a value, or a file that is none of such options.
        SystemExit: a value that its setting cannot have; the reason is printed.
    """
    import tyro

    given, file = _take_config(arguments)
    cls = command.options_class()
    settings, chosen = Settings(cls()), _named_values(given)
    of_file = None if file is None else Settings(settings.of_file(file))
    settings = settings.with_kinds({**({} if of_file is None else of_file.kinds), **chosen})
    flags = as_flags(settings, command.name, given)
    default = settings.default
    if of_file is not None:
        default = of_file.with_kinds(chosen).default
    elif command.resumed and (run := _value_of("--resume", flags)) is not None:
        names = {flag[2:].replace("-", "_") for flag in flags if flag.startswith("--")}
        default = command.resumed_options(Path(run), names)
    return tyro.cli(cls, prog=f"chunkrl {command.name}", args=flags, default=default, add_help=False)


def _named_values(arguments: Sequence[str]) -> dict[str, str]:
    """What each flag has as its first value."""
    parts = [part for argument in arguments for part in argument.split("=", 1)]
    return {name: value for name, value in pairwise(parts) if name.startswith("--")}


def _value_of(flag: str, flags: Sequence[str]) -> str | None:
    """What follows the flag; None where it is not given or says None."""
    following = flags[flags.index(flag) + 1 :] if flag in flags else []
    return following[0] if following and following[0] != "None" else None


def as_flags(settings: Settings, command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments as tyro spells them: each name as its flag, each switch as its flag or its opposite."""
    flags: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*flags, argument, *rest]
        if not argument.startswith("--"):
            flags.append(argument)
            continue
        name, equals, value = argument.partition("=")
        setting, is_on = _find(settings, command, name)
        if not setting.is_switch:
            _check_choice(setting, name, [value] if equals else [*takewhile(_is_value, rest)])
            flags += [setting.flag, value] if equals else [setting.flag]
            continue
        spelt = value if equals else rest[0] if rest and rest[0].lower() in _SPELT else None
        if spelt is not None:
            raise ChunkRLError(
                f"{name} {spelt}: a switch has no value; write {setting.flag} or {setting.off_flag}"
            )
        if setting.is_optional:
            flags += [setting.flag, str(is_on)]
        else:
            flags.append(setting.flag if is_on else setting.off_flag)
    return flags


def _is_value(argument: str) -> bool:
    return not argument.startswith("--")


def _check_choice(setting: Setting, name: str, values: Sequence[str]) -> None:
    if get_origin(setting.kind) is not tuple:
        values = values[:1]  # what follows stands at its own place
    known = (*setting.choices, "None") if setting.is_optional else setting.choices
    for value in values if setting.choices else ():
        if value not in known:
            near = did_you_mean(value, setting.choices)
            raise ChunkRLError(f"{name} {value}{near}: use one of {', '.join(setting.choices)}")


def _take_config(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    given = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    if "--config" not in given:
        return given, None
    position = given.index("--config")
    if position + 1 == len(given):
        raise ChunkRLError("--config needs a file")
    file = Path(given[position + 1])
    del given[position : position + 2]
    if "--config" in given:
        raise ChunkRLError("--config is given twice: give one file")
    return given, file


def _find(settings: Settings, command: str, name: str) -> tuple[Setting, bool]:
    """The setting of a flag, and for a switch whether it is on."""
    plain = name.removeprefix("--").replace("-", "_")
    section, dot, last = plain.rpartition(".")
    for wanted, is_on in ((plain, True), (f"{section}{dot}{last.removeprefix('no_')}", False)):
        found = [s for s in settings.matches(wanted) if is_on or (s.is_switch and wanted != plain)]
        if len(found) > 1:
            flags = " or ".join(s.flag if is_on else s.off_flag for s in found)
            raise ChunkRLError(f"{name} is the name of several options: write {flags}")
        if found and found[0].is_positional:
            raise ChunkRLError(f"{name} has no flag: chunkrl {command} {found[0].name.upper()}")
        if found:
            return found[0], is_on
    switch = [s for s in settings.matches(plain.removeprefix("no_")) if s.is_switch]
    if plain.startswith("no_") and switch:
        raise ChunkRLError(f"{name} is written {switch[0].off_flag}")
    if now := settings.renamed(plain):
        raise ChunkRLError(f"{name} is called {' or '.join(s.flag for s in now)} now: write that")
    raise ChunkRLError(
        f"unknown option {name}{_nearest(settings, name)}; chunkrl {command} --help-all lists all"
    )


def _nearest(settings: Settings, name: str) -> str:
    words = name.removeprefix("--").replace("-", " ").replace("_", " ").lower()
    told = [
        s.flag for s in settings.all if s.flag and re.match(rf"{re.escape(words)}\b", describe(s).lower())
    ]
    if told:  # the words that its text begins with: --learning-rate
        return f" (did you mean {' or '.join(told)}?)"
    flags = [s.flag for s in settings.all if s.flag] + [
        s.off_flag for s in settings.all if s.is_switch and s.flag
    ]
    return did_you_mean(name.replace("_", "-"), flags)
