"""Returns along episodes: Monte-Carlo, TD(lambda) and N-step, and their normalisation per task."""

from __future__ import annotations

from typing import Literal

import numpy as np

from chunkrl.data.chunk_semantics import Segments

TimeOut = Literal["failure", "bootstrap"]


def lambda_returns(
    value: np.ndarray,
    reward: np.ndarray,
    segments: Segments,
    gamma: float,
    lam: float,
    time_out: TimeOut = "failure",
) -> np.ndarray:
    """TD(lambda) returns per frame [N]: G_t = r_t + gamma ((1 - lam) V_{t+1} + lam G_{t+1}).

    The lambda-return of Sutton and Barto (ch. 12); G - V is the generalised advantage (arXiv 1506.02438),
    lam = 1 gives the Monte-Carlo return. value, reward: float [N], per frame, rows in episode order.
    Behind the last action of a segment stands 0 where the task ended; where only the recording ended, 0 for
    `time_out="failure"` (an episode has its time limit, and not succeeding within it is failing), or
    V of the last stored frame for `bootstrap` (then the last action's reward is not counted: its result is
    not stored).
    """
    returns = np.zeros(len(value), dtype=np.float64)
    following_return = following_value = 0.0
    for row in range(len(value) - 1, -1, -1):
        if row == segments.end[row] - 1:
            if not segments.terminated[row] and time_out == "bootstrap":
                returns[row] = following_return = following_value = float(value[row])
                continue
            following_return = following_value = 0.0
        target = (1 - lam) * following_value + lam * following_return
        returns[row] = following_return = float(reward[row]) + gamma * target
        following_value = float(value[row])
    return returns.astype(np.float32)


def n_step_returns(
    value: np.ndarray,
    reward: np.ndarray,
    segments: Segments,
    gamma: float,
    num_steps: int,
    time_out: TimeOut = "failure",
) -> np.ndarray:
    """N-step returns per frame [N]: G_t = sum_{i < n} gamma^i r_{t+i} + gamma^n V_{t+n} (Sutton and Barto, ch. 7).

    value, reward: float [N], per frame, rows in episode order. What stands behind the last action of a segment
    is as in `lambda_returns`, which gives the same for 1 step with lam = 0, and for endless ones with lam = 1.
    """
    rows = np.arange(len(value))
    # With `bootstrap` the last stored frame of an unfinished recording gives V instead of a reward.
    unfinished = ~segments.terminated & (time_out == "bootstrap")
    steps = np.minimum(num_steps, segments.end - unfinished - rows)
    returns = np.zeros(len(value))
    for i in range(min(num_steps, int(steps.max(initial=0)))):
        returns += np.where(i < steps, gamma**i * reward[np.minimum(rows + i, len(rows) - 1)], 0.0)
    following = rows + steps
    bootstraps = following < segments.end
    returns += np.where(bootstraps, gamma**steps * value[np.minimum(following, len(rows) - 1)], 0.0)
    return returns.astype(np.float32)


def normalize_per_task(returns: np.ndarray, task_index: np.ndarray) -> np.ndarray:
    """Returns [N] on [-1, 0] for each task: its lowest return is -1, its highest 0 (0 where all are equal).

    task_index: int [N]. Tasks of different lengths become comparable (pi*0.6 divides by the task's longest
    episode, which is this where every step costs 1).
    """
    result = np.zeros(len(returns), np.float32)
    for task in np.unique(task_index):
        rows = task_index == task
        low, high = float(returns[rows].min()), float(returns[rows].max())
        if high > low:
            result[rows] = (returns[rows] - high) / (high - low)
    return result
