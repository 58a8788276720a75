"""What `chunkrl learner` does: receiving, storing, training, handing out weights and evaluating, each for itself.

Threads: gRPC's store what actors send; `DataWorker`'s makes episodes and data sets of it; `WeightPublisher`'s makes
pushes; the trainer's own two load batches and write checkpoints. Evaluation is a process of its own. Training, in
the main thread, waits for none of them but where it lacks data.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from chunkrl import ranks
from chunkrl.config import save_config
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.notes import data_notes
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.files.output_folder import begin_folder, begin_numbered, stem_of
from chunkrl.online.learner.config import (
    CONFIG_FILE,
    LearnerConfig,
    check_penalty,
    learner_folder,
    replay_root,
)
from chunkrl.online.learner.data import DataWorker, LearnerData, check_no_labels, replay_settings
from chunkrl.online.learner.evaluation import Evaluations
from chunkrl.online.learner.fit import FitsLearner, initial_policy
from chunkrl.online.learner.source import OnlineSource
from chunkrl.online.learner.videos import EpisodeVideos
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.transport import SpoolReceiver
from chunkrl.online.link.weights import VersionCounter, WeightPublisher, policy_features, snapshot
from chunkrl.online.status import WARNING, LastWarning, RowsView, session_log
from chunkrl.progress import Progress, silent
from chunkrl.run.build import open_datasets, with_data_decided, with_labels_used
from chunkrl.run.config import TrainConfig, as_fresh
from chunkrl.run.folder import beginning, find_checkpoint, find_values, note_beginning
from chunkrl.run.offline import ChunkLevelOfflineRL
from chunkrl.signals import handled

_LOG = logging.getLogger(__name__)
LOG_FILE = "learner.log"
CACHE_FOLDER = ".learner-cache"
"""Emptied at each start: a name that nobody gives to a folder of his own."""
UNLIMITED = 10**9
"""Policy updates of a learner that trains until it is stopped."""
_CONNECTED_S = 15.0


def run_learner(config: LearnerConfig, progress: Progress = silent) -> None:
    """Until there are enough updates, or SIGINT or SIGTERM; then a checkpoint and the policy are written."""
    config.check()
    if ranks.world_size() > 1:
        raise ChunkRLError("the learner is one process: start it without torchrun")
    run_dir = _begin_folder(config)
    with contextlib.ExitStack() as resources:
        warnings = resources.enter_context(session_log(run_dir, LOG_FILE))
        session = _Session(config, run_dir, warnings, resources)
        # not that of a learner which has the folder open
        note_beginning(config.train, run_dir, "learner", goes_on=True)
        save_config(replace(config, train=as_fresh(config.train)), run_dir / CONFIG_FILE)
        session.run(progress)


class _Session:
    """One start of the command."""

    def __init__(
        self, config: LearnerConfig, run_dir: Path, warnings: LastWarning, resources: contextlib.ExitStack
    ) -> None:
        self._config, self._run_dir, self._warnings = config, run_dir, warnings
        self._train = _resolved(config, run_dir)
        self._run: ChunkLevelOfflineRL | None = None
        self._evaluations: Evaluations | None = None
        self._videos: EpisodeVideos | None = None
        self._looked_at: ChunkCollection | None = None
        self._told_of_tasks = False
        self._shown = contextlib.ExitStack()
        self._speed = (0, time.monotonic(), 0.0)
        root = replay_root(config, run_dir)
        self._streams = ReceivedStreams(root / "incoming")
        resources.callback(self._streams.close)
        check_no_labels(root)
        self._receiver, self._is_listening = SpoolReceiver(config.listen, self._streams), False
        resources.callback(self._receiver.stop)
        self._receiver.bind()  # a port in use is known at once; who calls is answered when an actor can start
        self._publisher = WeightPublisher(VersionCounter(run_dir / "version.json"), self._receiver.offer)
        resources.callback(self._publisher.close)
        self._root, self._resources = root, resources

    def run(self, progress: Progress) -> None:
        """All of it."""
        config, train, changed = self._config, self._train, threading.Condition()
        offline = open_datasets(train, progress) if train.dataset_dir else []
        for note in data_notes(offline, train.family.encodes_actions):
            print(f"note: {note}", flush=True)
        train = self._train = with_labels_used(train, offline)
        if offline:  # the replay's shards are padded alike
            train = self._train = with_data_decided(train, offline[0])
        made = offline[0].frame_labels if offline else None
        rule = made.rule if made is not None and made.file else train.labels
        check_penalty(train, rule)
        settings, share = replay_settings(train.chunk_settings(), rule), config.online.share
        initial = initial_policy(Path(train.init)) if train.init and not offline else None
        pictures = config.replay.cameras
        self._streams.require(
            FitsLearner(offline, settings, config.train.action_dim, pictures, share, initial)
        )
        data = LearnerData(offline, train.dataset_weights, settings, self._run_dir / CACHE_FOLDER, share)
        worker = DataWorker(self._streams, config.replay, self._root, data, config.online, changed)
        self._resources.callback(worker.close)
        worker.start()
        digest = ChunkCollection(offline).digest() if offline else ""
        self._source = source = OnlineSource(worker, config.online, changed, digest)
        self._worker = worker
        with handled(source.stop):
            needs_success = train.method.needs_success
            if not source.wait_for_first(needs_success, self._wait_for_actors):
                return
            self._learn()

    def _wait_for_actors(self, text: str) -> None:
        """Without first data there are no networks: actors bring them with a policy of their own."""
        init = self._train.init
        policy = "a policy of their own, which fits the robot"
        if init is not None:
            policy = f"--policy {Path(init) / 'policy' if (Path(init) / 'policy').is_dir() else init}"
        self._listen(policy)
        print(text, flush=True)

    def _listen(self, policy: str) -> None:
        """From here on an actor can start. policy: what it acts with."""
        if not self._is_listening:
            self._is_listening = True
            self._receiver.start()
            print(
                f"listening on port {self._receiver.port}; episodes go to {self._root}; actors act with {policy}",
                flush=True,
            )

    def _learn(self) -> None:
        config, source = self._config, self._source
        run = ChunkLevelOfflineRL(self._train, source=source, run_dir=self._run_dir)
        self._run = run
        policy_dir = self._run_dir / "policy"
        self._videos = EpisodeVideos(self._train.value_videos, self._run_dir, source.generation)
        evaluations = Evaluations(config.evaluation, self._run_dir, policy_dir, self._train.device)
        self._evaluations = evaluations
        source.push = self._push
        source.after_update = self._after_update
        source.more_metrics = self._metrics
        run.before_training = self._begin
        print(f"training on {source.data.name}; actors act with --policy {policy_dir}", flush=True)
        finish = False
        try:
            run.train()
            source.push_now()
            finish = not source.stopped
        finally:
            self._videos.close(finish)
            evaluations.close(finish)
            self._shown.close()
        for line in self._said(run):
            print(line)

    def _begin(self) -> None:
        """Before the first update, with the networks as they will train: what an actor needs to start is made, and
        those that call are answered."""
        run, policy_dir = self._run, self._run_dir / "policy"
        assert run is not None and run.trainer is not None
        if self._train.resume is None or not policy_dir.is_dir():
            run.save(policy_dir)
        first = sum(phase.num_updates for phase in run.algorithm.phases()[:-1])
        update = run.trainer.update
        if run.resumed_from is not None:
            print(f"going on from update {update}, with {run.resumed_from}", flush=True)
        self._speed = (update, time.monotonic(), 0.0)
        self._source.begin(update, max(0, update - first), update >= first)
        self._receiver.policy = policy_features(run.chunk_policy())
        self._source.push_now()
        self._publisher.flush()
        self._listen(f"--policy {policy_dir}")
        view = RowsView(f"chunkrl learner: {self._train.objective}", self._rows, self._config.live)
        self._shown.callback(view.close)
        self._shown.enter_context(self._warnings.quiet(view.is_live))
        if self._train.resume is None:
            self._after_update(0, 0)

    def _push(self, num_steps: int, own_steps: Mapping[str, int]) -> None:
        assert self._run is not None
        self._publisher.publish(snapshot(self._run.algorithm), num_steps, own_steps)

    def _after_update(self, update: int, num_steps: int) -> None:
        assert self._run is not None and self._evaluations is not None and self._videos is not None
        self._look_at_tasks()
        self._videos.begin_if_due(self._source.generation, self._run.algorithm.labels)
        if self._evaluations.is_due(update, num_steps):
            self._evaluations.begin(update, num_steps, snapshot(self._run.algorithm, torch.float32))

    def _look_at_tasks(self) -> None:
        """Says once that data of several tasks came to networks that cannot tell them apart."""
        run, data = self._run, self._source.data
        if data is self._looked_at or run is None:
            return
        self._looked_at = data
        is_blind = not run.config.family.always_reads_task and not run.config.use_task
        if is_blind and len(data.tasks) > 1 and not self._told_of_tasks:
            self._told_of_tasks = True
            _LOG.warning(
                "the data have %d tasks (%s), but the networks do not read the task, as the first data had one: "
                "start a new run with --use-task",
                len(data.tasks),
                ", ".join(data.tasks),
            )

    def _metrics(self) -> Mapping[str, float]:
        assert self._evaluations is not None
        return {
            "online/actors": len(self._connected()),
            "online/version": self._publisher.version,
            **self._evaluations.metrics(),
        }

    def _connected(self) -> list[str]:
        now = time.monotonic()
        return [name for name, heard in list(self._receiver.heard.items()) if now - heard < _CONNECTED_S]

    def _rows(self) -> list[tuple[str, str]]:
        run, state, generation = self._run, self._worker.state, self._source.generation
        trainer = None if run is None else run.trainer
        rows = []
        if trainer is not None:
            rate = self._rate(trainer.update)
            phase = trainer.records[-1].phase if trainer.records else ""
            rows.append(("updates", f"{trainer.update} {phase}, {rate:.1f}/s"))
        if self._source.waiting:
            rows.append(("waits", self._source.waiting))
        share = generation.online_steps / max(1, 0 if generation.data is None else len(generation.data))
        rows.append(
            (
                "replay",
                f"{state.num_episodes} episodes, {state.num_steps} steps; trained on {generation.online_episodes} "
                f"and {generation.online_steps} ({share:.0%} of all frames)",
            )
        )
        behind = self._source.steps_behind
        actors = ", ".join(self._connected()) or "none"
        rows.append(
            ("actors", f"{actors}; {state.num_waiting} records not stored yet, {behind} steps not trained on")
        )
        rows.append(("weights", f"version {self._publisher.version}, for {self._publisher.num_steps} steps"))
        if self._evaluations is not None and self._evaluations.last is not None:
            rows.append(("evaluation", f"success {self._evaluations.last:.0%}"))
        if self._videos is not None and (newest := self._videos.newest) is not None:
            rows.append(("video", str(newest)))
        if trainer is not None:
            losses = [
                f"{name.removeprefix('loss/')} {points[-1][1]:.4g}"
                for name, points in list(trainer.history.items())
                if name.startswith("loss/") and points
            ]
            if losses:
                rows.append(("losses", ", ".join(losses)))
        if problem := state.problem or self._warnings.recent():
            rows.append((WARNING, problem))
        return rows

    def _rate(self, update: int) -> float:
        """Updates per second, over the last seconds."""
        before, then, rate = self._speed
        now = time.monotonic()
        if now - then >= 2.0:
            rate = (update - before) / (now - then)
            self._speed = (update, now, rate)
        return rate

    def _said(self, run: ChunkLevelOfflineRL) -> list[str]:
        assert run.trainer is not None
        state = self._worker.state
        return [
            f"{run.trainer.update} updates; {state.num_episodes} episodes, {state.num_steps} steps stored, "
            f"{state.num_set_aside} set aside, {state.num_discarded} discarded since the start",
            f"policy: {self._run_dir / 'policy'}; data: {self._root}",
            f"resume with: chunkrl learner --resume {self._run_dir}{self._more(run.trainer.update)}",
        ]

    def _more(self, update: int) -> str:
        """What a run that made all of its updates needs besides, to go on."""
        assert self._run is not None
        total = sum(phase.num_updates for phase in self._run.algorithm.phases())
        return " --num-updates MORE (all that were asked for are made)" if update >= total else ""


def _begin_folder(config: LearnerConfig) -> Path:
    """The run's folder, ready to be written into. Raises ChunkRLError where it holds a run that is not resumed."""
    train = config.train
    resumed = None if train.resume is None else Path(train.resume)
    if not train.output_dir and resumed is None:
        return begin_numbered(stem_of(train.dataset_dir, "learner"))
    folder = Path(train.output_dir or str(learner_folder(Path(train.resume or ""))))
    resumes = resumed is not None and folder.resolve() in (resumed.resolve(), *resumed.resolve().parents)
    if train.overwrite and (folder / CONFIG_FILE).is_file():
        # a learner that has it open refuses
        ReceivedStreams(replay_root(config, folder) / "incoming").close()
    return begin_folder(folder, "learner", resumes=resumes, overwrite=train.overwrite)


def _resolved(config: LearnerConfig, run_dir: Path) -> TrainConfig:
    """The training settings of a learner: it trains until it is stopped, and may have no checkpoint to resume yet."""
    train = config.train
    resume = train.resume
    if resume is not None:
        try:
            find_checkpoint(Path(resume))
        except CheckpointError:
            if not (Path(resume) / CONFIG_FILE).exists():
                raise
            _LOG.warning("%s was ended before its first checkpoint: networks begin again, data stay", resume)
            began = beginning(Path(resume))
            if began is not None and train.init is None:
                train = replace(train, init=began.init)
            resume = None
    if train.init is not None and resume is None:
        # what is not there is known now, and not when actors have brought episodes
        values = find_values(find_checkpoint(Path(train.init)))
        if values is not None and train.value_updates is None and train.method.reads_setting("value_updates"):
            train = replace(train, value_updates=0)
    return replace(
        train,
        resume=resume,
        num_updates=UNLIMITED if train.num_updates is None else train.num_updates,
        save_updates=train.save_updates or 1000,
    )
