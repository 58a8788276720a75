"""Chunk-level offline RL from a folder of LeRobot episodes: configuration, construction, training, saving."""

from __future__ import annotations

import json
import math
import shlex
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chunkrl import ranks
from chunkrl.algorithms.values_io import save_values
from chunkrl.data.collection import ChunkCollection
from chunkrl.errors import CheckpointError, ChunkRLError, LabelError, TrainingStopped
from chunkrl.files.atomic import write_text
from chunkrl.files.regular_files import is_there
from chunkrl.integration.pi_chunks import use_pi_chunks
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.policies import registry
from chunkrl.policies.family import TrainedPolicy
from chunkrl.progress import Progress, silent
from chunkrl.run.begin import begin_run, held_by_main, planned_folder
from chunkrl.run.build import (
    build_algorithm,
    choose_device,
    open_data,
    with_data_decided,
    with_labels_used,
)
from chunkrl.run.checks import check_config
from chunkrl.run.config import TrainConfig
from chunkrl.run.folder import (
    DECIDED,
    check_same_run,
    find_checkpoint,
    initial_networks,
    resumed_config,
    run_config,
    save_run,
)
from chunkrl.run.parts import SETTINGS, settings_of
from chunkrl.run.plan import TrainingPlan, make_plan, measured, rehearse
from chunkrl.run.trained_on import note_trained
from chunkrl.settings import Settings
from chunkrl.training.data_source import DataSource, FixedData
from chunkrl.training.trainer import Trainer, TrainerConfig
from chunkrl.training.value_videos import ValueVideos
from chunkrl.version import __version__

VERSIONS_FILE = "versions.json"  # in a run's folder: what it was last started with
# what loading a state raises that other settings, or another version, wrote
_NOT_OF_THIS_RUN = (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError)
VIDEO_PATIENCE_SECONDS = 600.0  # at the end of a run


