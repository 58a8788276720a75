"""Chunk transitions of a data set: what `chunk_semantics` decides, on the frames of a FrameTable."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chunkrl.data.action_encoding import ActionEncoding
from chunkrl.data.chunk_semantics import ChunkSteps, chunk_reward, chunk_steps, cut_segments
from chunkrl.data.chunk_settings import ChunkReward, ChunkSettings
from chunkrl.data.chunk_statistics import encoded_action_statistics
from chunkrl.data.control import recognise_control, resolve_hold
from chunkrl.data.frames import FrameTable
from chunkrl.data.identity import episode_identities
from chunkrl.data.label_files import label_columns, labelled_part
from chunkrl.data.labels import label_frames
from chunkrl.data.large_arrays import by_blocks, keep, zeros
from chunkrl.data.normalize import Statistics
from chunkrl.data.observations import read_observations
from chunkrl.data.resize import Resize
from chunkrl.errors import DatasetError
from chunkrl.progress import Progress
from chunkrl.types import ChunkTransition, Observation


class ChunkDataset(torch.utils.data.Dataset[ChunkTransition]):
    """Chunk transitions of a LeRobot data set (v2.0, v2.1, v3.0); every frame is a start.

    Args:
        dataset_dir: folder or Hub repository id, or its frames, if they are open already.
        settings: what its chunks are.
        episodes: positions of the episodes whose frames may start a chunk; None all.
        held_out: the episodes that `settings.frames.held_out` keeps from training, in place of the others.
        cache_dir, progress: as `FrameTable.open` takes them.

    Raises:
        DatasetError: not a LeRobot data set, no label to train on, a horizon longer than every episode.
    """

    def __init__(
        self,
        dataset_dir: str | Path | FrameTable,
        settings: ChunkSettings = ChunkSettings(),
        *,
        episodes: Sequence[int] | None = None,
        held_out: bool = False,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not isinstance(dataset_dir, FrameTable):
            dataset_dir = FrameTable.open(
                dataset_dir,
                settings.mapping,
                settings.revision,
                cache_dir,
                progress,
                settings.frames,
                partial(label_columns, settings.labels),
                held_out,
                partial(labelled_part, settings.labels),
            )
        self.table = dataset_dir
        self.settings = settings
        if self.action_horizon > self.table.episode_length.max():
            raise DatasetError(
                f"action_horizon {self.action_horizon} is longer than every episode of {self.name} "
                f"(longest: {self.table.episode_length.max()} frames); choose a shorter horizon"
            )
        settings.hold.check(self.action_dim)
        settings.encoding.check(self.action_dim, self.state_dim)
        self.control = recognise_control(self.table, settings.hold.gripper_dims)
        # what pads chunks, where the data decide it
        self.hold = resolve_hold(settings.hold, self.control)
        if settings.encoding.kind != "absolute" and self.hold.control != "absolute":
            raise DatasetError(
                f"{self.name}: action encoding {settings.encoding.kind} is for recorded targets, and the actions are "
                f"not recognised as such ({self.control.told}): say --hold.control absolute if they are, or leave "
                "the encoding out"
            )
        self.frame_labels = label_frames(self.table, settings.labels)
        self.segments = cut_segments(
            self.frame_labels.terminated, self.table.episode_start, self.table.episode_length
        )
        known = self.table.description.cameras
        self.cameras = known if settings.cameras is None else tuple(settings.cameras)
        for camera in self.cameras:
            if camera not in known:
                raise DatasetError(f"{self.name} has no camera {camera!r}; it has {list(known)}")
        self.starts = self._starts(episodes)
        self.labels: dict[str, np.ndarray] = {}
        self._replaced: np.ndarray | None = None
        # what made the chunks that are not the recording's; "" for none
        self.action_source = ""

    def _starts(self, episodes: Sequence[int] | None) -> np.ndarray:
        """int64 [len], the rows that may start a chunk, in order."""
        table = self.table
        chosen = np.unique(np.arange(table.num_episodes) if episodes is None else np.asarray(episodes, int))
        if unknown := [int(number) for number in chosen if not 0 <= number < table.num_episodes]:
            raise DatasetError(
                f"{self.name} has no episode at position {unknown}; it has {table.num_episodes}"
            )
        starts = zeros(self.cache_dir, int(table.episode_length[chosen].sum()), np.int64)
        begin = 0
        for first, length in zip(table.episode_start[chosen], table.episode_length[chosen], strict=True):
            starts[begin : begin + length] = np.arange(first, first + length)
            begin += length
        return starts

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def cache_dir(self) -> Path:
        """The data set's own folder in the cache."""
        return self.table.cache_dir

    @property
    def action_horizon(self) -> int:
        """H, actions per chunk."""
        return self.settings.action_horizon

    @property
    def critic_horizon(self) -> int:
        """n, steps that the critic's transition covers."""
        return self.settings.critic_horizon or self.action_horizon

    @property
    def gamma(self) -> float:
        """Discount a step."""
        return self.settings.gamma

    @property
    def reward_kind(self) -> ChunkReward:
        """How steps make a chunk's reward."""
        return self.settings.reward

    @property
    def encoding(self) -> ActionEncoding:
        """How actions are written."""
        return self.settings.encoding

    @property
    def action_dim(self) -> int:
        """A, values an action."""
        return self.table.action.shape[1]

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each camera's images, in the order of `cameras`."""
        return tuple(self.table.camera(name).size for name in self.cameras)

    @property
    def recorded_sizes(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """(height, width) of each camera's images in the files, in the order of `cameras`."""
        return tuple((self.table.camera(name).recorded_size,) for name in self.cameras)

    @property
    def resize(self) -> Resize | None:
        """What makes the images of the recorded ones; None: they are as recorded."""
        return self.table.settings.image_resize

    @property
    def state_dim(self) -> int:
        """S, values per state; 0 without one."""
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
        """The fingerprint of the data set's files."""
        return self.table.description.fingerprint

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.table.description.fps

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task texts."""
        return tuple(self.table.description.tasks.values())

    @cached_property
    def episode_identities(self) -> tuple[str, ...]:
        """A name of every episode, [E], which it keeps wherever it stands (`chunkrl.data.identity`)."""
        return episode_identities(self.table)

    @property
    def label_names(self) -> frozenset[str]:
        """Labels that are attached."""
        return frozenset(self.labels)

    @property
    def episode(self) -> np.ndarray:
        """int [len], position of each start's episode in the table (the unit of cross-fitting)."""
        return self._of_starts(np.int64, self.table.episode_of)

    @property
    def task(self) -> np.ndarray:
        """int [len], each start's task: its place in `tasks`."""
        known = np.array(list(self.table.description.tasks), dtype=np.int64)
        order, task_index = np.argsort(known), self.table.task_index
        return self._of_starts(
            np.int64, lambda rows: order[np.searchsorted(known, task_index[rows], sorter=order)]
        )

    @property
    def success(self) -> np.ndarray:
        """bool [len], whether each start's episode succeeded."""
        success = self.frame_labels.success
        return self._of_starts(bool, lambda rows: success[self.table.episode_of(rows)])

    def _of_starts(self, dtype: npt.DTypeLike, of_rows: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What `of_rows` gives for the row of every start: [len]."""
        return by_blocks(self.cache_dir, len(self), dtype, lambda part: of_rows(self.starts[part]))

    def detach_all(self) -> None:
        """Forgets all labels."""
        self.labels.clear()

    def digest(self) -> str:
        """The digest of episodes, actions and labels: equal where a run may be resumed, wherever the files are."""
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
        if labels.file and labels.rule.human_key == labels.file:  # else the data's own column says it
            value = zlib.crc32(np.ascontiguousarray(labels.human).data, value)
        value = zlib.crc32(self.action_source.encode(), value)
        return f"{value:08x}"

    def source(self, positions: np.ndarray) -> np.ndarray:
        """Which data set, int [n], the positions int [n] are of: this one, 0 (see `ChunkCollection`)."""
        return np.zeros(len(positions), dtype=np.int64)

    def attach(self, name: str, values: np.ndarray) -> None:
        """Adds a label float [len], one value per start; batches carry it in `labels[name]`."""
        if values.shape[0] != len(self):
            raise ValueError(f"label {name!r} has {values.shape[0]} rows for {len(self)} starts")
        self.labels[name] = keep(self.cache_dir, np.asarray(values))

    def actions(self, start: np.ndarray, steps: ChunkSteps) -> Tensor:
        """Actions of the chunks that begin at rows `start` int [B], padded and encoded, float32 [B, H, A]."""
        actions = np.asarray(self.table.action[steps.rows], dtype=np.float32)
        hold = self.hold.from_last(actions[:, -1])
        padded = torch.from_numpy(np.where(steps.action_mask[..., None], actions, hold[:, None]))
        state = None if self.table.state is None else torch.from_numpy(np.asarray(self.table.state[start]))
        return self.encoding.encode(padded, state)

    def action_statistics(self) -> Statistics:
        """Statistics of the actions as batches carry them, over the real steps of all chunks, float32 [A] each.

        Computed once and kept in the cache. Recorded actions count once each; encoded ones depend on the chunk's
        start (`chunk_statistics`).
        """
        if self.encoding.kind == "absolute":
            return self.table.statistics(self.table.description.action_keys)
        return encoded_action_statistics(self)

    def state_statistics(self) -> Statistics:
        """Statistics of the recorded states, float32 [S] each. Raises DatasetError where there are none."""
        keys = self.table.description.state_keys
        if not keys:
            raise DatasetError(f"{self.name} has no state: name its column with --state-key, or use no state")
        return self.table.statistics(keys)

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

    def labels_at(self, index: np.ndarray) -> dict[str, Tensor]:
        """The attached labels at positions `index` int [B], as they stand: name -> [B, ...]."""
        return {name: torch.from_numpy(values[index]) for name, values in self.labels.items()}

    def batch(
        self, index: np.ndarray, next_observation: bool = True, with_labels: bool = True
    ) -> ChunkTransition:
        """The transitions at positions `index` int [B], batched.

        next_observation: False leaves x_{t+k} equal to x_t, undecoded, for losses that do not read it.
        with_labels: False leaves the attached labels out, for batches that are loaded before they are due
        (`labels_at` gives them then).
        """
        index = np.asarray(index, dtype=np.int64)
        start = self.starts[index]
        policy = critic = chunk_steps(start, self.action_horizon, self.segments)
        if self.critic_horizon != self.action_horizon:
            critic = chunk_steps(start, self.critic_horizon, self.segments)
        labels = self.frame_labels
        reward = chunk_reward(self.settings.reward, critic, labels.reward, labels.subgoal, self.gamma)
        discount = np.where(critic.terminated, 0.0, self.gamma**critic.covered_steps).astype(np.float32)
        wanted = [start, critic.next_row] if next_observation else [start]
        observations = read_observations(self.table, self.cameras, *wanted)
        episode = self.table.episode_of(start)
        transition = ChunkTransition(
            observation=observations[0],
            actions=self.actions(start, policy),
            action_mask=torch.from_numpy(policy.action_mask),
            reward=torch.from_numpy(reward),
            discount=torch.from_numpy(discount),
            next_observation=observations[-1],
            terminated=torch.from_numpy(critic.terminated),
            truncated=torch.from_numpy(critic.truncated),
            covered_steps=torch.from_numpy(critic.covered_steps),
            critic_mask=torch.from_numpy(critic.covered_steps > 0),
            episode_index=torch.from_numpy(self.table.episode_ids[episode]),
            frame_index=torch.from_numpy(start - self.table.episode_start[episode]),
            index=torch.from_numpy(index),
            labels=self.labels_at(index) if with_labels else {},
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
