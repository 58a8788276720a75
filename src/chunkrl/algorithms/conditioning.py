"""The advantage as text in the prompt: settings, words, dropout, and proof that the policy reads it.

RECAP / pi*0.6 (arXiv 2511.14759) writes "Advantage: positive" or "negative"; the advantage-conditioned pi0.5
document writes one of five bins. `advantage_bins` says which start gets which. Training and inference build the text
with `condition_text` and put it into the prompt with `chunkrl.models.pi.prompt`, the one place where prompts are
made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from chunkrl.errors import ChunkRLError
from chunkrl.ranks import draw_rows

BinEdges = Literal["strata", "quantiles", "fixed"]
SuccessRule = Literal["mask", "force", "free"]
Pools = Literal["together", "datasets"]
Negatives = Literal["labelled", "unconditional"]
NO_LABEL = -1  # the label of a chunk that is trained without the advantage in its prompt

_NAMES = {2: ("negative", "positive"), 3: ("negative", "neutral", "positive")}
_QUANTILES = {2: (0.65,), 3: (0.35, 0.65), 5: (0.2, 0.4, 0.6, 0.8)}
_PART = 0.7
_FIXED = {2: (0.0,), 3: (-0.5, 0.5), 5: (-0.6, -0.2, 0.2, 0.6)}


@dataclass(frozen=True)
class ConditioningConfig:
    """How advantages become labels in the prompt."""

    num_bins: int = 2
    """2 (negative, positive), 3 (with neutral) or 5 (the document's 0 to 4)."""
    edges: BinEdges = "strata"
    """strata: in each stratum of time and held-out value (`--balance.*`) as many chunks get the highest label as lie
    in successful episodes there, times `highest_part`, and the others equal shares of the rest; quantiles: of each
    task's advantages; fixed: on the advantage divided by the range of returns, in [-1, 1]."""
    cuts: tuple[float, ...] = ()
    """Quantiles in (0, 1), or fixed edges, between the bins; default: the top 35 % are positive; 5 equal shares; the
    document's -.6 -.2 .2 .6 where edges are fixed. Strata have none."""
    highest_part: float | None = None
    """Strata: the part of that number of chunks, in (0, 1]; default: 0.7."""
    success: SuccessRule = "mask"
    """mask: no chunk of a failed episode gets the highest label; force: all chunks of successful episodes do; free:
    the advantage alone decides."""
    pools: Pools = "together"
    """Where edges are taken, of what no rule forces high: over all data sets together, or in each data set apart."""
    force_high: tuple[int, ...] = ()
    """Data sets (0: --dataset-dir, 1: the first additional one, ...) whose chunks are all labelled high."""
    positive_share: float | None = 0.8
    """Share of a batch's rows with the highest label, in each data set that has others too; None: as they come."""
    negatives: Negatives = "labelled"
    """labelled: chunks below the highest label are trained with theirs; unconditional: without any."""
    dropout: float = 0.1
    """Share of chunks trained without the advantage: what guidance compares with."""
    guidance: float = 1.0
    """Of classifier-free guidance, saved as the policy's default."""

    def __post_init__(self) -> None:
        if self.num_bins not in _QUANTILES:
            raise ChunkRLError(f"conditioning.num_bins is {self.num_bins}; use 2, 3 or 5")
        kinds = {"edges": BinEdges, "success": SuccessRule, "pools": Pools, "negatives": Negatives}
        for name, allowed in kinds.items():
            if getattr(self, name) not in get_args(allowed):
                raise ChunkRLError(
                    f"conditioning.{name} is {getattr(self, name)!r}; use one of {', '.join(get_args(allowed))}"
                )
        if not 0 <= self.dropout < 1:
            raise ChunkRLError(f"conditioning.dropout is {self.dropout}; it must lie in [0, 1)")
        if self.guidance != 1 and self.dropout == 0 and self.negatives == "labelled":
            raise ChunkRLError(
                "guidance compares with the policy without the label, which conditioning.dropout 0 never trains: "
                "set it to about 0.1"
            )
        if self.positive_share is not None and not 0 < self.positive_share < 1:
            raise ChunkRLError(
                f"conditioning.positive_share is {self.positive_share}; it lies between 0 and 1, both excluded: "
                "--objective success_cloning trains on good chunks alone"
            )
        self._check_edges()

    def _check_edges(self) -> None:
        if self.highest_part is not None and not 0 < self.highest_part <= 1:
            raise ChunkRLError(f"conditioning.highest_part is {self.highest_part}; it must lie in (0, 1]")
        if self.edges == "strata":
            if self.cuts:
                raise ChunkRLError(
                    "conditioning.cuts are of quantiles or fixed edges: with strata give conditioning.highest_part, "
                    "or say --conditioning.edges"
                )
            return
        if self.highest_part is not None:
            raise ChunkRLError(
                f"conditioning.highest_part is of --conditioning.edges strata; with {self.edges} give "
                "conditioning.cuts"
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
        """The cuts, or their defaults (of quantiles or fixed edges)."""
        if self.cuts:
            return self.cuts
        return (_QUANTILES if self.edges == "quantiles" else _FIXED)[self.num_bins]

    @property
    def part(self) -> float:
        """`highest_part`, or its default."""
        return _PART if self.highest_part is None else self.highest_part

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


def drop_labels(labels: torch.Tensor, dropout: float) -> torch.Tensor:
    """labels int [B] with a share `dropout` of them, drawn from torch's global generator, set to `NO_LABEL`."""
    dropped = draw_rows(torch.rand, tuple(labels.shape)) < dropout
    return torch.where(dropped.to(labels.device), NO_LABEL, labels)


def trained_texts(labels: torch.Tensor, config: ConditioningConfig) -> list[str]:
    """What stands in the prompt of every row of labels int [B] in an update: some are dropped anew each time."""
    heard = drop_labels(labels, config.dropout)
    if config.negatives == "unconditional":
        heard = torch.where(heard < config.highest, NO_LABEL, heard)
    return texts(heard, config.num_bins)


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
