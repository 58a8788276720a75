"""What values say of every start of the data, what they learn from, and what they are worth."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields

import numpy as np

from chunkrl.algorithms.value_quality import value_quality
from chunkrl.data.collection import ChunkData
from chunkrl.data.draws import trained_starts
from chunkrl.data.label_rules import TimeOut
from chunkrl.data.large_arrays import by_blocks, keep
from chunkrl.data.returns import lambda_returns
from chunkrl.training.algorithm import Histogram, Metrics

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValueLabels:
    """Labels of every start, float32 [len] each, in units of returns: V by networks that never saw the episode, the
    mean of those that did, the Monte-Carlo return, and the advantage from the first."""

    value: np.ndarray
    value_seen: np.ndarray
    returns: np.ndarray
    advantage: np.ndarray

    @property
    def held_out(self) -> bool:
        """Whether V and what others say are told apart; progress of a reward model has one of them alone."""
        return self.value is not self.value_seen


def label_metrics(
    labels: ValueLabels, data: ChunkData, time_out: TimeOut, cross_fitted: bool = True
) -> Metrics:
    """What the labels of `data` are worth on episodes that V never saw, and how they are distributed over the starts
    that are trained on.

    cross_fitted: False where V saw all episodes: nothing is said of unseen ones then.
    """
    known = known_outcomes(data, time_out)[data.starts]
    quality = value_quality(labels.value[known], labels.value_seen[known], labels.returns[known])
    trained = trained_starts(data)
    if trained is not None:
        labels = ValueLabels(*(getattr(labels, f.name)[trained] for f in fields(ValueLabels)))
    scalars = quality.scalars()
    if any(math.isnan(value) for value in scalars.values()):
        _LOG.warning(
            "the values of %s, or its returns, are the same everywhere: there is nothing to rank or to weight by",
            data.name,
        )
    if not cross_fitted:
        del scalars["value/rank_correlation_held_out"], scalars["value/overfit_gap"]
    return {
        **scalars,
        "advantage/positive_fraction": float(np.mean(labels.advantage > 0)),
        "value/held_out": Histogram.of(labels.value),
        "value/return": Histogram.of(labels.returns),
        "advantage/value": Histogram.of(labels.advantage),
    }


def monte_carlo_returns(data: ChunkData, step_reward: np.ndarray) -> np.ndarray:
    """The return of every frame as it was recorded, float32 [N]; step_reward: of `advantages.step_rewards`."""
    zero = np.zeros(len(step_reward), dtype=np.float32)
    return keep(data.cache_dir, lambda_returns(zero, step_reward, data.segments, data.gamma, 1.0))


def known_outcomes(data: ChunkData, time_out: TimeOut) -> np.ndarray:
    """bool [N]: frames whose outcome V can learn from: with `bootstrap` unfinished recordings have none, and nothing
    that was recorded after success has."""
    after_success = data.frame_labels.after_success

    def known(rows: slice) -> np.ndarray:
        if time_out == "failure":
            return ~after_success[rows]
        return data.segments.of(np.arange(rows.start, rows.stop))[1] & ~after_success[rows]

    return by_blocks(data.cache_dir, data.num_frames, bool, known)


def warn_of_success_alone(data: ChunkData, known: np.ndarray | None = None) -> None:
    """Says what V cannot learn where every episode of `data` succeeds, or every one whose outcome it learns from.

    known: bool [N], frames whose outcome V learns from (`known_outcomes`); None: all.
    """
    success = data.frame_labels.success
    if known is not None and not success.all():
        learned = np.unique(data.episode[known[data.starts]])
        if success[learned].all():
            _LOG.warning(
                "V learns from the successes of %s alone: its other episodes (%d of %d) have no known outcome with "
                "--fit.time-out bootstrap, so that V says of them what it says of successes; use --fit.time-out "
                "failure, --failure-terminal, or --fit.target bootstrap",
                data.name,
                len(success) - len(learned),
                len(success),
            )
    if success.all():
        _LOG.warning(
            "every episode of %s succeeds: V can learn how long success takes and not what leads to failure, so "
            "that advantages prefer quick episodes; add failed or interrupted episodes to learn from them",
            data.name,
        )
