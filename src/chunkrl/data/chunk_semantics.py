"""Chunk semantics, decided here alone: which steps a chunk has, what pads it, what it earns, where it ends.

A recording's episode is cut into *segments* at frames whose action terminated the task. A start t of a
segment that ends before frame `end` (exclusive), with horizon H:

- policy: the chunk's real steps are a_t .. a_{min(t+H, end)-1}; the rest is padded with the hold action
  and masked out of every policy loss;
- critic: k steps, with reward, discount gamma^k and next observation x_{t+k}. A terminated segment has
  k = min(n, end - t) and discount 0 when these steps hold the terminating action. A truncated one stores no
  observation after its last action, so k = min(n, end - 1 - t); its last frame (k = 0) trains the policy
  only (`critic_mask`). A last frame never bootstraps from itself. n is the critic's own horizon, H by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chunkrl.data.chunk_settings import ChunkReward


@dataclass(frozen=True)
class Segments:
    """S segments, one after the other.

    ends: int [S], growing, the row after each one's last. terminated: bool [S], whether that last action ended
    the task.
    """

    ends: np.ndarray
    terminated: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """int [S], each one's first row."""
        return np.concatenate([[0], self.ends[:-1]])

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For rows int [B]: the row after their segment's last, and whether that last action ended the task."""
        number = np.searchsorted(self.ends, rows, side="right")
        return self.ends[number], self.terminated[number]


def cut_segments(terminated: np.ndarray, episode_start: np.ndarray, episode_length: np.ndarray) -> Segments:
    """terminated: bool [N]; episode_start, episode_length: int [E], rows of consecutive episodes."""
    ends = np.union1d(np.flatnonzero(terminated) + 1, episode_start + episode_length)
    return Segments(ends=ends, terminated=terminated[ends - 1])


@dataclass(frozen=True)
class ChunkSteps:
    """For B starts: rows of the H steps [B, H] (clipped to the segment), `action_mask` [B, H] of real steps,
    critic steps `covered_steps` [B], `next_row` [B], `terminated`, `truncated` [B]."""

    rows: np.ndarray
    action_mask: np.ndarray
    covered_steps: np.ndarray
    next_row: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def chunk_steps(start: np.ndarray, horizon: int, segments: Segments) -> ChunkSteps:
    """The module's semantics for starts `start` int [B] (rows); see the module's docstring.

    horizon: H for what the policy clones, n for what the critic learns from.
    """
    end, ends_task = segments.of(start)
    steps = start[:, None] + np.arange(horizon)[None]
    action_mask = steps < end[:, None]
    reaches_end = start + horizon >= end
    covered_steps = np.where(
        ends_task, np.minimum(horizon, end - start), np.minimum(horizon, end - 1 - start)
    )
    terminated = ends_task & reaches_end
    return ChunkSteps(
        rows=np.minimum(steps, end[:, None] - 1),
        action_mask=action_mask,
        covered_steps=covered_steps,
        next_row=np.minimum(start + covered_steps, end - 1),
        terminated=terminated,
        truncated=~ends_task & reaches_end,
    )


def chunk_reward(
    kind: ChunkReward,
    steps: ChunkSteps,
    step_reward: np.ndarray,
    subgoal: np.ndarray,
    gamma: float,
) -> np.ndarray:
    """Reward [B] over the k critic steps: `any` 1(max b = 1), or `sum` sum_i gamma^i r_{t+i}.

    step_reward: float [N]; subgoal: bool [N], onsets.
    """
    counted = np.arange(steps.rows.shape[1])[None] < steps.covered_steps[:, None]
    if kind == "any":
        return (subgoal[steps.rows] & counted).any(axis=1).astype(np.float32)
    powers = gamma ** np.arange(steps.rows.shape[1])
    return ((step_reward[steps.rows] * counted) @ powers).astype(np.float32)
