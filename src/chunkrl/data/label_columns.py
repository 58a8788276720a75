"""Columns of a data set as labels: one checked value a frame, at the action that earned it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from chunkrl.data.frames import FrameTable
from chunkrl.errors import DatasetError

FlagAt = Literal["action", "observation"]


def label_column(table: FrameTable, name: str, flag: str) -> np.ndarray:
    """A column with one value a frame, [N]."""
    if not table.has_column(name):
        raise DatasetError(f"{table.description.root} has no column '{name}': choose another {flag}")
    values = np.asarray(table.column(name)).reshape(table.num_frames, -1)
    if values.shape[1] != 1:
        raise DatasetError(
            f"{table.description.root}: '{name}' has {values.shape[1]} values a frame, expected one"
        )
    return values[:, 0]


def flag_column(table: FrameTable, name: str, flag: str) -> np.ndarray:
    """A column of flags, bool [N]."""
    values = label_column(table, name, flag)
    check_values(table, name, values, (0, 1), f"a flag; choose another {flag}")
    return values.astype(bool)


def check_values(table: FrameTable, name: str, values: np.ndarray, allowed: Sequence[int], what: str) -> None:
    """Raises DatasetError at the first of values [N] that is not allowed; `what` says what they must be."""
    wrong = ~np.isin(values, allowed)
    if wrong.any():
        row = int(wrong.argmax())
        raise DatasetError(f"{place_of(table, row)}: '{name}' is {values[row]}, which is not {what}")


def place_of(table: FrameTable, row: int) -> str:
    """Data set, episode and frame of a row, for messages."""
    episode = int(np.searchsorted(table.episode_start, row, side="right")) - 1
    frame = row - int(table.episode_start[episode])
    return f"{table.description.root}, episode {int(table.episode_ids[episode])}, frame {frame}"


def to_action(table: FrameTable, name: str, values: np.ndarray, flag_at: FlagAt) -> np.ndarray:
    """Values [N] at the action that earned them; 0 for an action whose result was not recorded."""
    if flag_at == "action" or name.startswith("next."):
        return values
    shifted = np.zeros_like(values)
    shifted[:-1] = values[1:]
    shifted[table.episode_start + table.episode_length - 1] = 0
    return shifted
