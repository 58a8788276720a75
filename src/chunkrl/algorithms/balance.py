"""Strata of time and value, and how much of all weight each is due: the state distribution of a weighted clone.

An advantage-weighted clone maximises E[w log pi(A|x)] over the data. The improved policy is pi'(A|x) = pi(A|x)
exp(beta A(x, A)) / Z(x) (AWR, arXiv 1910.00177), so the weight that clones pi', with the states that pi' visits, is

    w(x, A) = exp(beta A(x, A)) / Z(x) * d'(x) / d(x),    Z(x) = E[exp(beta A(x, A)) | x].

Without 1/Z(x) a place counts as much as its advantages spread there: credit of TD(lambda) reaches some
1 / (1 - lambda) steps, so the beginning of an episode, where |A| is small, is starved by its end. Both factors are
estimated in strata g, sets of starts that are alike in time and held-out value:

- Z(x) by the mean of exp(beta A) over the stratum;
- d'(x) / d(x) by the share of the stratum's starts that lie in successful episodes. If the improved policy is the
  data's, conditioned on success (a trajectory has probability p(trajectory) p(success | trajectory) / p(success),
  as in control as inference, arXiv 1805.00909), then d'(x) / d(x) = p(success | x) / p(success) exactly. With returns
  in [0, 1] in the place of success, p(O = 1 | trajectory) is the return.

So every stratum's weights sum to its successful starts (and `floor` of all of them); within it the advantage decides.

By default it decides among the starts of successful episodes alone (`failures` left_out): what is improved is then
the data's policy conditioned on success, pi_s(A|x) = pi(A|x) p(success | x, A) / p(success | x), whose states are
d'(x) without any estimate,

    w(x, A) = 1[success] exp(beta A(x, A)) / Z_s(x),    Z_s(x) = E[exp(beta A(x, A)) | x, success],

cloning of the successes at beta 0, and with beta an improvement on that. Starts of weight 0 are not drawn: a batch
has as many rows that teach something as in cloning of the successes (`apart` draws them, with the floor for a
weight). `together` weighs all starts by exp(beta A), which leaves some 5 % of the weight on failed episodes: hardly a
most likely chunk moves by it, but one drawn chunk in twenty does.
docs/training.md has the derivation and what was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chunkrl.algorithms.advantages import step_rewards
from chunkrl.algorithms.config import BalanceConfig
from chunkrl.data.collection import ChunkData
from chunkrl.data.draws import rate_per_start
from chunkrl.errors import ChunkRLError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Strata:
    """Where every start belongs, and what is due there.

    index: int32 [N], the stratum of each start, 0 .. num - 1.
    credit: float32 [N], what the start adds to its stratum's due: 1 in a successful episode, 0 in another; a number
        between for returns.
    uniform: bool [N], starts of tasks that show no success, whose advantages say nothing: those with credit weigh the
        same, and those without it nothing.
    due: float64 [num], the weight that each stratum's starts sum to, counted by draw rates.
    silent: names of those tasks.
    """

    index: np.ndarray
    credit: np.ndarray
    uniform: np.ndarray
    due: np.ndarray
    silent: tuple[str, ...] = ()

    @property
    def num(self) -> int:
        """How many there are."""
        return len(self.due)


def equal_count_bins(values: np.ndarray, rates: np.ndarray, num_bins: int) -> np.ndarray:
    """The bin int64 [n] of each of values [n], 0 .. num_bins - 1, so that all bins hold about the same sum of rates
    [n]. Equal values share a bin."""
    distinct, place = np.unique(values, return_inverse=True)
    mass = np.bincount(place, weights=rates, minlength=len(distinct))
    middle = (np.cumsum(mass) - mass / 2) / max(mass.sum(), 1e-300)
    return np.minimum((middle * num_bins).astype(np.int64), num_bins - 1)[place]


def stratify(
    task: np.ndarray,
    step: np.ndarray,
    value: np.ndarray | None,
    rates: np.ndarray,
    config: BalanceConfig,
) -> np.ndarray:
    """The stratum of every start, int32 [N], counted from 0 without gaps.

    Within each task: bins of `step` int [N], steps since the episode began, and in each of them bins of `value` float
    [N], held out; None: time alone. rates: float [N], how often each is drawn; what is never drawn shapes no bin.
    """
    index = np.zeros(len(task), np.int32)
    num = 0
    for rows in _rows_by_task(task):
        drawn = int(np.count_nonzero(rates[rows]))
        per_time = drawn // (config.min_starts * config.time_bins)
        value_bins = 1 if value is None else min(config.value_bins, max(1, per_time))
        time_bins = min(config.time_bins, max(1, drawn // config.min_starts))
        time = equal_count_bins(step[rows], rates[rows], time_bins)
        for number in range(time_bins):
            own = rows[time == number]
            level = np.zeros(len(own), np.int64)
            if value is not None and value_bins > 1:
                level = equal_count_bins(value[own], rates[own], value_bins)
            there = np.bincount(level, minlength=value_bins) > 0
            index[own] = (num - 1 + np.cumsum(there))[level]
            num += int(there.sum())
    return index


def _rows_by_task(task: np.ndarray) -> list[np.ndarray]:
    """The rows of each task, growing; task: int [N]."""
    order = np.argsort(task, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(task[order])) + 1) if len(task) else []


def episode_steps(data: ChunkData) -> tuple[np.ndarray, np.ndarray]:
    """Steps since the episode began and its length until its end or success, int [len] each, of every start."""
    ends = data.segments.ends
    place = np.searchsorted(ends, data.starts, side="right")
    begin = data.segments.starts[place]
    return data.starts - begin, ends[place] - begin


def episode_thirds(data: ChunkData) -> np.ndarray:
    """The third of its episode in which every start lies, int [len]: 0, 1 or 2."""
    step, length = episode_steps(data)
    return np.minimum(3 * step // np.maximum(length, 1), 2)


def first_rows(data: ChunkData) -> np.ndarray:
    """The row int [len] at which the episode of every start begins."""
    return data.starts - episode_steps(data)[0]


def make_strata(
    data: ChunkData,
    value: np.ndarray | None,
    step_reward: np.ndarray,
    rates: np.ndarray | None,
    forced: np.ndarray | None,
    config: BalanceConfig,
    said: Collection[str] = (),
) -> Strata:
    """The strata of all starts of `data` and what is due in each; a log warning names tasks that show no success.

    value: held-out V float [len]; None: strata of time alone. step_reward: float [N], of every frame's action.
    rates: float [len], how often each start is drawn; None: all alike. forced: bool [len], chunks that a human made,
    which count as the improved policy's wherever they stand. said: tasks that an earlier warning has named.
    """
    rate = rate_per_start(rates, len(data))
    task = np.asarray(data.task)
    index = stratify(task, episode_steps(data)[0], value, rate, config)
    credit, unknown, silent = _credit(data, task, step_reward, rate, config)
    _warn_of_tasks([name for name in silent if name not in said], config)
    if forced is not None:
        credit = np.where(forced, np.float32(1), credit)
        unknown = unknown & ~forced
    if config.failures != "together":
        _, index = np.unique(2 * index + (credit > 0), return_inverse=True)
        index = index.astype(np.int32)
    num = int(index.max()) + 1 if len(index) else 0
    left_out = unknown & (config.without_success == "leave_out")
    if config.failures == "left_out":
        left_out |= credit == 0
    floor = np.where(left_out, 0.0, config.floor)
    due = np.bincount(index, weights=rate * (credit + floor), minlength=num)
    return Strata(index, credit, unknown, due, silent)


def _credit(
    data: ChunkData, task: np.ndarray, step_reward: np.ndarray, rate: np.ndarray, config: BalanceConfig
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Credit float32 [len] of every start, whether its task shows no success, bool [len], and the names of these."""
    success = np.asarray(data.success)
    credit = success.astype(np.float32)
    returns = _episode_returns(data, step_reward)
    unknown = np.zeros(len(task), bool)
    silent = []
    for of_task in _rows_by_task(task):
        rows = of_task[rate[of_task] > 0]
        succeeds = bool(success[rows].any())
        if not len(rows) or (succeeds and config.share != "returns"):
            continue
        own = returns[rows]
        graded = config.share != "success" and np.ptp(own) > 0
        if graded and (succeeds or not _only_costs_of_time(data, step_reward, rows)):
            credit[rows] = (own - own.min()) / np.ptp(own)
        elif not succeeds:
            unknown[rows] = True
            silent.append(data.tasks[int(task[rows[0]])])
    if silent:
        known = (rate > 0) & ~unknown
        usual = float(np.average(credit[known], weights=rate[known])) if known.any() else 1.0
        credit[unknown] = usual if config.without_success == "clone" else 0.0
        if not known.any() and config.without_success == "leave_out":
            raise ChunkRLError(
                f"no task of {data.name} has a successful episode, and --balance.without-success leave_out leaves "
                "all of them out: say with --success which episodes succeeded, or use --objective behaviour_cloning"
            )
    return credit, unknown, tuple(silent)


