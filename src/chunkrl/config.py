"""Typed configuration and records in and out of JSON: unknown keys, wrong types and NaN are errors.

Libraries considered: dacite, which builds the records (0.2 s); added are what it lets pass (NaN, unknown keys'
nearest names). OmegaConf (part of Hydra's 0.8 s) has its own containers in place of dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import dacite

from chunkrl.errors import ChunkRLError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.renamed import current_names
from chunkrl.suggest import did_you_mean

T = TypeVar("T")


class Variants:
    """A part of a configuration whose class its `kind` chooses, as the settings of a policy's family.

    registry: module with `kinds()` and `settings_of(kind)`. It stands above the settings that it lists.
    """

    registry: ClassVar[str]

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """The values that `kind` can have."""
        return import_module(cls.registry).kinds()

    @classmethod
    def class_of(cls, kind: str) -> type[Any]:
        """The class of the settings of a kind. Raises ChunkRLError where there is no such kind (says the nearest)."""
        return import_module(cls.registry).settings_of(kind)


class _WrongValueError(dacite.DaciteFieldError):
    """dacite adds the path of the field."""

    def __init__(self, value: Any, expected: str) -> None:
        super().__init__()
        self.value, self.expected = value, expected

    def __str__(self) -> str:
        return f"{self.field_path} is {self.value!r}, expected {self.expected}"


def _number(value: Any) -> Any:
    """JSON may write 1 for 1.0; anything else that is no float is left for dacite to name with its key."""
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise _WrongValueError(value, "a finite number")
    return float(value) if isinstance(value, int) else value


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise _WrongValueError(value, "an integer")
    return value


def _texts(value: Any) -> Any:
    """One text is a list of it, as configurations of earlier releases have it; dacite would take it apart."""
    return (value,) if isinstance(value, str) else _listed(value)


def _listed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return value
    raise _WrongValueError(value, "a list")


def _one_of(choices: Sequence[Any], value: Any) -> Any:
    if value in choices:
        return value
    near = did_you_mean(str(value), map(str, choices))
    raise _WrongValueError(value, f"one of {', '.join(map(str, choices))}{near}")


class _Hooks(dict[Any, Callable[[Any], Any]]):
    """What is checked before dacite converts: it takes booleans for numbers, and text for a tuple of letters; and
    choices, of which it names none."""

    def __contains__(self, kind: object) -> bool:
        return super().__contains__(kind) or get_origin(kind) in (tuple, Literal) or _has_variants(kind)

    def __missing__(self, kind: Any) -> Callable[[Any], Any]:
        if _has_variants(kind):
            return partial(_variant, kind)
        return partial(_one_of, get_args(kind)) if get_origin(kind) is Literal else _listed


def _has_variants(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Variants)


def _variant(cls: type[Variants], value: Any) -> Any:
    """The part of the class that its kind chooses. What is no object, dacite names with its key."""
    if not isinstance(value, dict):
        return value
    try:
        kind = _one_of(cls.kinds(), value.get("kind", cls.kinds()[0]))
    except _WrongValueError as error:
        error.update_path("kind")
        raise
    return dacite.from_dict(cls.class_of(kind), value, _CONFIG)


_CONFIG = dacite.Config(
    strict=True,
    cast=[tuple, Path],
    type_hooks=_Hooks({float: _number, int: _whole, tuple: _listed, tuple[str, ...]: _texts}),
)


def changed_settings(config: Any) -> list[str]:
    """Paths ("fit.lam") of the settings of a dataclass that differ from their defaults, those of its parts too."""
    found = []
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), _default(field)
        if value == default:
            continue
        if dataclasses.is_dataclass(value) and type(value) is type(default):
            found += [f"{field.name}.{path}" for path in changed_settings(value)]
        else:
            found.append(field.name)
    return found


def with_defaults(config: T, paths: Collection[str]) -> T:
    """The configuration with the settings at `paths` ("fit.lam") at their defaults."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        parts = [path.partition(".")[2] for path in paths if path.partition(".")[0] == field.name]
        if "" in parts:
            changes[field.name] = _default(field)
        elif parts:
            changes[field.name] = with_defaults(getattr(config, field.name), parts)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """A dataclass from nested JSON values; names of earlier releases (`renamed`) count as those of now.

    Raises:
        ChunkRLError: names the unknown key or the wrong value.
    """
    try:
        return dacite.from_dict(cls, current_names(cls, values), _CONFIG)
    except dacite.UnexpectedDataError as error:
        known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        near = "".join(did_you_mean(key, known) for key in sorted(error.keys))
        raise ChunkRLError(
            f"unknown configuration key: {error}{near}; {cls.__name__} has {', '.join(known)}"
        ) from error
    except ChunkRLError:  # of a part, which says what it lacks
        raise
    except (dacite.DaciteError, ValueError, TypeError, OverflowError) as error:
        raise ChunkRLError(f"configuration of {cls.__name__}: {error}") from error


def load_config(
    cls: type[T],
    path: str | Path,
    error: type[ChunkRLError] = ChunkRLError,
    cure: str = "give another file, or correct it",
) -> T:
    """A dataclass from a JSON or YAML file. Raises `error` where it is missing, damaged or not of `cls` (the key)."""
    path = Path(path)
    return record_of(cls, read_values(path, error, cure), str(path), error, cure)


def read_values(path: Path, error: type[ChunkRLError], cure: str) -> dict[str, Any]:
    """What a JSON file holds, or a YAML file, whose name ends in .yaml or .yml. Raises `error` where it is none."""
    if path.suffix.lower() in (".yaml", ".yml"):
        from chunkrl.files.yaml_files import read_yaml

        return read_yaml(path, error, cure)
    return read_json(path, dict, error, cure)


def record_of(cls: type[T], values: Any, where: str, error: type[ChunkRLError], cure: str) -> T:
    """Does as `load_config`, of values that stood at `where`."""
    if not isinstance(values, dict):
        raise error(f"{where} holds {values!r:.60}, expected an object {{...}}: {cure}")
    try:
        return from_dict(cls, values)
    except ChunkRLError as reason:
        raise error(f"{where}: {reason}: {cure}") from reason


def save_config(config: Any, path: str | Path) -> None:
    """Writes a dataclass as JSON, atomically. Raises ChunkRLError where it holds a number that is not finite."""
    try:
        text = json.dumps(dataclasses.asdict(config), indent=2, default=str, allow_nan=False)
    except ValueError as error:
        raise ChunkRLError(f"{path}: a setting is NaN or infinite, which JSON has not: {config}") from error
    write_text(path, text + "\n")
