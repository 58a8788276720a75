"""From frames to chunk transitions: the only place that knows chunk semantics.

A recording's episode is cut into *segments* at frames whose action terminated the task. A start t of a
segment that ends before frame `end` (exclusive), with horizon H:

- policy: the chunk's real steps are a_t .. a_{min(t+H, end)-1}; the rest is padded with the hold action
  and masked out of every policy loss;
- critic: k steps, with reward, discount gamma^k and next observation x_{t+k}. A terminated segment has
  k = min(H, end - t) and discount 0 when the chunk holds the terminating action. A truncated one stores no
  observation after its last action, so k = min(H, end - 1 - t); its last frame (k = 0) trains the policy
  only (`critic_mask`). A last frame never bootstraps from itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from chunkrl.data.action_encoding import ActionEncoding
from chunkrl.data.formats import ColumnMapping
from chunkrl.data.frames import FrameSettings, FrameTable
from chunkrl.data.labels import LabelRule, label_frames
from chunkrl.data.normalize import Statistics, compute_statistics, merge
from chunkrl.errors import DatasetError
from chunkrl.progress import Progress
from chunkrl.types import ChunkTransition, Observation

ChunkReward = Literal["any", "sum"]
STATISTICS_STARTS = 16384


@dataclass(frozen=True)
class HoldAction:
    """The action that keeps the robot where it is, which pads chunks beyond an episode's end.

    control: `delta` (zero motion, `gripper_dims` keep their last value) or `absolute` (the last action).
    """

    control: Literal["delta", "absolute"] = "delta"
    gripper_dims: tuple[int, ...] = (-1,)

    def from_last(self, last: np.ndarray) -> np.ndarray:
        """last: [..., A], the last real action; returns the hold action [..., A]."""
        if self.control == "absolute":
            return last.copy()
        hold = np.zeros_like(last)
        dims = list(self.gripper_dims)
        hold[..., dims] = last[..., dims]
        return hold

    def check(self, action_dim: int) -> None:
        """Raises DatasetError where the rule does not fit actions of `action_dim` values."""
        if self.control not in ("delta", "absolute"):
            raise DatasetError(f"hold.control is {self.control!r}; it must be delta or absolute")
        outside = [dim for dim in self.gripper_dims if not -action_dim <= dim < action_dim]
        if self.control == "delta" and outside:
            raise DatasetError(f"hold.gripper_dims names {outside}, but actions have {action_dim} values")


@dataclass(frozen=True)
class Segments:
    """For every frame [N]: `end`, the row after its segment's last; `terminated`, whether that last action
    ended the task."""

    end: np.ndarray
    terminated: np.ndarray


def cut_segments(terminated: np.ndarray, episode_start: np.ndarray, episode_length: np.ndarray) -> Segments:
    """terminated: bool [N]; episode_start, episode_length: int [E], rows of consecutive episodes."""
    num_frames = len(terminated)
    is_last = terminated.copy()
    is_last[episode_start + episode_length - 1] = True
    ends = np.flatnonzero(is_last) + 1
    end = ends[np.searchsorted(ends, np.arange(num_frames), side="right")]
    return Segments(end=end, terminated=terminated[end - 1])


@dataclass(frozen=True)
class ChunkSteps:
    """For B starts: rows of the chunk's actions [B, H] (clipped to the segment), `action_mask` [B, H] of
    real steps, critic steps `num_steps` [B], `next_row` [B], `terminated`, `truncated` [B]."""

    rows: np.ndarray
    action_mask: np.ndarray
    num_steps: np.ndarray
    next_row: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def chunk_steps(start: np.ndarray, horizon: int, segments: Segments) -> ChunkSteps:
    """The module's semantics for starts `start` int [B] (rows); see the module's docstring."""
    end, ends_task = segments.end[start], segments.terminated[start]
    steps = start[:, None] + np.arange(horizon)[None]
    action_mask = steps < end[:, None]
    reaches_end = start + horizon >= end
    num_steps = np.where(ends_task, np.minimum(horizon, end - start), np.minimum(horizon, end - 1 - start))
    terminated = ends_task & reaches_end
    return ChunkSteps(
        rows=np.minimum(steps, end[:, None] - 1),
        action_mask=action_mask,
        num_steps=num_steps,
        next_row=np.minimum(start + num_steps, end - 1),
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
    counted = np.arange(steps.rows.shape[1])[None] < steps.num_steps[:, None]
    if kind == "any":
        return (subgoal[steps.rows] & counted).any(axis=1).astype(np.float32)
    powers = gamma ** np.arange(steps.rows.shape[1])
    return ((step_reward[steps.rows] * counted) @ powers).astype(np.float32)


class ChunkDataset(torch.utils.data.Dataset[ChunkTransition]):
    """Chunk transitions of a LeRobot data set (v2.0, v2.1, v3.0); every frame is a start.

    Args:
        dataset_dir: folder or Hub repository id.
        action_horizon: H, actions a chunk.
        gamma: discount a step.
        reward: `any` (the chunk-level document's indicator of a sub-goal) or `sum` (discounted step rewards).
        labels: how success, reward and sub-goals are read from the columns.
        hold: what pads chunks beyond an episode's end.
        encoding: how actions are written (padded first; the hold action is in the data's units).
        cameras: which cameras to decode; None all, () none.
        episodes: positions of the episodes whose frames may start a chunk; None all.
        frames: how frames are kept: cache, picture size, bad episodes.

    Raises:
        DatasetError: not a LeRobot data set, no label to train on, a horizon longer than every episode.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        action_horizon: int = 10,
        gamma: float = 0.99,
        *,
        reward: ChunkReward = "any",
        labels: LabelRule = LabelRule(),
        hold: HoldAction = HoldAction(),
        encoding: ActionEncoding = ActionEncoding(),
        mapping: ColumnMapping = ColumnMapping(),
        cameras: Sequence[str] | None = None,
        episodes: Sequence[int] | None = None,
        revision: str | None = None,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
        frames: FrameSettings = FrameSettings(),
    ) -> None:
        if action_horizon < 1:
            raise DatasetError(f"action_horizon is {action_horizon}; a chunk has at least 1 action")
        if not 0.0 < gamma <= 1.0:
            raise DatasetError(f"gamma is {gamma}; it must lie in (0, 1]")
        if reward not in get_args(ChunkReward):
            raise DatasetError(f"reward is {reward!r}; it must be one of {get_args(ChunkReward)}")
        self.table = FrameTable.open(dataset_dir, mapping, revision, cache_dir, progress, frames)
        if action_horizon > self.table.episode_length.max():
            raise DatasetError(
                f"action_horizon {action_horizon} is longer than every episode of {dataset_dir} "
                f"(longest: {self.table.episode_length.max()} frames); choose a shorter horizon"
            )
        hold.check(self.action_dim)
        encoding.check(self.action_dim, self.state_dim)
        if encoding.kind != "absolute" and hold.control != "absolute":
            raise DatasetError(
                f"action encoding {encoding.kind} is for recorded targets: pad with hold.control absolute"
            )
        self.encoding = encoding
        self.action_horizon, self.gamma, self.hold = action_horizon, gamma, hold
        self.reward_kind: ChunkReward = reward
        self.frame_labels = label_frames(self.table, labels)
        self.segments = cut_segments(
            self.frame_labels.terminated, self.table.episode_start, self.table.episode_length
        )
        known = self.table.description.cameras
        self.cameras = known if cameras is None else tuple(cameras)
        for camera in self.cameras:
            if camera not in known:
                raise DatasetError(f"{dataset_dir} has no camera {camera!r}; it has {list(known)}")
        # the episode (position in the table) of every row, and the rows that may start a chunk
        self.episode_of_row = np.repeat(np.arange(self.table.num_episodes), self.table.episode_length)
        num_episodes = self.table.num_episodes
        chosen = np.arange(num_episodes) if episodes is None else np.asarray(episodes, dtype=np.int64)
        if unknown := sorted(set(chosen.tolist()) - set(range(num_episodes))):
            raise DatasetError(f"{dataset_dir} has no episode at position {unknown}; it has {num_episodes}")
        self.starts = np.flatnonzero(np.isin(self.episode_of_row, chosen))
        self.labels: dict[str, np.ndarray] = {}
        self._replaced: np.ndarray | None = None
        # what made the chunks that are not the recording's; "" for none
        self.action_source = ""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def action_dim(self) -> int:
        """A, values an action."""
        return self.table.action.shape[1]

    @property
    def state_dim(self) -> int:
        """S, values a state; 0 without one."""
        return 0 if self.table.state is None else self.table.state.shape[1]

    @property
    def num_episodes(self) -> int:
        """E, episodes of the table."""
        return self.table.num_episodes

    @property
    def num_frames(self) -> int:
        """N, frames of the table."""
        return self.table.num_frames

    @property
    def name(self) -> str:
        """Where the data are, for messages."""
        return str(self.table.description.root)

    @property
    def fingerprint(self) -> str:
        """Of the data set's files."""
        return self.table.description.fingerprint

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.table.description.fps

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task texts."""
        return tuple(self.table.description.tasks.values())

    @property
    def label_names(self) -> frozenset[str]:
        """Labels that are attached."""
        return frozenset(self.labels)

    @property
    def episode(self) -> np.ndarray:
        """int [len], position of each start's episode in the table (the unit of cross-fitting)."""
        return self.episode_of_row[self.starts]

    @property
    def success(self) -> np.ndarray:
        """bool [len], whether each start's episode succeeded."""
        return self.frame_labels.success[self.episode]

    def digest(self) -> str:
        """Of episodes, actions and labels: equal where a run may be resumed, wherever the files are."""
        labels, table = self.frame_labels, self.table
        parts = (
            table.episode_length,
            table.action,
            labels.reward,
            labels.subgoal,
            labels.terminated,
            self.starts,
        )
        value = 0
        for part in parts:
            value = zlib.crc32(np.ascontiguousarray(part).data, value)
        value = zlib.crc32(self.action_source.encode(), value)
        return f"{value:08x}"

    def attach(self, name: str, values: np.ndarray) -> None:
        """Adds a label float [len], one value a start; batches carry it in `labels[name]`."""
        if values.shape[0] != len(self):
            raise ValueError(f"label {name!r} has {values.shape[0]} rows for {len(self)} starts")
        self.labels[name] = np.asarray(values)

    def _actions(self, start: np.ndarray, steps: ChunkSteps) -> Tensor:
        """Padded and encoded actions, float32 [B, H, A]."""
        actions = np.asarray(self.table.action[steps.rows], dtype=np.float32)
        hold = self.hold.from_last(actions[:, -1])
        padded = torch.from_numpy(np.where(steps.action_mask[..., None], actions, hold[:, None]))
        state = None if self.table.state is None else torch.from_numpy(np.asarray(self.table.state[start]))
        return self.encoding.encode(padded, state)

    def action_statistics(self) -> Statistics:
        """Statistics of the actions as batches carry them, over the real steps of all chunks, float32 [A] each.

        Recorded actions count once each. Encoded ones depend on the chunk's start: every chunk's count, and
        quantiles of large data sets are means over blocks (`normalize.merge`).
        """
        if self.encoding.kind == "absolute":
            return compute_statistics(self.table.action)
        blocks = []
        for begin in range(0, len(self), STATISTICS_STARTS):
            start = self.starts[begin : begin + STATISTICS_STARTS]
            steps = chunk_steps(start, self.action_horizon, self.segments)
            real = self._actions(start, steps)[torch.from_numpy(steps.action_mask)]
            blocks.append(compute_statistics(real.numpy()))
        return reduce(merge, blocks)

    def state_statistics(self) -> Statistics:
        """Statistics of the recorded states, float32 [S] each. Raises DatasetError where there are none."""
        if self.table.state is None:
            raise DatasetError(f"{self.name} has no state: name its column with --state-key, or use no state")
        return compute_statistics(self.table.state)

    def replace_actions(self, chunks: np.ndarray) -> None:
        """Puts chunks float32 [len, H, A], in the data's units, in place of the recorded ones in every batch.

        Each is whole, so nothing of it is padding; reward and next observation stay those of the recording.
        """
        expected = (len(self), self.action_horizon, self.action_dim)
        if chunks.shape != expected:
            raise ValueError(f"chunks have shape {chunks.shape}, the data set takes {expected}")
        self._replaced = chunks

    def _with_replaced(self, transition: ChunkTransition, chunks: np.ndarray) -> ChunkTransition:
        actions = self.encoding.encode(
            torch.from_numpy(np.array(chunks[transition.index.numpy()])), transition.observation.state
        )
        return replace(transition, actions=actions, action_mask=torch.ones_like(transition.action_mask))

    def observation(self, rows: np.ndarray) -> Observation:
        """The batched observation at table rows int [B]."""
        state = None if self.table.state is None else torch.from_numpy(np.asarray(self.table.state[rows]))
        images = {camera: torch.from_numpy(self.table.images(camera, rows)) for camera in self.cameras}
        return Observation(images=images, state=state, task=tuple(self.table.task_text(int(r)) for r in rows))

    def batch(self, index: np.ndarray, next_observation: bool = True) -> ChunkTransition:
        """The transitions at positions `index` int [B], batched.

        next_observation: False leaves x_{t+k} equal to x_t, undecoded, for losses that do not read it.
        """
        index = np.asarray(index, dtype=np.int64)
        start = self.starts[index]
        steps = chunk_steps(start, self.action_horizon, self.segments)
        reward = chunk_reward(
            self.reward_kind, steps, self.frame_labels.reward, self.frame_labels.subgoal, self.gamma
        )
        discount = np.where(steps.terminated, 0.0, self.gamma**steps.num_steps).astype(np.float32)
        observation = self.observation(start)
        episode = self.episode_of_row[start]
        transition = ChunkTransition(
            observation=observation,
            actions=self._actions(start, steps),
            action_mask=torch.from_numpy(steps.action_mask),
            reward=torch.from_numpy(reward),
            discount=torch.from_numpy(discount),
            next_observation=self.observation(steps.next_row) if next_observation else observation,
            terminated=torch.from_numpy(steps.terminated),
            truncated=torch.from_numpy(steps.truncated),
            num_steps=torch.from_numpy(steps.num_steps),
            critic_mask=torch.from_numpy(steps.num_steps > 0),
            episode_index=torch.from_numpy(self.table.episode_ids[episode]),
            frame_index=torch.from_numpy(start - self.table.episode_start[episode]),
            index=torch.from_numpy(index),
            labels={name: torch.from_numpy(values[index]) for name, values in self.labels.items()},
        )
        return transition if self._replaced is None else self._with_replaced(transition, self._replaced)

    def __getitem__(self, index: int) -> ChunkTransition:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        batch = self.batch(np.array([index % len(self)]))
        item = batch.map(lambda tensor: tensor[0])
        return _with_single_task(item)

    def batches(self, batch_size: int, next_observation: bool = False) -> Iterator[ChunkTransition]:
        """All transitions in order, in batches of at most `batch_size`."""
        for begin in range(0, len(self), batch_size):
            yield self.batch(np.arange(begin, min(begin + batch_size, len(self))), next_observation)


def _with_single_task(item: ChunkTransition) -> ChunkTransition:
    def single(observation: Observation) -> Observation:
        return replace(observation, task=observation.task[0])

    return replace(item, observation=single(item.observation), next_observation=single(item.next_observation))
