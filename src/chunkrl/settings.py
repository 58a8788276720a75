"""Every setting of a configuration by name: its place in the record is its key in a file and its flag.

A name is the whole place (`frames.resize`), the flag's (`resize`, where flags leave the prefix out), or an end of the
place that only one setting has (`lam` for `fit.lam`). Hyphens are underscores. A name that several settings share is
an error that lists them; one that nobody has is an error with the nearest.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from inspect import get_annotations
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import tyro

from chunkrl.config import Variants, from_dict, read_values
from chunkrl.errors import ChunkRLError
from chunkrl.renamed import current_names, name_now
from chunkrl.suggest import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One setting of a command.

    key: its place, `frames.resize`. flag: `--resize`, or for what has no flag "" (`is_positional`).
    kind: its type, without None (`is_optional`) and without annotations. default: as the command has it.
    owner, name: the class that declares it, and the field there. variants: of a kind that
    chooses the settings beside it, their class.
    """

    key: str
    flag: str
    kind: Any
    default: Any
    owner: type
    name: str
    is_optional: bool = False
    variants: type[Variants] | None = None

    @property
    def is_positional(self) -> bool:
        """Whether it is given by its place on the command line."""
        return not self.flag

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off."""
        return self.kind is bool

    @property
    def off_flag(self) -> str:
        """The flag that turns a switch off: `--no-cache`, `--network.no-layer-norm`."""
        prefix, dot, last = self.flag.removeprefix("--").rpartition(".")
        return f"--{prefix}{dot}no-{last}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it can have; () where they are not a few."""
        if self.variants is not None:
            return self.variants.kinds()
        kind = (
            get_args(self.kind)[0] if get_origin(self.kind) is tuple and self.kind != tuple[()] else self.kind
        )
        return tuple(map(str, get_args(kind))) if get_origin(kind) is typing.Literal else ()


