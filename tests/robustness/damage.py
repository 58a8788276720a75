"""Damage to a folder: kinds by name, each a function of a folder and a seeded generator.

A kind picks its file itself and says what it did as (file, what), or returns None where the folder has nothing that
it could damage. It never needs to know what the folder is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Kind = Callable[[Path, random.Random], "tuple[Path, str] | None"]
KINDS: dict[str, Kind] = {}


@dataclass(frozen=True)
class Damage:
    """What was done. file: relative to the folder."""

    kind: str
    file: str
    what: str


def kind(name: str) -> Callable[[Kind], Kind]:
    """Registers a kind under `family/name`."""

    def register(function: Kind) -> Kind:
        assert name not in KINDS
        KINDS[name] = function
        return function

    return register


def files_of(root: Path, *suffixes: str) -> list[Path]:
    """Files below a folder in a fixed order, of these suffixes where any is given; no locks and temporaries."""
    found = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    found = [path for path in found if not path.name.startswith(".") and "tensorboard" not in path.parts]
    return [path for path in found if not suffixes or path.suffix in suffixes]


def pick(root: Path, rng: random.Random, *suffixes: str) -> Path | None:
    """One of `files_of`."""
    files = files_of(root, *suffixes)
    return rng.choice(files) if files else None


def state_of(root: Path) -> dict[str, object]:
    """What a folder holds, to see whether something changed."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(root))] = path.read_bytes() if plain else path.lstat().st_mode
    return found


def damage(root: Path, name: str, rng: random.Random, before: Mapping[str, object]) -> Damage | None:
    """Damages the folder in place; None, and nothing done: this kind finds nothing to damage there.

    before: `state_of` the folder.
    """
    done = KINDS[name](root, rng)
    if done is None or state_of(root) == before:
        return None
    file, what = done
    return Damage(name, str(file.relative_to(root)), what)


_NEEDS = {
    **{"json": {".json", ".jsonl"}, "lines": {".jsonl"}, "parquet": {".parquet"}, "picture": {".parquet"}},
    **{"video": {".mp4"}, "tensors": {".safetensors"}},
}


def sorts_for(root: Path) -> list[str]:
    """The sorts of damage (`sort/kind`) that a folder's files allow."""
    suffixes = {path.suffix for path in files_of(root)}
    sorts = {name.split("/")[0] for name in KINDS}
    return sorted(sort for sort in sorts if sort not in _NEEDS or _NEEDS[sort] & suffixes)
