"""How weights are spread over the data: on successes, along their episodes, over strata; and what starves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from chunkrl.algorithms.balance import Strata, episode_thirds
from chunkrl.algorithms.config import BalanceConfig
from chunkrl.data.collection import ChunkData
from chunkrl.data.draws import rate_per_start

THIRDS = ("first", "middle", "last")
STARVED = 0.5  # a third of the successes with less than this part of what cloning of the successes gives it
TASK_STARTS = 192  # of successes: of fewer, a third has little weight by chance
TOLD_TASKS = 5
_TINY = 1e-30
_LOG = logging.getLogger(__name__)
GIVEN_CURE = "The weights are those of --sample-weights"
LITERAL_CURE = "Use --objective cross_fitted, whose weights are balanced"


@dataclass(frozen=True)
class Spread:
    """Where the weight lies.

    on_successes: the share of all weight on successful episodes. thirds: of the weight on the episodes that count,
        what lies on each third of them; frames: what lies there of their frames, which cloning of them gives it. NaN
        where none counts.
    graded: the episodes that count are not the successful ones but all, each frame by its episode's return.
    of_tasks: the same of each task that has enough starts; empty of a single one.
    """

    on_successes: float
    thirds: tuple[float, float, float]
    frames: tuple[float, float, float]
    graded: bool = False
    of_tasks: Mapping[str, Spread] = field(default_factory=dict)

    @property
    def episodes(self) -> str:
        """The episodes that count, for people."""
        return "episodes (counted by their returns)" if self.graded else "successful episodes"

    @property
    def starved(self) -> tuple[str, ...]:
        """The thirds with less than half of their frames' share."""
        pairs = zip(THIRDS, self.thirds, self.frames, strict=True)
        return tuple(name for name, weight, frames in pairs if weight < STARVED * frames)


def weight_spread(
    weight: np.ndarray, data: ChunkData, rates: np.ndarray | None, credit: np.ndarray | None = None
) -> Spread:
    """The spread of weight float [len] over the starts of `data`, counted by rates float [len] (None: all alike).

    credit: float [len], what each counts for (`balance.starts_credit`), where that is graded; None: 1 in successful
    episodes.
    """
    rate = rate_per_start(rates, len(weight))
    success = np.asarray(data.success) & (rate > 0)
    graded = credit is not None and bool(((credit > 0) & (credit < 1) & (rate > 0)).any())
    counts = np.asarray(credit if graded else success, np.float64)
    place = 3 * np.asarray(data.task, np.int64) + episode_thirds(data)
    mass, due = rate * weight, rate * counts
    good, num = due > 0, len(data.tasks)
    starts, on_good, frames, all_weight, on_successes = (
        np.bincount(place, weights=of, minlength=3 * num).reshape(num, 3)
        for of in (good.astype(np.float64), mass * good, due, mass, mass * success)
    )

    def spread(tasks: np.ndarray | slice, of_tasks: Mapping[str, Spread]) -> Spread:
        weighs, fair = on_good[tasks].sum(axis=0), frames[tasks].sum(axis=0)
        with np.errstate(invalid="ignore"):
            return Spread(
                float(on_successes[tasks].sum() / all_weight[tasks].sum()),
                tuple(
                    (weighs / (weighs.sum() or fair.sum())).tolist()
                ),  # 0, not NaN, where they weigh nothing
                tuple((fair / fair.sum()).tolist()),
                graded,
                of_tasks,
            )

    several = np.flatnonzero(starts.sum(axis=1) >= TASK_STARTS) if num > 1 else []
    return spread(slice(None), {data.tasks[task]: spread(np.array([task]), {}) for task in several})


