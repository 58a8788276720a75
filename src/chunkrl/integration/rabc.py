"""RA-BC, the sample weighting of stock `lerobot-train` (`--sample_weighting.type=rabc`), and files that it reads.

LeRobot 0.6.1 (0.4.4: `--use_rabc`) weights a chunk by how far a progress estimate rises over it:
d = progress[t + H] - progress[t], with the episode's last frame where t + H lies beyond its end. The weight is 0
where d < 0, 1 where d > kappa, between them the ramp (d - (mean - 2 deviation)) / (4 deviation), clipped to [0, 1];
mean (at least 0) and deviation are of d over all rows of the file. A frame that the file does not have gets weight 1.
Written again from that description; a test marked `lerobot` compares it with LeRobot's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from chunkrl.algorithms.advantages import ReturnRange, step_rewards
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.label_rules import TimeOut

EPSILON = 1e-6
FULL_SHARE = 0.25  # of the frames count in full by the kappa that is chosen


def rises(progress: np.ndarray, episode: np.ndarray, horizon: int) -> np.ndarray:
    """What progress float [N] gains over the chunk from each frame, float64 [N].

    episode: int [N], frames of one lie together.
    """
    return _at_chunk_end(progress, episode, horizon) - progress


def _at_chunk_end(values: np.ndarray, episode: np.ndarray, horizon: int) -> np.ndarray:
    rows = np.arange(len(values))
    last = np.flatnonzero(np.append(np.diff(episode) != 0, True))
    end = last[np.searchsorted(last, rows)]
    return values.astype(np.float64)[np.minimum(rows + horizon, end)]


def rabc_weights(progress: np.ndarray, episode: np.ndarray, horizon: int, kappa: float) -> np.ndarray:
    """The weight that LeRobot gives every frame, before it divides by the batch's mean, float32 [N]; arguments as of
    `rises`."""
    rise = rises(progress, episode, horizon)
    mean, deviation = max(rise.mean(), 0.0), max(rise.std(), EPSILON)
    ramp = np.clip((rise - (mean - 2 * deviation)) / (4 * deviation + EPSILON), 0.0, 1.0)
    return np.where(rise < 0, 0.0, np.where(rise > kappa, 1.0, ramp)).astype(np.float32)


def choose_kappa(rise: np.ndarray) -> float:
    """The kappa that a quarter of the frames exceed (`FULL_SHARE`); where fewer rise, half of those that do. It has
    four digits, so that it is the same on a command line.

    rise: float [N]. LeRobot's own .01 is of SARM's progress, whose rises are of another size.
    """
    kappa = float(np.quantile(rise, 1 - FULL_SHARE))
    if kappa <= 0:
        rising = rise[rise > 0]
        kappa = float(np.median(rising)) if len(rising) else 0.0
    return float(f"{kappa:.4g}")


@dataclass(frozen=True)
class Spread:
    """How weights [N] spread: the parts that are 0, that are 1, the mean, and the frames that as many equal weights
    would count as, (sum w)^2 / sum w^2, as a part of N."""

    zero: float
    full: float
    mean: float
    effective: float

    @classmethod
    def of(cls, weight: np.ndarray) -> Spread:
        """The spread of weights [N] in [0, 1]."""
        own = weight.astype(np.float64)
        squares = (own**2).sum() * len(own)
        effective = float(own.sum() ** 2 / squares) if squares else 0.0
        return cls(float((own == 0).mean()), float((own == 1).mean()), float(own.mean()), effective)


def value_ends(dataset: ChunkDataset, value: np.ndarray, time_out: TimeOut) -> np.ndarray:
    """V float [N] with the outcome in its place from each episode's last action on, float64 [N], as returns.

    The outcome is the last action's reward; where the recording only ended and `time_out` is bootstrap, none is
    known, and V stays. Frames recorded after a success keep the success's: the task ended there.
    """
    labels, table = dataset.frame_labels, dataset.table
    reward = step_rewards(dataset)
    ended = value.astype(np.float64)
    for first, length in zip(table.episode_start, table.episode_length, strict=True):
        rows = slice(int(first), int(first + length))
        found = np.flatnonzero(labels.terminated[rows])
        last = int(first + (found[0] if len(found) else length - 1))
        if len(found) or time_out == "failure":
            ended[last : rows.stop] = reward[last]
    return ended


def progress_of(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values float [N] between `low` and `high`, mapped to [0, 1], float32 [N]: a larger value is more progress."""
    return ReturnRange(low, high if high > low else low + 1.0).to_unit(values)


@dataclass(frozen=True)
class EncodedWeights:
    """Progress from which RA-BC with kappa 1 makes given weights, up to one factor, at one chunk length.

    progress: float64 [N], of the data's frames. others: float64 [M], of one more episode, of no frame of the data,
    which gives the rises the mean and deviation that the ramp needs.
    """

    progress: np.ndarray
    others: np.ndarray


def encode_weights(weight: np.ndarray, episode: np.ndarray, horizon: int) -> EncodedWeights:
    """Progress that rises over each chunk by a multiple of its weight.

    The ramp is the rise itself where the rises' mean is 1/2 and their deviation 1/4. Rises can be chosen freely, but
    for each episode's last frame, which has 0: progress is laid out from the end, in steps of `horizon`. Mean and
    deviation are brought about by the rises of further rows, which LeRobot counts, and which no batch asks for.

    weight: float [N], not negative, not all 0. episode: int [N], frames of one lie together.
    """
    last = np.append(np.diff(episode) != 0, True)
    rise = np.where(last, 0.0, weight.astype(np.float64))
    rise /= max(rise.max(), np.finfo(np.float64).tiny)
    others = _balancing_rises(np.append(rise, 0.0))  # the further episode's last frame rises by 0 as well
    progress = _laid_out(rise, episode, horizon)
    further = _laid_out(np.append(others, 0.0), np.zeros(len(others) + 1), horizon)
    return EncodedWeights(progress, further)


def _balancing_rises(rise: np.ndarray) -> np.ndarray:
    """Rises float [M] that make mean 1/2 and deviation 1/4 of those float [n] in [0, 1] and themselves: as few as
    there can be of two values that come equally often.

    Of the squares that the deviation needs, M rows at the center that gives the mean leave M / 16 + c - g^2 / M,
    which must not be negative. c >= -3 n / 16 and |g| <= n / 2, so that M = 4 n suffices.
    """
    num, total, squares = len(rise), float(rise.sum()), float((rise**2).sum())
    gap = num / 2 - total
    constant = 5 / 16 * num - squares - gap
    more = 2 * max(1, math.ceil(4 * (math.sqrt(constant**2 + gap**2 / 4) - constant)))
    center = 1 / 2 + gap / more
    side = math.sqrt(max(0.0, more / 16 + constant - gap**2 / more) / more)
    return np.tile([center - side, center + side], more // 2)


def _laid_out(rise: np.ndarray, episode: np.ndarray, horizon: int) -> np.ndarray:
    """Progress float64 [N] with these rises over `horizon` frames; 0 at each episode's last."""
    progress = np.zeros(len(rise))
    bounds = np.flatnonzero(np.diff(episode) != 0) + 1
    for rows in np.split(np.arange(len(rise)), bounds):
        last = rows[-1]
        for row in rows[:-1][::-1]:
            progress[row] = progress[min(row + horizon, last)] - rise[row]
    return progress
