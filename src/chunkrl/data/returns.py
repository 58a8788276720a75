"""Returns along episodes: Monte-Carlo, TD(lambda) and N-step, and their normalisation per task."""

from __future__ import annotations

import numpy as np

from chunkrl.data.chunk_semantics import Segments
from chunkrl.data.label_rules import TimeOut
from chunkrl.data.large_arrays import blocks


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
    After the last action of a segment stands 0 where the task ended; where only the recording ended, 0 for
    `time_out="failure"` (an episode has its time limit, and not succeeding within it is failing), or
    V of the last stored frame for `bootstrap` (then the last action's reward is not counted: its result is
    not stored).
    """
    returns = np.empty(len(value), dtype=np.float32)
    for begin, end, terminated in zip(segments.starts, segments.ends, segments.terminated, strict=True):
        values, rewards = value[begin:end].tolist(), reward[begin:end].tolist()
        following_return = following_value = 0.0
        if not terminated and time_out == "bootstrap":
            following_return = following_value = values.pop()
            returns[end - 1] = following_return
        for step in range(len(values) - 1, -1, -1):
            target = (1 - lam) * following_value + lam * following_return
            following_return, following_value = rewards[step] + gamma * target, values[step]
            returns[begin + step] = following_return
    return returns


def n_step_returns(
    value: np.ndarray,
    reward: np.ndarray,
    segments: Segments,
    gamma: float,
    n_step: int,
    time_out: TimeOut = "failure",
) -> np.ndarray:
    """N-step returns per frame [N]: G_t = sum_{i < n} gamma^i r_{t+i} + gamma^n V_{t+n} (Sutton and Barto, ch. 7).

    n_step: n. value, reward: float [N], per frame, rows in episode order. What stands after the last action of a
    segment is as in `lambda_returns`, which gives the same for 1 step with lam = 0, for endless ones with lam = 1.
    """
    returns = np.empty(len(value), dtype=np.float32)
    for block in blocks(len(value)):
        rows = np.arange(block.start, block.stop)
        end, terminated = segments.of(rows)
        # With `bootstrap` the last stored frame of an unfinished recording gives V instead of a reward.
        unfinished = ~terminated & (time_out == "bootstrap")
        steps = np.minimum(n_step, end - unfinished - rows)
        total = np.zeros(len(rows))
        for i in range(min(n_step, int(steps.max(initial=0)))):
            total += np.where(i < steps, gamma**i * reward[np.minimum(rows + i, len(value) - 1)], 0.0)
        following = rows + steps
        behind = value[np.minimum(following, len(value) - 1)]
        returns[block] = total + np.where(following < end, gamma**steps * behind, 0.0)
    return returns


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
