"""A camera's images, decoded once into a memory-mapped store in the cache."""

from __future__ import annotations

import math
import shutil
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from chunkrl.data.cache import (
    BUILDING,
    check_free,
    create_array,
    ensure,
    file_name,
    grow_array,
    load_array,
    sync_array,
    writing,
)
from chunkrl.data.episode_rows import by_data_file, episode_parts
from chunkrl.data.image_decoding import Camera, image_frames, num_workers, video_frames
from chunkrl.errors import DatasetError
from chunkrl.files.atomic import write_text
from chunkrl.files.regular_files import open_regular
from chunkrl.progress import Progress

BATCH_PICTURES = 32
FLUSH_EPISODES = 64
_PICTURES = "pictures.npy"
_DONE = "episodes_done.txt"

Job = tuple[int, int, Callable[[], Iterator[np.ndarray]]]
"""Position of an episode, a row, and a function that decodes the images of the rows from that one on."""


def store_bytes(camera: Camera) -> int:
    """Disk space that the store of the camera takes, bytes."""
    return camera.description.num_frames * 3 * math.prod(camera.size)


def camera_folder(folder: Path, camera: Camera) -> Path:
    """Where the camera's store is, in the data set's folder of the cache."""
    name = file_name(camera.name) + ("" if camera.resize is None else f"@{camera.resize.name}")
    return folder / "cameras" / name


def check_space(cameras: Iterable[Camera], folder: Path) -> None:
    """Before one of these cameras' stores is built: the disk has space for what is missing of all of them.

    Args:
        folder: the data set's folder in the cache.

    Raises:
        ChunkRLError: it has not.
    """
    needed = 0
    for camera in cameras:
        target = camera_folder(folder, camera)
        if not target.exists():
            begun = target.with_name(target.name + BUILDING) / _PICTURES
            needed += store_bytes(camera) - (begun.stat().st_blocks * 512 if begun.exists() else 0)
    check_free(needed, folder)


def open_camera(camera: Camera, folder: Path, progress: Progress) -> np.ndarray:
    """The camera's images, uint8 RGB [N, 3, height, width], read-only; decoded on first use.

    Args:
        folder: the data set's folder in the cache.

    Raises:
        DatasetError: an image or a video is missing or damaged.
        ChunkRLError: the cache has no space or cannot be written.
    """
    target = camera_folder(folder, camera)
    ensure(target, lambda building: _build(camera, building, progress), resume=True)
    return load_array(target / _PICTURES)


def continue_store(before: Camera, before_folder: Path, camera: Camera, folder: Path) -> None:
    """Spares `open_camera` the episodes that it decoded before the data set grew: a build in `folder` begins with
    their images, and with the file of the camera's store of then, in `before_folder` (`grow_array`).

    Raises:
        ChunkRLError: the cache has no space or cannot be written.
    """
    source, target = camera_folder(before_folder, before), camera_folder(folder, camera)
    building = target.with_name(target.name + BUILDING)
    old, new = before.description.episodes, camera.description.episodes
    grown = [e.length for e in new[: len(old)]] == [e.length for e in old]
    if not grown or target.exists() or building.exists() or not source.exists():
        return
    with writing(target):
        building.mkdir(parents=True)
        try:
            sync_array(grow_array(source / _PICTURES, building / _PICTURES, camera.description.num_frames))
            write_text(building / _DONE, str(len(old)))
        except BaseException:
            shutil.rmtree(building)  # else what is left counts as a begun build, which decodes everything
            raise


def _build(camera: Camera, folder: Path, progress: Progress) -> None:
    """Decodes the episodes that an earlier, killed build has not; `_DONE` counts only what is on the disk."""
    description = camera.description
    num_episodes = len(description.episodes)
    images_file, done_file = folder / _PICTURES, folder / _DONE
    if done_file.exists():
        pictures = load_array(images_file, writable=True)
        saved = _num_saved(done_file, num_episodes)
    else:
        images_file.unlink(missing_ok=True)  # it may be a link to the store of before (`continue_store`)
        pictures = create_array(images_file, np.dtype(np.uint8), (description.num_frames, 3, *camera.size))
        saved = 0
    stage = f"decoding {camera.name} ({store_bytes(camera) / 1e9:.2f} GB)"
    jobs = _video_jobs(camera, saved) if camera.is_video else _image_jobs(camera, saved)
    for done in _in_order(jobs, partial(_write, camera, pictures), saved, num_episodes):
        if done - saved >= FLUSH_EPISODES or done == num_episodes:
            sync_array(pictures)
            write_text(done_file, str(done))
            saved = done
        progress(stage, done, num_episodes)


def _num_saved(file: Path, num_episodes: int) -> int:
    cure = f"delete the folder {file.parent}: its images are decoded again"
    with open_regular(file, DatasetError, cure) as stream:
        text = stream.read(20)
    if not text.isdigit() or int(text) > num_episodes:
        raise DatasetError(
            f"{file} holds {text!r}, expected a number of episodes up to {num_episodes}: {cure}"
        )
    return int(text)


def _write(
    camera: Camera, pictures: np.ndarray, row: int, decode: Callable[[], Iterator[np.ndarray]]
) -> None:
    for place, picture in enumerate(decode(), start=row):
        pictures[place] = camera.finish(picture)


def _in_order(
    jobs: Iterator[Job],
    write: Callable[[int, Callable[[], Iterator[np.ndarray]]], None],
    first: int,
    num_episodes: int,
) -> Iterator[int]:
    """Runs the jobs on all cores, a few ahead; yields how many episodes, from the first on, are decoded."""
    workers = num_workers()
    waiting: deque[tuple[int, Future[None]]] = deque()
    done = first
    with ThreadPoolExecutor(workers) as pool:  # Pillow, zlib and FFmpeg decode outside Python's lock
        try:
            for position, row, decode in jobs:
                waiting.append((position, pool.submit(write, row, decode)))
                if len(waiting) > 2 * workers:
                    oldest, future = waiting.popleft()
                    future.result()
                    if oldest > done:  # a job of a later episode is over: so are all of those before it
                        done = oldest
                        yield done
            for _, future in waiting:
                future.result()
        finally:
            for _, future in waiting:
                future.cancel()
    yield num_episodes


def _video_jobs(camera: Camera, first: int) -> Iterator[Job]:
    for position, episode in enumerate(camera.description.episodes[first:], start=first):
        yield position, episode.start, partial(video_frames, camera, episode)


def _image_jobs(camera: Camera, first: int) -> Iterator[Job]:
    """Reads the parquet files in order, a few images at a time; to decode them is the job."""
    all_episodes = camera.description.episodes
    starts = [episode.start for episode in all_episodes]
    for file, episodes in by_data_file(all_episodes[first:]):
        for episode, frame, part in episode_parts(file, episodes, [camera.name], BATCH_PICTURES):
            frames = range(frame, frame + len(part))
            decode = partial(image_frames, camera, file, episode, frames, part.column(camera.name))
            yield bisect_right(starts, episode.start) - 1, episode.start + frame, decode
