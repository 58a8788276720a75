"""How long answers take: a histogram of fixed size, whatever is served for however long."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LEAST_MS, _STEPS_PER_DOUBLING, _DOUBLINGS = 0.01, 16, 27  # to 22 minutes, each bucket 4.4 % wide
_BAR = 40


class Histogram:
    """Times in milliseconds. One thread records, any may read."""

    def __init__(self) -> None:
        self.count, self.total_ms, self.longest_ms = 0, 0.0, 0.0
        self._buckets = [0] * (_STEPS_PER_DOUBLING * _DOUBLINGS + 1)

    def record(self, ms: float) -> None:
        """One more."""
        self.count += 1
        self.total_ms += ms
        self.longest_ms = max(self.longest_ms, ms)
        place = math.ceil(_STEPS_PER_DOUBLING * math.log2(max(ms, _LEAST_MS) / _LEAST_MS))
        self._buckets[min(place, len(self._buckets) - 1)] += 1

    @property
    def mean_ms(self) -> float:
        """0 where there are none."""
        return self.total_ms / max(self.count, 1)

    def quantile_ms(self, share: float) -> float:
        """The time that a `share` of them did not exceed, at most 4.4 % too high; 0 where there are none."""
        counts = list(self._buckets)
        wanted, seen = share * sum(counts), 0
        for place, count in enumerate(counts):
            seen += count
            if count and seen >= wanted:
                return min(_LEAST_MS * 2 ** (place / _STEPS_PER_DOUBLING), self.longest_ms)
        return 0.0

    def bars(self) -> list[str]:
        """Lines for people: how many took up to 1, 2, 4, ... times the shortest time."""
        counts = [self._buckets[0]] + [
            sum(self._buckets[first : first + _STEPS_PER_DOUBLING])
            for first in range(1, len(self._buckets), _STEPS_PER_DOUBLING)
        ]
        used = [place for place, count in enumerate(counts) if count]
        if not used:
            return []
        most = max(counts)
        return [
            f"to {_LEAST_MS * 2**place:>9.4g} ms {counts[place]:>9} {'#' * math.ceil(_BAR * counts[place] / most)}"
            for place in range(used[0], used[-1] + 1)
        ]


def latency_table(rows: Sequence[tuple[str, Histogram]]) -> list[str]:
    """A line for each histogram, below a head."""
    lines = [f"{'ms':<10}{'mean':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'longest':>9}"]
    for name, found in rows:
        values = (
            found.mean_ms,
            *(found.quantile_ms(share) for share in (0.5, 0.95, 0.99)),
            found.longest_ms,
        )
        lines.append(f"{name:<10}" + "".join(f"{value:>9.3g}" for value in values))
    return lines
