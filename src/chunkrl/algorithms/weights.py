"""From advantages to the weights that the policy clones with, and how they are spread over the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from chunkrl.algorithms import losses
from chunkrl.algorithms.advantages import standardize
from chunkrl.algorithms.balance import Strata, StrataLabels, episode_steps
from chunkrl.algorithms.config import BalanceConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.data.collection import ChunkData
from chunkrl.errors import ChunkRLError

THIRDS = ("first", "middle", "last")
_TINY = 1e-30  # float32 has few digits left below
STARVED = 0.5  # a third of the successes with less than this part of what cloning of the successes gives it


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
    rate = np.ones(len(weight)) if rates is None else np.asarray(rates, np.float64)
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
    rate = np.ones(len(weight)) if rates is None else np.asarray(rates, np.float64)
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


@dataclass(frozen=True)
class Spread:
    """Where the weight lies: the share of all weight on successful episodes; of that, the share on each third of the
    episode, beside the share of the frames there (what cloning of the successes gives it). NaN without successes."""

    on_successes: float
    thirds: tuple[float, float, float]
    frames: tuple[float, float, float]

    @property
    def starved(self) -> tuple[str, ...]:
        """The thirds with less than half of their frames' share."""
        pairs = zip(THIRDS, self.thirds, self.frames, strict=True)
        return tuple(name for name, weight, frames in pairs if weight < STARVED * frames)


def weight_spread(weight: np.ndarray, data: ChunkData, rates: np.ndarray | None) -> Spread:
    """The spread of weight float [len] over the starts of `data`, counted by rates float [len] (None: all alike)."""
    rate = np.ones(len(weight)) if rates is None else np.asarray(rates, np.float64)
    step, length = episode_steps(data)
    third = np.minimum(3 * step // np.maximum(length, 1), 2)
    good = np.asarray(data.success) & (rate > 0)
    mass = rate * weight
    weights, frames = (np.bincount(third[good], weights=m[good], minlength=3) for m in (mass, rate))
    with np.errstate(invalid="ignore"):
        return Spread(
            float(mass[good].sum() / mass.sum()),
            tuple(
                (weights / (weights.sum() or frames.sum())).tolist()
            ),  # 0, not NaN, where they weigh nothing
            tuple((frames / frames.sum()).tolist()),
        )


def spread_metrics(
    weight: np.ndarray,
    data: ChunkData,
    rates: np.ndarray | None,
    strata: Strata | None,
) -> tuple[dict[str, float], Spread]:
    """The spread as metrics, and itself.

    `weight/num_strata`: those of successes. `weight/lowest_stratum`: the lowest of their weights over what is due, 1
    where all have theirs.
    """
    spread = weight_spread(weight, data, rates)
    metrics = {"weight/on_successes": spread.on_successes}
    if not np.isnan(spread.frames).any():
        metrics |= {f"weight/{name}_third": share for name, share in zip(THIRDS, spread.thirds, strict=True)}
        metrics |= {f"weight/{n}_third_frames": share for n, share in zip(THIRDS, spread.frames, strict=True)}
    if strata is not None:
        rate = np.ones(len(weight)) if rates is None else np.asarray(rates, np.float64)
        total = np.bincount(strata.index, weights=rate * weight, minlength=strata.num)
        due = strata.due / strata.due.sum() * total.sum()
        good = np.bincount(strata.index, weights=rate * strata.credit, minlength=strata.num) > 0
        metrics["weight/num_strata"] = float(good.sum())
        metrics["weight/lowest_stratum"] = float((total[good] / due[good]).min())
    return metrics, spread


@dataclass(frozen=True, eq=False)
class StartWeights:
    """The weights of all starts. weight: float32 [len], of mean 1. strata: what they are balanced over, or None.
    metrics, spread: how they lie over the data."""

    weight: np.ndarray
    strata: Strata | None
    metrics: dict[str, float]
    spread: Spread


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
    where, spread = spread_metrics(weight, data, rates, strata)
    return StartWeights(weight, strata, {**metrics, **where}, spread)


def starved_warnings(spread: Spread, balance: BalanceConfig | None) -> list[str]:
    """What to say of thirds of the successes that carry too little weight.

    balance: what made the weights; None: they were given.
    """
    if balance is None:
        cure = "The weights are those of --sample-weights"
    elif balance.kind == "none":
        cure = "Use --balance.kind strata"
    else:
        cure = "Use more --balance.time-bins (of few data, less --balance.min-starts), or --balance.success-mix .5"
    return [
        f"the {name} third of successful episodes carries {weight:.1%} of their weight and has {frames:.1%} of their "
        f"frames: the policy will hardly learn it. {cure}"
        for name, weight, frames in zip(THIRDS, spread.thirds, spread.frames, strict=True)
        if name in spread.starved
    ]
