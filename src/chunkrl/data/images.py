"""A camera's pictures, decoded once into a memory-mapped store in the cache."""

from __future__ import annotations

import io
import os
import struct
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from chunkrl.data.atomic import write_text
from chunkrl.data.cache import create_array, ensure, file_name, load_array
from chunkrl.data.formats import DatasetDescription, Episode, image_size
from chunkrl.data.store import by_data_file, episode_parts
from chunkrl.data.video import frames_at
from chunkrl.errors import DatasetError
from chunkrl.progress import Progress

BATCH_PICTURES = 32
FLUSH_EPISODES = 64
_PICTURES = "pictures.npy"
_DONE = "episodes_done.txt"

Job = tuple[int, Callable[[np.ndarray], None]]
"""Position of an episode, and a function that writes some of its pictures into the store."""


@dataclass(frozen=True)
class _Source:
    """A camera to decode. size: (height, width). timestamps: [N], seconds from the episode's start."""

    description: DatasetDescription
    camera: str
    size: tuple[int, int]
    timestamps: np.ndarray


def open_camera(
    description: DatasetDescription, camera: str, timestamps: np.ndarray, folder: Path, progress: Progress
) -> np.ndarray:
    """The camera's pictures, uint8 RGB [N, 3, height, width], read-only; decoded on first use.

    Args:
        camera: one of the description's cameras.
        timestamps: [N], seconds from the episode's start.
        folder: the data set's folder in the cache.

    Raises:
        DatasetError: no such camera; a picture or a video is missing or damaged.
        ChunkRLError: the cache has no space or cannot be written.
    """
    if camera not in description.cameras:
        known = ", ".join(description.cameras) or "none"
        raise DatasetError(
            f"{description.root}: no camera '{camera}' in the column mapping; cameras: {known}"
        )
    size = image_size(description.features[camera])
    assert size is not None, "describe() admits RGB cameras only"
    source = _Source(description, camera, size, timestamps)
    target = folder / "cameras" / file_name(camera)
    ensure(target, lambda building: _build(source, building, progress), resume=True)
    return load_array(target / _PICTURES)


def _build(source: _Source, folder: Path, progress: Progress) -> None:
    """Decodes the episodes that an earlier, killed build has not; `_DONE` counts only what is on the disk."""
    description = source.description
    num_episodes = len(description.episodes)
    pictures_file, done_file = folder / _PICTURES, folder / _DONE
    if done_file.exists():
        pictures = load_array(pictures_file, writable=True)
        saved = int(done_file.read_text("utf-8"))
    else:
        pictures = create_array(pictures_file, np.dtype(np.uint8), (description.num_frames, 3, *source.size))
        saved = 0
    is_video = description.features[source.camera].dtype == "video"
    jobs = _video_jobs(source, saved) if is_video else _image_jobs(source, saved)
    for done in _in_order(jobs, pictures, saved, num_episodes):
        if done - saved >= FLUSH_EPISODES or done == num_episodes:
            pictures.flush()
            write_text(done_file, str(done))
            saved = done
        progress(f"decoding {source.camera}", done, num_episodes)


def _in_order(jobs: Iterator[Job], pictures: np.ndarray, first: int, num_episodes: int) -> Iterator[int]:
    """Runs the jobs on all cores, a few ahead; yields how many episodes, from the first on, are decoded."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[tuple[int, Future[None]]] = deque()
    done = first
    with ThreadPoolExecutor(workers) as pool:  # Pillow, zlib and FFmpeg decode outside Python's lock
        try:
            for position, write in jobs:
                waiting.append((position, pool.submit(write, pictures)))
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


def _video_jobs(source: _Source, first: int) -> Iterator[Job]:
    for position, episode in enumerate(source.description.episodes[first:], start=first):
        yield position, partial(_write_video, source, episode)


def _write_video(source: _Source, episode: Episode, pictures: np.ndarray) -> None:
    span = episode.videos[source.camera]
    where = f"episode {episode.index}, camera '{source.camera}'"
    rows = slice(episode.start, episode.start + episode.length)
    times = source.timestamps[rows].astype(np.float64) + span.from_timestamp
    half_frame = 0.5 / source.description.fps
    if span.to_timestamp is not None and times[-1] > span.to_timestamp - half_frame:
        raise DatasetError(
            f"{span.file}, {where}: the metadata ends it at {span.to_timestamp:.4f} s, "
            f"but its last frame is at {times[-1]:.4f} s: correct the metadata or fetch it again"
        )
    alone = span.to_timestamp is None
    try:
        decoded = frames_at(span.file, times, half_frame, source.size, alone)
        for row, picture in enumerate(decoded, start=episode.start):
            pictures[row] = picture.transpose(2, 0, 1)
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from error


def _image_jobs(source: _Source, first: int) -> Iterator[Job]:
    """Reads the parquet files in order, a few pictures at a time; to decode them is the job."""
    all_episodes = source.description.episodes
    starts = [episode.start for episode in all_episodes]
    for file, episodes in by_data_file(all_episodes[first:]):
        for episode, frame, part in episode_parts(file, episodes, [source.camera], BATCH_PICTURES):
            job = partial(_write_images, source, file, part.column(source.camera), episode.start + frame)
            yield bisect_right(starts, episode.start) - 1, job


def _write_images(source: _Source, file: Path, encoded: pa.Array, row: int, pictures: np.ndarray) -> None:
    """Decodes `encoded`, a column of struct<bytes, path>, into the rows from `row` on."""
    kind = encoded.type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DatasetError(
            f"{file}: camera '{source.camera}' holds {kind}, expected struct<bytes, path>: "
            "write the file again"
        )
    for offset, data in enumerate(encoded.flatten()[kind.get_field_index("bytes")]):
        try:
            pictures[row + offset] = decode_picture(data.as_py(), source.size).transpose(2, 0, 1)
        except DatasetError as error:
            episodes = source.description.episodes
            episode = next(e for e in episodes if row + offset < e.start + e.length)
            where = f"{file}, episode {episode.index}, frame {row + offset - episode.start}"
            raise DatasetError(f"{where}, camera '{source.camera}': {error}") from error


def decode_picture(data: bytes | None, size: tuple[int, int]) -> np.ndarray:
    """Decodes a PNG or JPEG file to uint8 RGB [height, width, 3].

    Raises:
        DatasetError: it is damaged, of another size or not RGB; the message does not name the place.
    """
    if not isinstance(data, bytes):
        raise DatasetError("the picture's bytes are not in the parquet file: embed them")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            found = (image.height, image.width, image.mode)
            if found == (*size, "RGB"):
                image.verify()  # check sums, which decoding skips; ends this reading
        if found == (*size, "RGB"):
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                return np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError) as error:
        raise DatasetError(f"the picture is damaged ({error}): write the file again") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"the picture is not of {size[0]} x {size[1]} pixels ({error}): correct it"
        ) from error
    raise DatasetError(
        f"the picture is {found[0]} x {found[1]} {found[2]}, "
        f"meta/info.json says {size[0]} x {size[1]} RGB: correct one"
    )
