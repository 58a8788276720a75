"""From advantages to the weights that the policy clones with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from chunkrl.algorithms import losses
from chunkrl.algorithms.advantages import standardize
from chunkrl.algorithms.balance import Strata, StrataLabels
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.weight_spread import Spread, spread_metrics
from chunkrl.data.collection import ChunkData
from chunkrl.data.draws import rate_per_start
from chunkrl.errors import ChunkRLError

_TINY = 1e-30  # float32 has few digits left below


@dataclass(frozen=True)
class WeightRule:
    """w = min(exp(beta z), clip), z the advantage standardised to deviation `scale` over what is drawn.

    success_mix: part of the weight that is plain cloning of the successes (needs strata).
    """

    beta: float = 1.0
    scale: float = ValueFit.advantage_scale
    clip: float = ValueFit.weight_clip
    success_mix: float = 0.0


def to_weights(
    advantage: np.ndarray,
    rule: WeightRule,
    rates: np.ndarray | None = None,
    forced: np.ndarray | None = None,
    strata: Strata | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Weights float32 [N] of mean 1; and how few carry the loss.

    advantage: float [N]. rates: how often each is drawn, float [N] (`draws.draw_rates`), which mean, deviation,
    effective sample size and clipped share count it by; the weight of what is never drawn is 0. None: all alike.
    forced: bool [N], chunks that get the weight of the highest advantage (of what is drawn), whatever their own is.
    strata: each stratum's weights are scaled to sum to its due (`balance`); None: weights are exp(beta z) alone.
    """
    standardized = standardize(advantage, rule.scale, rates)
    if forced is not None:
        highest = standardized.max() if rates is None else standardized[rates > 0].max()
        standardized = np.where(forced, highest, standardized)
    weight = losses.advantage_weights(torch.from_numpy(standardized), rule.beta, rule.clip).numpy()
    exponent = rule.beta * standardized
    clipped = exponent >= np.log(rule.clip)
    rate = rate_per_start(rates, len(weight))
    if strata is not None:
        weight = balanced(weight, exponent, strata, rate, rule.success_mix)
    weight, size = normalized(weight, rates)
    return weight, {
        "weight/effective_sample_size": size,
        "weight/clip_fraction": float(np.average(clipped, weights=rate)),
    }


def normalized(weight: np.ndarray, rates: np.ndarray | None) -> tuple[np.ndarray, float]:
    """weight [N] as float32 of mean 1 over what is drawn, 0 where nothing is; and its effective sample size.

    Raises ChunkRLError where all that is drawn has weight 0.
    """
    rate = rate_per_start(rates, len(weight))
    drawn = np.where(rate > 0, weight, 0.0).astype(np.float64)
    if not drawn.any():
        raise ChunkRLError(
            "all frames that would be trained on have weight 0 (those recorded after a success are not trained on): "
            "give some of them a weight"
        )
    drawn = _of_mean_one(drawn, rate)
    size = losses.effective_sample_size(torch.from_numpy(drawn), torch.from_numpy(rate))
    return drawn.astype(np.float32), float(size)


def balanced(
    weight: np.ndarray, exponent: np.ndarray, strata: Strata, rate: np.ndarray, success_mix: float = 0.0
) -> np.ndarray:
    """weight float [N], scaled within each stratum so that it sums to the stratum's due; float64 [N].

    exponent: float [N], the weight's logarithm before it is clipped. rate: float [N], how often each is drawn.
    success_mix: in [0, 1], the part that is the starts' credit (what cloning of the successes weighs) in place of
    their weight.
    """
    scaled = np.where(strata.uniform, strata.credit > 0, weight).astype(np.float64)
    total = np.bincount(strata.index, weights=rate * scaled, minlength=strata.num)
    lost = (total < _TINY)[strata.index] & (rate > 0) & ~strata.uniform
    if (
        lost.any()
    ):  # exp(beta A) is too small for a number: within the stratum, its ratios are all that counts
        own = strata.index[lost]
        top = np.full(strata.num, -np.inf)
        np.maximum.at(top, own, exponent[lost])
        scaled[lost] = np.exp(exponent[lost] - top[own])
        total = np.bincount(strata.index, weights=rate * scaled, minlength=strata.num)
    scaled *= (strata.due / np.maximum(total, 1e-300))[strata.index]
    if not success_mix:
        return scaled
    cloned = strata.credit.astype(np.float64)
    return _of_mean_one(scaled, rate) * (1 - success_mix) + _of_mean_one(cloned, rate) * success_mix


def _of_mean_one(weight: np.ndarray, rate: np.ndarray) -> np.ndarray:
    return weight / np.average(weight, weights=rate)


@dataclass(frozen=True, eq=False)
class StartWeights:
    """The weights of all starts. weight: float32 [len], of mean 1. strata: what they are balanced over, or None.
    metrics, spread: how they lie over the data."""

    weight: np.ndarray
    strata: Strata | None
    metrics: dict[str, float]
    spread: Spread

    @classmethod
    def of(
        cls,
        weight: np.ndarray,
        metrics: Mapping[str, float],
        data: ChunkData,
        rates: np.ndarray | None,
        strata: Strata | None,
    ) -> StartWeights:
        """The weights of the starts of `data`, with their spread added to `metrics`."""
        where, spread = spread_metrics(weight, data, rates, strata)
        return cls(weight, strata, {**metrics, **where}, spread)


def weigh_starts(
    advantage: np.ndarray,
    value: np.ndarray,
    data: ChunkData,
    rates: np.ndarray | None,
    forced: np.ndarray | None,
    rule: WeightRule,
    strata_labels: StrataLabels,
) -> StartWeights:
    """What a weighted method makes of advantages and held-out V, float [len] each; rates and forced as of
    `to_weights`."""
    strata = strata_labels.of(data, value, rates, forced)
    weight, metrics = to_weights(advantage, rule, rates, forced, strata)
    return StartWeights.of(weight, metrics, data, rates, strata)
