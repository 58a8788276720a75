"""Advantages, rewards and ranges of returns along whole episodes (numpy, one pass)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from chunkrl.algorithms.value_config import ValueFit
from chunkrl.data.collection import ChunkData
from chunkrl.data.label_rules import TimeOut
from chunkrl.data.large_arrays import by_blocks
from chunkrl.data.returns import lambda_returns, n_step_returns
from chunkrl.errors import ChunkRLError

_LOG = logging.getLogger(__name__)


def frame_advantages(
    value: np.ndarray, step_reward: np.ndarray, data: ChunkData, fit: ValueFit
) -> np.ndarray:
    """A = target - V of every frame, float32 [N]; 0 after a success, which nobody trains on (`draws.trained_starts`).

    value: V by networks that never saw the episode, float32 [N]. step_reward: float32 [N]. The target is the
    TD(lambda) return, or with `fit.n_step` N rewards and V after them.
    """
    if fit.n_step is None:
        target = lambda_returns(value, step_reward, data.segments, data.gamma, fit.lam, fit.time_out)
    else:
        target = n_step_returns(value, step_reward, data.segments, data.gamma, fit.n_step, fit.time_out)
    advantage = target - value
    advantage[data.frame_labels.after_success] = 0.0
    return advantage


@dataclass(frozen=True)
class ReturnRange:
    """Lowest and highest return of the data: V is a sigmoid between them, so that it cannot diverge."""

    low: float
    high: float

    def to_unit(self, returns: np.ndarray) -> np.ndarray:
        """Returns -> [0, 1]."""
        return np.clip((returns - self.low) / (self.high - self.low), 0.0, 1.0).astype(np.float32)

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """[0, 1] -> returns."""
        return (self.low + (self.high - self.low) * unit).astype(np.float32)


def return_range(returns: np.ndarray) -> ReturnRange:
    """The range of `returns` [N], never empty; includes 0, the return of an episode without reward."""
    low, high = min(0.0, float(returns.min())), max(0.0, float(returns.max()))
    return ReturnRange(low, high if high > low else low + 1.0)


def step_rewards(dataset: ChunkData) -> np.ndarray:
    """What the action of each frame earned, float32 [N]."""
    labels = dataset.frame_labels
    # a sub-goal onset is the step reward of the document's chunk indicator
    if dataset.reward_kind == "sum":
        return labels.reward
    return by_blocks(dataset.cache_dir, dataset.num_frames, np.float32, lambda rows: labels.subgoal[rows])


def check_rewards(name: str, rewards: np.ndarray) -> None:
    """Raises ChunkRLError where the data `name` has no reward. rewards: of steps, or returns, [N]."""
    if not rewards.any():
        raise ChunkRLError(
            f"no reward anywhere in {name}, so there is nothing to learn values from: say with --success "
            "which episodes succeeded, or use --objective behaviour_cloning"
        )


def check_outcomes(name: str, returns: np.ndarray, known: np.ndarray) -> None:
    """Raises ChunkRLError where the data `name` gives values nothing to learn.

    returns: Monte-Carlo returns [N]. known: bool [N], the starts whose outcome is known.
    """
    check_rewards(name, returns)
    if known.sum() < 2:
        raise ChunkRLError(
            f"no outcome in {name} is known with --fit.time-out bootstrap, because no episode terminates: use "
            "--fit.time-out failure or --failure-terminal"
        )


def check_failures(data: ChunkData, reward: np.ndarray, returns: np.ndarray, time_out: TimeOut) -> None:
    """Raises ChunkRLError where failing is an escape from the costs of going on: steps cost on average, nothing
    stands after the last action of a failed episode, and so its last frames have better returns than successes.

    A failure is an unfinished episode with `time_out="failure"`, and a failure that a rule declared terminal. Where
    its last action has a penalty, and that is smaller than the costs of a success, it is a warning.

    reward, returns: float [N], of steps, and their Monte-Carlo returns.
    """
    labels, segments = data.frame_labels, data.segments
    after, last = labels.after_success, segments.ends - 1
    # an episode is one segment, and one more after its success
    episode = np.cumsum(~after[segments.starts]) - 1
    failed = ~labels.success[episode] & ~after[last]
    if time_out == "bootstrap":
        failed &= segments.terminated
    ordinary = ~after
    ordinary[last] = False
    if not failed.any() or not ordinary.any() or reward[ordinary].mean() >= 0:
        return
    succeeded = data.starts[data.success & ~after[data.starts]]
    worst = float(returns[succeeded if len(succeeded) else data.starts].min())
    escape = float(returns[last[failed]].max())
    if worst >= 0 or escape <= worst + 1e-3 * abs(worst):
        return
    step = float(reward[ordinary].min())
    found = (
        f"failed episodes of {data.name} have better returns than slow successes (at their end {escape:.4g}, of the "
        f"slowest success {worst:.4g}): steps cost up to {-step:g}, and a failure ends the costs"
    )
    cure = "--step-reward cost with a --failure-penalty above the costs of a success"
    if float(reward[last[failed]].max()) >= step:
        raise ChunkRLError(
            f"{found}, so that V and the policy would learn to fail; use {cure}, or --fit.time-out bootstrap where "
            "the episodes ended for lack of time"
        )
    _LOG.warning("%s at a smaller penalty; use %s", found, cure)


def standardize(advantage: np.ndarray, scale: float, rates: np.ndarray | None = None) -> np.ndarray:
    """Mean 0 and deviation `scale` over the data; all zeros where the advantage is constant.

    advantage: float [N]. rates: how often each is drawn, float [N] (`draws.draw_rates`); None: all alike.
    """
    mean, deviation = moments(advantage, rates)
    if not np.isfinite(deviation):
        raise ChunkRLError(
            "advantages are NaN or infinite, so that nothing can be weighted by them: train values again"
        )
    if deviation < 1e-8:
        return np.zeros_like(advantage)
    return scale * (advantage - mean) / deviation


def moments(values: np.ndarray, rates: np.ndarray | None) -> tuple[np.floating, np.floating]:
    """Mean and deviation of values float [N]; rates as of `standardize`."""
    if rates is None:
        return values.mean(), values.std()
    mean = np.average(values, weights=rates)
    return mean, np.sqrt(np.average((values - mean) ** 2, weights=rates))


def shuffle_between(advantage: np.ndarray, seed: int, positions: np.ndarray | None = None) -> np.ndarray:
    """The control: the same advantages, permuted over all starts, or over those at `positions` int [n]."""
    rng = np.random.default_rng([seed, 0x5AFE])
    if positions is None:
        return rng.permutation(advantage)
    shuffled = advantage.copy()
    shuffled[positions] = rng.permutation(advantage[positions])
    return shuffled
