"""The learner's data: its replay and recorded data sets as one, made alongside training.

The learner's data as one collection: the offline data sets and the replay's shards, opened again as they grow.

The learner's thread for data: what actors sent becomes episodes, and these the trainer's next data.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
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
from chunkrl.data.label_files import FOLDER
from chunkrl.data.label_rules import NO_LABELS, LabelRule
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.online.learner.config import LearnerReplay, OnlineConfig
from chunkrl.online.learner.intake import EpisodeIntake
from chunkrl.online.learner.replay import Replay, reading
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.progress import silent

_LOG = logging.getLogger(__name__)


def replay_settings(settings: ChunkSettings, rule: LabelRule | None = None) -> ChunkSettings:
    """How the replay's shards are read where the offline data are read by `settings`: its columns have names of
    their own, and say who succeeded. rule: that of the offline data's labels, where a file has them.

    No file of labels is read, and no episode left out (`label_files.labelled_part`): a file is of a data set as it
    was, and the newest shard is another one after every episode; folds, values and counts of a running learner hold
    for the outcomes that they were made of. Whoever labels a shard is told (`labels_not_read`)."""
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
    frames = replace(settings.frames, skip_bad_episodes=False, held_out=0.0)
    return FrameTable.open(folder, settings.mapping, None, cache_dir, silent, frames)


def check_no_labels(root: Path) -> None:
    """Raises DatasetError where a shard under `root` has files of labels."""
    if root.is_dir():
        with reading(root) as folders:
            for folder in folders:
                if told := labels_not_read(folder):
                    raise DatasetError(told)


def labels_not_read(shard: Path) -> str:
    """That the labels beside a shard are not read, and what to do; "" where there are none."""
    files = [f"{FOLDER}/{file.name}" for file in sorted((shard / FOLDER).glob("*.parquet"))]
    if not files:
        return ""
    return (
        f"{shard} has labels ({', '.join(files)}), and a learner reads what its actors recorded, not these: make a "
        f"data set of them (chunkrl label {shard} --labels {files[0]} --export NEW) and begin a learner with "
        f"--dataset-dir NEW, or move {shard / FOLDER} away to go on without them"
    )


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
        self._labelled: set[Path] = set()
        shutil.rmtree(
            cache_dir, ignore_errors=True
        )  # of a learner before this one; all of it can be made again

    def offline_only(self) -> Generation:
        """Without the replay."""
        return Generation(self._collection(()))

    def open(self, replay: Replay) -> Generation:
        """Opens the data with the replay as it is now. Raises DatasetError, or ChunkRLError where the cache cannot be
        written."""
        with reading(replay.root) as folders:
            sizes = replay.sizes
            for folder in folders:
                if folder not in self._labelled and (told := labels_not_read(folder)):
                    _LOG.warning(
                        "%s", told
                    )  # labelled since the start: a robot at work is not stopped for it
                    self._labelled.add(folder)
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
            return ChunkCollection(datasets, self._given, len(self._offline))
        weights = shared_weights(self._weights, shards, self._share)
        used = [(d, w) for d, w in zip(datasets, weights, strict=True) if w > 0]
        num_apart = sum(w > 0 for w in weights[: len(self._offline)])
        return ChunkCollection([d for d, _ in used], [float(w) for _, w in used], num_apart)


_POLL_S = 0.05
_STORE_S = 5.0
"""How long episodes are stored before those that are there are opened: actors may bring many at once."""


@dataclass(frozen=True)
class DataState:
    """num_episodes, num_steps: ever stored. num_set_aside, num_discarded: since the start. num_waiting: records that
    came and are in no stored episode yet. problem: why storing fails at the moment; "" where it does not."""

    num_episodes: int = 0
    num_steps: int = 0
    num_set_aside: int = 0
    num_discarded: int = 0
    num_waiting: int = 0
    problem: str = ""


class DataWorker:
    """Stores and opens, in a thread of its own, until it is closed.

    changed: set whenever there is something to look at: newer data, or a failure.

    Attributes:
        failure: what ended it for good, None while it works.
    """

    def __init__(
        self,
        streams: ReceivedStreams,
        place: LearnerReplay,
        root: Path,
        data: LearnerData,
        online: OnlineConfig,
        changed: threading.Condition,
    ) -> None:
        self.failure: Exception | None = None
        self.state = DataState()
        self._streams, self._place, self._root, self._data = streams, place, root, data
        self._online, self._changed = online, changed
        self._newest = data.offline_only()
        self._replay: Replay | None = None
        self._intake: EpisodeIntake | None = None
        self._opened: object = None
        self._used: ChunkCollection | None = None
        self._dropped: ChunkCollection | None = None
        self._failing_since: float | None = None
        self._closing, self._looked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="learner-data")

    def start(self) -> None:
        """Begins, and returns when what is on the disk has been looked at once."""
        self._thread.start()
        self._looked.wait()

    @property
    def newest(self) -> Generation:
        """The newest data."""
        return self._newest

    def use(self, data: ChunkCollection) -> None:
        """Training draws from `data` from now: what was opened before may go."""
        self._used = data

    def close(self) -> None:
        """Ends the thread; what came in is kept and read by the next learner."""
        self._closing.set()
        self._thread.join()
        if self._replay is not None:
            self._replay.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._once()
                self._failing_since = None
            except ChunkRLError as error:
                self._note(error)
            except Exception as error:  # handed to training, which ends with it
                _LOG.exception("storing episodes failed")
                self._fail(error)
            self._looked.set()
            if self.failure is not None:
                return
            self._closing.wait(_POLL_S)

    def _once(self) -> None:
        if self._replay is None and self._streams.spec is not None:
            self._replay = Replay(self._root, self._streams.spec, self._place)
            self._intake = EpisodeIntake(
                self._streams, self._replay, self._root / "set_aside", self._place.max_episode_bytes
            )
        if self._replay is None or self._intake is None:
            return
        until = time.monotonic() + _STORE_S
        self._intake.poll(enough=lambda: self._closing.is_set() or time.monotonic() > until)
        self._count(self.state.problem)  # before training can have them: it is never ahead of what is counted
        sizes = self._replay.sizes
        if sizes != self._opened:
            self._open(self._replay)
            self._opened = sizes
        if self._used is not None and self._used is not self._dropped:
            self._data.drop_unused(self._used)
            self._dropped = self._used
        self._count("")

    def _open(self, replay: Replay) -> None:
        episodes, steps = replay.totals
        if episodes < self._online.start_episodes or steps < self._online.start_steps:
            newest = Generation(self._newest.data, episodes, steps, steps_by_actor=replay.steps_by_actor)
        else:
            newest = self._data.open(replay)
        with self._changed:
            self._newest = newest
            self._changed.notify_all()

    def _count(self, problem: str) -> None:
        episodes, steps = self._replay.totals if self._replay else (0, 0)
        waiting = 0
        for actor in self._streams.actors:
            spool = self._streams.spool(actor)
            waiting += spool.next_sequence - spool.acknowledged
        aside, discarded = (
            (self._intake.num_set_aside, self._intake.num_discarded) if self._intake else (0, 0)
        )
        self.state = DataState(episodes, steps, aside, discarded, waiting, problem)

    def _note(self, error: ChunkRLError) -> None:
        """Goes on for a while: a disk may have room again, and what came in is safe."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            _LOG.error("episodes cannot be stored, they wait in %s: %s", self._streams.root, error)
        self._count(str(error))
        if now - self._failing_since >= self._online.patience_s:
            self._fail(error)
        self._closing.wait(1.0)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self.failure = error
            self._changed.notify_all()
