"""Every problem of a data set, found by reading all of it once."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np

from chunkrl.data.atomic import write_text
from chunkrl.data.checks import check_episode, first_not_finite, not_finite
from chunkrl.data.formats import DatasetDescription, Episode, without
from chunkrl.data.images import BATCH_PICTURES
from chunkrl.data.pictures import Camera, image_frames, num_workers, video_frames
from chunkrl.data.problems import Collector, Problem
from chunkrl.data.store import (
    BATCH_ROWS,
    by_data_file,
    check_rows,
    episode_parts,
    read_episode,
    unreadable_groups,
    whole_episodes,
)
from chunkrl.errors import DatasetError
from chunkrl.progress import Progress

Found = list[tuple[DatasetError, tuple[int, ...]]]


def examine(
    description: DatasetDescription, found: Collector, folder: Path, progress: Progress, images: bool
) -> tuple[Problem, ...]:
    """Every problem of a data set; kept in the cache, so one that does not change is looked through once.

    Args:
        description, found: from `describe(report=found)`.
        folder: the data set's folder in the cache.
        images: also decode every picture.
    """
    roles = (description.state_key, description.action_key, *(description.cameras if images else ()))
    file = folder / f"problems-{hashlib.sha256(repr(roles).encode()).hexdigest()[:16]}.json"
    if file.is_file():
        records = json.loads(file.read_text("utf-8"))
        return tuple(Problem(record["message"], tuple(record["episodes"])) for record in records)
    survey(description, found, progress, images)
    write_text(file, json.dumps([asdict(problem) for problem in found.problems]))
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
    return without(description, bad) if bad else description


def survey(description: DatasetDescription, found: Collector, progress: Progress, images: bool) -> None:
    """Reads all columns, and with `images` decodes all pictures; tells `found` of every problem.

    Episodes that `found` knows are not read. Where row groups of a parquet file are damaged, the episodes with a
    row in them are bad; where all of it is, or it has not the rows that the metadata says, all its episodes.
    """
    bad = found.bad_episodes
    good = [episode for episode in description.episodes if episode.index not in bad]
    try:
        runs = list(by_data_file(good))
    except DatasetError as error:
        found(error)
        return
    timestamps = np.zeros(description.num_frames, np.float32)
    done = 0
    for file, run in runs:
        _survey_columns(description, file, run, found, timestamps)
        done += len(run)
        progress("reading columns", done, len(good))
    if images:
        for name in description.cameras:
            _survey_camera(Camera(description, name, timestamps), runs, found, progress)


def _survey_columns(
    description: DatasetDescription, file: Path, run: list[Episode], found: Collector, timestamps: np.ndarray
) -> None:
    """timestamps: float32 [N], gets those of these episodes."""
    features = {name: feature for name, feature in description.features.items() if feature.is_numeric}
    finite = [name for name in (description.state_key, description.action_key) if name is not None]
    try:
        for episode, parts in whole_episodes(file, run, list(features)):
            try:
                columns = read_episode(episode, parts, features)
                check_episode(description, episode, columns)
            except DatasetError as error:
                found(error, (episode.index,))
                continue
            timestamps[episode.start : episode.start + episode.length] = columns["timestamp"]
            for name in finite:
                frame = first_not_finite(columns[name])
                if frame is not None:
                    found(not_finite(episode, name, frame), (episode.index,))
        check_rows(file, run, closed=description.version != "v3.0")
    except DatasetError as error:
        damage, rest = _of_groups(file, run, list(features), BATCH_ROWS, error)
        for problem, indices in damage:
            found(problem, indices)
        if rest:
            _survey_columns(description, file, rest, found, timestamps)


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
    """Decodes the pictures of the episodes that are good so far; their columns are known to be readable."""
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
    errors: Found = []
    try:
        for episode, frame, part in episode_parts(file, run, [camera.name], BATCH_PICTURES):
            frames = range(frame, frame + len(part))
            try:
                deque(image_frames(camera, file, episode, frames, part.column(camera.name)), maxlen=0)
            except DatasetError as error:
                errors.append((error, (episode.index,)))
    except DatasetError as error:
        damage, rest = _of_groups(file, run, [camera.name], BATCH_PICTURES, error)
        errors += damage + (_check_images(camera, file, rest) if rest else [])
    return errors
