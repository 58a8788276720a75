"""Which method to train with, and beside which control: one rule, from what the diagnosis measured.

The rule follows docs/results.md: balanced weights by the advantage were ahead of cloning of the successes or level
with it wherever values ranked unseen episodes, and weights by values that do not rank are noise (the shuffled
control).
"""

from __future__ import annotations

from dataclasses import dataclass

from chunkrl.algorithms.registry import METHODS
from chunkrl.improve.config import WEIGHTED, Asked
from chunkrl.improve.diagnosis import FEW_EPISODES, MIN_EFFECTIVE_SIZE, DataFacts, ValueFacts

OF_SUCCESSES, OF_ALL = "success_cloning", "behaviour_cloning"
TABLE = 'docs/results.md, "Balanced weights on fresh data"'


@dataclass(frozen=True)
class Recipe:
    """objective: of the training. control: the objective that it is compared with; None: it would train the same
    policy. reason: why, for people."""

    objective: str
    control: str | None
    reason: str


def choose_recipe(data: DataFacts, values: ValueFacts | None, asked: Asked = "auto") -> Recipe:
    """The recipe for a data set with a success.

    values: None where nothing is to be learned from them. asked: a method that is used whatever the data are.
    """
    objective, reason = (asked, "it was asked for") if asked != "auto" else _choose(data, values)
    control: str | None = OF_SUCCESSES
    if METHODS[objective].of_successes:
        control = None if data.all_succeed else OF_ALL
    return Recipe(objective, control, reason)


def _choose(data: DataFacts, values: ValueFacts | None) -> tuple[str, str]:
    if values is None:
        return OF_SUCCESSES, "there is nothing for values to tell apart"
    if data.num_trained < FEW_EPISODES:
        return OF_SUCCESSES, (
            f"with {data.num_trained} episodes, fewer than {FEW_EPISODES}, nothing is known of what values are worth"
        )
    if not values.rank:
        told = "constant" if values.held_out is None else f"rank correlation {values.held_out:.2f}"
        return OF_SUCCESSES, (
            f"the values do not rank episodes that they never saw ({told}), and weights by them would be noise"
        )
    if values.effective_sample_size < MIN_EFFECTIVE_SIZE:
        return OF_SUCCESSES, (
            f"weights would rest on {values.effective_sample_size:.1%} of the starts, less than "
            f"{MIN_EFFECTIVE_SIZE:.0%}"
        )
    return WEIGHTED, (
        f"the values rank episodes that they never saw (rank correlation {values.held_out:.2f}), and weights by the "
        "advantage were ahead of cloning of the successes or level with it there"
    )
