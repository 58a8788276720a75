"""The learner's data as one collection: the offline data sets and the replay's shards, opened anew as they grow."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from chunkrl.data.chunk_settings import ChunkSettings, ColumnMapping
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.control import control_notes
from chunkrl.data.frames import FrameTable
from chunkrl.data.images import continue_store
from chunkrl.data.label_rules import NO_LABELS, LabelRule
from chunkrl.online.replay import Replay, reading
from chunkrl.progress import silent

_LOG = logging.getLogger(__name__)


def replay_settings(settings: ChunkSettings, rule: LabelRule | None = None) -> ChunkSettings:
    """How the replay's shards are read where the offline data are read by `settings`: its columns have names of
    their own, and say who succeeded. rule: that of the offline data's labels, where a file has them."""
    given = settings.labels if rule is None else rule
    labels = replace(
        given,
        success="next.success",
        success_episodes=(),
        success_file="",
        labels=NO_LABELS,
        subgoal="auto" if given.subgoal in ("csv", "column") else given.subgoal,
        subgoal_csv="",
        human_key="auto",
    )
    return replace(settings, labels=labels, mapping=ColumnMapping(), revision=None)


def open_shard_table(folder: Path, settings: ChunkSettings, cache_dir: Path | None) -> FrameTable:
    """A shard's frames as it is now, inside `replay.reading`; settings: of `replay_settings`."""
    frames = replace(settings.frames, skip_bad_episodes=False)
    return FrameTable.open(folder, settings.mapping, None, cache_dir, silent, frames)


def shared_weights(offline: np.ndarray, shards: Sequence[ChunkDataset], share: float) -> list[float]:
    """How often each data set is drawn from: those offline by their weights `offline`, the shards by their starts,
    `share` of all."""
    online = np.array([len(shard) for shard in shards], np.float64)
    return [*((1 - share) * offline / offline.sum()), *(share * online / online.sum())]


@dataclass(frozen=True)
class Generation:
    """The data at one moment. data: None where there are none yet. num_episodes, num_steps: ever kept of the actors,
    also those that were dropped since; steps_by_actor: at least so many of num_steps are each one's. online_episodes,
    online_steps: that are trained on."""

    data: ChunkCollection | None
    num_episodes: int = 0
    num_steps: int = 0
    online_episodes: int = 0
    online_steps: int = 0
    steps_by_actor: Mapping[str, int] = field(default_factory=dict)


class LearnerData:
    """Opens what there is, again and again; what did not change stays open.

    offline: the data sets that stay. weights: how often each of them is drawn from; (): by their frames.
    settings: of the shards (`replay_settings`). cache_dir: a folder of its own, whose contents come and go.
    share: of the batches that the replay gives where there are offline data.
    """

    def __init__(
        self,
        offline: Sequence[ChunkDataset],
        weights: Sequence[float],
        settings: ChunkSettings,
        cache_dir: Path,
        share: float,
    ) -> None:
        self._offline, self._settings, self._share = tuple(offline), settings, share
        self._cache = cache_dir.resolve()  # as `cache_folder` does, whose folders `drop_unused` compares
        self._given = list(weights) or None
        self._weights = np.array(weights or [len(dataset) for dataset in offline], np.float64)
        self._shards: dict[Path, ChunkDataset] = {}
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._too_short: set[Path] = set()
        shutil.rmtree(
            cache_dir, ignore_errors=True
        )  # of a learner before this one; all of it can be made again

    def offline_only(self) -> Generation:
        """Without the replay."""
        return Generation(self._collection(()))

    def open(self, replay: Replay) -> Generation:
        """With the replay as it is now. Raises DatasetError, or ChunkRLError where the cache cannot be written."""
        with reading(replay.root) as folders:
            sizes = replay.sizes
            for folder in folders:
                if self._sizes.get(folder) != sizes[folder]:
                    self._open_shard(folder)
                    self._sizes[folder] = sizes[folder]
        for gone in self._sizes.keys() - set(folders):
            self._shards.pop(gone, None)
            del self._sizes[gone]
        shards = [self._shards[folder] for folder in folders if folder in self._shards]
        episodes, steps = replay.totals
        return Generation(
            self._collection(shards),
            episodes,
            steps,
            sum(shard.num_episodes for shard in shards),
            sum(shard.num_frames for shard in shards),
            replay.steps_by_actor,
        )

    def drop_unused(self, used: ChunkCollection) -> None:
        """Deletes what the cache holds of shards as they were before; `used`: what training draws from."""
        needed = {dataset.cache_dir for dataset in (*used.datasets, *self._shards.values())}
        for folder in self._cache.iterdir() if self._cache.is_dir() else ():
            if folder not in needed:
                shutil.rmtree(folder)

    def _open_shard(self, folder: Path) -> None:
        settings = self._settings
        table = open_shard_table(folder, settings, self._cache)
        if table.episode_length.max() < settings.action_horizon:
            if folder not in self._too_short:
                _LOG.warning(
                    "%s: every episode is shorter than the chunks' %d actions: it waits for a longer one",
                    folder,
                    settings.action_horizon,
                )
                self._too_short.add(folder)
            return
        before = self._shards.get(folder)
        shard = ChunkDataset(table, settings)
        _ = shard.episode_identities  # read now: the files may be merged or dropped later
        for camera in shard.cameras:
            if before is not None:
                continue_store(
                    before.table.camera(camera), before.cache_dir, table.camera(camera), table.cache_dir
                )
            table.images(camera, np.zeros(1, np.int64))
        self._shards[folder] = shard
        for note in control_notes(settings.hold, shard.control) if settings.hold.control == "auto" else ():
            _LOG.log(logging.WARNING if shard.control.kind == "unclear" else logging.INFO, "%s", note)
        # what the first shard decides holds for all
        self._settings = replace(settings, hold=shard.hold)

    def _collection(self, shards: Sequence[ChunkDataset]) -> ChunkCollection | None:
        datasets = [*self._offline, *shards]
        if not datasets:
            return None
        if not self._offline or not shards:
            return ChunkCollection(datasets, self._given)
        weights = shared_weights(self._weights, shards, self._share)
        used = [(d, w) for d, w in zip(datasets, weights, strict=True) if w > 0]
        return ChunkCollection([d for d, _ in used], [float(w) for _, w in used])