class Settings(Generic[T]):
    """The settings of a command's record, in its order.

    default: the record as it is without any file or flag.
    """

    def __init__(self, default: T) -> None:
        self.default = default
        self.all = tuple(_walk(default))
        self._by_key = {setting.key: setting for setting in self.all}
        self._by_flag = {_plain(setting.flag): setting for setting in self.all if setting.flag}
        self.sections = tuple(dict.fromkeys(part for key in self._by_key for part in _parents(key)))

    def matches(self, name: str, within: str = "") -> list[Setting]:
        """The settings that a name may mean: one, several that share it, or none.

        within: the section in which the name stands; "" for the whole record.
        """
        plain = _plain(name)
        place = f"{within}.{plain}" if within else plain
        if place in self._by_key:
            return [self._by_key[place]]
        if not within and plain in self._by_flag:
            return [self._by_flag[plain]]
        return [self._by_key[key] for key in self._inside(within) if key.endswith(f".{plain}")]

    def renamed(self, name: str, within: str = "") -> list[Setting]:
        """The settings that had a name in an earlier release."""
        section, _, old = (f"{within}.{_plain(name)}" if within else _plain(name)).rpartition(".")
        return [
            setting
            for setting in self.all
            if name_now(setting.owner, old) == setting.name
            and f".{setting.key}".endswith(f".{section}.{setting.name}" if section else f".{setting.name}")
        ]

    def find(self, name: str, within: str = "") -> Setting:
        """The setting of a name in a file.

        Raises:
            ChunkRLError: nobody has the name (says the nearest), or several have it (lists them).
        """
        found = self.matches(name, within)
        if len(found) == 1:
            return found[0]
        if found:
            places = " or ".join(setting.key for setting in found)
            raise ChunkRLError(f"{name} is the name of several settings: write {places}")
        if now := self.renamed(name, within):
            raise ChunkRLError(f"{name} is called {' or '.join(s.key for s in now)} now: write that")
        raise ChunkRLError(f"unknown configuration key: {name}{self._nearest(_plain(name), within)}")

    def of_values(self, values: Mapping[str, Any]) -> T:
        """The record with the values of a file in it: nested objects, dotted names and short ones, as it is written.

        Raises:
            ChunkRLError: a name as of `find`, one given twice, or a value that its setting cannot have.
        """
        chosen = self.with_kinds(dict(_dotted(values)))
        if chosen is not self:
            return chosen.of_values(values)
        default: Any = self.default
        merged = asdict(default)
        given: dict[str, str] = {}
        for name, setting, value in self._flat(values, "", ""):
            if setting.key in given:
                raise ChunkRLError(f"{given[setting.key]} and {name} are the same setting: give it once")
            given[setting.key] = name
            *parents, last = setting.key.split(".")
            place = merged
            for parent in parents:
                place = place[parent]
            place[last] = value
        return from_dict(type(self.default), merged)

    @property
    def kinds(self) -> dict[str, Any]:
        """The kinds, by place, that choose the settings beside them."""
        return {setting.key: setting.default for setting in self.all if setting.variants is not None}

    def with_kinds(self, values: Mapping[str, Any]) -> Settings[T]:
        """These settings, or those of the kinds that `values` (by written name) choose, where these have others
        (`Variants`). What is no kind is left for whoever takes the values."""
        for name, value in values.items():
            found = self.matches(name) if name.replace("-", "_").endswith("kind") else []
            place = found[0].key.rpartition(".")[0] if len(found) == 1 else ""
            part = attrgetter(place)(self.default) if place else None
            if not isinstance(part, Variants) or value not in part.kinds():
                continue
            if (cls := part.class_of(value)) is not type(part):
                return Settings(_with(self.default, place, cls())).with_kinds(values)
        return self

    def of_file(self, file: Path, cure: str = "give another file, or correct it") -> T:
        """The record with the values of a JSON or YAML file (by its ending) in it; names of earlier releases
        (`renamed`) count as those of now, since a run of before wrote them.

        Raises:
            ChunkRLError: the file is missing or damaged, or as of `of_values`; names the file.
        """
        values = read_values(file, ChunkRLError, cure)
        try:
            return self.of_values(current_names(type(self.default), values))
        except ChunkRLError as reason:
            raise ChunkRLError(f"{file}: {reason}: {cure}") from reason

    def replaced(self, values: Mapping[str, Any]) -> T:
        """The record with values of Python in it: parts of the record (`frames=FrameSettings(...)`), and what a file
        may have (`resize=(96, 96)`, `policy={"kind": "flow"}`).

        Raises:
            ChunkRLError: a name as of `find`, or a value that its setting cannot have.
        """
        default: Any = self.default
        own = {field.name for field in fields(default)} & {*self.sections}
        records = {name: value for name, value in values.items() if is_dataclass(value) and name in own}
        for name, value in records.items():
            if not isinstance(value, _base(type(getattr(default, name)))):
                raise ChunkRLError(f"{name} is {value!r}: give a {type(getattr(default, name)).__name__}")
        others = {name: _as_in_file(value) for name, value in values.items() if name not in records}
        for name, value in others.items():
            if name in own and not isinstance(value, Mapping):
                cls = type(getattr(default, name)).__name__
                raise ChunkRLError(f"{name} is {value!r}: give a {cls}, or a dictionary of its settings")
        return Settings(replace(default, **records)).of_values(others)

    def names(self, within: str = "") -> list[str]:
        """All that may be written: places, flags' names, and the ends of places."""
        ends = [end for key in self._inside(within) for end in _ends(key.removeprefix(f"{within}."))]
        return list(dict.fromkeys([*ends, *(() if within else self._by_flag)]))

    def _flat(
        self, values: Mapping[str, Any], within: str, written: str
    ) -> Iterator[tuple[str, Setting, Any]]:
        for name, value in values.items():
            whole = f"{written}.{name}" if written else name
            section = self._section(name, within) if isinstance(value, dict) else None
            if section is not None:
                yield from self._flat(value, section, whole)
            else:
                yield whole, self.find(name, within), value

    def _section(self, name: str, within: str) -> str | None:
        plain = _plain(name)
        place = f"{within}.{plain}" if within else plain
        if place in self.sections:
            return place
        inside = [s for s in self.sections if s.startswith(f"{within}.") or not within]
        found = [section for section in inside if section.endswith(f".{plain}")]
        if len(found) > 1:
            raise ChunkRLError(
                f"{name} is the name of several groups of settings: write {' or '.join(found)}"
            )
        return found[0] if found else None

    def _inside(self, within: str) -> list[str]:
        return [key for key in self._by_key if not within or key.startswith(f"{within}.")]

    def _nearest(self, name: str, within: str) -> str:
        return did_you_mean(name, self.names(within)) or (
            f"; {within} has {', '.join(key.removeprefix(f'{within}.') for key in self._inside(within))}"
            if within
            else ""
        )


