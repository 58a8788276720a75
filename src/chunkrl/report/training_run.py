"""A training run read back from its folder: configuration, records, data and the labels of every frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.algorithms.values_io import read_values_files, values_file
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.on_demand import OnDemandCamera
from chunkrl.errors import DatasetError
from chunkrl.files.regular_files import is_there
from chunkrl.manifest import MANIFEST_FILE
from chunkrl.progress import Progress, silent
from chunkrl.run.build import open_data
from chunkrl.run.config import TrainConfig
from chunkrl.training.metrics import Record


@dataclass(frozen=True)
class Episode:
    """One episode of a data set: its position, `episode_index`, rows of the table, outcome and task."""

    position: int
    index: int
    rows: slice
    success: bool
    task: str

    @property
    def name(self) -> str:
        """The name in words."""
        return f"episode {self.index}, {'success' if self.success else 'failure'}"


class LabelledData:
    """One data set of a run, N frames, with the labels that the run gave them.

    Attributes:
        dataset: the data. labels: name -> [N], in the order of its frames; empty where the run has none.
        rule: what made the labels.
    """

    def __init__(
        self, dataset: ChunkDataset, labels: Mapping[str, np.ndarray], rule: Mapping[str, Any]
    ) -> None:
        self.dataset, self.labels, self.rule = dataset, labels, rule
        self._cameras: dict[str, OnDemandCamera] = {}

    @cached_property
    def episodes(self) -> tuple[Episode, ...]:
        """All, in the table's order."""
        table, success = self.dataset.table, self.dataset.frame_labels.success
        ends = table.episode_start + table.episode_length
        return tuple(
            Episode(position, int(index), slice(int(begin), int(end)), bool(ok), table.task_text(int(begin)))
            for position, (index, begin, end, ok) in enumerate(
                zip(table.episode_ids, table.episode_start, ends, success, strict=True)
            )
        )

    def episode_of(self, row: int) -> Episode:
        """The episode of a row of the table."""
        return self.episodes[int(self.dataset.table.episode_of(np.asarray(row)))]

    @property
    def cameras(self) -> tuple[str, ...]:
        """All that the data has, whether the networks saw them or not."""
        return self.dataset.table.description.cameras

    def pictures(self, camera: str, rows: np.ndarray) -> np.ndarray:
        """uint8 RGB [n, H, W, 3] of int rows [n]; only these are decoded."""
        if camera not in self._cameras:
            self._cameras[camera] = self.dataset.table.decoder(camera)
        return self._cameras[camera].read(rows).transpose(0, 2, 3, 1)

    def choose_episodes(self, num: int) -> list[Episode]:
        """The first `num` episodes, successes and failures in turn; where one kind runs out, the other fills up."""
        kinds = [[e for e in self.episodes if e.success == kind] for kind in (True, False)]
        longest = max(len(kind) for kind in kinds)
        mixed = [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]
        return mixed[:num]


@dataclass(frozen=True)
class TrainingRun:
    """folder, its config.json, versions.json and records (metrics.jsonl), and its data sets with their labels.

    dataset_weights: how often each data set is drawn from; (): by their frames. notes: what a reader must know of the
    data that are not here.
    """

    folder: Path
    config: TrainConfig
    versions: Mapping[str, str]
    records: tuple[Record, ...]
    data: tuple[LabelledData, ...]
    dataset_weights: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def has_values(self) -> bool:
        """Whether the run labelled its data with values."""
        return all("value" in part.labels for part in self.data)

    def column(self, name: str) -> np.ndarray:
        """A label of all frames of all data sets, end to end."""
        return np.concatenate([part.labels[name] for part in self.data])

    def points(self, name: str) -> tuple[list[int], list[float]]:
        """Updates and values of a scalar, as recorded."""
        found = [(r.update, r.scalars[name]) for r in self.records if name in r.scalars]
        return [update for update, _ in found], [value for _, value in found]

    def last(self, name: str) -> float | None:
        """The last value of a scalar; None where it was never recorded."""
        _, values = self.points(name)
        return values[-1] if values else None


def load_data(config: TrainConfig, values_dir: Path, progress: Progress = silent) -> tuple[LabelledData, ...]:
    """The data sets of a configuration, with the labels in `values_dir` where there are any.

    Raises:
        DatasetError: a data set is absent or has changed since the labels were made.
    """
    try:
        data = open_data(config, progress)
    except DatasetError as error:
        raise DatasetError(
            f"{error} ({values_dir / 'config.json'} names the data as the run was given it: start the command in the "
            "same folder)"
        ) from error
    datasets = data.datasets
    cure = "copy the folder again, whole, or delete what stands there"
    files = [values_dir / name for name in (MANIFEST_FILE, *map(values_file, range(len(datasets))))]
    if not any(is_there(file, DatasetError, cure) for file in files):
        return tuple(LabelledData(dataset, {}, {}) for dataset in datasets)
    sidecars = read_values_files(values_dir, [dataset.table for dataset in datasets])
    return tuple(
        LabelledData(dataset, sidecar.arrays, sidecar.metadata)
        for dataset, sidecar in zip(datasets, sidecars, strict=True)
    )
