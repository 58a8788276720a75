"""The words of a condition in the prompt: what a chunk's advantage is called, and what else a policy may know."""

from __future__ import annotations

NO_LABEL = -1  # the label of a chunk that is trained without the advantage in its prompt

BIN_COUNTS = (2, 3, 5)
"""Numbers of bins that there are words for."""
_NAMES = {2: ("negative", "positive"), 3: ("negative", "neutral", "positive")}


def condition_text(label: int, num_bins: int) -> str:
    """The prompt's words for a label 0 .. num_bins - 1; empty for `NO_LABEL`."""
    if label == NO_LABEL:
        return ""
    if not 0 <= label < num_bins:
        raise ValueError(f"label {label} of {num_bins} bins")
    names = _NAMES.get(num_bins)
    return f"Advantage: {label if names is None else names[label]}"


def conditions_beside(condition: str) -> tuple[str, ...]:
    """All that a policy which is asked for `condition` may have been trained with, "" among them, where its folder
    does not say.

    A text of another make stands alone: what it was trained alongside is not known here.
    """
    families = [[condition_text(label, num_bins) for label in range(num_bins)] for num_bins in BIN_COUNTS]
    beside = {text for family in families if condition in family for text in family}
    return tuple(sorted(beside | {"", condition}))
