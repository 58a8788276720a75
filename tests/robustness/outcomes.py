"""What may become of a damaged folder, and how a difference is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chunkrl.errors import ChunkRLError


class Outcome(Enum):
    """Of one variant; the value is its definition. `is_fault`: what must not be."""

    RIGHT = "the values of the undamaged folder, every one"
    REFUSED = "an error of ours that names a file of the folder"
    LISTED = "`inspect` lists it, and what is left when bad episodes are set aside is right"
    UNDETECTABLE = (
        "other values, and no reader could know: no checksum and no second record covers what was changed, the "
        "reference library of the format reads the file without complaint, to the very values that we read"
    )
    UNCLEAR = "an error of ours that names no file of the folder"
    UNLISTED = "`inspect` finds no fault in what cannot be opened"
    FOREIGN = "another exception, or the end of the process"
    HANG = "no end within the time limit"
    SILENT = (
        "other values without a word, where a checksum or another record of the folder speaks against them"
    )

    @property
    def is_fault(self) -> bool:
        """Whether a variant that ends so fails the test."""
        faults = (Outcome.UNCLEAR, Outcome.UNLISTED, Outcome.FOREIGN, Outcome.HANG, Outcome.SILENT)
        return self in faults


@dataclass(frozen=True)
class Found:
    """What became of a variant. detail: the message, or the first difference."""

    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Probe:
    """What a command's function gave: a value, or an error of ours."""

    value: Any = None
    error: str | None = None


def probe(function: Callable[[], Any]) -> Probe:
    """Runs it; errors that are not ours go through."""
    try:
        return Probe(function())
    except ChunkRLError as error:
        return Probe(error=str(error))


def names_a_file(message: str, root: Path) -> bool:
    """Whether an error says where in the folder, in text that a terminal or a file takes."""
    try:
        message.encode()
    except UnicodeEncodeError:
        return False
    return str(root) in message or str(root.resolve()) in message


def difference(ours: Any, truth: Any, where: str = "") -> str | None:
    """The first place where two nested values differ, bit for bit (NaN equals NaN); None: they are the same."""
    if is_dataclass(truth) and not isinstance(truth, type) and type(ours) is type(truth):
        one, other = ({f.name: getattr(x, f.name) for f in fields(x)} for x in (ours, truth))
        return difference(one, other, where)
    if isinstance(ours, Mapping) and isinstance(truth, Mapping):
        if ours.keys() != truth.keys():
            return f"{where}: {sorted(map(str, ours.keys() ^ truth.keys()))[:4]} on one side only"
        found = (difference(ours[key], truth[key], f"{where}/{key}") for key in truth)
        return next((text for text in found if text), None)
    if isinstance(ours, torch.Tensor) and isinstance(truth, torch.Tensor):
        if ours.dtype != truth.dtype:
            return f"{where}: {ours.dtype}, not {truth.dtype}"
        same = ours.shape == truth.shape and torch.equal(
            ours.reshape(-1).view(torch.uint8), truth.reshape(-1).view(torch.uint8)
        )
        return None if same else f"{where}: other tensor"
    if isinstance(ours, np.ndarray) and isinstance(truth, np.ndarray):
        if ours.dtype != truth.dtype or ours.shape != truth.shape:
            return f"{where}: {ours.dtype} {ours.shape}, not {truth.dtype} {truth.shape}"
        same = np.array_equal(ours, truth, equal_nan=ours.dtype.kind == "f")
        return None if same else f"{where}: {_first(ours, truth)}"
    if isinstance(truth, Sequence) and not isinstance(truth, str):
        if not isinstance(ours, Sequence) or len(ours) != len(truth):
            return f"{where}: other length"
        found = (difference(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(ours, truth, strict=True)))
        return next((text for text in found if text), None)
    if isinstance(ours, float) and isinstance(truth, float) and math.isnan(ours) and math.isnan(truth):
        return None
    return None if ours == truth else f"{where}: {str(ours)[:80]!r}, not {str(truth)[:80]!r}"


def _first(ours: np.ndarray, truth: np.ndarray) -> str:
    both_nan = np.array([np.isnan(side.astype(float)).ravel() for side in (ours, truth)]).all(axis=0)
    differs = (ours != truth) & ~both_nan.reshape(ours.shape)
    place = tuple(int(i) for i in np.argwhere(differs)[0])
    return f"{ours[place]!r}, not {truth[place]!r}, at {place} and {int(differs.sum())} places in all"
