"""What a checkpoint says, compared with the run that is to go on from it, before any of it is taken over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chunkrl.errors import CheckpointError
from chunkrl.training.metrics import Record

_CURE = "use another checkpoint"


@dataclass(frozen=True)
class RunProgress:
    """update: how many were done. sums, num_summed: of the metrics of the interval that had begun. records: all."""

    update: int
    sums: Mapping[str, float]
    num_summed: Mapping[str, int]
    records: tuple[Record, ...]


def read_progress(folder: Path, state: Mapping[str, Any], num_updates: int) -> RunProgress:
    """How far the run of a checkpoint was.

    state: of `load_state`. num_updates: of the run that goes on.

    Raises:
        CheckpointError: the state names another update than its folder, a negative one or one beyond the end, or
            lacks something; names it.
    """
    if missing := {"update", "algorithm", "rng", "sums", "num_summed", "data", "records"} - set(state):
        raise CheckpointError(f"{folder} is no checkpoint of a run (it lacks {min(missing)}): {_CURE}")
    update = state["update"]
    if type(update) is not int or update < 0:
        raise CheckpointError(f"{folder}: 'update' is {update!r}, expected a count from 0: {_CURE}")
    if folder.name.isdecimal() and int(folder.name) != update:
        raise CheckpointError(
            f"{folder} holds the state of update {update}: it was renamed or changed; give the folder its own name "
            f"({update:07d}), or {_CURE}"
        )
    if update > num_updates:
        raise CheckpointError(
            f"{folder} is of update {update}, and this run ends at {num_updates}: raise --num-epochs or "
            "--num-updates, or use an earlier checkpoint"
        )
    return RunProgress(update, *_sums(folder, state), _records(folder, state["records"], update))


def _sums(folder: Path, state: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
    sums, counts = state["sums"], state["num_summed"]
    right = (
        isinstance(sums, dict)
        and isinstance(counts, dict)
        and sums.keys() == counts.keys()
        and all(type(value) in (int, float) for value in sums.values())
        and all(type(count) is int and 0 < count < 2**62 for count in counts.values())
    )
    if not right:
        raise CheckpointError(
            f"{folder}: 'sums' and 'num_summed' are no numbers of the same metrics: {_CURE}"
        )
    return sums, counts


def _records(folder: Path, values: Any, update: int) -> tuple[Record, ...]:
    if not isinstance(values, list):
        raise CheckpointError(f"{folder}: 'records' is no list: {_CURE}")
    records = tuple(
        Record.from_json(item, f"{folder}, record {number}", CheckpointError, _CURE)
        for number, item in enumerate(values)
    )
    updates = [record.update for record in records]
    if updates != sorted(updates) or (updates and updates[-1] > update):
        raise CheckpointError(f"{folder}: its records are not those of updates up to {update}: {_CURE}")
    return records


def check_like(folder: Path, state: Any, template: Any, name: str = "algorithm") -> None:
    """Compares an algorithm's stored state with its own one: what both have must be of the same kind.

    Raises:
        CheckpointError: a tensor is of another type, or a number is none, or not finite; names it.
    """
    if isinstance(template, Mapping):
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{folder}: '{name}' is {state!r:.60}, expected several entries: {_CURE}")
        for key in template.keys() & state.keys():
            check_like(folder, state[key], template[key], f"{name}|{key}")
    elif isinstance(template, torch.Tensor):
        dtype = getattr(state, "dtype", template.dtype)  # rows that are still in a file have none yet
        if not hasattr(state, "shape") or dtype != template.dtype:
            raise CheckpointError(
                f"{folder}: '{name}' is {f'of {dtype}' if hasattr(state, 'shape') else repr(state)[:60]}, expected "
                f"{template.dtype}: {_CURE}"
            )
    elif template is not None and state is not None and not _same_kind(state, template):
        raise CheckpointError(
            f"{folder}: '{name}' is {state!r:.60}, expected something like {template!r:.60}: {_CURE}"
        )


def _same_kind(value: Any, template: Any) -> bool:
    if isinstance(template, float):
        return type(value) in (int, float) and math.isfinite(value)
    if type(template) is int:
        return type(value) is int and -1 <= value < 2**62  # -1: not yet
    if isinstance(template, list | tuple):
        inner = template[0] if template else None
        return isinstance(value, list | tuple) and (inner is None or all(_same_kind(v, inner) for v in value))
    return type(value) is type(template)
