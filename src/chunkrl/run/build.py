"""From a configuration and its data to networks and algorithm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chunkrl.algorithms.base import ChunkAlgorithm, MethodInputs
from chunkrl.algorithms.registry import VALUE_TRAINING
from chunkrl.algorithms.value_labels import ValueLabels
from chunkrl.algorithms.values_io import load_values, values_of_progress
from chunkrl.config import changed_settings, load_config
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection, ChunkData
from chunkrl.data.label_rules import AUTO_LABELS, NO_LABELS, LabelRule
from chunkrl.data.sample_weights import read_sample_weights
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.policies.registry import critic_settings
from chunkrl.progress import Progress, silent
from chunkrl.run.config import TrainConfig, is_of
from chunkrl.settings import Settings


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises ChunkRLError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ChunkRLError(f"device {name!r} is unknown; use cpu, cuda or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise ChunkRLError(f"device {name!r} is not supported; use cpu, cuda or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ChunkRLError(
            "device cuda is asked for, but this PyTorch finds no GPU; use --device cpu or auto, or install a "
            "CUDA build of PyTorch (chunkrl doctor shows what is there)"
        )
    return device


def open_data(config: TrainConfig, progress: Progress = silent) -> ChunkCollection:
    """The data sets of a run as one, --dataset-dir first."""
    return ChunkCollection(open_datasets(config, progress), config.dataset_weights or None)


def open_datasets(
    config: TrainConfig, progress: Progress = silent, held_out: bool = False
) -> list[ChunkDataset]:
    """The data sets of a run, --dataset-dir first.

    held_out: the episodes that the run keeps from training, in place of those that it trains on.
    """
    main = config.chunk_settings()
    datasets = [ChunkDataset(config.dataset_dir, main, held_out=held_out, progress=progress)]
    additional = replace(main, revision=None, hold=datasets[0].hold)
    for path, rule in zip(config.additional_offline_dataset_paths, label_rules(config)[1:], strict=True):
        settings = replace(additional, labels=rule)
        datasets.append(ChunkDataset(path, settings, held_out=held_out, progress=progress))
    _check_rewards(datasets, config.reward == "sum")
    if config.hold.control == "auto":
        _check_controls(datasets)
    return datasets


def label_rules(config: TrainConfig) -> tuple[LabelRule, ...]:
    """How the labels of each data set of a run are read, --dataset-dir first."""
    changes: dict[str, Any] = {"progress": ""}  # a file is of one data set
    if config.additional_success is not None:
        changes |= {"success": config.additional_success, "success_episodes": (), "success_file": ""}
    others = (replace(config.labels, labels=name, **changes) for name in labels_of_others(config))
    return (config.labels, *others)


def labels_of_others(config: TrainConfig) -> tuple[str, ...]:
    """Which labels, as `--labels` takes them, are read of each additional data set: a file is of one data set."""
    if config.additional_labels:
        return config.additional_labels
    name = NO_LABELS if config.labels.labels == NO_LABELS else AUTO_LABELS
    return (name,) * len(config.additional_offline_dataset_paths)


def _check_controls(datasets: Sequence[ChunkDataset]) -> None:
    """Raises DatasetError where actions are targets in one data set and motions in another."""
    first = {dataset.control.kind: dataset for dataset in reversed(datasets)}
    if {"absolute", "delta"} <= set(first):
        targets, motions = first["absolute"], first["delta"]
        raise DatasetError(
            f"actions of {targets.name} are targets near the next state ({targets.control.told}), those of "
            f"{motions.name} are motions ({motions.control.told}): one policy cannot learn both; leave one out, "
            "or say what they are with --hold.control"
        )


def _check_rewards(datasets: Sequence[ChunkDataset], sums: bool) -> None:
    """Raises DatasetError where one data set's rewards are costs of steps, or progress, and another's are not.

    sums: chunks earn the rewards of their steps, so that recorded ones must mean the same too.
    """

    def meaning(dataset: ChunkDataset) -> tuple[str, float | None]:
        rule, reward = dataset.frame_labels.rule, dataset.frame_labels.reward
        if rule.step_reward == "progress":
            return "progress", None
        if rule.step_reward == "cost":
            return "costs", rule.failure_penalty
        recorded = sums and rule.step_reward == "auto"
        return ("costs" if recorded and reward.min() < 0 and reward.max() <= 0 else "rewards"), None

    (kind, penalty), first = meaning(datasets[0]), datasets[0]
    for other in datasets[1:]:
        its_kind, its_penalty = meaning(other)
        if its_kind != kind or (None not in (penalty, its_penalty) and penalty != its_penalty):
            told = [
                f"{d.name}: {meaning(d)[0]} by {d.frame_labels.file or 'its columns'}" for d in (first, other)
            ]
            raise DatasetError(
                f"rewards of the data sets differ in meaning ({'; '.join(told)}): make labels by one rule (chunkrl "
                "label), name them with --labels and --additional-labels, or give --step-reward success or cost, "
                "which is of all"
            )


def with_data_decided(config: TrainConfig, dataset: ChunkDataset) -> TrainConfig:
    """The settings with what the first data set decides: values an action, what pads chunks.

    Raises ChunkRLError where another number of values is given.
    """
    if config.action_dim not in (None, dataset.action_dim):
        raise ChunkRLError(
            f"action_dim is {config.action_dim}, the actions of {dataset.name} have {dataset.action_dim} values: "
            f"pass --action-dim {dataset.action_dim}, or leave it out"
        )
    return replace(config, action_dim=dataset.action_dim, hold=dataset.hold)


def with_labels_used(config: TrainConfig, datasets: Sequence[ChunkDataset]) -> TrainConfig:
    """The settings with the labels that were found, so that whoever opens the data again reads these and no newer
    ones."""
    if not datasets:
        return config
    first = datasets[0].frame_labels
    labels = replace(config.labels, labels=first.file or NO_LABELS)
    if labels.success_file:
        labels = replace(labels, success_file="", success_episodes=first.rule.success_episodes)
    others = tuple(dataset.frame_labels.file or NO_LABELS for dataset in datasets[1:])
    return replace(config, labels=labels, additional_labels=others)


def build_algorithm(
    config: TrainConfig,
    dataset: ChunkData,
    num_updates: int,
    value_updates: int,
    device: torch.device,
    progress: Progress = silent,
    keep_values: bool = False,
) -> ChunkAlgorithm:
    """The algorithm of `config.objective`, with fresh networks on `device`.

    num_updates: of the policy. value_updates: of the value phase, where the method has one.
    keep_values: values stay to label data that grow.
    """
    weights = None
    if config.sample_weights:
        if keep_values:
            raise ChunkRLError("--sample-weights are of data that stay: leave them out where data grow")
        datasets = ChunkCollection.of(dataset).datasets
        parts = [read_sample_weights(p, d) for p, d in zip(config.sample_weights, datasets, strict=True)]
        weights = np.concatenate(parts)
    given = None if config.values is None else _given_values(config, Path(config.values), dataset)
    inputs = MethodInputs(
        config.method,
        config,
        config.family.networks(config, dataset, device, progress),
        config.optim_config(),
        config.value_optim_config(),
        dataset,
        device,
        num_updates,
        value_updates,
        keep_values,
        given,
        weights,
    )
    return config.method.build(inputs)


# what values and the advantages from them mean: a run that uses them says the same of them
_MEANING = ("gamma", "reward", "num_folds", "fit.target", "fit.time_out", "fit.lam", "fit.n_step")
_MEANING += ("fit.num_critics", "fit.aggregate", "fit.quantile")


def _given_values(config: TrainConfig, run_dir: Path, dataset: ChunkData) -> ValueLabels:
    """The values of an earlier run, or a file's progress in their place. Raises ChunkRLError where the run's settings
    give them another meaning."""
    if config.values_are_progress:
        return values_of_progress(run_dir, dataset, config.fit)
    there = load_config(TrainConfig, run_dir / "config.json")
    if there.method.joint:
        raise ChunkRLError(
            f"--values {run_dir} is a run of --objective {there.objective}, whose values belong to its own Q and "
            "policy: nobody held an episode out of them, or its advantages are Q - V. Give a run of --objective "
            "value, cross_fitted or advantage_conditioned"
        )

    def flag(name: str) -> str:
        return Settings(config).find(name).flag

    def with_its(name: str) -> str:
        value = attrgetter(name)(there)
        return f"leave {flag(name)} out" if value is None else f"{flag(name)} {value}"

    def differing(names: Iterable[str]) -> dict[str, str]:
        of = {name: (attrgetter(name)(there), attrgetter(name)(config)) for name in names}
        return {name: f"{name} {was} there and {now} here" for name, (was, now) in of.items() if was != now}

    if meant := differing(_MEANING):
        raise ChunkRLError(
            f"--values {run_dir} were made with other settings: {', '.join(meant.values())}. Use the values with "
            f"theirs ({', '.join(map(with_its, meant))}), or train them again"
        )
    if not (config.trains_q or config.resume):
        training = (*VALUE_TRAINING, *critic_settings())
        if unread := differing(path for path in changed_settings(config) if is_of(path, training)):
            raise ChunkRLError(
                f"--values {run_dir}: {', '.join(unread.values())}, and no values are trained here. Leave "
                f"{', '.join(map(flag, unread))} out, or train values with them (without --values)"
            )
    return load_values(run_dir, dataset)
