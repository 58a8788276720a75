"""The advantage as text in the prompt: bins, labels, forced labels, dropout, and proof that the policy reads it.

RECAP / pi*0.6 (arXiv 2511.14759) writes "Advantage: positive" or "negative"; the advantage-conditioned pi0.5
document writes one of five bins. Training and inference build the text with `condition_text` and put it into the
prompt with `chunkrl.models.pi.prompt`, the one place where prompts are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from chunkrl.algorithms.advantages import return_range
from chunkrl.algorithms.human_chunks import forced_metrics
from chunkrl.data.collection import ChunkData
from chunkrl.errors import ChunkRLError
from chunkrl.ranks import draw_rows

BinEdges = Literal["quantiles", "fixed"]
NO_LABEL = -1  # the label of a chunk that is trained without the advantage in its prompt

_NAMES = {2: ("negative", "positive"), 3: ("negative", "neutral", "positive")}
_QUANTILES = {2: (0.65,), 3: (0.35, 0.65), 5: (0.2, 0.4, 0.6, 0.8)}
_FIXED = {2: (0.0,), 3: (-0.5, 0.5), 5: (-0.6, -0.2, 0.2, 0.6)}


@dataclass(frozen=True)
class ConditioningConfig:
    """How advantages become labels in the prompt."""

    num_bins: int = 2
    """2 (negative, positive), 3 (with neutral) or 5 (the document's 0 to 4)."""
    edges: BinEdges = "quantiles"
    """quantiles: of each task's advantages; fixed: on the advantage divided by the range of returns, in [-1, 1]."""
    cuts: tuple[float, ...] = ()
    """Quantiles in (0, 1), or fixed edges, between the bins; default: the top 35 % are positive; 5 equal shares; the
    document's -.6 -.2 .2 .6 where edges are fixed."""
    dropout: float = 0.3
    """Share of chunks trained without the advantage: what guidance compares with."""
    force_high: tuple[int, ...] = ()
    """Data sets (0: --dataset-dir, 1: the first additional one, ...) whose chunks are all labelled high."""
    guidance: float = 1.0
    """Of classifier-free guidance, saved as the policy's default."""

    def __post_init__(self) -> None:
        if self.num_bins not in _QUANTILES:
            raise ChunkRLError(f"conditioning.num_bins is {self.num_bins}; use 2, 3 or 5")
        if self.edges not in get_args(BinEdges):
            raise ChunkRLError(f"conditioning.edges is {self.edges!r}; use quantiles or fixed")
        if not 0 <= self.dropout < 1:
            raise ChunkRLError(f"conditioning.dropout is {self.dropout}; it must lie in [0, 1)")
        if self.guidance != 1 and self.dropout == 0:
            raise ChunkRLError(
                "guidance compares with the policy without the label, which conditioning.dropout 0 never trains: "
                "set it to about 0.3"
            )
        cuts = self.boundaries
        low, high = (0.0, 1.0) if self.edges == "quantiles" else (-np.inf, np.inf)
        increasing = all(a < b for a, b in zip((low, *cuts), (*cuts, high), strict=True))
        if len(cuts) != self.num_bins - 1 or not increasing:
            raise ChunkRLError(
                f"conditioning.cuts is {cuts}; {self.num_bins} bins need {self.num_bins - 1} increasing numbers"
                + (" between 0 and 1" if self.edges == "quantiles" else "")
            )

    @property
    def boundaries(self) -> tuple[float, ...]:
        """The cuts, or their defaults."""
        if self.cuts:
            return self.cuts
        return (_QUANTILES if self.edges == "quantiles" else _FIXED)[self.num_bins]

    @property
    def highest(self) -> int:
        """The label that inference asks for."""
        return self.num_bins - 1


def condition_text(label: int, num_bins: int) -> str:
    """The prompt's words for a label 0 .. num_bins - 1; empty for `NO_LABEL`."""
    if label == NO_LABEL:
        return ""
    if not 0 <= label < num_bins:
        raise ValueError(f"label {label} of {num_bins} bins")
    names = _NAMES.get(num_bins)
    return f"Advantage: {label if names is None else names[label]}"


def conditions_beside(condition: str) -> tuple[str, ...]:
    """All that a policy which is asked for `condition` may have been trained with, "" among them.

    A text of another make stands alone: what it was trained beside is not known here.
    """
    families = [[condition_text(label, num_bins) for label in range(num_bins)] for num_bins in _QUANTILES]
    beside = {text for family in families if condition in family for text in family}
    return tuple(sorted(beside | {"", condition}))


def _quantiles(values: np.ndarray, rates: np.ndarray | None, shares: tuple[float, ...]) -> np.ndarray:
    """Of values float [N]; with rates float [N], the smallest values that such shares of what is drawn do not
    exceed."""
    if rates is None:
        return np.quantile(values, shares)
    order = np.argsort(values, kind="stable")
    drawn = np.cumsum(rates[order], dtype=np.float64)
    first = np.searchsorted(drawn, np.asarray(shares) * drawn[-1] * (1 - 1e-9))
    return values[order][first]


def advantage_bins(
    advantage: np.ndarray,
    task: np.ndarray,
    config: ConditioningConfig,
    return_range: float,
    rates: np.ndarray | None = None,
) -> np.ndarray:
    """The bin of every advantage, int64 [N].

    advantage: float [N], in units of returns. task: int [N]; quantiles are taken within each task, whose advantages
    need not be comparable. return_range: highest minus lowest return, which fixed edges are fractions of.
    rates: how often each is drawn, float [N] (`draws.draw_rates`), which quantiles count it by: the bins' shares are
    those of the batches, and what is never drawn shifts no edge. None: all alike.

    Raises:
        ChunkRLError: a bin is empty.
    """
    bins = np.empty(len(advantage), dtype=np.int64)
    drawn = np.ones(len(task), bool) if rates is None else rates > 0
    for one in np.unique(task[drawn]):
        rows = (task == one) & drawn
        values = advantage[rows].astype(np.float64)
        if config.edges == "quantiles":
            edges = _quantiles(values, None if rates is None else rates[rows], config.boundaries)
        else:
            edges = np.asarray(config.boundaries) * return_range
        bins[task == one] = np.searchsorted(edges, advantage[task == one].astype(np.float64), side="left")
    bins[~np.isin(task, task[drawn])] = 0  # nothing of these tasks is trained on
    # every task must have its own share of each quantile; fixed edges mean the same for all
    each_task = [bins[(task == one) & drawn] for one in np.unique(task[drawn])]
    groups = each_task if config.edges == "quantiles" else [bins[drawn]]
    counts = np.min([np.bincount(group, minlength=config.num_bins) for group in groups], axis=0)
    if (counts == 0).any():
        empty = [condition_text(int(label), config.num_bins) for label in np.flatnonzero(counts == 0)]
        raise ChunkRLError(
            f"no chunk of a task got {empty}: advantages are {advantage[drawn].min():.3g} to "
            f"{advantage[drawn].max():.3g}, and "
            f"returns spread over {return_range:.3g}. Use --conditioning.edges quantiles, or --conditioning.cuts in "
            "that range. Advantages that are all equal mean that the data has only successes or only failures"
        )
    return bins


def force_labels(
    bins: np.ndarray, human: np.ndarray | None, source: np.ndarray, config: ConditioningConfig
) -> np.ndarray:
    """Bins [N] with a human's chunks and chosen data sets raised to the highest label; the rest keeps the critic's.

    human: bool [N] (`human_chunks`). source: int [N], the data set of each chunk.
    """
    forced = np.isin(source, config.force_high)
    if human is not None:
        forced |= human
    return np.where(forced, config.highest, bins)


def label_bins(
    data: ChunkData,
    advantage: np.ndarray,
    returns: np.ndarray,
    config: ConditioningConfig,
    rates: np.ndarray | None = None,
    human: np.ndarray | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Labels of every start and their shares.

    advantage, returns: float [len]. rates: how often each start is drawn, float [len] (`draws.draw_rates`), which
    quantiles and shares count it by; None: all alike. human: bool [len], chunks of a human that are forced high.
    The labels: `advantage_bin_raw`, the critic's, and `advantage_bin`, with some forced high, int [len] each.
    """
    span = return_range(returns if rates is None else returns[rates > 0])
    bins = advantage_bins(advantage, data.task, config, span.high - span.low, rates)
    forced = force_labels(bins, human, data.source(np.arange(len(data))), config)
    names = [condition_text(label, config.num_bins).split()[-1] for label in range(config.num_bins)]
    overruled = (forced != bins) if rates is None else (forced != bins) & (rates > 0)

    def share(rows: np.ndarray) -> float:
        return float(np.average(rows, weights=rates))

    shares = {f"advantage/share_{name}": share(forced == label) for label, name in enumerate(names)}
    return {"advantage_bin_raw": bins, "advantage_bin": forced}, shares | forced_metrics(
        overruled, advantage, rates
    )


def drop_labels(labels: torch.Tensor, dropout: float) -> torch.Tensor:
    """labels int [B] with a share `dropout` of them, drawn from torch's global generator, set to `NO_LABEL`."""
    dropped = draw_rows(torch.rand, tuple(labels.shape)) < dropout
    return torch.where(dropped.to(labels.device), NO_LABEL, labels)


def texts(labels: torch.Tensor, num_bins: int) -> list[str]:
    """The condition of every row of labels int [B]."""
    return [condition_text(label, num_bins) for label in labels.tolist()]


def check_prompts(prompts: Sequence[Sequence[int]], names: Sequence[str], task: str) -> None:
    """Raises ChunkRLError unless all conditions give different prompts (token ids, as the model gets them).

    An advantage that is cut off, or that a tokenizer maps to unknown pieces, trains a policy that cannot hear it.
    """
    seen: dict[tuple[int, ...], str] = {}
    for prompt, name in zip(prompts, names, strict=True):
        key = tuple(prompt)
        if key in seen:
            raise ChunkRLError(
                f"the prompts of {seen[key]!r} and {name!r} are equal for the task {task!r}: the tokenizer does not "
                "tell them apart, or the prompt is cut before the advantage; use the checkpoint's own tokenizer, or "
                "shorten the task"
            )
        seen[key] = name
