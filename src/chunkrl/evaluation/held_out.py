"""Episodes that neither of two runs was trained on, opened as each run's policy sees them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.label_rules import AUTO_LABELS, LabelRule
from chunkrl.errors import ChunkRLError
from chunkrl.progress import Progress
from chunkrl.run.build import open_datasets
from chunkrl.run.config import TrainConfig
from chunkrl.run.folder import is_run_folder, run_config
from chunkrl.run.trained_on import episode_digests, runs_before, trained_on


@dataclass(frozen=True)
class JudgedRun:
    """A run to judge. folder: as it was given. config: its own."""

    folder: str
    config: TrainConfig

    @classmethod
    def read(cls, folder: str, flag: str) -> JudgedRun:
        """Raises ChunkRLError where the folder holds no run with a policy."""
        path = Path(folder)
        if not folder:
            raise ChunkRLError("name two runs: chunkrl verdict RUN --against RUN")
        if not is_run_folder(path):
            its_run = is_run_folder(path.parent)
            cure = f"its run is {path.parent}" if its_run else "name the --output-dir of chunkrl train"
            raise ChunkRLError(f"{flag} {folder} is no run's folder: {cure}")
        if not (path / "policy").is_dir():
            raise ChunkRLError(f"{folder} has no policy yet: continue with chunkrl train --resume {folder}")
        return cls(folder, run_config(path / "config.json"))


@dataclass(frozen=True)
class HeldOut:
    """The same episodes, opened by the settings of each run: [0] of the one to judge, [1] of the other.

    notes: what to know of them, in sentences.
    """

    data: tuple[ChunkCollection, ChunkCollection]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Where they are, for messages."""
        return self.data[0].name


def own_held_out(runs: Sequence[JudgedRun], progress: Progress) -> HeldOut:
    """The episodes that both runs kept from training with --held-out.

    Raises:
        ChunkRLError: a run held none out; they were trained on other data, held other episodes out, or the data have
            changed so that it was trained on some of these; as `_notes`.
    """
    for run in runs:
        if not run.config.frames.held_out:
            raise ChunkRLError(
                f"{run.folder} was trained on all of its episodes: name others with --dataset-dir, or train both "
                "runs with --held-out .2"
            )
    opened = [open_datasets(run.config, progress, held_out=True) for run in runs]
    pairs: list[tuple[ChunkDataset, ChunkDataset]] = []
    others = {_whole(dataset): dataset for dataset in opened[1]}
    for dataset in opened[0]:
        other = others.pop(_whole(dataset), None)
        if other is None:
            raise ChunkRLError(_other_data(runs, dataset, opened[1]))
        if not np.array_equal(dataset.table.episode_ids, other.table.episode_ids):
            parts = [run.config.frames.held_out for run in runs]
            raise ChunkRLError(
                f"of {dataset.name} the runs held other episodes out (--held-out {parts[0]} and {parts[1]}): train "
                "both with the same, or name episodes with --dataset-dir"
            )
        pairs.append((dataset, other))
    if others:
        raise ChunkRLError(_other_data(runs[::-1], next(iter(others.values())), opened[0]))
    for run, datasets in zip(runs, zip(*pairs, strict=True), strict=True):
        _check_unseen(run, trained_on(Path(run.folder)) or frozenset(), datasets, _CHANGED)
    both = (ChunkCollection([a for a, _ in pairs]), ChunkCollection([b for _, b in pairs]))
    return HeldOut(both, _notes(runs, both))


def given_held_out(
    runs: Sequence[JudgedRun], paths: Sequence[str], labels: LabelRule, progress: Progress
) -> HeldOut:
    """The episodes of the data sets `paths`, which neither run was trained on. labels: where they are the default, as
    the first run reads its own.

    Raises:
        ChunkRLError: a run was trained on episodes of them, or does not say on what, and its own data are gone; as
            `_notes`.
    """
    found = []
    if labels == LabelRule():
        labels = _for_other_data(runs[0].config.labels)
    for run in runs:
        of_given = replace(
            run.config,
            dataset_dir=paths[0],
            additional_offline_dataset_paths=tuple(paths[1:]),
            additional_success=None,
            additional_labels=(),
            dataset_weights=(),
            revision=None,
            labels=labels,
            frames=replace(run.config.frames, held_out=0.0),
        )
        datasets = open_datasets(of_given, progress)
        seen = trained_on(Path(run.folder))
        if seen is None:
            _check_unseen_by_place(run, datasets, progress)
        else:
            _check_unseen(run, seen, datasets, _GIVEN)
        found.append(ChunkCollection(datasets))
    both = (found[0], found[1])
    return HeldOut(both, _notes(runs, both))