def starts_credit(data: ChunkData, rates: np.ndarray | None, config: BalanceConfig) -> np.ndarray:
    """What each start counts for as one of the improved policy's, float32 [len] in [0, 1] (`Strata.credit`); 0 in
    tasks of which nothing is known."""
    rate = rate_per_start(rates, len(data))
    credit, unknown, _ = _credit(data, np.asarray(data.task), step_rewards(data), rate, config)
    return np.where(unknown, np.float32(0), credit)


def _only_costs_of_time(data: ChunkData, step_reward: np.ndarray, rows: np.ndarray) -> bool:
    """Whether every step of the starts `rows` costs the same, but for the last of an episode: where none succeeds,
    returns then say which failed soonest."""
    frames = data.starts[rows]
    costs = step_reward[frames[~np.isin(frames, data.segments.ends - 1)]]
    return len(costs) > 0 and costs[0] < 0 and np.ptp(costs) == 0


def _warn_of_tasks(names: Sequence[str], config: BalanceConfig) -> None:
    if not names:
        return
    done = "are cloned, all alike" if config.without_success == "clone" else "are left out"
    _LOG.warning(
        "no episode of %s succeeds, so that nothing is known of what is better there: its chunks %s "
        "(--balance.without-success clone or leave_out)",
        ", ".join(repr(name) for name in names[:5]) + (" and others" if len(names) > 5 else ""),
        done,
    )


