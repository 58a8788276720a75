"""What charts and videos of a page are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chunkrl.errors import ChunkRLError


def _vector(values: Any, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ChunkRLError(f"{name}: expected a non-empty array [n], got shape {list(array.shape)}")
    return array


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a panel. Curves of one `panel` share its axes.

    x, y: [n]; a y that is not finite breaks the line and is said under the panel. One point is a dot.
    """

    name: str
    x: Sequence[float] | NDArray[Any]
    y: Sequence[float] | NDArray[Any]
    panel: str = "training loss"
    x_label: str = "update"

    def __post_init__(self) -> None:
        x, y = _vector(self.x, f"x of curve '{self.name}'"), _vector(self.y, f"y of curve '{self.name}'")
        if x.shape != y.shape or not np.isfinite(x).all():
            raise ChunkRLError(f"curve '{self.name}': x and y need the same length and x finite values")

    @property
    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x and y as float64 [n], in order of x."""
        x, y = np.asarray(self.x, dtype=np.float64), np.asarray(self.y, dtype=np.float64)
        order = np.argsort(x, kind="stable")
        return x[order], y[order]


@dataclass(frozen=True)
class Segment:
    """Frames [start, stop) of an episode that share a label, such as who acted."""

    start: int
    stop: int
    label: str


@dataclass(frozen=True, eq=False)
class EpisodeTrace:
    """Value and advantage along one episode of T frames, from networks that never saw it.

    value, advantage: float [T]; a frame without one holds nan and is left out of the image.
    segments: optional stretches to mark under the traces (the controller that acted, a human's correction).
    notes: optional sentence under the image. link: where its title leads within the page, or "".
    """

    task: str
    title: str
    success: bool
    value: NDArray[Any]
    advantage: NDArray[Any]
    segments: tuple[Segment, ...] = field(default=())
    notes: str = ""
    link: str = ""

    def __post_init__(self) -> None:
        name = f"trace '{self.title}' of task '{self.task}'"
        value, advantage = _vector(self.value, name), _vector(self.advantage, name)
        if value.shape != advantage.shape:
            raise ChunkRLError(
                f"{name}: {len(value)} values but {len(advantage)} advantages; both need one per frame"
            )
        if np.isinf(value).any() or np.isinf(advantage).any():
            raise ChunkRLError(
                f"{name} holds infinite numbers: the critic diverged, do not draw it as a trace"
            )
        if np.isnan(value).all() or np.isnan(advantage).all():
            raise ChunkRLError(f"{name} holds no number at all: leave it out")
        for segment in self.segments:
            if not 0 <= segment.start < segment.stop <= len(value):
                raise ChunkRLError(f"{name}: segment {segment} lies outside its {len(value)} frames")
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "advantage", advantage)


@dataclass(frozen=True)
class ClipPair:
    """A video of two policies from the same initial state (`chunkrl.evaluation.video.side_by_side`)."""

    task: str
    title: str
    left_label: str
    right_label: str
    video: bytes
    mime: str
