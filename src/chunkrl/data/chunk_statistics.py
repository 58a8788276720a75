"""Statistics of encoded actions, which depend on their chunk; kept in the data set's cache folder."""

from __future__ import annotations

import hashlib
from functools import reduce
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from chunkrl.data.action_encoding import ActionEncoding
from chunkrl.data.chunk_semantics import ChunkSteps, Segments, chunk_steps
from chunkrl.data.frames import FrameTable
from chunkrl.data.normalize import Statistics, compute_statistics, merge, saved_statistics

BLOCK_STARTS = 16384


class EncodedChunks(Protocol):
    """What is needed of a `ChunkDataset`, which asks for its own statistics."""

    @property
    def table(self) -> FrameTable: ...
    @property
    def encoding(self) -> ActionEncoding: ...
    @property
    def action_horizon(self) -> int: ...
    @property
    def segments(self) -> Segments: ...
    @property
    def starts(self) -> np.ndarray: ...
    @property
    def cache_dir(self) -> Path: ...
    def actions(self, start: np.ndarray, steps: ChunkSteps) -> torch.Tensor: ...
    def __len__(self) -> int: ...


def encoded_action_statistics(dataset: EncodedChunks) -> Statistics:
    """Statistics of the real steps of all chunks, each as often as chunks hold it, float32 [A] each.

    Quantiles of large data sets are means over blocks (`normalize.merge`).
    """
    file = dataset.cache_dir / "statistics" / f"encoded_actions-{_digest(dataset)}.json"
    return saved_statistics(file, lambda: _compute(dataset))


def _digest(dataset: EncodedChunks) -> str:
    """The digest of all that the statistics depend on beside the data set's files: labels count by the segments that
    they cut."""
    description = dataset.table.description
    settings = (dataset.encoding, dataset.action_horizon, description.action_keys, description.state_keys)
    digest = hashlib.blake2b(repr((*settings, BLOCK_STARTS)).encode(), digest_size=16)
    for array in (dataset.segments.ends, dataset.starts):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _compute(dataset: EncodedChunks) -> Statistics:
    blocks = []
    for begin in range(0, len(dataset), BLOCK_STARTS):
        start = dataset.starts[begin : begin + BLOCK_STARTS]
        steps = chunk_steps(start, dataset.action_horizon, dataset.segments)
        real = dataset.actions(start, steps)[torch.from_numpy(steps.action_mask)]
        blocks.append(compute_statistics(real.numpy()))
    return reduce(merge, blocks)
