"""What values are worth on episodes that no network of theirs saw: rank, calibration, and how much is memory.

One set of pure functions for the algorithms' metrics, the logs and the report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chunkrl.errors import ChunkRLError
from chunkrl.statistics import spearman

# The benchmark's small regularised V has a gap of .10 to .31 over 20 runs and weights well; every larger or longer
# trained V that was tried there has .42 to .66, ranks unseen episodes no better and good actions worse
# (docs/results.md, "V memorises"). The limit stands between the two groups.
MAX_OVERFIT_GAP = 0.36
# Below it, values say next to nothing of an unseen episode. The benchmark's lowest is .25.
MIN_RANK_CORRELATION = 0.1


@dataclass(frozen=True, eq=False)
class Calibration:
    """Mean actual return of frames that were predicted alike; bins hold equal numbers of frames.

    predicted, actual: float [n], mean value and mean return of every bin, in order of value. counts: int [n].
    error: the bins' mean |predicted - actual|, weighted by counts, in units of returns: the expected calibration
    error (Naeini et al., AAAI 2015), with bins of equal counts (Nixon et al., arXiv 1904.01685).
    """

    predicted: NDArray[np.float64]
    actual: NDArray[np.float64]
    counts: NDArray[np.int64]
    error: float


@dataclass(frozen=True, eq=False)
class ValueQuality:
    """How well values order and predict the returns of N frames; nan where values or returns are constant.

    held_out, seen: Spearman rank correlation with the return, of values by networks that never saw the episode, and
    by those that trained on it. calibration: of the held-out values.
    """

    held_out: float
    seen: float
    calibration: Calibration

    @property
    def overfit_gap(self) -> float:
        """How much better networks rank the episodes that they trained on."""
        return self.seen - self.held_out

    def scalars(self) -> dict[str, float]:
        """Returns the scalars by the names that the logs use."""
        return {
            "value/rank_correlation_held_out": self.held_out,
            "value/rank_correlation_seen": self.seen,
            "value/overfit_gap": self.overfit_gap,
            "value/calibration_error": self.calibration.error,
        }

    def warnings(self) -> list[str]:
        """What a reader must know before trusting the advantages; empty where nothing is wrong."""
        return quality_warnings(self.held_out, self.seen)


def value_quality(
    value: ArrayLike, value_seen: ArrayLike, returns: ArrayLike, num_bins: int = 10
) -> ValueQuality:
    """Quality of the values of N frames whose outcome is known.

    Args:
        value, value_seen, returns: float [N]: by networks that never saw the episode; the mean of those that did;
            the return that the recording had from there.
        num_bins: of the calibration.

    Raises:
        ChunkRLError: shapes differ, N < 2, a value is not finite.
    """
    return ValueQuality(
        spearman(value, returns), spearman(value_seen, returns), calibration(value, returns, num_bins)
    )


def calibration(value: ArrayLike, returns: ArrayLike, num_bins: int = 10) -> Calibration:
    """Bins of equal numbers of frames in order of value; frames of one value stay in one bin, so there may be fewer.

    value, returns: float [N]. Raises ChunkRLError for other shapes, no frame or no bin.
    """
    predicted, actual = np.asarray(value, np.float64), np.asarray(returns, np.float64)
    if predicted.ndim != 1 or predicted.shape != actual.shape or len(predicted) == 0 or num_bins < 1:
        raise ChunkRLError(
            f"calibration needs values and returns [N], N > 0, and at least one bin; got {predicted.shape}, "
            f"{actual.shape} and {num_bins} bins"
        )
    num_below = np.searchsorted(np.sort(predicted), predicted, side="left")
    _, bins, counts = np.unique(
        num_below * num_bins // len(predicted), return_inverse=True, return_counts=True
    )
    sums = [np.bincount(bins, weights=x) for x in (predicted, actual)]
    means = [total / counts for total in sums]
    error = float(np.abs(means[0] - means[1]) @ counts / counts.sum())
    return Calibration(means[0], means[1], counts.astype(np.int64), error)


def quality_warnings(held_out: float, seen: float) -> list[str]:
    """Sentences for rank correlations that should not be trusted, with what to do; nan means a constant value."""
    if math.isnan(held_out):
        return [
            "The values, or the returns, are the same everywhere: there is nothing to weight by. Check the success "
            "labels (chunkrl inspect), and train values for longer."
        ]
    found = []
    if held_out < MIN_RANK_CORRELATION:
        found.append(
            f"The values hardly rank the frames of episodes that they never saw (rank correlation {held_out:.2f}): "
            "the advantages are mostly noise. More episodes or a clearer success label will do more than any setting."
        )
    if seen - held_out > MAX_OVERFIT_GAP:
        found.append(
            f"The values memorise: rank correlation {seen:.2f} on the episodes that they trained on, "
            f"{held_out:.2f} on others. Use fewer --value-epochs, or a smaller or noisier critic: --fit.hidden-dim, "
            "--fit.dropout, --fit.noise (of a pi policy: --pi.critic.depth, --pi.critic.dropout, "
            "--pi.critic.state-noise). Without cross-fitting the advantages would be noise."
        )
    return found
