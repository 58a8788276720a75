"""Which starts training draws, and how often: what is averaged over the data counts every start so."""

from __future__ import annotations

import math

import numpy as np

from chunkrl.data.collection import ChunkCollection, ChunkData
from chunkrl.data.large_arrays import blocks, by_blocks, keep, zeros
from chunkrl.data.loader import source_counts

_BY_WEIGHT = 0xD2A3  # the stream of random numbers that rounds counts


def trained_starts(data: ChunkData) -> np.ndarray | None:
    """Positions int [n] of the starts that may be trained on; None: all.

    What was recorded after a success is left out. The task has ended there: its frames are no decisions of it, no
    policy comes to them, their outcome is nobody's doing, and a V that learned from them would learn that places
    which look like success are worth nothing.
    """
    after = data.frame_labels.after_success
    if not after.any():
        return None
    ended = by_blocks(data.cache_dir, len(data), bool, lambda rows: after[data.starts[rows]])
    return keep(data.cache_dir, np.flatnonzero(~ended))


def draw_rates(data: ChunkData, drawn: np.ndarray | None) -> np.ndarray | None:
    """How often each start is drawn relative to the average drawn one, float32 [len]; None: all alike.

    drawn: positions int [n] that may be drawn, None all; the others have rate 0. A data set with a weight is drawn
    from at that rate (`loader.ChunkLoader`), so that each of its n starts counts weight / n; those without anything
    to draw are left out.
    """
    collection = ChunkCollection.of(data)
    if drawn is None and collection.weights is None:
        return None
    rates = zeros(collection.cache_dir, len(collection), np.float32)
    if drawn is None:
        rates[:] = 1.0
    else:
        rates[drawn] = 1.0
    counts = np.array([_total(rates[first:last]) for first, last in collection.spans])
    if collection.weights is not None:
        shares = np.where(counts > 0, collection.weights, 0.0)
        shares *= counts.sum() / shares.sum()
        for (first, last), share, count in zip(collection.spans, shares, counts, strict=True):
            rates[first:last] *= share / max(count, 1.0)
    return keep(collection.cache_dir, rates)


def rate_per_start(rates: np.ndarray | None, num_starts: int) -> np.ndarray:
    """What `draw_rates` gives as float64 [num_starts], for sums: 1 where all are drawn alike."""
    return np.ones(num_starts) if rates is None else np.asarray(rates, np.float64)


MOST_TIMES = 8  # so many positions a start, so that rare ones are not all left out


def share_weights(data: ChunkData, drawn: np.ndarray | None, chosen: np.ndarray, share: float) -> np.ndarray:
    """Weights float32 [len] that give `share` of the weight to what is `chosen`, in a data set that has both kinds.
    One with a single kind has weights of 1, as has every data set on average.

    drawn: positions int [n] that may be drawn, None all. chosen: bool [len]. share: in (0, 1).
    """
    collection = ChunkCollection.of(data)
    positions = _positions(collection, drawn)
    weight = np.ones(len(collection), np.float32)
    for first, last in collection.spans:
        own = positions[(first <= positions) & (positions < last)]
        part = float(chosen[own].mean()) if len(own) else 0.0
        if 0 < part < 1:
            weight[own] = np.where(chosen[own], share / part, (1 - share) / (1 - part))
    return weight


def starts_by_share(
    data: ChunkData, drawn: np.ndarray | None, chosen: np.ndarray, share: float, seed: int
) -> np.ndarray:
    """What to draw from, all alike, in place of `drawn`, so that starts come as often as `share_weights` says; how
    often each data set is drawn from stays.

    Returns positions int64, of `starts_by_weight`, up to `MOST_TIMES` as many as there are starts: enough that
    those which are drawn less often are all among them.
    """
    weight = share_weights(data, drawn, chosen, share)
    least = float(weight.min() if drawn is None else weight[drawn].min())
    times = min(MOST_TIMES, math.ceil(1 / least - 1e-6))
    return starts_by_weight(data, drawn, weight, seed, times)[0]


def starts_that_weigh(
    data: ChunkData, drawn: np.ndarray | None, weight: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """What to draw from, all alike, in place of `drawn`, so that no row of a batch has weight 0.

    Returns positions int [n], None all; and the weight that is left for the loss, float32 [len]: times the part of
    the starts that is drawn, in each data set where these have weights, so that the weighted loss is the same on
    average. A data set without any weight is left out, and the others drawn as much more often.

    drawn: positions int [n] that may be drawn, None all. weight: float [len], not negative, of which one is not 0.
    """
    collection = ChunkCollection.of(data)
    positions = _positions(collection, drawn)
    weighs = weight[positions] > 0
    if weighs.all():
        return drawn, np.asarray(weight, np.float32)
    left = zeros(collection.cache_dir, len(collection), np.float32)
    if collection.weights is None:
        left[:] = weight * np.float32(weighs.mean())
    else:
        parts = [weighs[(first <= positions) & (positions < last)] for first, last in collection.spans]
        pairs = list(zip(collection.weights, parts, strict=True))
        stays = sum(rate for rate, part in pairs if part.any()) / sum(
            rate for rate, part in pairs if len(part)
        )
        for (first, last), part in zip(collection.spans, parts, strict=True):
            if part.any():
                left[first:last] = weight[first:last] * np.float32(part.mean() * stays)
    return keep(collection.cache_dir, positions[weighs]), keep(collection.cache_dir, left)


def starts_by_weight(
    data: ChunkData, drawn: np.ndarray | None, weight: np.ndarray, seed: int, times: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """What to draw from, all alike, in place of `drawn`, so that a start comes in proportion to its weight.

    Returns positions int64 [n], a start as often as its share of them, rounded up or down by systematic sampling
    (Madow 1949); and the weight that is left for the loss, float32 [len]: the mean weight of the start's data set, as
    how often a data set is drawn from does not change. On average over seeds the weighted loss is the same; fewer
    rows of a batch are spent on what weighs next to nothing.

    drawn: positions int [n] that may be drawn, None all. weight: float [len], not negative. times: positions for
    each of `drawn`.
    """
    collection = ChunkCollection.of(data)
    positions = _positions(collection, drawn)
    left = zeros(collection.cache_dir, len(collection), np.float32)
    chosen = []
    for number, (first, last) in enumerate(collection.spans):
        own = positions[(first <= positions) & (positions < last)]
        mass = weight[own].astype(np.float64)
        if (total := mass.sum()) > 0:
            left[first:last] = total / len(own)
            offset = 1.0 - np.random.default_rng([seed, number, _BY_WEIGHT]).random()
            own = np.repeat(own, source_counts(mass / total, times * len(own), offset))
        else:
            own = np.repeat(own, times)
        chosen.append(own)
    return keep(collection.cache_dir, np.concatenate(chosen)), left


def _positions(collection: ChunkCollection, drawn: np.ndarray | None) -> np.ndarray:
    """What may be drawn, positions int [n]; drawn: None all."""
    return np.arange(len(collection)) if drawn is None else np.asarray(drawn)


def _total(values: np.ndarray) -> float:
    return float(sum(values[rows].sum(dtype=np.float64) for rows in blocks(len(values))))
