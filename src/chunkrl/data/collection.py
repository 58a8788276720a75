"""Several data sets as one: positions, frames and episodes count through them, one data set after the other."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import reduce
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from chunkrl.data.alike import Likeness, check_alike, check_names
from chunkrl.data.chunk_semantics import Segments
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.labels import FrameLabels
from chunkrl.data.large_arrays import by_blocks, keep, zeros
from chunkrl.data.normalize import Statistics, merge
from chunkrl.errors import DatasetError
from chunkrl.types import ChunkTransition, TensorRecord


class ChunkCollection:
    """Chunk transitions of one or several data sets, with the interface of one (`ChunkDataset`).

    Every row keeps its own task text; its `episode_index` and `frame_index` are those of its own data set. A
    collection of one data set gives what that data set gives.

    Args:
        datasets: with equal horizons, discount, reward, encoding, frame rate, state, action and image sizes.
        weights: how often each is drawn from, relative to each other (`ChunkLoader`); None: every start is
            equally likely.
        num_apart: data sets, the first ones, that are a pool each; those after them are one (the parts of a learner's
            replay, which end where a file does). None: all.

    Attributes, over all data sets, with N frames and E episodes:
        starts: int [len], the frame (row) where each chunk begins.
        frame_labels, segments: of the N frames and E episodes (`frame_labels.rule` is the first data set's).
        cache_dir: the first data set's folder in the cache.

    Raises:
        DatasetError: no data set, one twice, a weight that is missing or not positive, data sets that do not fit.
    """

    @classmethod
    def of(cls, data: ChunkData) -> ChunkCollection:
        """`data` itself, or a collection of that one data set."""
        return data if isinstance(data, ChunkCollection) else cls([data])

    def __init__(
        self,
        datasets: Sequence[ChunkDataset],
        weights: Sequence[float] | None = None,
        num_apart: int | None = None,
    ) -> None:
        if not datasets:
            raise DatasetError("a collection needs at least one data set")
        if weights is not None and len(weights) != len(datasets):
            raise DatasetError(
                f"{len(weights)} weights for {len(datasets)} data sets: give one for each (--dataset-weights, the "
                "data set of --dataset-dir first), or none"
            )
        for dataset, weight in zip(datasets, weights or (), strict=False):
            if not 0 < weight < np.inf:
                raise DatasetError(f"{dataset.name}: weight {weight}; it must be a positive number")
        alike = [Likeness.of(dataset) for dataset in datasets] if len(datasets) > 1 else []
        for number, dataset in enumerate(datasets[1:], start=1):
            if any(dataset.fingerprint == other.fingerprint for other in datasets[:number]):
                raise DatasetError(
                    f"{dataset.name} is there twice: cross-fitting would train on the episodes that it holds out; "
                    "name it once, with a larger weight (--dataset-weights)"
                )
            check_alike(alike[0], alike[number])
            for other in alike[:number]:
                check_names(other, alike[number])
        self.datasets = tuple(datasets)
        self.weights = None if weights is None else np.array(weights, np.float64)
        self._num_apart = len(datasets) if num_apart is None else num_apart
        self._offsets = _offsets(len(dataset) for dataset in datasets)
        rows = _offsets(dataset.num_frames for dataset in datasets)
        episodes = _offsets(dataset.num_episodes for dataset in datasets)
        self.num_frames, self.num_episodes = int(rows[-1]), int(episodes[-1])
        self._episode_offsets = episodes
        self.cache_dir = datasets[0].cache_dir
        self.starts = self._joined([dataset.starts for dataset in datasets], rows)
        self.frame_labels = self._join_labels()
        self.segments = Segments(
            ends=np.concatenate([d.segments.ends + row for d, row in zip(datasets, rows, strict=False)]),
            terminated=np.concatenate([dataset.segments.terminated for dataset in datasets]),
        )
        first = datasets[0]
        self.action_horizon, self.critic_horizon = first.action_horizon, first.critic_horizon
        self.gamma, self.reward_kind = first.gamma, first.reward_kind
        self.action_dim, self.state_dim, self.cameras = first.action_dim, first.state_dim, first.cameras
        self.image_sizes, self.encoding, self.fps = first.image_sizes, first.encoding, first.fps
        self.resize = first.resize
        of_cameras = zip(*(dataset.recorded_sizes for dataset in datasets), strict=True)
        self.recorded_sizes = tuple(
            tuple(dict.fromkeys(size for sizes in camera for size in sizes)) for camera in of_cameras
        )

    def __len__(self) -> int:
        return int(self._offsets[-1])

    @property
    def name(self) -> str:
        """Where the data are, for messages."""
        return " and ".join(dataset.name for dataset in self.datasets)

    @property
    def fingerprint(self) -> str:
        """The fingerprints of the files of all data sets."""
        return "+".join(dataset.fingerprint for dataset in self.datasets)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All task texts, each once."""
        return tuple(dict.fromkeys(task for dataset in self.datasets for task in dataset.tasks))

    @property
    def task(self) -> np.ndarray:
        """int [len], each start's task: its place in `tasks`."""
        place = {task: number for number, task in enumerate(self.tasks)}
        numbers = [np.array([place[task] for task in dataset.tasks]) for dataset in self.datasets]
        return self._joined(
            [
                by_blocks(
                    dataset.cache_dir, len(dataset), np.int64, lambda rows, o=of, t=dataset.task: o[t[rows]]
                )
                for of, dataset in zip(numbers, self.datasets, strict=True)
            ]
        )

    @property
    def episode(self) -> np.ndarray:
        """int [len], the number of each start's episode."""
        return self._joined([dataset.episode for dataset in self.datasets], self._episode_offsets)

    @property
    def success(self) -> np.ndarray:
        """bool [len], whether each start's episode succeeded."""
        return self._joined([dataset.success for dataset in self.datasets])

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The positions of each data set: first, and after the last."""
        return tuple(pairwise(self._offsets.tolist()))

    @property
    def episode_identities(self) -> tuple[str, ...]:
        """A name of every episode, [E], which it keeps wherever it stands (`chunkrl.data.identity`)."""
        return tuple(identity for dataset in self.datasets for identity in dataset.episode_identities)

    @property
    def label_names(self) -> frozenset[str]:
        """Labels that are attached to every data set."""
        return frozenset.intersection(*(dataset.label_names for dataset in self.datasets))

    def source(self, positions: np.ndarray) -> np.ndarray:
        """Which data set, int [n], the positions int [n] are of."""
        return np.searchsorted(self._offsets, positions, side="right") - 1

    def pool(self, positions: np.ndarray) -> np.ndarray:
        """Which pool, int [n] from 0, the positions int [n] are of (see `num_apart`)."""
        return np.minimum(self.source(positions), self._num_apart)

    def _joined(self, parts: Sequence[np.ndarray], offsets: Sequence[int] | np.ndarray = ()) -> np.ndarray:
        """The data sets' arrays [n] end to end, each with its offset (none: 0) added."""
        if len(parts) == 1:
            return parts[0]
        joined = zeros(self.cache_dir, sum(map(len, parts)), parts[0].dtype)
        begin = 0
        for number, part in enumerate(parts):
            own = joined[begin : begin + len(part)]
            own[:] = part
            if len(offsets):
                own += offsets[number]
            begin += len(part)
        return joined

    def _join_labels(self) -> FrameLabels:
        labels = [dataset.frame_labels for dataset in self.datasets]
        names = [f.name for f in fields(FrameLabels) if f.name not in ("rule", "file", "file_told", "unused")]
        joined = {name: self._joined([getattr(label, name) for label in labels]) for name in names}
        return replace(labels[0], **joined)

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """values [len, ...] of the starts, to each data set its own (views)."""
        return np.split(values, self._offsets[1:-1])

    def attach(self, name: str, values: np.ndarray) -> None:
        """Adds a label [len, ...], one value per start; batches carry it in `labels[name]`."""
        if values.shape[0] != len(self):
            raise ValueError(f"label {name!r} has {values.shape[0]} rows for {len(self)} starts")
        for dataset, part in zip(self.datasets, self.split(keep(self.cache_dir, values)), strict=True):
            dataset.attach(name, part)

    def detach_all(self) -> None:
        """Forgets all labels."""
        for dataset in self.datasets:
            dataset.detach_all()

    def digest(self) -> str:
        """The digest of episodes, actions and labels: equal where a run may be resumed, wherever the files are."""
        digests = [dataset.digest() for dataset in self.datasets]
        return digests[0] if len(digests) == 1 else f"{zlib.crc32(' '.join(digests).encode()):08x}"

    def action_statistics(self) -> Statistics:
        """Statistics of the actions as batches carry them, float32 [A] each (`normalize.merge`)."""
        return reduce(merge, [dataset.action_statistics() for dataset in self.datasets])

    def state_statistics(self) -> Statistics:
        """Statistics of the recorded states, float32 [S] each (`normalize.merge`)."""
        return reduce(merge, [dataset.state_statistics() for dataset in self.datasets])

    def labels_at(self, index: np.ndarray) -> dict[str, Tensor]:
        """The attached labels at positions `index` int [B], as they stand: name -> [B, ...].

        Raises:
            DatasetError: the data sets carry different labels.
        """
        parts, order = self._by_dataset(index)
        labels = [dataset.labels_at(rows) for dataset, rows in parts]
        for part in labels[1:]:
            if set(part) != set(labels[0]):
                raise DatasetError(
                    f"data sets carry different labels, {sorted(labels[0])} and {sorted(part)}: "
                    "attach the same to all"
                )
        return _concatenate(labels, order)

    def batch(
        self, index: np.ndarray, next_observation: bool = True, with_labels: bool = True
    ) -> ChunkTransition:
        """The transitions at positions `index` int [B], in that order (as `ChunkDataset.batch`).

        Raises:
            DatasetError: the data sets carry different labels.
        """
        index = np.asarray(index, dtype=np.int64)
        parts, order = self._by_dataset(index)
        batches = [dataset.batch(rows, next_observation, with_labels=False) for dataset, rows in parts]
        batch = replace(_join(batches, order, next_observation), index=torch.from_numpy(index))
        return replace(batch, labels=self.labels_at(index)) if with_labels else batch

    def _by_dataset(self, index: np.ndarray) -> tuple[list[tuple[ChunkDataset, np.ndarray]], np.ndarray]:
        """The data sets that have positions `index` int [B], each with its own positions of them, and where in
        these, laid end to end, each one is: int [B]."""
        source = self.source(index)
        parts = [
            (self.datasets[number], index[source == number] - self._offsets[number])
            for number in np.unique(source)
        ]
        return parts, np.argsort(np.argsort(source, kind="stable"), kind="stable")

    def batches(self, batch_size: int, next_observation: bool = False) -> Iterator[ChunkTransition]:
        """All transitions in order, in batches of at most `batch_size`."""
        for begin in range(0, len(self), batch_size):
            yield self.batch(np.arange(begin, min(begin + batch_size, len(self))), next_observation)


ChunkData: TypeAlias = ChunkDataset | ChunkCollection
"""What algorithms and trainer work on."""


def _offsets(sizes: Iterator[int]) -> np.ndarray:
    return np.cumsum([0, *sizes])


def _join(parts: Sequence[ChunkTransition], order: np.ndarray, next_observation: bool) -> ChunkTransition:
    """One batch from several; its row i is row order[i] of the parts laid end to end."""
    if len(parts) == 1:
        return parts[0]
    if next_observation:
        return _concatenate(parts, order)
    observation = _concatenate([part.observation for part in parts], order)
    blank = replace(parts[0].observation, images={}, state=None, task=())
    bare = [replace(part, observation=blank, next_observation=blank) for part in parts]
    return replace(_concatenate(bare, order), observation=observation, next_observation=observation)


def _concatenate(values: Sequence[Any], order: np.ndarray) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        joined = torch.cat(list(values))
        return joined if np.array_equal(order, np.arange(len(order))) else joined[torch.from_numpy(order)]
    if isinstance(first, TensorRecord):
        named = {
            f.name: _concatenate([getattr(value, f.name) for value in values], order) for f in fields(first)
        }
        return type(first)(**named)
    if isinstance(first, Mapping):
        return {key: _concatenate([value[key] for value in values], order) for key in first}
    if isinstance(first, tuple):
        joined = [item for value in values for item in value]
        return tuple(joined[row] for row in order) if joined else ()
    assert first is None
    return None