def _episode_returns(data: ChunkData, step_reward: np.ndarray) -> np.ndarray:
    """The sum of rewards of every start's episode, float64 [len], until its end or success."""
    place = np.searchsorted(data.segments.ends, data.starts, side="right")
    return np.add.reduceat(step_reward.astype(np.float64), data.segments.starts)[place]


RUNNING_RATE = 0.02  # of the mean weight of a stratum, an update in which it has rows


class StrataLabels:
    """The strata of data that are labelled again and again: what is said of a task is said once."""

    def __init__(self, config: BalanceConfig) -> None:
        self._config, self._silent = config, set[str]()

    def of(
        self, data: ChunkData, value: np.ndarray, rates: np.ndarray | None, forced: np.ndarray | None
    ) -> Strata | None:
        """Strata by time and held-out V float [len]; None where weights are not balanced. rates, forced: as of
        `make_strata`."""
        if self._config.kind == "none":
            return None
        strata = make_strata(data, value, step_rewards(data), rates, forced, self._config, self._silent)
        self._silent.update(strata.silent)
        return strata


def with_past_advantage(
    advantage: np.ndarray, data: ChunkData, value: np.ndarray, scale: float
) -> np.ndarray:
    """Advantages [len] with what came before: A + scale (V(x) - V(x_0)); value: V, float32 [len]."""
    return advantage + np.float32(scale) * (value - value[first_rows(data)]) if scale else advantage


class RunningBalance:
    """Balance where advantages move while the policy learns: each stratum's mean weight is a running one.

    target: float [num], what the mean weight of each stratum shall be. uniform: bool [num], strata in which all weigh
    the same.
    """

    def __init__(self, target: Tensor, uniform: Tensor) -> None:
        self._target, self._uniform = target, uniform
        self._sum, self._mass = torch.zeros_like(target), torch.zeros_like(target)

    @classmethod
    def of(cls, strata: Strata, rates: np.ndarray | None, device: torch.device) -> RunningBalance:
        """The mean weight that strata are due, 1 over all that is drawn. rates: float [len]; None: all alike."""
        rate = rate_per_start(rates, len(strata.index))
        mass = np.bincount(strata.index, weights=rate, minlength=strata.num)
        target = strata.due / np.maximum(mass, 1e-300) * mass.sum() / strata.due.sum()
        uniform = np.bincount(strata.index[strata.uniform], minlength=strata.num) > 0
        target = torch.from_numpy(np.where(mass > 0, target, 0.0)).float()
        return cls(target.to(device), torch.from_numpy(uniform).to(device))

    @torch.no_grad()
    def apply(self, weight: Tensor, stratum: Tensor) -> Tensor:
        """weight [B] over the running mean of its stratum int [B], times what the stratum is due."""
        stratum, num = stratum.long(), len(self._target)
        weight = torch.where(self._uniform[stratum], 1.0, weight)
        counts = torch.bincount(stratum, minlength=num).to(weight)
        total = torch.zeros_like(self._sum).index_add_(0, stratum, weight.to(self._sum))
        there = counts > 0
        mean = total / counts.clamp(min=1)
        # the mean of what was seen so far, then a moving one: the first rows count as much as later ones
        self._mass = torch.where(there, self._mass + RUNNING_RATE * (1 - self._mass), self._mass)
        self._sum = torch.where(there, self._sum + RUNNING_RATE * (mean - self._sum), self._sum)
        running = self._sum / self._mass.clamp(min=1e-12)
        scale = torch.where(running > 0, self._target / running.clamp(min=1e-30), 0.0)
        return weight * scale[stratum].to(weight)

    def state_dict(self) -> dict[str, Any]:
        """The running means."""
        return {"sum": self._sum.cpu(), "mass": self._mass.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._sum, self._mass = (state[name].to(self._target) for name in ("sum", "mass"))
