"""`chunkrl learner`: its settings, those of `chunkrl train` among them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from chunkrl.algorithms.registry import METHODS
from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.models.config import ActionMode
from chunkrl.online.link.config import ListenConfig, ReplayConfig
from chunkrl.run.config import TrainConfig, going_on
from chunkrl.run.noted import noted_config

CONFIG_FILE = "learner.json"
OBJECTIVES = tuple(method.name for method in METHODS.values() if method.learns_online)


@dataclass(frozen=True)
class LearnerReplay(ReplayConfig):
    """What is kept of the actors' episodes, and where."""

    root: str = ""
    """Folder of the shards and of what came in; default: `replay` in --output-dir."""
    max_episode_bytes: int = 4 * 2**30
    """Memory of an actor's episode until it ends (twice that while it is stored); a longer one is set aside in parts.
    The default is 8 minutes at 30 Hz with two cameras of 224 x 224."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_episode_bytes < 1:
            raise DatasetError(f"max_episode_bytes {self.max_episode_bytes}: at least 1")


@dataclass(frozen=True)
class OnlineConfig:
    """How training and the data that come in go together."""

    share: float = 0.5
    """Share of every batch that is drawn from the actors' data, where there are offline data too."""
    start_episodes: int = 10
    """Episodes of actors before any of them is trained on."""
    start_steps: int = 0
    """Steps of actors before any of them is trained on."""
    updates_per_step: float = 0.0
    """Policy updates for every step of the actors, no more: the learner waits for data. 0: it trains freely."""
    look_updates: int = 20
    """Updates between two looks for new data (a learner that waits takes them at once)."""
    push_s: float = 10.0
    """Seconds between weights for the actors; also before the learner waits for data."""
    push_updates: int = 0
    """Updates between weights for the actors, in place of push_s (0: as push_s says)."""
    patience_s: float = 120.0
    """How long storing episodes may fail (a full disk, ...) before the learner ends; nothing is lost meanwhile."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ChunkRLError(f"online.share is {self.share}; it lies in (0, 1]")
        for name, least in (
            *(("start_episodes", 1), ("start_steps", 0), ("updates_per_step", 0), ("look_updates", 1)),
            *(("push_s", 0), ("push_updates", 0), ("patience_s", 0)),
        ):
            if not least <= getattr(self, name) < math.inf:
                raise ChunkRLError(f"online.{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class OnlineEvaluation:
    """Evaluation alongside training, in a process of its own, as `chunkrl evaluate` does it."""

    env: tuple[str, ...] = ()
    """Tasks, as --env of chunkrl evaluate takes them; none: no evaluation."""
    every_updates: int = 0
    """Policy updates between two evaluations (0: see every_steps)."""
    every_steps: int = 0
    """Steps of actors between two evaluations (0: see every_updates)."""
    num_episodes: int = 20
    """Initial states per task."""
    seed: int = 1000
    """Determines the initial states; results that are reported need others."""
    exec_steps: int | None = None
    """Actions executed of each chunk; default: the whole chunk."""
    mode: ActionMode = "mode"
    """mode or sample."""
    max_steps: int | None = None
    """Time limit, steps; default: the task's own."""
    num_workers: int = 0
    """Simulator processes; 0: in the evaluation's own."""

    def __post_init__(self) -> None:
        if self.env and (self.every_updates > 0) == (self.every_steps > 0):
            raise ChunkRLError(
                "say how often --evaluation.env is evaluated: --evaluation.every-updates or --evaluation.every-steps"
            )
        if not self.env and (self.every_updates or self.every_steps):
            raise ChunkRLError("say what is evaluated: --evaluation.env, for example push-v3")
        if self.mode == "best_of_n":
            raise ChunkRLError(
                "evaluation.mode best_of_n needs a Q, which data that grow train none of: use mode"
            )
        for name, least in (
            ("every_updates", 0),
            ("every_steps", 0),
            ("num_episodes", 1),
            ("num_workers", 0),
        ):
            if getattr(self, name) < least:
                raise ChunkRLError(f"evaluation.{name} is {getattr(self, name)}; it must be at least {least}")


def _train_defaults() -> TrainConfig:
    return TrainConfig(save_updates=1000, keep_checkpoints=3)


