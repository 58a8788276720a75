"""Values of a run for the episodes on the page, and how much they doubt a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chunkrl.algorithms.values_io import values_file
from chunkrl.data.frames import FrameTable
from chunkrl.data.sidecar import Sidecar, is_of, load_part, read_metadata
from chunkrl.errors import DatasetError
from chunkrl.label.marks import EpisodeMarks
from chunkrl.manifest import read_manifest, verify
from chunkrl.options import EpisodeOrder


@dataclass(frozen=True)
class Values:
    """Held-out values and advantages of a data set's N frames, in units of returns.

    value, advantage: float [N]. known: bool [N], the frames that the run had; it may have left episodes out. low,
    high: of all returns of the run's data set.
    """

    value: np.ndarray
    advantage: np.ndarray
    known: np.ndarray
    low: float
    high: float

    def doubt(self, marks: EpisodeMarks, rows: slice) -> float | None:
        """How much they contradict the outcome, from 0 (not at all) to 1; None where nothing can be said.

        V of the last observation that led to the outcome: where a success's succeeding action was chosen, else of
        the last frame. On the scale from the data's lowest return (0) to its highest (1), a success is doubted by
        what V lacks to 1, a failure by what it has above 0. rows: of the episode.
        """
        if marks.success is None or self.high <= self.low:
            return None
        row = rows.stop - 1 if marks.success_step is None else rows.start + marks.success_step
        if not self.known[row]:
            return None
        unit = float(np.clip((self.value[row] - self.low) / (self.high - self.low), 0, 1))
        return 1 - unit if marks.success else unit


def order_key(order: EpisodeOrder, marks: EpisodeMarks, doubt: float | None) -> tuple[int, float]:
    """What episodes are sorted by; equal ones by number.

    doubt: without a label, then with a label that nobody looked at, the most doubted first, then those that a person
    confirmed or changed, excluded ones last.
    """
    if order == "number":
        return (0, 0.0)
    unlabelled = marks.success is None and not marks.excluded
    if order == "unlabelled":
        return (0 if unlabelled else 1, 0.0)
    group = 3 if marks.excluded else 0 if unlabelled else 2 if marks.by_hand else 1
    return (group, 0.0 if doubt is None else -doubt)


def load_values(place: str, tables: Sequence[FrameTable]) -> list[Values | None]:
    """The values of each table; None where the run was not trained on it.

    place: a run's folder, or one of its files of values.

    Raises:
        DatasetError: there are no values, they are damaged, or of none of the data sets.
        CheckpointError: a file is not what the run wrote.
    """
    files = _files(Path(place).expanduser())
    found: list[Values | None] = []
    for table in tables:
        own = next((file for file in files if is_of(file, table)), None)
        found.append(None if own is None else _values(own, *load_part(own, table)))
    if not any(found):
        made_for = ", ".join(sorted({str(read_metadata(file).get("dataset", file)) for file in files}))
        shown = ", ".join(str(table.description.root) for table in tables)
        raise DatasetError(
            f"--run {place}: its values are of other data ({made_for}), or of these before they changed; shown are "
            f"{shown}: give a run that was trained on these, or leave --run out"
        )
    return found


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    files: list[Path] = []
    while (file := place / values_file(len(files))).is_file():
        files.append(file)
    if not files:
        raise DatasetError(
            f"--run {place} holds no {values_file(0)}: give the folder of a run with values (chunkrl train "
            "--objective value, or the default one), or leave --run out"
        )
    if read_manifest(place) is not None:
        verify(place, marked=True, only=[file.name for file in files])
    return files


def _values(file: Path, sidecar: Sidecar, known: np.ndarray) -> Values:
    arrays = sidecar.arrays
    if missing := [name for name in ("value", "return", "advantage") if name not in arrays]:
        raise DatasetError(
            f"{file} has no column '{missing[0]}': give a file of values that chunkrl train wrote"
        )
    for name in ("value", "return", "advantage"):
        if not np.isfinite(arrays[name]).all():
            raise DatasetError(f"{file}: '{name}' of a frame is no finite number: train the values again")
    returns = arrays["return"][known]
    return Values(arrays["value"], arrays["advantage"], known, float(returns.min()), float(returns.max()))
