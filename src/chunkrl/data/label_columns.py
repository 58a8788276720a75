"""Columns of a data set as labels: one checked value per frame, at the action that earned it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import FlagAt
from chunkrl.data.large_arrays import blocks, by_blocks, zeros
from chunkrl.errors import DatasetError


def label_column(table: FrameTable, name: str, flag: str) -> np.ndarray:
    """A column with one value per frame, [N]."""
    if not table.has_column(name):
        raise DatasetError(f"{table.description.root} has no column '{name}': choose another {flag}")
    values = np.asarray(table.column(name)).reshape(table.num_frames, -1)
    if values.shape[1] != 1:
        raise DatasetError(
            f"{table.description.root}: '{name}' has {values.shape[1]} values per frame, expected one"
        )
    return values[:, 0]


def flag_column(table: FrameTable, name: str, flag: str) -> np.ndarray:
    """A column of flags, bool [N]."""
    values = label_column(table, name, flag)
    check_values(table, name, values, (0, 1), f"a flag; choose another {flag}")
    return by_blocks(table.cache_dir, len(values), bool, lambda rows: values[rows].astype(bool))


def check_values(table: FrameTable, name: str, values: np.ndarray, allowed: Sequence[int], what: str) -> None:
    """Raises DatasetError at the first of values [N] that is not allowed; `what` says what they must be."""
    row = first_row(values, lambda part: ~np.isin(part, allowed))
    if row is not None:
        raise DatasetError(f"{place_of(table, row)}: '{name}' is {values[row]}, which is not {what}")


def first_row(values: np.ndarray, is_wanted: Callable[[np.ndarray], np.ndarray]) -> int | None:
    """The first row of values [N] of which `is_wanted` (of a part of them) is True."""
    for rows in blocks(len(values)):
        wanted = is_wanted(values[rows])
        if wanted.any():
            return rows.start + int(wanted.argmax())
    return None


def place_of(table: FrameTable, row: int) -> str:
    """Data set, episode and frame of a row, for messages."""
    episode = int(table.episode_of(np.asarray(row)))
    frame = row - int(table.episode_start[episode])
    return f"{table.description.root}, episode {int(table.episode_ids[episode])}, frame {frame}"


def to_action(table: FrameTable, name: str, values: np.ndarray, flag_at: FlagAt) -> np.ndarray:
    """Values [N] at the action that earned them; 0 for an action whose result was not recorded."""
    if flag_at == "action" or name.startswith("next."):
        return values
    shifted = zeros(table.cache_dir, len(values), values.dtype)
    shifted[:-1] = values[1:]
    shifted[table.episode_start + table.episode_length - 1] = 0
    return shifted
