"""What a learner trained on, read back for its report: the offline data and the episodes of its actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from chunkrl.algorithms.values_io import num_rows, read_values_files, values_file
from chunkrl.config import load_config
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.sidecar import read_metadata
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.files.regular_files import is_there
from chunkrl.online.learner.config import CONFIG_FILE, LearnerConfig, replay_root
from chunkrl.online.learner.data import open_shard_table, replay_settings, shared_weights
from chunkrl.online.learner.replay import reading
from chunkrl.progress import Progress
from chunkrl.report.training_run import LabelledData, TrainingRun
from chunkrl.run.build import open_datasets


def learner_run(run: TrainingRun, progress: Progress) -> TrainingRun:
    """`run` with its data: the offline data sets and the shards of the replay, with the labels that the run left.

    Labels are written when a learner ends. A shard that has episodes since then is left out, and a note says so;
    where nothing has labels, all data are there without.

    Raises:
        ChunkRLError: there is no episode yet. DatasetError: data are absent, or changed since.
    """
    folder = run.folder
    learner = load_config(LearnerConfig, folder / CONFIG_FILE, cure="restore it")
    offline = open_datasets(run.config, progress) if run.config.dataset_dir else []
    root = replay_root(learner, folder)
    shards = _open_shards(run, offline, root)
    weights: list[float] = list(run.config.dataset_weights)
    if offline and shards:
        given = np.array(weights or [len(dataset) for dataset in offline], np.float64)
        weights = shared_weights(given, shards, learner.online.share)
    datasets = [*offline, *shards]
    if not datasets:
        raise ChunkRLError(f"{folder} has no data yet: make the report when an actor has sent episodes")
    numbers = _numbers(folder, offline, shards, learner.online.share)
    shown = [index for index, number in enumerate(numbers) if number is not None]
    if not shown:
        return replace(
            run, data=tuple(LabelledData(d, {}, {}) for d in datasets), dataset_weights=tuple(weights)
        )
    of_shards = [number for number in numbers[len(offline) :] if number is not None]
    sidecars = read_values_files(
        folder, [datasets[i].table for i in shown], [n for n in numbers if n is not None], of_shards
    )
    data = tuple(
        LabelledData(datasets[i], sidecar.arrays, sidecar.metadata)
        for i, sidecar in zip(shown, sidecars, strict=True)
    )
    left = [datasets[i] for i in range(len(datasets)) if i not in shown]
    notes = [_note(left, root, folder)] if left else []
    return replace(
        run,
        data=data,
        dataset_weights=tuple(weights[i] for i in shown) if weights else (),
        notes=tuple(notes),
    )


def _note(left: Sequence[ChunkDataset], root: Path, folder: Path) -> str:
    names, episodes = (
        ", ".join(Path(dataset.name).name for dataset in left),
        sum(d.num_episodes for d in left),
    )
    return (
        f"{names} of {root} ({episodes} episodes) changed since the learner last wrote values, and is not shown: "
        f"numbers and curves in time are of all. chunkrl learner --resume {folder}, ended in order, writes them "
        "again."
    )


def _open_shards(run: TrainingRun, offline: Sequence[ChunkDataset], root: Path) -> list[ChunkDataset]:
    """The shards with an episode that is long enough, oldest first."""
    if not root.is_dir():
        return []
    settings = run.config.chunk_settings()
    # few images are shown: they are decoded when they are asked for
    settings = replace(settings, frames=replace(settings.frames, cache=False))
    made = offline[0].frame_labels if offline else None
    settings = replay_settings(settings, made.rule if made is not None and made.file else run.config.labels)
    with reading(root) as folders:
        tables = [open_shard_table(folder, settings, None) for folder in folders]
        long = [table for table in tables if table.episode_length.max() >= settings.action_horizon]
        return [ChunkDataset(table, settings) for table in long]


def _numbers(
    folder: Path, offline: Sequence[ChunkDataset], shards: Sequence[ChunkDataset], share: float
) -> list[int | None]:
    """The number of the file of values of each data set; None where it has none, or has other frames than it."""
    datasets = [*offline, *shards]
    named = {dataset.name: i for i, dataset in enumerate(datasets)}
    shard_names = {Path(dataset.name).name: len(offline) + i for i, dataset in enumerate(shards)}
    found: list[int | None] = [None] * len(datasets)
    number = 0
    while is_there(path := folder / values_file(number), DatasetError, "restore the run's folder"):
        name = str(read_metadata(path).get("dataset", ""))
        place = named.get(name)
        if place is None and number < len(offline) and share < 1:  # a folder that was moved; they come first
            place = number
        elif place is None:
            place = shard_names.get(Path(name).name)
        is_same = place is not None and (place < len(offline) or num_rows(path) == datasets[place].num_frames)
        if place is not None and is_same and found[place] is None:  # a second one is an older end's
            found[place] = number
        number += 1
    return found
