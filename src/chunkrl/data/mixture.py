"""Batches from several data sets at once, each with its share in every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import DatasetError
from chunkrl.types import ChunkTransition, TensorRecord


@dataclass(frozen=True)
class Source:
    """A data set and its weight; weights count relative to each other."""

    dataset: ChunkDataset
    weight: float = 1.0


def source_counts(weights: np.ndarray, batch_size: int, offset: float) -> np.ndarray:
    """How many of a batch's rows each source gives, int [n], sum `batch_size`.

    Systematic sampling (Madow 1949): each count is its share `batch_size * weight` rounded up or down, and equals
    the share on average over offsets uniform in [0, 1). weights: float [n], sum 1.
    """
    inner = np.ceil(np.cumsum(weights)[:-1] * batch_size - offset).astype(np.int64)
    return np.diff(np.concatenate([[0], inner.clip(0, batch_size), [batch_size]]))


class MixtureLoader:
    """Batches of several data sets, with the interface of `ChunkLoader`; a function of (seed, update) alone.

    Every batch has its share of each source, rounded up or down, exact on average. A source is drawn from without
    replacement and shuffled anew on each pass; rows that rounding leaves out wait for a later pass. Each row keeps
    its own task text; `index` counts through the sources one after the other.

    Args:
        sources: data sets with equal state, action and picture sizes.
        batch_size: B, of all ranks together.
        seed: determines shares and rows.
        rank, world_size: this process gives every `world_size`-th row of the batch, from row `rank` on: all ranks
            together give the batch that one process would, and each has its share of every source.
        next_observation: whether batches carry x_{t+k}.

    Raises:
        DatasetError: no source, a weight that is not positive, sources that differ, a batch size that ranks
            cannot share.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        next_observation: bool = True,
    ) -> None:
        if not sources:
            raise DatasetError("a mixture needs at least one data set")
        for source in sources:
            if not 0 < source.weight < np.inf:
                root = source.dataset.table.description.root
                raise DatasetError(f"{root}: weight {source.weight}; it must be a positive number")
        if not 0 <= rank < world_size or batch_size < 1 or batch_size % world_size:
            raise DatasetError(
                f"batch size {batch_size} for rank {rank} of {world_size}: ranks count from 0, and the batch size "
                "must be a multiple of their number"
            )
        for source in sources[1:]:
            _check_alike(sources[0].dataset, source.dataset)
        self.datasets = tuple(source.dataset for source in sources)
        self.batch_size, self.seed, self.next_observation = batch_size // world_size, seed, next_observation
        self._total, self._rank, self._world_size = batch_size, rank, world_size
        weights = np.array([source.weight for source in sources], np.float64)
        self._weights = weights / weights.sum()
        self._offsets = np.cumsum([0, *(len(dataset) for dataset in self.datasets)])
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def updates_per_epoch(self) -> int:
        """Batches that hold as many rows as all sources together."""
        return max(1, int(self._offsets[-1]) // self._total)

    def positions(self, update: int) -> list[np.ndarray]:
        """This rank's rows in the batch of this update, for each source: positions in it, int [n]."""
        offset = float(np.random.default_rng([self.seed, update]).random())
        counts = source_counts(self._weights, self._total, offset)
        most = np.ceil(self._weights * self._total).astype(np.int64)
        firsts = np.cumsum(counts) - counts
        result = []
        for number, (count, stride, first) in enumerate(zip(counts, most, firsts, strict=True)):
            slots = update * int(stride) + np.arange(count)
            mine = (first + np.arange(count)) % self._world_size == self._rank
            result.append(self._rows(number, slots[mine]))
        return result

    def batch(self, update: int) -> ChunkTransition:
        """The batch of update number `update` (from 0)."""
        parts = []
        for number, rows in enumerate(self.positions(update)):
            if len(rows):
                part = self.datasets[number].batch(rows, self.next_observation)
                parts.append(_with_index(part, int(self._offsets[number])))
        return concatenate(parts)

    def _rows(self, number: int, slots: np.ndarray) -> np.ndarray:
        """Rows of a source at these places of its endless stream of shuffled passes."""
        size = len(self.datasets[number])
        rows = np.empty(len(slots), np.int64)
        for epoch in np.unique(slots // size):
            known = self._orders.get(number)
            if known is None or known[0] != epoch:
                order = np.random.default_rng([self.seed, number, int(epoch)]).permutation(size)
                self._orders[number] = known = (int(epoch), order)
            of_epoch = slots // size == epoch
            rows[of_epoch] = known[1][slots[of_epoch] % size]
        return rows


def _with_index(part: ChunkTransition, offset: int) -> ChunkTransition:
    return replace(part, index=part.index + offset)


def concatenate(parts: Sequence[ChunkTransition]) -> ChunkTransition:
    """One batch from several, in their order.

    Raises:
        DatasetError: they carry different labels.
    """
    for part in parts[1:]:
        if set(part.labels) != set(parts[0].labels):
            raise DatasetError(
                f"sources carry different labels, {sorted(parts[0].labels)} and {sorted(part.labels)}: "
                "attach the same to all"
            )
    return _concatenate(parts)


def _concatenate(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, TensorRecord):
        named = {f.name: _concatenate([getattr(value, f.name) for value in values]) for f in fields(first)}
        return type(first)(**named)
    if isinstance(first, Mapping):
        return {key: _concatenate([value[key] for value in values]) for key in first}
    if isinstance(first, tuple):
        return tuple(item for value in values for item in value)
    assert first is None
    return None


def _check_alike(a: ChunkDataset, b: ChunkDataset) -> None:
    """Raises DatasetError where chunks of the two cannot stand in one batch."""

    def shape(dataset: ChunkDataset) -> dict[str, Any]:
        table = dataset.table
        return {
            "actions a chunk": dataset.action_horizon,
            "values an action": dataset.action_dim,
            "values a state": dataset.state_dim,
            "cameras (height, width)": {name: table.camera(name).size for name in sorted(dataset.cameras)},
            "discount": dataset.gamma,
            "reward": dataset.reward_kind,
            "action encoding": dataset.encoding,
        }

    ours, theirs = shape(a), shape(b)
    for name, value in ours.items():
        if theirs[name] != value:
            raise DatasetError(
                f"{b.table.description.root}: {name}: {theirs[name]}, but {a.table.description.root} has {value}: "
                "name columns and cameras alike, resize pictures, or leave the data set out"
            )