def _for_other_data(rule: LabelRule) -> LabelRule:
    """The rule without what is of one data set: files, and lists of episodes."""
    own: dict[str, Any] = {"labels": AUTO_LABELS, "progress": "", "success_file": "", "success_episodes": ()}
    if rule.success == "episodes":
        own["success"] = "auto"
    if rule.subgoal == "csv":
        own |= {"subgoal": "auto", "subgoal_csv": ""}
    return replace(rule, **own)


_GIVEN = "name episodes that it has not seen, or train with --held-out .2 and leave --dataset-dir out"
_CHANGED = (
    "they stood elsewhere then. Put the data back, train again, or name episodes that neither run has seen with "
    "--dataset-dir"
)


def _check_unseen(run: JudgedRun, seen: Collection[str], datasets: Sequence[ChunkDataset], cure: str) -> None:
    """seen: digests of the episodes that the run was trained on. Raises ChunkRLError where some of `datasets` are
    among them."""
    for dataset in datasets:
        known = sum(digest in seen for digest in episode_digests(dataset))
        if known:
            raise ChunkRLError(_told_seen(run.folder, known, dataset, cure))


def _told_seen(folder: str, known: int, dataset: ChunkDataset, cure: str) -> str:
    return f"{folder} was trained on {known} of {dataset.num_episodes} episodes of {dataset.name}: {cure}"


def _notes(runs: Sequence[JudgedRun], data: Sequence[ChunkCollection]) -> tuple[str, ...]:
    """What to know where both runs began with networks of a run that was trained on these episodes.

    Raises ChunkRLError where one of them alone did: it may remember them, and the other cannot.
    """
    before = [runs_before(Path(run.folder)) for run in runs]
    notes = []
    for run, own, other, collection in zip(runs, before, before[::-1], data, strict=True):
        for folder in own:
            seen = trained_on(folder) or frozenset()
            known = sum(digest in seen for part in collection.datasets for digest in episode_digests(part))
            if not known:
                continue
            told = f"{folder}, which was trained on {known} of these {collection.num_episodes} episodes"
            if folder not in other:
                raise ChunkRLError(
                    f"{run.folder} began with {told}, and the other run did not: train both from the same, or name "
                    "episodes that neither has seen with --dataset-dir"
                )
            notes.append(
                f"Both runs began with {told}: neither has an advantage by it, and both may remember them."
            )
    return tuple(dict.fromkeys(notes))


def _check_unseen_by_place(run: JudgedRun, datasets: Sequence[ChunkDataset], progress: Progress) -> None:
    """Does as `_check_unseen` for a run that does not say what it was trained on, by its data as they are now."""
    try:
        trained = open_datasets(run.config, progress)
    except ChunkRLError as error:
        raise ChunkRLError(
            f"what {run.folder} was trained on cannot be opened, so that nothing tells whether it has seen these "
            f"episodes: {error}"
        ) from error
    seen = {name for dataset in trained for name in _identities(dataset)}
    for dataset in datasets:
        known = sum(name in seen for name in _identities(dataset))
        if known:
            raise ChunkRLError(_told_seen(run.folder, known, dataset, _GIVEN))


def _whole(dataset: ChunkDataset) -> str:
    """The fingerprint of the data set with the episodes that were left out."""
    description = dataset.table.description
    return description.whole_fingerprint or description.fingerprint


def _identities(dataset: ChunkDataset) -> list[str]:
    """Names of the episodes, whichever others were left out: checkpoints hold folds by the names of
    `data.identity`, which therefore stay as they are."""
    own = dataset.fingerprint
    return [name.replace(own, _whole(dataset), 1) for name in dataset.episode_identities]


def _other_data(runs: Sequence[JudgedRun], dataset: ChunkDataset, others: Sequence[ChunkDataset]) -> str:
    names = " and ".join(other.name for other in others)
    return (
        f"{runs[0].folder} was trained on {dataset.name}, and {runs[1].folder} on other data ({names}): name "
        "episodes that neither has seen with --dataset-dir"
    )
