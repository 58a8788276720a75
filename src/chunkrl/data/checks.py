"""What must hold in the columns that every LeRobot data set has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chunkrl.data.formats import DatasetDescription, Episode
from chunkrl.data.row_checks import MisplacedRowsError
from chunkrl.errors import DatasetError


def check_episode(
    description: DatasetDescription, episode: Episode, columns: Mapping[str, np.ndarray]
) -> None:
    """Checks order, times and tasks of one episode.

    Args:
        columns: name -> [T], the episode's rows.

    Raises:
        MisplacedRowsError: frames of another episode.
        DatasetError: frames out of order, at the wrong times or of unknown tasks.
    """
    where = f"{episode.data_file}, episode {episode.index}"

    def frame(good: np.ndarray) -> int:
        return int(np.argmin(good))

    good = columns["episode_index"] == episode.index
    if not good.all():
        raise MisplacedRowsError(
            f"{where}, frame {frame(good)}: belongs to episode {columns['episode_index'][frame(good)]} by its "
            "episode_index"
        )
    good = columns["frame_index"] == np.arange(episode.length)
    if not good.all():
        raise DatasetError(
            f"{where}, frame {frame(good)}: frame_index is {columns['frame_index'][frame(good)]}: "
            "frames must stand in order without gaps; write the file again"
        )
    times = columns["timestamp"].astype(np.float64)
    good = np.isfinite(times) & (np.diff(times, prepend=-np.inf) > 0)
    if not good.all():
        raise DatasetError(
            f"{where}, frame {frame(good)}: timestamp {times[frame(good)]} s does not grow: "
            f"timestamps must increase from frame to frame: write the file again{late_start(times, description.fps)}"
        )
    step = (times[-1] - times[0]) / max(1, episode.length - 1)
    if episode.length > 1 and not 0.95 < step * description.fps < 1.05:
        raise DatasetError(
            f"{where}: frames are {step:.4g} s apart, but meta/info.json says {description.fps:g} per second: "
            f"correct one{late_start(times, description.fps)}"
        )
    texts = _check_tasks(description, columns["task_index"], where)
    if episode.tasks and not texts <= set(episode.tasks):
        raise DatasetError(
            f"{where}: its frames say {sorted(texts)}, its metadata {sorted(episode.tasks)}: correct one"
        )


def late_start(times: np.ndarray, fps: float) -> str:
    """What to add to an error about times, float64 [T] seconds, where an episode's do not begin at 0; else ""."""
    if abs(times[0]) < 0.5 / fps:
        return ""
    return f"; timestamps must begin at 0 in every episode, these begin at {times[0]:.6g} s (a wall clock?)"


def first_not_finite(values: np.ndarray) -> int | None:
    """The first row of [T, ...] with NaN, inf or a number beyond float32."""
    if values.dtype.kind != "f":
        return None
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32)).reshape(len(values), -1).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def not_finite(episode: Episode, name: str, frame: int) -> DatasetError:
    """The error for a NaN or an infinite value in a state or an action."""
    return DatasetError(
        f"{episode.data_file}, episode {episode.index}, frame {frame}: "
        f"'{name}' is NaN or infinite (in float32): correct the frame or remove the episode"
    )


def _check_tasks(description: DatasetDescription, indices: np.ndarray, where: str) -> set[str]:
    """The texts of the tasks, which must all be known."""
    for index in np.unique(indices).tolist():
        if index not in description.tasks:
            known = ", ".join(map(str, sorted(description.tasks)[:20])) or "none"
            first = int(np.argmax(indices == index))
            raise DatasetError(
                f"{where}, frame {first}: task_index {index} is unknown (known: {known}): "
                "add it to meta/tasks or correct the column"
            )
    return {description.tasks[index] for index in np.unique(indices).tolist()}
