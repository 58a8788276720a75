"""Training batches as a pure function of (seed, update): a resumed run sees the batches it would have seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from chunkrl.data.collection import ChunkCollection, ChunkData
from chunkrl.data.large_arrays import blocks, keep, zeros
from chunkrl.errors import DatasetError
from chunkrl.types import ChunkTransition

_SHARES = 0x54A2E5  # the stream of random numbers that rounds shares


def source_counts(weights: np.ndarray, batch_size: int, offset: float) -> np.ndarray:
    """How many of a batch's rows (or of any number of draws) each source gives, int [n], sum `batch_size`.

    Systematic sampling (Madow 1949): each count is its share `batch_size * weight` rounded up or down, and equals
    the share on average over offsets uniform in [0, 1). weights: float [n], sum 1.
    """
    inner = np.ceil(np.cumsum(weights)[:-1] * batch_size - offset).astype(np.int64)
    return np.diff(np.concatenate([[0], inner.clip(0, batch_size), [batch_size]]))


class ChunkLoader:
    """Batches of one or several data sets.

    Each data set is drawn from without replacement and shuffled again on each pass; rows that do not fill their
    place in a batch wait for a later pass (so of one data set, the incomplete last batch is left out). Of several,
    every batch has its share of each, rounded up or down, exact on average.

    Args:
        data: where transitions come from, with the weights of its data sets (none: by their number of starts).
        batch_size: B, of all ranks together; less data gives batches of their own size.
        seed: determines shares and rows.
        subset: positions that may be drawn (None: all), e.g. the successful episodes' starts. A data set that has
            none of them is left out.
        next_observation: whether batches carry x_{t+k}.
        rank, world_size: this process gives every `world_size`-th row of the batch, from row `rank` on: all ranks
            together give the batch that one process would, and each has its share of every data set.
        batches_per_update: that many batches come end to end in one, each with its share of every data set.

    Raises:
        DatasetError: a batch size or less data than ranks can share.
    """

    def __init__(
        self,
        data: ChunkData,
        batch_size: int,
        seed: int,
        *,
        subset: Sequence[int] | np.ndarray | None = None,
        next_observation: bool = True,
        rank: int = 0,
        world_size: int = 1,
        batches_per_update: int = 1,
    ) -> None:
        if not 0 <= rank < world_size or batch_size < 1 or batch_size % world_size:
            raise DatasetError(
                f"batch size {batch_size} for rank {rank} of {world_size}: ranks count from 0, and the batch size "
                "must be a multiple of their number"
            )
        self.data = ChunkCollection.of(data)
        self.seed, self.next_observation = seed, next_observation
        chosen = None if subset is None else keep(self.data.cache_dir, np.asarray(subset, dtype=np.int64))
        num_positions = len(data) if chosen is None else len(chosen)
        if num_positions < world_size:
            raise DatasetError(f"{num_positions} transitions to draw from for {world_size} processes")
        parts = [_Part(span, chosen, self.data.cache_dir) for span in self.data.spans]
        numbers = [number for number, part in enumerate(parts) if len(part)]
        self._parts = [parts[number] for number in numbers]
        weights = np.array([len(part) for part in self._parts], np.float64)
        if self.data.weights is not None:
            weights = self.data.weights[numbers]
        self._weights = weights / weights.sum()
        self._total = min(batch_size, num_positions // world_size * world_size)
        self._num_positions, self._rank, self._world_size = num_positions, rank, world_size
        self._batches_per_update = batches_per_update
        self.batch_size = batches_per_update * (self._total // world_size)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def updates_per_epoch(self) -> int:
        """Updates whose batches hold as many rows as there are to draw from, at least 1."""
        return max(1, self._num_positions // (self._total * self._batches_per_update))

    def positions(self, update: int) -> np.ndarray:
        """This rank's rows in the batch of this update: positions in the data, int [batch_size]."""
        first = update * self._batches_per_update
        return np.concatenate(
            [self._of_batch(number) for number in range(first, first + self._batches_per_update)]
        )

    def _of_batch(self, number: int) -> np.ndarray:
        """This rank's rows in the `number`-th batch."""
        offset = float(np.random.default_rng([self.seed, number, _SHARES]).random())
        counts = source_counts(self._weights, self._total, offset)
        most = np.ceil(self._weights * self._total).astype(np.int64)
        firsts = np.cumsum(counts) - counts
        rows = []
        for source, (count, stride, first) in enumerate(zip(counts, most, firsts, strict=True)):
            slots = number * int(stride) + np.arange(count)
            mine = (first + np.arange(count)) % self._world_size == self._rank
            rows.append(self._rows(source, slots[mine], int(stride)))
        return np.concatenate(rows)

    def batch(self, update: int) -> ChunkTransition:
        """The batch of update number `update` (from 0)."""
        return self.labelled(self.load(update))

    def load(self, update: int) -> ChunkTransition:
        """`batch` without labels, which change while a run goes on: it can be loaded long before it is due."""
        return self.data.batch(self.positions(update), self.next_observation, with_labels=False)

    def labelled(self, batch: ChunkTransition) -> ChunkTransition:
        """A loaded batch with the labels as they stand."""
        return replace(batch, labels=self.data.labels_at(batch.index.numpy()))

    def _rows(self, number: int, slots: np.ndarray, stride: int) -> np.ndarray:
        """Positions at these places of a data set's endless stream of shuffled passes, `stride` a batch."""
        part = self._parts[number]
        # a pass ends with a batch, unless a batch needs more than there is
        length = max(len(part) // stride * stride, min(len(part), stride))
        rows = np.empty(len(slots), np.int64)
        for epoch in np.unique(slots // length):
            known = self._orders.get(number)
            if known is None or known[0] != epoch:
                # numpy pads seeds with zeros: the first data set's stream is that of [seed, epoch]
                order = part.shuffled(np.random.default_rng([self.seed, int(epoch), number]))
                self._orders[number] = known = (int(epoch), order)
            of_epoch = slots // length == epoch
            rows[of_epoch] = known[1][slots[of_epoch] % length]
        return rows


class _Part:
    """The positions in `span` (first, and after the last) that are drawn from; chosen: int [n], or None for all."""

    def __init__(self, span: tuple[int, int], chosen: np.ndarray | None, folder: Path) -> None:
        self._first, self._folder, self._chosen = span[0], folder, None
        self._length = span[1] - span[0]
        if chosen is None:
            return

        def own(rows: slice) -> np.ndarray:
            part = chosen[rows]
            return part[(span[0] <= part) & (part < span[1])]

        self._length = sum(len(own(rows)) for rows in blocks(len(chosen)))
        self._chosen = zeros(folder, self._length, np.int64)
        done = 0
        for rows in blocks(len(chosen)):
            part = own(rows)
            self._chosen[done : done + len(part)] = part
            done += len(part)

    def __len__(self) -> int:
        return self._length

    def shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """All of them in random order, int [len]."""
        small = self._chosen is None and self._first + self._length < 2**31
        order = zeros(self._folder, self._length, np.int32 if small else np.int64)
        for rows in blocks(self._length):
            if self._chosen is None:
                order[rows] = np.arange(self._first + rows.start, self._first + rows.stop)
            else:
                order[rows] = self._chosen[rows]
        rng.shuffle(order)
        return order
