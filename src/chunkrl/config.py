"""Typed configuration in and out of JSON: unknown keys and wrong types are errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import dacite

from chunkrl.data.atomic import write_text
from chunkrl.errors import ChunkRLError

T = TypeVar("T")


def _whole_to_float(value: Any) -> Any:
    """JSON may write 1 for 1.0; anything else that is no float is left for dacite to name with its key."""
    return float(value) if isinstance(value, int) else value


def _texts(value: Any) -> Any:
    """One text is a list of it, as configurations of earlier releases have it; dacite would take it apart."""
    return (value,) if isinstance(value, str) else value


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """A dataclass from nested JSON values. Raises ChunkRLError naming the unknown key or the wrong value."""
    config = dacite.Config(
        strict=True, cast=[tuple, Path], type_hooks={float: _whole_to_float, tuple[str, ...]: _texts}
    )
    try:
        return dacite.from_dict(cls, values, config)
    except dacite.UnexpectedDataError as error:
        known = ", ".join(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]
        raise ChunkRLError(f"unknown configuration key: {error}; {cls.__name__} has {known}") from error
    except (dacite.DaciteError, ValueError, TypeError) as error:
        raise ChunkRLError(f"configuration of {cls.__name__}: {error}") from error


def load_config(cls: type[T], path: str | Path) -> T:
    """A dataclass from a JSON file."""
    path = Path(path)
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ChunkRLError(f"no configuration file {path}") from error
    except json.JSONDecodeError as error:
        raise ChunkRLError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ChunkRLError(f"{path} must hold one JSON object")
    try:
        return from_dict(cls, values)
    except ChunkRLError as error:
        raise ChunkRLError(f"{path}: {error}") from error


def save_config(config: Any, path: str | Path) -> None:
    """Writes a dataclass as JSON, atomically."""
    write_text(path, json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n")
