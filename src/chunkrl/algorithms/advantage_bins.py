"""Which label in the prompt every start gets: bins of its advantage, and labels that a rule sets.

The highest label is what the trained policy is asked for, so what carries it decides what the policy does. Three
rules say where the bins' edges lie (`ConditioningConfig.edges`), each over the starts that are drawn and that nothing
forces high: those of a human, of chosen data sets and, with `success` force, of successful episodes are a pool of
their own, all high.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np

from chunkrl.algorithms.advantages import return_range
from chunkrl.algorithms.balance import Strata
from chunkrl.algorithms.config import ConditioningConfig
from chunkrl.algorithms.human_chunks import forced_metrics
from chunkrl.data.collection import ChunkCollection, ChunkData
from chunkrl.data.draws import rate_per_start
from chunkrl.errors import LabelError
from chunkrl.models.condition import condition_text

_LOG = logging.getLogger(__name__)


def _quantiles(values: np.ndarray, rates: np.ndarray | None, shares: tuple[float, ...]) -> np.ndarray:
    """The quantiles of values float [N]; with rates float [N], the smallest values that such shares of what is drawn
    do not exceed."""
    if rates is None:
        return np.quantile(values, shares)
    order = np.argsort(values, kind="stable")
    drawn = np.cumsum(rates[order], dtype=np.float64)
    first = np.searchsorted(drawn, np.asarray(shares) * drawn[-1] * (1 - 1e-9))
    return values[order][first]


def _groups(number: np.ndarray) -> Iterator[np.ndarray]:
    """The places int [n] of each distinct value of `number` int [N]."""
    order = np.argsort(number, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(number[order])) + 1)


def advantage_bins(
    advantage: np.ndarray,
    group: np.ndarray,
    config: ConditioningConfig,
    return_range: float,
    rates: np.ndarray | None = None,
) -> np.ndarray:
    """The bin of every advantage by quantiles or fixed edges, int64 [N].

    advantage: float [N], in units of returns. group: int [N], a number of each task (and pool); quantiles are taken
    within each, whose advantages need not be comparable. return_range: highest minus lowest return, which fixed
    edges are fractions of. rates: how often each is drawn, float [N] (`draws.draw_rates`), which quantiles count it
    by: the bins' shares are those of the batches, and what is never drawn shifts no edge. None: all alike.

    Raises:
        LabelError: a bin is empty.
    """
    bins = np.zeros(len(advantage), np.int64)  # of what is never drawn too
    counts = []
    for rows in _groups(group):
        rate = None if rates is None else rates[rows]
        drawn = rows if rate is None else rows[rate > 0]
        if not len(drawn):
            continue
        values = advantage[drawn].astype(np.float64)
        if config.edges == "quantiles":
            edges = _quantiles(values, None if rates is None else rates[drawn], config.boundaries)
        else:
            edges = np.asarray(config.boundaries) * return_range
        bins[rows] = np.searchsorted(edges, advantage[rows].astype(np.float64), side="left")
        counts.append(np.bincount(bins[drawn], minlength=config.num_bins))
    # every task must have its own share of each quantile; fixed edges mean the same for all
    least = np.min(counts, axis=0) if config.edges == "quantiles" else np.sum(counts, axis=0)
    if (least == 0).any():
        known = advantage if rates is None else advantage[rates > 0]
        raise _empty(least, known, config, return_range)
    return bins


def _empty(
    counts: np.ndarray, advantage: np.ndarray, config: ConditioningConfig, return_range: float
) -> LabelError:
    """What to say of bins without a start; advantage: of all that is drawn."""
    empty = [condition_text(int(label), config.num_bins) for label in np.flatnonzero(counts == 0)]
    cure = "Use --conditioning.edges quantiles"
    if config.edges == "fixed":
        shares = np.arange(1, config.num_bins) / config.num_bins
        cuts = " ".join(f"{cut:.3g}" for cut in np.quantile(advantage, shares) / return_range)
        cure += f", or --conditioning.cuts in that range ({cuts} would cut it into equal shares)"
    return LabelError(
        f"no chunk of a task got {empty}: advantages are {advantage.min():.3g} to {advantage.max():.3g}, and returns "
        f"spread over {return_range:.3g}. {cure}. Advantages that are all equal mean that the data has only "
        "successes or only failures"
    )


def strata_bins(
    advantage: np.ndarray,
    group: np.ndarray,
    strata: Strata,
    config: ConditioningConfig,
    rates: np.ndarray | None = None,
) -> np.ndarray:
    """The bin of every advantage within its stratum, int64 [N].

    The share of each stratum that gets the highest label is `highest_part` of its credit (the share of starts in
    successful episodes), best advantages first, with `success` mask among starts that have credit; the rest is cut
    into equal shares of the lower labels. So the positives' states are those of the improved policy, as balanced
    weights have them (`balance`), and the advantage decides within a place.

    advantage: float [N]. group: int [N], the stratum (and pool) of each start. rates: float [N], how often each is
    drawn; None: all alike.
    """
    rate = rate_per_start(rates, len(advantage))
    bins = np.zeros(len(advantage), np.int64)
    lower = tuple(np.arange(1, config.highest) / config.highest)
    for rows in _groups(group):
        values, own, credit = advantage[rows].astype(np.float64), rate[rows], strata.credit[rows]
        may = credit > 0 if config.success == "mask" else np.ones(len(rows), bool)
        due, mass = config.part * float(own @ credit), float(own @ may)
        # where nothing is known of the task, its chunks are cloned, all alike
        high = strata.uniform[rows] & (credit > 0)
        if due > 0:
            share = max(0.0, 1 - due / mass)
            ranked = may & (own > 0)
            edge = _quantiles(values[ranked], own[ranked], (share,))[0] if share > 0 else -np.inf
            best = may & (values > edge) & ~strata.uniform[rows]
            tied = ranked & (values == edge) & ~strata.uniform[rows]
            best[_some(np.flatnonzero(tied), own, due - float(own @ best))] = True
            high = high | best
        rest = ~high & (own > 0)
        if lower and rest.any():
            bins[rows] = np.searchsorted(_quantiles(values[rest], own[rest], lower), values, side="left")
        bins[rows[high]] = config.highest
    return bins


def _some(tied: np.ndarray, rates: np.ndarray, due: float) -> np.ndarray:
    """What the highest label takes of starts whose advantages are the edge itself, at places `tied` int [n]: as many
    as `due` has room for, evenly from first to last; none of a single one. rates: float, of all places."""
    if len(tied) < 2:
        return tied[:0]
    num = min(len(tied), int(due / float(rates[tied].mean()) + 1e-6))
    return tied[(np.arange(num) * len(tied)) // max(num, 1)]


def _check_highest(name: str, high: np.ndarray, rates: np.ndarray | None) -> None:
    """Raises LabelError where no start that is drawn has the highest label, bool [N]; says where all have."""
    share = float(np.average(high, weights=rates))
    if share == 0:
        raise LabelError(
            f"no chunk of {name} has the highest label, which the policy is asked for: no episode succeeds, or those "
            "that do have too few starts. Say with --success which do, or use --conditioning.edges quantiles "
            "--conditioning.success free"
        )
    if share == 1:
        _LOG.warning(
            "all chunks of %s have the highest label, so that the policy learns no other: if every episode succeeds, "
            "the advantage can only tell quick from slow (--conditioning.highest-part below 1, or "
            "--conditioning.edges quantiles)",
            name,
        )


def label_bins(
    data: ChunkData,
    advantage: np.ndarray,
    returns: np.ndarray,
    config: ConditioningConfig,
    rates: np.ndarray | None = None,
    human: np.ndarray | None = None,
    strata: Strata | None = None,
    control: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Labels of every start and their shares.

    advantage, returns: float [len]. rates: how often each start is drawn, float [len] (`draws.draw_rates`), which
    edges and shares count it by; None: all alike. human: bool [len], chunks of a human that are forced high.
    strata: for edges of strata. control: what permutes the critic's labels, None: nothing.
    The labels: `advantage_bin_raw`, the critic's, and `advantage_bin`, with some forced high, int [len] each.

    Raises:
        LabelError: a bin is empty, or no start has the highest label.
    """
    data = ChunkCollection.of(data)
    source, pool = data.source(np.arange(len(data))), data.pool(np.arange(len(data)))
    success = np.asarray(data.success)
    forced = forced_high(human, source, success, config)
    span = return_range(returns if rates is None else returns[rates > 0])
    place = np.asarray(data.task) if strata is None else strata.index
    group = place * len(data.datasets) + pool if config.pools == "datasets" else place
    counted = _without(forced, group, rates)
    if strata is None:
        bins = advantage_bins(advantage, group, config, span.high - span.low, counted)
        if config.success == "mask":
            bins = np.where(success, bins, np.minimum(bins, config.highest - 1))
    else:
        bins = strata_bins(advantage, group, strata, config, counted)
    if control is not None:
        bins = control(bins)
    labels = np.where(forced, config.highest, bins)
    _check_highest(data.name, labels == config.highest, rates)
    names = [condition_text(label, config.num_bins).split()[-1] for label in range(config.num_bins)]
    overruled = (labels != bins) if rates is None else (labels != bins) & (rates > 0)
    shares = {
        f"advantage/share_{name}": float(np.average(labels == label, weights=rates))
        for label, name in enumerate(names)
    }
    metrics = shares | forced_metrics(overruled, advantage, rates)
    return {"advantage_bin_raw": bins, "advantage_bin": labels}, metrics


def forced_high(
    human: np.ndarray | None, source: np.ndarray, success: np.ndarray, config: ConditioningConfig
) -> np.ndarray:
    """bool [N]: starts that get the highest label whatever their advantage is.

    human: bool [N] (`human_chunks`). source: int [N], the data set of each start. success: bool [N].
    """
    forced = np.isin(source, config.force_high)
    if config.success == "force":
        forced |= success
    return forced if human is None else forced | human


def _without(forced: np.ndarray, group: np.ndarray, rates: np.ndarray | None) -> np.ndarray | None:
    """rates with 0 for what is forced, but in groups that would have nothing left; None: all alike."""
    if not forced.any():
        return rates
    rate = rate_per_start(rates, len(forced))
    left = np.where(forced, 0.0, rate)
    _, group = np.unique(group, return_inverse=True)
    return np.where(np.bincount(group, weights=left)[group] > 0, left, rate)
