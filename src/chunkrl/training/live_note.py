"""What a progress bar says of training, next to how far it is: the loss, and how well values rank unseen episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

EVERY_S = 2.0
"""Seconds between two looks at the rank correlation."""
RANK_CORRELATION = "value/rank_correlation_held_out"


class LiveNote:
    """The note of one run. held_out: `Algorithm.held_out_rank_correlation`. now: seconds."""

    def __init__(
        self, held_out: Callable[[], float | None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._held_out, self._now = held_out, now
        self._looked, self._found = -EVERY_S, None

    def text(
        self,
        phase: str,
        sums: Mapping[str, float],
        counts: Mapping[str, int],
        history: Mapping[str, Sequence[tuple[int, float]]],
    ) -> str:
        """sums, counts: of the scalars of the interval that runs. history: what was recorded before."""
        parts = []
        losses = [name for name in sums if name.startswith("loss/")]
        name = f"loss/{phase}" if f"loss/{phase}" in sums else next(iter(losses), None)
        if name is not None and counts[name]:
            parts.append(f"loss {sums[name] / counts[name]:.4g}")
        elif recorded := history.get(f"loss/{phase}"):
            parts.append(f"loss {recorded[-1][1]:.4g}")
        if self._now() - self._looked >= EVERY_S:
            self._looked, self._found = self._now(), self._held_out() if phase == "value" else None
        known = history.get(RANK_CORRELATION)
        found = self._found if phase == "value" else known[-1][1] if known else None
        if found is not None:
            parts.append(f"held-out rank correlation {found:.2f}")
        return ", ".join(parts)
