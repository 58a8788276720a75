"""What can be wrong with a training configuration before any data is opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from chunkrl.algorithms.config import HumanRule
from chunkrl.algorithms.registry import METHODS
from chunkrl.algorithms.values_io import values_file
from chunkrl.config import changed_settings
from chunkrl.errors import ChunkRLError
from chunkrl.policies import registry
from chunkrl.run.config import TrainConfig, is_read
from chunkrl.run.switches import switched_off
from chunkrl.settings import Settings


def check_config(config: TrainConfig, has_data: bool = False) -> None:
    """Raises ChunkRLError for settings that can fit no data. has_data: there are data beside --dataset-dir."""
    if not config.dataset_dir and not has_data:
        raise ChunkRLError(
            "no data set given: pass --dataset-dir with a LeRobot folder or a Hub repository id, or all settings "
            "of an earlier run with --config RUN/config.json"
        )
    config.tracking.check()
    _check_names_and_numbers(config)
    _check_policy(config)
    _check_read(config)
    _check_kind(config)
    _check_switched(config)
    _check_values(config)
    _check_videos(config, has_data)
    _check_datasets(config)


def _check_policy(config: TrainConfig) -> None:
    family = config.family
    if (config.use_pi0_actions or family.is_pretrained) != (config.pi0_config is not None):
        raise ChunkRLError(
            "--pi0-config belongs to --use-pi0-actions and --policy.kind pi, which need it: the checkpoint in "
            f"{config.pi0_checkpoints_dir}, for example pi05_libero (chunkrl download pi05_libero fetches it)"
        )
    if config.method.conditions and not family.has_prompt:
        able = [other for other in registry.FAMILIES if other.has_prompt]
        raise ChunkRLError(
            f"--objective {config.objective} writes into the prompt of a {' or '.join(f.name for f in able)} policy: "
            f"use --policy.kind {' or '.join(kind for f in able for kind in f.kinds)}"
        )
    family.check(config)
    if config.use_pi0_actions and config.pi0.use == "candidates" and not config.method.takes_candidates:
        able = " or ".join(method.name for method in METHODS.values() if method.takes_candidates)
        raise ChunkRLError(f"--pi0.use candidates needs the Q and V of --objective {able}")


def _flag(config: TrainConfig, path: str) -> str:
    return Settings(config).find(path).flag


def _own(config: TrainConfig, path: str) -> str:
    """What a method has under a name of its own in place of a setting of `fit`."""
    part, _, name = path.partition(".")
    own = f"{config.method.name}.{name}"
    has = hasattr(getattr(config, config.method.name, None), name) if part == "fit" else False
    return f" (its own is {_flag(config, own)})" if has else ""


def _check_read(config: TrainConfig) -> None:
    """Refuses settings that the objective would not read."""
    unread = config.unread()
    if not unread:
        return
    able = [m.name for m in METHODS.values() if all(is_read(m, path, config.train_q) for path in unread)]
    flags = ", ".join(_flag(config, path) + _own(config, path) for path in unread)
    other = f", or use --objective {' or '.join(able)}" if able else ""
    raise ChunkRLError(
        f"--objective {config.objective} does not read {flags}: leave {_those(unread)} out{other}"
    )


def _check_kind(config: TrainConfig) -> None:
    """Refuses settings of networks that are not built: whoever gives them means others.

    A run that goes on has those that it was begun with, by a release that did not look.
    """
    unread = config.unread_by_kind()
    if not unread or config.resume:
        return
    able = registry.kinds_that_read(unread)
    cure = config.family.instead(unread) or (
        f"or use --policy.kind {' or '.join(able)}, whose settings these are" if able else ""
    )
    flags = ", ".join(_flag(config, path) for path in unread)
    raise ChunkRLError(
        f"--policy.kind {config.policy.kind} does not read {flags}: leave {_those(unread)} "
        f"out{', ' if cure else ''}{cure}"
    )


def _check_switched(config: TrainConfig) -> None:
    """Refuses settings that another one switches off, but of a run that goes on (as `_check_kind`)."""
    off = switched_off(config)
    if off and not config.resume:
        told = "; ".join(f"{_flag(config, path)} is read only {switch.when}" for path, switch in off.items())
        raise ChunkRLError(f"{told}: leave {_those(list(off))} out, or change the other")


def _those(paths: Sequence[str]) -> str:
    return "that" if len(paths) == 1 else "those"


def _check_values(config: TrainConfig) -> None:
    num_datasets = 1 + len(config.additional_offline_dataset_paths)
    if config.sample_weights and len(config.sample_weights) != num_datasets:
        raise ChunkRLError(
            f"--sample-weights has {len(config.sample_weights)} files for {num_datasets} data sets: give one for "
            "each, that of --dataset-dir first"
        )
    if config.value_updates_per_update and config.values is not None:
        raise ChunkRLError(
            "--value-updates-per-update is for values that a run trains before its policy and beside it: leave "
            "--values out"
        )
    if config.labels.step_reward == "progress" and config.reward != "sum":
        raise ChunkRLError("--step-reward progress is earned step by step: add --reward sum")
    if config.values_are_progress:
        if num_datasets > 1:
            raise ChunkRLError(
                f"--values {config.values} is of one data set, and there are {num_datasets}: train values on them all"
            )
        if config.trains_q:
            raise ChunkRLError(
                f"--values {config.values} is progress, and says nothing of chunks that were not recorded: leave "
                "--train-q and --distil.* out"
            )
    elif config.values is not None and not (Path(config.values) / values_file(0)).is_file():
        raise ChunkRLError(
            f"--values {config.values} has no {values_file(0)}: name the folder of a run of --objective value, "
            "cross_fitted or advantage_conditioned that has ended, or a parquet file with the progress of every frame"
        )
    if not config.method.conditions:
        return
    unread = changed_settings(config.balance)
    if config.conditioning.edges == "strata":
        unread = [name for name in unread if name in ("floor", "failures", "success_mix")]
    if unread:
        raise ChunkRLError(
            f"balance.{', balance.'.join(unread)}: labels of --conditioning.edges {config.conditioning.edges} do not "
            "depend on it: leave it out"
        )


def _check_videos(config: TrainConfig, has_data: bool) -> None:
    videos = config.value_videos
    if videos.every_episodes and not has_data:
        raise ChunkRLError(
            "--value-videos.every-episodes records episodes of actors on video as they come to chunkrl learner; of "
            "data that stay, use --value-videos.num-episodes"
        )


def _check_names_and_numbers(config: TrainConfig) -> None:
    for name in ("num_epochs", "batch_size", "lr", "log_interval", "value_epochs", "num_folds", "grad_clip"):
        if not 0 < getattr(config, name) < math.inf:
            raise ChunkRLError(f"{name} is {getattr(config, name)}; it must be positive and finite")
    if config.save_updates is not None and config.save_updates < 1:
        raise ChunkRLError(f"save_updates is {config.save_updates}; it must be at least 1")
    for name in (
        "seed",
        "save_interval",
        "save_minutes",
        "keep_checkpoints",
        "beta",
        "lambda_v",
        "lambda_pi",
        "weight_decay",
    ):
        if not 0 <= getattr(config, name) < math.inf:
            raise ChunkRLError(f"{name} is {getattr(config, name)}; it must be finite and not negative")
    if config.overwrite and (config.resume or not config.output_dir):
        raise ChunkRLError(
            "--overwrite replaces the run in --output-dir by a new one: name that folder, and leave --resume out"
        )
    if config.human_chunks not in get_args(HumanRule):
        raise ChunkRLError(f"human_chunks is {config.human_chunks!r}; use one of {get_args(HumanRule)}")
    if config.value_updates is not None and config.value_updates < (0 if config.init or config.resume else 1):
        raise ChunkRLError(
            f"value_updates is {config.value_updates}; it must be at least 1, or 0 with --init, whose values "
            "label the data"
        )
    begun_with = config.init or config.resume or config.family.is_pretrained
    trained_before = config.distil.num_candidates and begun_with
    if config.num_updates is not None and config.num_updates < (0 if trained_before else 1):
        raise ChunkRLError(
            f"num_updates is {config.num_updates}; it must be at least 1, or 0 with --distil.num-candidates and a "
            "policy that is trained already: --init or --policy.kind pi"
        )


def _check_datasets(config: TrainConfig) -> None:
    num_datasets = 1 + len(config.additional_offline_dataset_paths)
    if not set(config.conditioning.force_high) <= set(range(num_datasets)):
        raise ChunkRLError(
            f"--conditioning.force-high names the data sets {list(config.conditioning.force_high)} and there are "
            f"{num_datasets}, counted from 0: --dataset-dir, then --additional-offline-dataset-paths"
        )
    more = config.additional_offline_dataset_paths
    if config.additional_labels and len(config.additional_labels) != len(more):
        raise ChunkRLError(
            f"--additional-labels names {len(config.additional_labels)} files for {len(more)} data sets of "
            "--additional-offline-dataset-paths: give one for each, auto or none"
        )
    if not more:
        if config.dataset_weights or config.additional_success is not None:
            raise ChunkRLError(
                "--dataset-weights and --additional-success are for several data sets: name the others with "
                "--additional-offline-dataset-paths"
            )
        return
    if (config.additional_success or config.labels.success) == "episodes":
        raise ChunkRLError(
            "--success episodes lists episodes of one data set: give --additional-success another rule; or write the "
            "labels into each data set with chunkrl label --export, and train on those"
        )
    if config.labels.subgoal == "csv":
        raise ChunkRLError(
            "--subgoal csv lists frames of one data set: write the labels into each data set with chunkrl label "
            "--export, and train on those"
        )
