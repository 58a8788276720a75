"""What stays the same while the data grow: an episode's fold, and the values of frames that were labelled before.

An episode was trained on by the networks of the other folds from its first batch on, so it may never change its
fold. Episodes are known by their identities (`chunkrl.data.identity`), wherever they stand in the data now.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chunkrl.algorithms.advantages import ReturnRange
from chunkrl.data.collection import ChunkCollection, ChunkData
from chunkrl.data.identity import rows_before

_LOG = logging.getLogger(__name__)


def extend_folds(
    known: Mapping[str, int], identities: Sequence[str], success: np.ndarray, num_folds: int
) -> np.ndarray:
    """Fold of each episode, int64 [E]: its own where it has one; the others get, in order, the fold with the fewest
    episodes of their outcome (of equal ones, the one with the fewest episodes, then the first).

    known: identity -> fold. identities: of the episodes, success: bool [E].
    """
    fold = np.array([known.get(identity, -1) for identity in identities], np.int64)
    for episode in np.flatnonzero(fold < 0):
        alike = np.bincount(fold[(fold >= 0) & (success == success[episode])], minlength=num_folds)
        all_of_it = np.bincount(fold[fold >= 0], minlength=num_folds)
        fold[episode] = np.lexsort((all_of_it, alike))[0]
    return fold


@dataclass(frozen=True)
class EpisodeRows:
    """identities: of the E episodes of some data. lengths: their frames, int64 [E]."""

    identities: tuple[str, ...]
    lengths: np.ndarray

    @staticmethod
    def of(data: ChunkData) -> EpisodeRows:
        """The rows of the episodes of `data`."""
        ends = episode_ends(data)
        return EpisodeRows(data.episode_identities, np.diff(ends, prepend=0))


def episode_ends(data: ChunkData) -> np.ndarray:
    """int64 [E], the row after each episode."""
    datasets = data.datasets if isinstance(data, ChunkCollection) else (data,)
    lengths = [dataset.table.episode_length for dataset in datasets]
    return np.cumsum(np.concatenate(lengths))


def carry(values: np.ndarray, before: EpisodeRows, now: EpisodeRows) -> np.ndarray:
    """The values float [N before] of frames that are still there, in their new places; NaN for new frames."""
    rows = rows_before(before.identities, before.lengths, now.identities, now.lengths)
    carried = np.full(len(rows), np.nan, values.dtype)
    carried[rows >= 0] = values[rows[rows >= 0]]
    return carried


def warn_outside(returns: np.ndarray, known: ReturnRange) -> float:
    """The share of returns float [N] that V cannot reach, because it was built for other data; a warning names it."""
    slack = 1e-4 * (known.high - known.low)
    outside = (returns < known.low - slack) | (returns > known.high + slack)
    share = float(outside.mean()) if len(returns) else 0.0
    if share:
        _LOG.warning(
            "%.1f%% of the frames have returns outside %.4g to %.4g, between which the values were built (now %.4g "
            "to %.4g): V takes them for the nearest one; if that matters, begin with data that has such episodes, or "
            "say the range with --fit.return-range",
            *(100 * share, known.low, known.high, float(returns.min()), float(returns.max())),
        )
    return share
