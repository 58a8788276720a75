"""The advantage as text in the prompt: settings, words, dropout, and proof that the policy reads it.

RECAP / pi*0.6 (arXiv 2511.14759) writes "Advantage: positive" or "negative"; the advantage-conditioned pi0.5
document writes one of five bins. `advantage_bins` says which start gets which. Training and inference build the text
with `condition_text` and put it into the prompt with `chunkrl.models.pi.prompt`, the one place where prompts are
made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chunkrl.algorithms.config import (
    BIN_QUANTILES,
    ConditioningConfig,
)
from chunkrl.errors import ChunkRLError
from chunkrl.ranks import draw_rows

NO_LABEL = -1  # the label of a chunk that is trained without the advantage in its prompt

_NAMES = {2: ("negative", "positive"), 3: ("negative", "neutral", "positive")}


def condition_text(label: int, num_bins: int) -> str:
    """The prompt's words for a label 0 .. num_bins - 1; empty for `NO_LABEL`."""
    if label == NO_LABEL:
        return ""
    if not 0 <= label < num_bins:
        raise ValueError(f"label {label} of {num_bins} bins")
    names = _NAMES.get(num_bins)
    return f"Advantage: {label if names is None else names[label]}"


def conditions(config: ConditioningConfig) -> tuple[str, ...]:
    """The words of every label that training writes into a prompt, the highest last."""
    lowest = config.highest if config.negatives == "unconditional" else 0
    return tuple(condition_text(label, config.num_bins) for label in range(lowest, config.num_bins))


def conditions_beside(condition: str) -> tuple[str, ...]:
    """All that a policy which is asked for `condition` may have been trained with, "" among them, where its folder
    does not say.

    A text of another make stands alone: what it was trained beside is not known here.
    """
    families = [[condition_text(label, num_bins) for label in range(num_bins)] for num_bins in BIN_QUANTILES]
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
