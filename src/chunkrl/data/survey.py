"""Every problem of a data set, found by reading all of it once."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from chunkrl.config import record_of
from chunkrl.data.checks import check_episode, first_not_finite, not_finite
from chunkrl.data.episode_rows import (
    BATCH_ROWS,
    by_data_file,
    episode_parts,
    read_episode,
    readable,
    unreadable_groups,
    whole_episodes,
)
from chunkrl.data.formats import DatasetDescription, Episode, Feature, without
from chunkrl.data.image_decoding import Camera, image_frames, num_workers, video_frames
from chunkrl.data.images import BATCH_PICTURES
from chunkrl.data.problems import Collector, Problem
from chunkrl.data.roles import REQUIRED_NAMES
from chunkrl.data.row_checks import MisplacedRowsError, check_rows, explain
from chunkrl.data.store import narrow
from chunkrl.data.video_ends import check_ends
from chunkrl.errors import DatasetError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.progress import Progress

_ROOT = "{the data set}"  # in messages that are kept: a copy of the data set stands elsewhere

Found = list[tuple[DatasetError, tuple[int, ...]]]


def examine(
    description: DatasetDescription,
    found: Collector,
    folder: Path,
    progress: Progress,
    images: bool,
    label_columns: Collection[str] = (),
) -> tuple[Problem, ...]:
    """Every problem of a data set; kept in the cache, so one that does not change is looked through once.

    Columns that nobody uses have none.

    Args:
        description, found: from `describe(report=found)`.
        folder: the data set's folder in the cache.
        images: also decode every image.
        label_columns: those that labels are read from; absent ones are passed over.
    """
    labels = sorted(name for name in label_columns if name in description.features)
    roles = (description.state_keys, description.action_keys, labels, description.cameras if images else ())
    file = folder / f"problems-{hashlib.sha256(repr(roles).encode()).hexdigest()[:16]}.json"
    root = str(description.root)
    if file.is_file():
        cure = "delete it, and the data set is looked through again"
        for record in read_json(file, list, DatasetError, cure):
            kept = record_of(Problem, record, str(file), DatasetError, cure)
            found(DatasetError(kept.message.replace(_ROOT, root)), kept.episodes)
        return found.problems
    before = found.problems
    survey(description, found, progress, images, labels)
    new = [problem for problem in found.problems if problem not in before]
    kept = [asdict(replace(problem, message=problem.message.replace(root, _ROOT))) for problem in new]
    write_text(file, json.dumps(kept))
    return found.problems


def set_aside(description: DatasetDescription, problems: Sequence[Problem]) -> DatasetDescription:
    """The data set without its bad episodes.

    Raises:
        DatasetError: a problem concerns the data set as a whole, or no episode is left.
    """
    for problem in problems:
        if not problem.episodes:
            raise DatasetError(problem.message)
    bad = frozenset(index for problem in problems for index in problem.episodes)
    if all(episode.index in bad for episode in description.episodes):
        raise DatasetError(
            f"{description.root}: no episode without a problem is left: {problems[0].message} "
            f"({len(problems)} problems; chunkrl inspect lists them)"
        )
    return without(description, bad) if bad else description


def survey(
    description: DatasetDescription,
    found: Collector,
    progress: Progress,
    images: bool,
    label_columns: Collection[str] = (),
) -> None:
    """Reads all columns that are used, and with `images` decodes all images; tells `found` of every problem.

    Episodes that `found` knows are not read. Where row groups of a parquet file are damaged, the episodes with a
    row in them are bad; where all of it is, all its episodes; where it has not the rows that the metadata says, those
    whose rows are not where they should be.
    """
    bad = found.bad_episodes
    good = [episode for episode in description.episodes if episode.index not in bad]
    try:
        runs = list(by_data_file(good))
    except DatasetError as error:
        found(error)
        return
    survey_ = _ColumnSurvey(description, found, label_columns)
    done = 0
    for file, run in runs:
        survey_.read(file, run)
        done += len(run)
        progress("reading columns", done, len(good))
    if images:
        for name in description.cameras:
            _survey_camera(Camera(description, name, survey_.timestamps), runs, found, progress)


class _ColumnSurvey:
    """Reads the columns that are used. timestamps: float32 [N], of the episodes that were read."""

    def __init__(
        self, description: DatasetDescription, found: Collector, label_columns: Collection[str]
    ) -> None:
        self._description, self._found = description, found
        self._finite = (*description.state_keys, *description.action_keys)
        # Those that nobody uses are read along: a page of theirs that is damaged would stop the cache.
        used = dict.fromkeys((*REQUIRED_NAMES, *self._finite, *label_columns))
        features = {name: description.features[name] for name in used} | narrow(description)
        self._features = {name: feature for name, feature in features.items() if feature.is_numeric}
        self._used = used.keys() & self._features.keys()
        self._files = {episode.index: episode.data_file for episode in description.episodes}
        self.timestamps = np.zeros(description.num_frames, np.float32)

    def read(self, file: Path, run: list[Episode]) -> None:
        """Reads the episodes of a file."""
        if not run:
            return
        columns = list(self._used)
        try:
            total = self._description.total_frames
            features, _ = readable(file, self._features, self._used, total)
            columns = list(features)
            for episode, parts in whole_episodes(file, run, columns):
                self._check(episode, parts, features)
            check_rows(file, run, closed=not self._description.shares_files)
        except MisplacedRowsError as error:
            explanation = explain(error, file, run, self._files)
            self._found(explanation.error, explanation.episodes)
            self.read(file, [episode for episode in run if episode.index not in explanation.episodes])
        except DatasetError as error:
            damage, rest = _of_groups(file, run, columns, BATCH_ROWS, error)
            for problem, indices in damage:
                self._found(problem, indices)
            self.read(file, rest)

    def _check(
        self, episode: Episode, parts: Sequence[pa.RecordBatch], features: Mapping[str, Feature]
    ) -> None:
        try:
            columns, _ = read_episode(episode, parts, features, self._used)
            check_episode(self._description, episode, columns)
        except MisplacedRowsError:
            raise
        except DatasetError as error:
            self._found(error, (episode.index,))
            return
        self.timestamps[episode.start : episode.start + episode.length] = columns["timestamp"]
        for name in self._finite:
            frame = first_not_finite(columns[name])
            if frame is not None:
                self._found(not_finite(episode, name, frame), (episode.index,))


def _of_groups(
    file: Path, run: list[Episode], columns: Sequence[str], batch_rows: int, error: DatasetError
) -> tuple[Found, list[Episode]]:
    """What to tell of an error while a parquet file was read, and the episodes that it leaves."""
    everything: Found = [(error, tuple(episode.index for episode in run))]
    try:
        damage = list(unreadable_groups(file, run, columns, batch_rows))
    except DatasetError:
        return everything, []
    bad = {index for _, indices in damage for index in indices}
    rest = [episode for episode in run if episode.index not in bad]
    return (damage, rest) if damage and rest else (everything, [])


def _survey_camera(
    camera: Camera,
    runs: Sequence[tuple[Path, list[Episode]]],
    found: Collector,
    progress: Progress,
) -> None:
    """Decodes the images of the episodes that are good so far; their columns are known to be readable."""
    bad = found.bad_episodes
    check_ends(camera, [e for _, run in runs for e in run if e.index not in bad], found)
    bad = found.bad_episodes
    work = [(file, [e for e in run if e.index not in bad]) for file, run in runs]
    work = [(file, run) for file, run in work if run]
    check = _check_videos if camera.is_video else _check_images
    done, total = 0, sum(len(run) for _, run in work)
    waiting: deque[tuple[Future[Found], int]] = deque()
    jobs = iter(work)
    with ThreadPoolExecutor(num_workers()) as pool:
        while True:
            for file, run in islice(jobs, 2 * num_workers() - len(waiting)):
                waiting.append((pool.submit(check, camera, file, run), len(run)))
            if not waiting:
                break
            future, num = waiting.popleft()
            for error, indices in future.result():
                found(error, indices)
            done += num
            progress(f"checking {camera.name}", done, total)


def _check_videos(camera: Camera, file: Path, run: list[Episode]) -> Found:
    errors: Found = []
    for episode in run:
        try:
            deque(video_frames(camera, episode), maxlen=0)
        except DatasetError as error:
            errors.append((error, (episode.index,)))
    return errors


def _check_images(camera: Camera, file: Path, run: list[Episode]) -> Found:
    errors: dict[int, DatasetError] = {}
    try:
        for episode, frame, part in episode_parts(file, run, [camera.name], BATCH_PICTURES):
            if episode.index in errors:
                continue
            frames = range(frame, frame + len(part))
            try:
                deque(image_frames(camera, file, episode, frames, part.column(camera.name)), maxlen=0)
            except DatasetError as error:
                errors[episode.index] = error
    except DatasetError as error:
        damage, rest = _of_groups(file, run, [camera.name], BATCH_PICTURES, error)
        return damage + (_check_images(camera, file, rest) if rest else [])
    return [(error, (index,)) for index, error in errors.items()]