@dataclass(frozen=True)
class LearnerConfig:
    """The trainer, with one more source of batches: what actors send. All settings of `chunkrl train` hold."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=_train_defaults)
    """The settings of `chunkrl train`; without --dataset-dir the actors' episodes are the only data, without
    --num-updates training goes on until it is stopped, without --output-dir it goes into runs/<data>-learner-001."""
    listen: ListenConfig = field(default_factory=ListenConfig)
    """Where actors connect."""
    replay: LearnerReplay = field(default_factory=LearnerReplay)
    """What is kept of their episodes."""
    online: OnlineConfig = field(default_factory=OnlineConfig)
    """How training and data go together."""
    evaluation: OnlineEvaluation = field(default_factory=OnlineEvaluation)
    """Evaluation alongside training."""
    live: bool = True
    """A panel that refreshes itself, where the output is a terminal; else a line now and then."""

    def check(self) -> None:
        """Raises ChunkRLError where settings exclude each other."""
        from chunkrl.run.checks import check_config  # late: it reads files of runs

        train = self.train
        check_config(train, has_data=True)
        if not train.method.learns_online:
            raise ChunkRLError(
                f"--objective {train.objective} learns from data that stay; online, use one of "
                f"{', '.join(OBJECTIVES)}"
            )
        of_fixed = {
            "--values": train.values,
            "--train-q": train.train_q,
            "--distil.*": train.distil.num_candidates,
        }
        for flag, given in of_fixed.items():
            if given:
                raise ChunkRLError(f"{flag} is of data that stay: leave it out online")
        if train.use_pi0_actions:
            raise ChunkRLError("--use-pi0-actions makes chunks for data that stay: leave it out online")
        if not train.dataset_dir and (train.additional_offline_dataset_paths or train.dataset_weights):
            raise ChunkRLError("name the first offline data set with --dataset-dir")
        if train.conditioning.force_high and (not train.dataset_dir or self.online.share == 1):
            raise ChunkRLError(
                "--conditioning.force-high names offline data sets, and nothing is drawn from one here: leave it "
                "out, or give --dataset-dir and an --online.share below 1"
            )
        if not train.frames.cache:
            raise ChunkRLError("the replay's files change while it grows: leave --no-cache out")
        if train.frames.skip_bad_episodes and not train.dataset_dir:
            raise ChunkRLError("the replay has no bad episodes: leave --skip-bad-episodes out")
        if train.frames.held_out and not train.dataset_dir:
            raise ChunkRLError("all of the replay is trained on: leave --held-out out")
        if train.num_updates is None and train.schedule == "cosine":
            raise ChunkRLError("a cosine schedule needs its length: give --num-updates, or use constant")
        if train.fit.fold_order != "together":
            raise ChunkRLError("values of data that grow train together: use --fit.fold-order together")
        check_penalty(train, train.labels)
        train.family.check_growing(train)
        if train.value_videos.num_episodes or train.value_videos.every_saves != 1:
            raise ChunkRLError(
                "--value-videos.num-episodes and --value-videos.every-saves show data that stay: use "
                "--value-videos.every-episodes, which records the newest episode of the actors"
            )


def learner_folder(path: Path) -> Path:
    """A learner's folder, from itself or from a checkpoint in it."""
    return next((f for f in (path, path.parent.parent) if (f / CONFIG_FILE).is_file()), path)


def replay_root(config: LearnerConfig, run_dir: Path) -> Path:
    """The folder of a learner's shards."""
    return Path(config.replay.root) if config.replay.root else run_dir / "replay"


def resumed_learner(path: Path, given: Collection[str] = ()) -> LearnerConfig:
    """All settings of the learner whose folder or checkpoint `path` is, to resume it; given: as
    `run_folder.resumed_config`. Raises ChunkRLError where it is none."""
    folder = learner_folder(path)
    cure = "name the folder of a run of chunkrl learner"
    config = noted_config(LearnerConfig, folder / CONFIG_FILE, cure=cure)
    return replace(config, train=going_on(config.train, path, folder, given))


def check_penalty(train: TrainConfig, rule: LabelRule) -> None:
    """Raises ChunkRLError where values would not see the failure penalty of `rule`, by which labels are made."""
    unseen = (rule.step_reward, train.fit.target, train.fit.time_out) == ("cost", "bootstrap", "failure")
    if unseen and rule.failure_penalty and not rule.failure_terminal:
        raise ChunkRLError(
            "actors' episodes run out of time, and bootstrapped values do not see a penalty there: give "
            "--failure-terminal, --failure-penalty 0, --fit.time-out bootstrap or --fit.target monte_carlo"
        )