class ChunkLevelOfflineRL:
    """A better chunk policy from recorded episodes.

    `ChunkLevelOfflineRL(dataset_dir=..., action_horizon=10)` then `.train(num_epochs=100)`.
    Takes the settings of `TrainConfig` as keywords, nested ones by short names too (`resize=(96, 96)`) or as a
    dictionary (`policy={"kind": "flow"}`), or a whole `config`; with `resume` the others are that run's unless
    they are given. Everything that can be wrong with data and settings is found here, before any training.

    source: where data come from that are not fixed, in place of those that `config` names.
    run_dir: a folder that the caller has begun, and looks after, in place of `config.output_dir`.

    Attributes: config, dataset, algorithm, policy (the networks), trainer and run_dir (after `train` began),
    before_training (called when all is ready and, where it resumes, loaded).
    Raises ChunkRLError with the cure for every fault of data or settings.
    """

    algorithm: Any
    policy: Any

    def __init__(
        self,
        config: TrainConfig | None = None,
        progress: Progress = silent,
        source: DataSource | None = None,
        run_dir: Path | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and not isinstance(config, TrainConfig):
            raise ChunkRLError(f"{config!r:.80} is no TrainConfig: give settings by name, dataset_dir=...")
        if config is None:
            resume = settings.get("resume")
            begun = resumed_config(Path(resume), settings) if resume else TrainConfig()
            config = Settings(begun).replaced(settings)
        elif settings:
            raise ChunkRLError("give either a TrainConfig or single settings, not both")
        check_config(config, has_data=source is not None)
        check_ranks(config)
        self.config, self.progress = config, progress
        self.run_dir, self._begun = run_dir, run_dir is not None
        self.device = choose_device(config.device)
        if source is None:
            with ranks.main_first():
                source = FixedData(open_data(config, progress))
            datasets = ChunkCollection.of(source.data).datasets
            config = self.config = with_labels_used(config, datasets)
        self.source = source
        main = self.dataset.datasets[0]
        config = self.config = with_data_decided(config, main)
        self._grows = not isinstance(source, FixedData)
        if config.value_videos.num_episodes and not main.table.description.cameras:
            raise ChunkRLError(
                f"{main.name} has no cameras to show in value videos: leave --value-videos.num-episodes out"
            )
        if config.use_pi0_actions:
            assert config.pi0_config is not None, "check_config asks for it"
            checkpoint = Path(config.pi0_checkpoints_dir).expanduser() / config.pi0_config
            with ranks.main_first():
                use_pi_chunks(self.dataset, checkpoint, config.pi0, self.device, progress)
        self.trainer: Trainer | None = None
        self._is_asked_to_stop = False
        self.before_training: Callable[[], None] | None = None
        self._resume: Path | None = None
        if config.resume:
            self._resume = self._find_resumable(Path(config.resume))
        self._build()

    @property
    def resumed_from(self) -> Path | None:
        """The checkpoint that training goes on from."""
        return self._resume

    @property
    def dataset(self) -> ChunkCollection:
        """What is trained on now."""
        return ChunkCollection.of(self.source.data)

    def _build(self) -> None:
        config, dataset = self.config, self.dataset
        # one set of networks in memory at a time: a pi policy may fill it
        self.algorithm = self.policy = self.trainer = None
        torch.manual_seed(config.seed)
        self.updates_per_epoch = max(1, len(dataset) // min(config.batch_size, len(dataset)))
        num_updates = config.num_updates
        if num_updates is None:
            num_updates = config.num_epochs * self.updates_per_epoch
        value_updates = config.value_updates
        if value_updates is None:
            value_updates = math.ceil(config.value_epochs * self.updates_per_epoch)
        if self._grows:  # the same when it resumes with more data
            decided = {"value_updates": value_updates, **config.family.decided(config, dataset)}
            assert set(decided) <= set(DECIDED)
            config = self.config = replace(config, **decided)
        self.algorithm = build_algorithm(
            config, dataset, num_updates, value_updates, self.device, self.progress, self._grows
        )
        self.policy = self.algorithm.policy
        if config.init and self._resume is None:
            self._take_networks(Path(config.init))
        self._fresh = torch.get_rng_state()

    def train(self, num_epochs: int | None = None) -> ActingPolicy:
        """Trains for `num_epochs` passes (default: the configuration's) and saves the run; returns the policy.

        num_epochs given here stands in place of the configuration's num_epochs and num_updates.

        Starts from the seed, or from the checkpoint of `config.resume` or `load`. The run folder (`run_dir`, begun
        here: `chunkrl.files.output_folder`) gets config.json, run.json, versions.json, trained_on.json,
        tensorboard/, checkpoints/, policy/ and values.parquet (value, advantage and weight of every frame, where the
        objective has them; values-1.parquet and so on of the additional data sets).

        Raises TrainingStopped where `stop` was called, OutputFolderError where `config.output_dir` holds a run that
        is not resumed.
        """
        if num_epochs is not None:
            self.config = replace(self.config, num_epochs=num_epochs, num_updates=None)
            check_config(self.config)
        if num_epochs is not None or self._fresh is None:
            self._build()
        assert self._fresh is not None
        # what was drawn since the networks were built must not change the run
        torch.set_rng_state(self._fresh)
        self._fresh = None
        if self._begun:
            assert self.run_dir is not None
            self._train_in(self.run_dir)
        else:
            self.run_dir = begin_run(self.config, self._resume)
            with held_by_main(self.run_dir):
                self._train_in(self.run_dir)
        return self.chunk_policy()

    def _train_in(self, run_dir: Path) -> None:
        self._start_trainer(run_dir)
        assert self.trainer is not None
        if self._resume:
            self._load(self._resume)
        if ranks.is_main():
            # of a learner, whose folder goes on also where it has no checkpoint yet
            save_run(self.config, run_dir, "learner" if self._begun else "train", self._resume is not None)
            write_text(run_dir / VERSIONS_FILE, json.dumps(_versions(), indent=1) + "\n")
            if not self._grows:
                note_trained(run_dir, self.dataset.datasets)
        if self.before_training is not None:
            self.before_training()
        try:
            self.trainer.run()
        except LabelError as error:  # the values took the time, and other settings can use them
            self._save_labels(run_dir)
            raise LabelError(
                f"{error}. The values are kept, and serve again: chunkrl train --config {run_dir / 'config.json'} "
                f"--values {run_dir}, with the settings changed, in a new folder"
            ) from error
        if self.trainer.stopped and self.trainer.update < self.trainer.num_updates:
            if self._videos is not None:
                self._videos.finish(0)
            raise self._stopped(run_dir)
        if self.config.method.trains_policy:
            self.save(run_dir / "policy")
        self._save_labels(run_dir)
        for problem in () if self._videos is None else self._videos.finish(VIDEO_PATIENCE_SECONDS):
            warnings.warn(problem, RuntimeWarning, stacklevel=3)

    def plan(self, num_rehearsed: int = 0) -> TrainingPlan:
        """What `train` is going to do, and where; nothing is written.

        num_rehearsed: updates of each phase that are tried out to measure what they take, in one process; networks
        and labels are built again afterwards, so that the run is the same.
        """
        config, num_done = self.config, 0
        if self._resume is not None and self._resume.name.isdecimal():
            num_done = int(self._resume.name)
        output = planned_folder(config, self._resume)
        data, updates, device = self.source.data, self.updates_per_epoch, self.device.type
        plan = make_plan(config, self.algorithm, data, updates, output, device, num_done)
        if num_rehearsed:
            plan = measured(plan, rehearse(self.algorithm, data, config, num_rehearsed))
            self.dataset.detach_all()
            self._build()
        return plan

    def stop(self) -> None:
        """Training ends after the current update with a checkpoint, and `train` raises TrainingStopped; from any
        thread or a signal handler."""
        self._is_asked_to_stop = True

    def _stopped(self, run_dir: Path) -> TrainingStopped:
        assert self.trainer is not None
        update, checkpoint = self.trainer.update, run_dir / "checkpoints" / f"{self.trainer.update:07d}"
        cure = f"chunkrl train --resume {shlex.quote(str(run_dir))}"
        if ranks.world_size() > 1:
            cure = f"torchrun, as before, with -m chunkrl.cli train --resume {shlex.quote(str(run_dir))}"
        self._is_asked_to_stop = False
        return TrainingStopped(update, self.trainer.num_updates, str(checkpoint), cure)

    def _start_trainer(self, run_dir: Path | None) -> None:
        config = self.config
        self._videos: ValueVideos | None = None
        if run_dir and config.value_videos.num_episodes and ranks.is_main():
            algorithm = self.algorithm
            self._videos = ValueVideos(
                config.value_videos, run_dir, lambda: algorithm.labels, self._save_labels
            )
        self.trainer = Trainer(
            self.algorithm,
            self.source,
            TrainerConfig(
                batch_size=config.batch_size,
                seed=config.seed,
                save_interval=config.save_updates or config.save_interval * self.updates_per_epoch,
                save_minutes=config.save_minutes,
                keep_checkpoints=config.keep_checkpoints,
                log_interval=config.log_interval,
                tracking=config.tracking,
            ),
            run_dir,
            self.progress,
            after_save=None if self._videos is None else self._videos.after_save,
            is_asked_to_stop=lambda: self._is_asked_to_stop,
        )

    def chunk_policy(self) -> ActingPolicy:
        """The policy as it stands, with Q for best-of-N where the objective trained one."""
        return self.config.family.acting(self._trained())

    def _trained(self) -> TrainedPolicy:
        def q() -> Any:
            found = self.algorithm.q_ensemble()
            return None if found is None else found.to(self.device)

        return TrainedPolicy(self.policy, q, self.config, self.dataset)

    def save(self, folder: str | Path) -> None:
        """Writes the deployable policy to `folder`; `run.policy_io.load_policy` reads it.

        Where an average is kept, it is what is saved. A pi policy becomes a LeRobot folder.
        """
        with self.algorithm.deployed():
            self.config.family.save(self._trained(), Path(folder))
        ranks.barrier()

    def load(self, path: str | Path) -> None:
        """Takes up a checkpoint: its folder, or a run's folder for the last one. `train` continues from it.

        Raises CheckpointError when it was made with another configuration or other data.
        """
        folder = self._find_resumable(Path(path))
        self._start_trainer(None)
        self._load(folder)
        self._resume = folder

    def _take_networks(self, source: Path) -> None:
        """Begins with the networks of another run, or of a saved policy (`initial_networks`)."""
        family, trained = self.config.family, self._trained()
        state = initial_networks(source, partial(family.check_initial, trained, source))
        if (
            self.config.value_updates == 0
            and "training" not in state.get("values", {})
            and self._uses_values()
        ):
            raise CheckpointError(
                f"{source} kept no values to begin with, and --value-updates 0 trains none: leave that out"
            )
        try:
            self.algorithm.take_networks(state)
        except ChunkRLError:
            raise
        except _NOT_OF_THIS_RUN as error:
            raise CheckpointError(
                f"--init {source}: its networks are others than these settings build: {error}; give the settings "
                "of its config.json, and --use-task as its data decided it"
            ) from error

    def _uses_values(self) -> bool:
        return getattr(self.algorithm, "values", None) is not None

    def _find_resumable(self, path: Path) -> Path:
        folder = find_checkpoint(path)
        saved_config = folder.parent.parent / "config.json"
        if is_there(saved_config, CheckpointError, "restore it, or give the checkpoint outside its run"):
            saved = run_config(saved_config)
            if self._grows:
                open_ones = (name for name in DECIDED if getattr(self.config, name) is None)
                self.config = replace(self.config, **{name: getattr(saved, name) for name in open_ones})
            check_same_run(saved, self.config, folder)
        return folder

    def _load(self, folder: Path) -> None:
        assert self.trainer is not None
        try:
            self.trainer.load(folder)
        except ChunkRLError:
            raise
        except _NOT_OF_THIS_RUN as error:
            raise CheckpointError(
                f"{folder} was made with another configuration: {error}; resume with the configuration that "
                "stands in its run's config.json"
            ) from error

    def _save_labels(self, run_dir: Path) -> None:
        labels, config = getattr(self.algorithm, "labels", {}), self.config
        if "value" not in labels or not ranks.is_main():
            return
        rule = {
            "objective": config.objective,
            "seed": config.seed,
            **_versions(),
            SETTINGS: settings_of(config),
        }
        save_values(run_dir, self.dataset, labels, rule)


def _versions() -> dict[str, str]:
    return {"chunkrl": __version__, "torch": torch.__version__, "numpy": np.__version__}


def check_ranks(config: TrainConfig) -> None:
    """Raises ChunkRLError for settings that several processes do not train with."""
    if ranks.world_size() == 1:
        return
    number = f"{ranks.world_size()} processes"
    if not config.family.trains_in_parts or config.method.joint:
        able = " or ".join(family.name for family in registry.FAMILIES if family.trains_in_parts)
        raise ChunkRLError(
            f"{number} train {able} policies (--policy.kind {able}), whose values are trained before them: start one "
            "process, without torchrun; small policies need no more"
        )
    if config.optimizer != "adamw":
        raise ChunkRLError(
            f"--optimizer {config.optimizer} is for one process: on {number} the moments are divided already; use "
            "adamw"
        )
    config.family.check_parts(config, ranks.world_size())
    if config.batch_size % ranks.world_size():
        raise ChunkRLError(
            f"--batch-size {config.batch_size} is that of all processes together: make it a multiple of "
            f"{ranks.world_size()}"
        )
