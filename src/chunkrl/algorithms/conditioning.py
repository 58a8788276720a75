"""The advantage as text in the prompt: dropout, and proof that the policy reads it.

RECAP / pi*0.6 (arXiv 2511.14759) writes "Advantage: positive" or "negative"; the advantage-conditioned pi0.5
document writes one of five bins. `advantage_bins` says which start gets which. Training and inference build the text
with `chunkrl.models.condition`, and the policy's family puts it into its prompt in one place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chunkrl.algorithms.config import ConditioningConfig
from chunkrl.errors import ChunkRLError
from chunkrl.models.condition import NO_LABEL, condition_text
from chunkrl.ranks import draw_rows


def conditions(config: ConditioningConfig) -> tuple[str, ...]:
    """The words of every label that training writes into a prompt, the highest last."""
    lowest = config.highest if config.negatives == "unconditional" else 0
    return tuple(condition_text(label, config.num_bins) for label in range(lowest, config.num_bins))


def guidance_from(config: ConditioningConfig) -> str:
    """The words of the label that guidance leads away from; empty: the policy without a label."""
    heard = conditions(config)
    return heard[0] if config.guidance_from == "lowest" and len(heard) > 1 else ""


def drop_labels(labels: torch.Tensor, dropout: float) -> torch.Tensor:
    """labels int [B] with a share `dropout` of them, drawn from torch's global generator, set to `NO_LABEL`."""
    dropped = draw_rows(torch.rand, tuple(labels.shape)) < dropout
    return torch.where(dropped.to(labels.device), NO_LABEL, labels)


def trained_texts(labels: torch.Tensor, config: ConditioningConfig) -> list[str]:
    """What stands in the prompt of every row of labels int [B] in an update: some are dropped again each time."""
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
