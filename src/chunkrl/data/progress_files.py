"""Progress of every frame by LeRobot's reward models (SARM, Robometer, TOPReward), as a reward or in place of values.

Their parquet files have `index`, `episode_index`, `frame_index` and `progress_sparse` or `progress_dense`, in [0, 1],
and lie in the data set's folder under the names of `FILES`. `chunkrl export-values` writes the same columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chunkrl.data.frame_numbers import read_frame_numbers
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_columns import first_row, place_of
from chunkrl.errors import DatasetError

FILES = ("sarm_progress.parquet", "robometer_progress.parquet", "topreward_progress.parquet")
COLUMNS = ("progress_sparse", "progress_dense")  # the first that there is


def progress_file(root: Path, name: str) -> Path:
    """The file that `--progress` names, from here or from the data set's folder; "": the one in that folder.

    Raises:
        DatasetError: it is not there, or nothing says which of several.
    """
    if name:
        path = Path(name).expanduser()
        return path if path.exists() else root / path
    there = [root / file for file in FILES if (root / file).is_file()]
    if len(there) == 1:
        return there[0]
    found = f"has {', '.join(file.name for file in there)}" if there else f"has none of {', '.join(FILES)}"
    raise DatasetError(f"{root} {found}: say with --progress FILE which file has the progress of its frames")


def read_progress(path: Path, table: FrameTable, flag: str) -> np.ndarray:
    """Progress of every frame of the table, float32 [N] in [0, 1]. flag: that named the file, for messages.

    Raises:
        DatasetError: as `read_frame_numbers`; progress is NaN, or lies outside [0, 1].
    """
    progress = read_frame_numbers(path, table, _column(path), flag).astype(np.float32)
    row = first_row(progress, lambda part: ~((part >= 0) & (part <= 1)))
    if row is not None:
        raise DatasetError(
            f"{path}: progress is {progress[row]} at {place_of(table, row)}; it lies in [0, 1]. NaN is of frames "
            "that the reward model failed at: run it again"
        )
    return progress


def _column(path: Path) -> str:
    """The column that the file has; the first where it cannot be read, which its reader says."""
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        return COLUMNS[0]
    return next((name for name in COLUMNS if name in names), COLUMNS[0])


def progress_rewards(
    progress: np.ndarray, last: np.ndarray, success: np.ndarray, after: np.ndarray
) -> np.ndarray:
    """What each action gained, float32 [N]: progress[t + 1] - progress[t].

    A succeeding action gains what is left to 1; the last action of another episode, whose result is not stored, and
    what follows a success gain nothing. A success returns 1 - progress[0] without discount, whatever was before it.

    progress: float32 [N], of whole episodes. last: int [E], their last rows. success, after: bool [N], the succeeding
    actions, and frames recorded after a success.
    """
    following = np.append(progress[1:], np.float32(0))
    following[last] = progress[last]
    gained = np.where(success, np.float32(1), following) - progress
    return np.where(after, np.float32(0), gained)