def _as_in_file(value: Any) -> Any:
    """A value of Python as a file would have it: paths are text, NumPy's numbers and arrays those of Python."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_in_file, value))
    if isinstance(value, Mapping):
        return {name: _as_in_file(inner) for name, inner in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _base(cls: type) -> type:
    """What the values of a part of this class are: of a class that a kind chooses, any of its variants."""
    return next(
        (base for base in reversed(cls.__mro__) if issubclass(base, Variants) and base is not Variants), cls
    )


def _with(record: Any, place: str, part: Any) -> Any:
    """The record with another part at a place (`train.policy`)."""
    name, _, rest = place.partition(".")
    return replace(record, **{name: _with(getattr(record, name), rest, part) if rest else part})


def _dotted(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of nested objects, as `policy.kind`."""
    for name, value in values.items():
        whole = f"{within}.{name}" if within else name
        yield from _dotted(value, whole) if isinstance(value, Mapping) else [(whole, value)]


def _plain(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _parents(key: str) -> Iterator[str]:
    parts = key.split(".")[:-1]
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _ends(key: str) -> Iterator[str]:
    parts = key.split(".")
    for first in range(len(parts)):
        yield ".".join(parts[first:])


def _walk(default: Any, key: str = "", flag: str = "", omit: bool = False) -> Iterator[Setting]:
    """The settings of a record at the place `key`, whose flags begin with `flag`; omit: prefixes are left out."""
    hints = get_type_hints(type(default), include_extras=True)
    for field in fields(default):
        kind, marks = _unwrapped(hints[field.name])
        value = getattr(default, field.name)
        place = f"{key}.{field.name}" if key else field.name
        named = next((mark.name for mark in marks if getattr(mark, "name", None) is not None), field.name)
        if is_dataclass(value):
            inner_omit = omit or tyro.conf.OmitArgPrefixes in marks
            inner_flag = flag if inner_omit or not named else f"{flag}{named}."
            yield from _walk(value, place, inner_flag, inner_omit)
            continue
        is_positional = tyro.conf.Positional[int].__metadata__[0] in marks  # type: ignore[attr-defined]
        options = [part for part in get_args(kind) if part is not NoneType]
        is_optional = NoneType in get_args(kind)
        yield Setting(
            key=place,
            flag="" if is_positional else f"--{flag}{named}".replace("_", "-"),
            kind=options[0] if is_optional and len(options) == 1 else kind,
            default=value,
            owner=_owner(type(default), field.name),
            name=field.name,
            is_optional=is_optional,
            variants=type(default) if isinstance(default, Variants) and field.name == "kind" else None,
        )


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return (get_args(hint)[0], hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())


def _owner(cls: type, name: str) -> type:
    """The class of the family that declares the field, whose text describes it."""
    return next(base for base in cls.__mro__ if name in get_annotations(base))
