"""Per-episode statistics as LeRobot v3.0 stores them, and their aggregate (`meta/stats.json`).

Two differences from LeRobot 0.4.4, both towards the exact value: per-episode quantiles are exact (NumPy's
linear interpolation) where LeRobot interpolates a 5000-bin histogram, and the standard deviation of images is
that of their pixels. The aggregate follows LeRobot: quantiles of a data set are the count-weighted mean of
the episodes' quantiles, an approximation (`chunkrl.data.normalize` computes them from the columns).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

QUANTILES: Mapping[str, float] = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
FIELDS = ("min", "max", "mean", "std", "count", *QUANTILES)
MAX_IMAGE_FRAMES = 100


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of one feature: arrays [D], or [3, 1, 1] for cameras (pixels in 0..1).

    min, max: in the feature's dtype. mean, std (population): float64. quantiles: float64 [5, ...]
        (`QUANTILES`).
    count: number of frames they cover.
    """

    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    count: int
    quantiles: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Nested lists by LeRobot's names (`FIELDS`); `count` is a list of one number."""
        record = {name: getattr(self, name).tolist() for name in ("min", "max", "mean", "std")}
        record["count"] = [self.count]
        return record | {name: self.quantiles[i].tolist() for i, name in enumerate(QUANTILES)}


def column_statistics(values: np.ndarray) -> FeatureStatistics:
    """Statistics over the frames of a numeric or bool column [T, ..., D], T >= 1, [D] each.

    Dimensions between frame and last one are pooled; `count` is T all the same.
    """
    num_frames = len(values)
    values = values.reshape(-1, values.shape[-1])
    wide = values.astype(np.float64)
    return FeatureStatistics(
        min=values.min(axis=0),
        max=values.max(axis=0),
        mean=wide.mean(axis=0),
        std=wide.std(axis=0),
        count=num_frames,
        quantiles=np.quantile(wide, list(QUANTILES.values()), axis=0),
    )


def image_statistics(frames: Sequence[Image.Image]) -> FeatureStatistics:
    """Statistics over every pixel of at most 100 evenly spaced RGB frames, exact (256-bin histograms)."""
    chosen = np.unique(
        np.linspace(0, len(frames) - 1, min(len(frames), MAX_IMAGE_FRAMES)).round().astype(int)
    )
    histogram = np.sum([np.reshape(frames[i].histogram(), (3, 256)) for i in chosen], axis=0).astype(np.int64)
    levels = np.arange(256) / 255.0
    pixels = histogram.sum(axis=1, keepdims=True)
    mean = histogram @ levels / pixels[:, 0]
    variance = histogram @ levels**2 / pixels[:, 0] - mean**2
    cumulative = np.cumsum(histogram, axis=1)
    # The smallest level that at least q of the pixels do not exceed.
    ranks = [np.argmax(cumulative >= q * pixels, axis=1) for q in QUANTILES.values()]
    present = histogram > 0

    def per_channel(values: np.ndarray) -> np.ndarray:
        return values.reshape(*values.shape, 1, 1)

    return FeatureStatistics(
        min=per_channel(levels[present.argmax(axis=1)]),
        max=per_channel(levels[255 - present[:, ::-1].argmax(axis=1)]),
        mean=per_channel(mean),
        std=per_channel(np.sqrt(np.maximum(variance, 0.0))),
        count=len(chosen),
        quantiles=per_channel(levels[np.stack(ranks)]),
    )


def aggregate_statistics(episodes: Mapping[str, np.ndarray]) -> FeatureStatistics:
    """Statistics of all episodes together: exact but for the quantiles, which are count-weighted means.

    episodes: name of `FIELDS` -> [E, ...]; count [E, 1].
    """
    mean, std = np.asarray(episodes["mean"], np.float64), np.asarray(episodes["std"], np.float64)
    count = np.asarray(episodes["count"]).reshape(len(mean))
    share = (count / count.sum()).reshape(-1, *(1,) * (mean.ndim - 1))
    total = (share * mean).sum(axis=0)
    return FeatureStatistics(
        min=np.asarray(episodes["min"]).min(axis=0),
        max=np.asarray(episodes["max"]).max(axis=0),
        mean=total,
        std=np.sqrt((share * (std**2 + (mean - total) ** 2)).sum(axis=0)),
        count=int(count.sum()),
        quantiles=np.stack(
            [(share * np.asarray(episodes[name], np.float64)).sum(axis=0) for name in QUANTILES]
        ),
    )


def merge_statistics(a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
    """`aggregate_statistics` of two."""
    first, second = a.as_dict(), b.as_dict()
    return aggregate_statistics({name: np.asarray([first[name], second[name]]) for name in FIELDS})