def spread_metrics(
    weight: np.ndarray,
    data: ChunkData,
    rates: np.ndarray | None,
    strata: Strata | None,
) -> tuple[dict[str, float], Spread]:
    """The spread as metrics, and itself.

    `weight/num_strata`: those of successes. `weight/lowest_stratum`: the lowest of their weights over what is due, 1
    where all have theirs. `weight/lowest_stratum_size`: the lowest of their effective sample sizes, a share of their
    starts.
    """
    credit = None if strata is None else np.where(strata.uniform, 0.0, strata.credit)
    spread = weight_spread(weight, data, rates, credit)
    known = spread.on_successes > 0 or not spread.graded
    metrics = {"weight/on_successes": spread.on_successes} if known else {}
    if not np.isnan(spread.frames).any():
        metrics |= {f"weight/{name}_third": share for name, share in zip(THIRDS, spread.thirds, strict=True)}
        metrics |= {f"weight/{n}_third_frames": share for n, share in zip(THIRDS, spread.frames, strict=True)}
    if strata is not None:
        found = strata_shares(weight, strata.index, rates, strata.credit, strata.due)
        good = found.successes > 0
        metrics["weight/num_strata"] = float(good.sum())
        metrics["weight/lowest_stratum"] = float((found.weight[good] / found.due[good]).min())
        metrics["weight/lowest_stratum_size"] = float(found.size[good].min())
    return metrics, spread


@dataclass(frozen=True, eq=False)
class StrataShares:
    """The strata, float [num] each: a stratum's share of all weight; the share that is due; the effective sample size
    of its weights, a share of its starts; the sum of its starts' credit, counted by draw rates."""

    weight: np.ndarray
    due: np.ndarray
    size: np.ndarray
    successes: np.ndarray


def strata_shares(
    weight: np.ndarray,
    index: np.ndarray,
    rates: np.ndarray | None,
    credit: np.ndarray,
    due: np.ndarray | None = None,
) -> StrataShares:
    """How weight float [N] lies over the strata index int [N] (`Strata`); due: None as the credit."""
    rate = rate_per_start(rates, len(weight))
    sums = [rate * weight, rate * np.square(weight, dtype=np.float64), rate, rate * credit]
    total, squares, mass, successes = (np.bincount(index, weights=of) for of in sums)
    due = successes if due is None else due
    size = total**2 / np.maximum(squares * mass, _TINY)
    return StrataShares(total / total.sum(), due / due.sum(), size, successes)


def balance_cure(balance: BalanceConfig, mixes: bool = True) -> str:
    """What helps where balanced weights starve a third. mixes: whether the method reads `success_mix`."""
    if balance.kind == "none":
        return "Use --balance.kind strata"
    cure = "Use more --balance.time-bins (of few data, less --balance.min-starts)"
    return cure + (", or --balance.success-mix .5" if mixes else "")


def starved_warnings(spread: Spread, cure: str) -> list[str]:
    """What to say of thirds of the successes that carry too little weight; of single tasks where all together have
    enough. cure: what helps, a sentence (`balance_cure`)."""
    return [f"{lack}: the policy will hardly learn it. {cure}" for lack in lacks(spread)]


class StarvedOnce:
    """Logs the first starved thirds there are: values that go on learning, and data that grow, give new weights again
    and again."""

    def __init__(self) -> None:
        self._said = False

    def say(self, spread: Spread, cure: str) -> None:
        """cure: as of `starved_warnings`."""
        messages = [] if self._said else starved_warnings(spread, cure)
        for message in messages:
            _LOG.warning("%s", message)
        self._said = self._said or bool(messages)


def lacks(spread: Spread) -> list[str]:
    """Every starved third in words, of tasks at most a few."""
    if pooled := _lacks(spread, ""):
        return pooled
    found = [lack for name, own in spread.of_tasks.items() for lack in _lacks(own, f" of {name!r}")]
    more = len(found) - TOLD_TASKS
    return found[:TOLD_TASKS] + ([f"{more} thirds of other tasks carry as little"] if more > 0 else [])


def _lacks(spread: Spread, task: str) -> list[str]:
    return [
        f"the {name} third of {spread.episodes}{task} carries {weight:.1%} of their weight and has {frames:.1%} of "
        "their frames"
        for name, weight, frames in zip(THIRDS, spread.thirds, spread.frames, strict=True)
        if name in spread.starved
    ]
