"""How a trial stands after its attempts: who is next, what is counted, what is decided. All of it follows from
files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chunkrl.errors import ChunkRLError
from chunkrl.trial.evidence import Counts, verdict
from chunkrl.trial.records import Attempt, TrialSettings


@dataclass(frozen=True)
class Upcoming:
    """The next episode. pair, place: as of `Attempt`; num_places: episodes of the pair. policy: who acts, the number
    in the settings. seed: of the initial state."""

    pair: int
    place: int
    num_places: int
    policy: int
    seed: int


@dataclass(frozen=True)
class Trial:
    """An attempt that counts, with who acted."""

    attempt: Attempt
    policy: int

    @property
    def success(self) -> bool:
        """Whether the task was done."""
        return self.attempt.outcome == "success"


@dataclass
class Comparison:
    """The first policy against another one, pair by pair.

    other: its number. history: the counts after each pair that both took part in. verdict: 1: the first is better,
    -1: the other is, 0: not decided; it is final, and the other takes no part in later pairs.
    """

    other: int
    history: list[Counts] = field(default_factory=list)
    verdict: int = 0

    @property
    def counts(self) -> Counts:
        """The counts of all pairs so far."""
        return self.history[-1] if self.history else Counts()

    def add(self, first: bool, other: bool, error: float) -> None:
        """A pair is complete."""
        self.history.append(self.counts.after(first, other))
        self.verdict = verdict(self.counts, error)


class Standing:
    """The state of a trial; `add` takes attempts in the order in which they were made.

    The order of each pair is drawn from (order_seed, pair), its initial state from (settings.seed, pair), so that a
    trial that was stopped goes on as it would have.

    Attributes:
        comparisons: of the first policy with each of the others. trials: attempts that count.
        num_crashes: attempts in a row that crashed, of the upcoming episode.
    """

    def __init__(self, settings: TrialSettings, order_seed: int, attempts: Sequence[Attempt] = ()) -> None:
        """Raises ChunkRLError where attempts are not those of this trial."""
        self._settings, self._order_seed = settings, order_seed
        self.comparisons = [Comparison(other) for other in range(1, len(settings.policies))]
        self.trials: list[Trial] = []
        self.num_crashes = 0
        self._pair, self._done = 0, dict[int, bool]()
        self._order = self._drawn()
        for attempt in attempts:
            self.add(attempt)

    @property
    def decided(self) -> bool:
        """Every comparison has its verdict."""
        return all(comparison.verdict for comparison in self.comparisons)

    @property
    def num_pairs(self) -> int:
        """Pairs that are complete."""
        return self._pair

    @property
    def upcoming(self) -> Upcoming:
        """What is next; while nothing is left to decide it is not asked for."""
        place = len(self._done)
        return Upcoming(self._pair, place, len(self._order), self._order[place], self._seed())

    def add(self, attempt: Attempt) -> None:
        """Counts an attempt. Raises ChunkRLError where it is not the upcoming one."""
        found = None if self.decided else self.upcoming
        if found is None or (found.pair, found.place, found.seed) != (
            attempt.pair,
            attempt.place,
            attempt.seed,
        ):
            raise ChunkRLError(
                f"attempts do not fit the trial: one of pair {attempt.pair}, place {attempt.place} stands where "
                f"{found} belongs: restore the folder, or begin again in another --output-dir"
            )
        if not attempt.counts:
            self.num_crashes += attempt.outcome == "crashed"
            return
        self.num_crashes = 0
        self.trials.append(Trial(attempt, found.policy))
        self._done[found.policy] = self.trials[-1].success
        if len(self._done) == len(self._order):
            self._end_pair()

    def _end_pair(self) -> None:
        for comparison in self.comparisons:
            if comparison.other in self._done:
                comparison.add(self._done[0], self._done[comparison.other], self._settings.error_each)
        self._pair, self._done = self._pair + 1, {}
        self._order = self._drawn()

    def _drawn(self) -> list[int]:
        """Who acts in this pair, in order: the first policy, and whoever is not decided about."""
        active = [0, *(c.other for c in self.comparisons if not c.verdict)]
        return [int(p) for p in np.random.default_rng([self._order_seed, self._pair]).permutation(active)]

    def _seed(self) -> int:
        return int(np.random.default_rng([self._settings.seed, self._pair]).integers(2**31))
