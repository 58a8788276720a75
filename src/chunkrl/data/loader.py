"""Training batches as a pure function of (seed, update): a resumed run sees the batches it would have seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chunkrl.data.chunks import ChunkDataset
from chunkrl.types import ChunkTransition


class ChunkLoader:
    """Batches of a ChunkDataset: each epoch is a fresh permutation, the incomplete last batch is left out.

    Args:
        dataset: where transitions come from.
        batch_size: B; a smaller data set gives batches of its own size.
        seed: determines every permutation.
        subset: positions that may be drawn (None: all), e.g. the successful episodes' starts.
        next_observation: whether batches carry x_{t+k}.
    """

    def __init__(
        self,
        dataset: ChunkDataset,
        batch_size: int,
        seed: int,
        *,
        subset: Sequence[int] | np.ndarray | None = None,
        next_observation: bool = True,
    ) -> None:
        self.dataset, self.seed, self.next_observation = dataset, seed, next_observation
        self._positions = np.arange(len(dataset)) if subset is None else np.asarray(subset, dtype=np.int64)
        if len(self._positions) == 0:
            raise ValueError("no transition to draw from: the subset is empty")
        self.batch_size = min(batch_size, len(self._positions))
        self._epoch, self._order = -1, self._positions

    @property
    def updates_per_epoch(self) -> int:
        """Batches in one pass over the data."""
        return len(self._positions) // self.batch_size

    def batch(self, update: int) -> ChunkTransition:
        """The batch of update number `update` (from 0)."""
        epoch, position = divmod(update, self.updates_per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self._positions)
            self._epoch = epoch
        begin = position * self.batch_size
        return self.dataset.batch(self._order[begin : begin + self.batch_size], self.next_observation)
