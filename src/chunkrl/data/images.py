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
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from chunkrl.data.formats import DatasetDescription, image_size
from chunkrl.data.metadata import Episode
from chunkrl.data.store import by_data_file, create_array, ensure, file_name, row_batches
from chunkrl.data.video import frames_at
from chunkrl.errors import DatasetError
from chunkrl.progress import Progress

BATCH_PICTURES = 32
FLUSH_EPISODES = 64
_PICTURES = "pictures.npy"
_DONE = "episodes_done.npy"

Job = tuple[int, Callable[[np.ndarray], None]]
"""Position of an episode, and a function that writes some of its pictures into the store."""


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
    target = folder / "cameras" / file_name(camera)
    ensure(target, lambda building: _build(description, camera, timestamps, building, progress), resume=True)
    return np.load(target / _PICTURES, mmap_mode="r")


def _build(
    description: DatasetDescription, camera: str, timestamps: np.ndarray, folder: Path, progress: Progress
) -> None:
    """Decodes the episodes that an earlier, killed build has not; `_DONE` names only what is on the disk."""
    size = image_size(description.features[camera])
    assert size is not None
    num_episodes = len(description.episodes)
    pictures_file, done_file = folder / _PICTURES, folder / _DONE
    if done_file.exists():
        pictures = np.lib.format.open_memmap(pictures_file, mode="r+")
        first = int(np.load(done_file))
    else:
        pictures = create_array(pictures_file, np.dtype(np.uint8), (description.num_frames, 3, *size))
        first = 0
    make_jobs = _video_jobs if description.features[camera].dtype == "video" else _image_jobs
    jobs = make_jobs(description, camera, timestamps, first, size)
    saved = first
    for done in _in_order(jobs, pictures, first, num_episodes):
        if done - saved >= FLUSH_EPISODES or done == num_episodes:
            pictures.flush()
            temporary = done_file.with_name("temporary.npy")
            np.save(temporary, np.int64(done))
            temporary.replace(done_file)
            saved = done
        progress(f"decoding {camera}", done, num_episodes)


def _in_order(jobs: Iterator[Job], pictures: np.ndarray, first: int, num_episodes: int) -> Iterator[int]:
    """Runs the jobs on all cores, a few ahead; yields how many episodes from the first on are decoded."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[tuple[int, Future[None]]] = deque()
    done = first
    with ThreadPoolExecutor(workers) as pool:  # Pillow, zlib and FFmpeg decode outside Python's lock
        try:
            for position, write in jobs:
                waiting.append((position, pool.submit(write, pictures)))
                while len(waiting) > 2 * workers:
                    position, future = waiting.popleft()
                    future.result()
                    if position > done:  # the first job of a later episode is over: so are those before it
                        done = position
                        yield done
            while waiting:
                position, future = waiting.popleft()
                future.result()
                if position > done:
                    done = position
                    yield done
        finally:
            for _, future in waiting:
                future.cancel()
    yield num_episodes


def _video_jobs(
    description: DatasetDescription, camera: str, timestamps: np.ndarray, first: int, size: tuple[int, int]
) -> Iterator[Job]:
    for position in range(first, len(description.episodes)):
        yield (
            position,
            partial(_write_video, description, description.episodes[position], camera, timestamps, size),
        )


def _write_video(
    description: DatasetDescription,
    episode: Episode,
    camera: str,
    timestamps: np.ndarray,
    size: tuple[int, int],
    pictures: np.ndarray,
) -> None:
    span = episode.videos[camera]
    rows = slice(episode.start, episode.start + episode.length)
    times = timestamps[rows].astype(np.float64) + span.from_timestamp
    half_frame = 0.5 / description.fps
    if span.to_timestamp is not None and times[-1] > span.to_timestamp:
        raise DatasetError(
            f"{span.file}, episode {episode.index}, camera '{camera}': its metadata ends it at {span.to_timestamp} s, "
            f"its last frame is at {times[-1]:.4f} s: correct the metadata"
        )
    try:
        for row, picture in enumerate(frames_at(span.file, times, half_frame, size), start=episode.start):
            pictures[row] = picture.transpose(2, 0, 1)
    except DatasetError as error:
        raise DatasetError(f"episode {episode.index}, camera '{camera}': {error}") from error


def _image_jobs(
    description: DatasetDescription, camera: str, timestamps: np.ndarray, first: int, size: tuple[int, int]
) -> Iterator[Job]:
    """Reads the parquet files in order, a few pictures at a time; decoding them is the job."""
    del timestamps
    starts = np.array([episode.start for episode in description.episodes])
    first_row = description.episodes[first].start if first < len(starts) else description.num_frames
    for file, episodes in by_data_file(description.episodes):
        row, end = episodes[0].start, episodes[-1].start + episodes[-1].length
        if end <= first_row:
            continue
        for batch in row_batches(file, [camera], BATCH_PICTURES):
            encoded = batch.column(camera)
            if row + len(batch) > first_row:
                position = int(np.searchsorted(starts, row, side="right")) - 1
                yield position, partial(_write_images, description, camera, file, encoded, row, size)
            row += len(batch)


def _write_images(
    description: DatasetDescription,
    camera: str,
    file: Path,
    encoded: pa.Array,
    row: int,
    size: tuple[int, int],
    pictures: np.ndarray,
) -> None:
    """Decodes `encoded`, a column of struct<bytes, path>, into the rows from `row` on."""
    kind = encoded.type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DatasetError(
            f"{file}: column '{camera}' holds {kind}, expected struct<bytes, path>: write it again"
        )
    for offset, data in enumerate(pc.struct_field(encoded, "bytes")):
        try:
            picture = decode_picture(data.as_py(), size)
        except DatasetError as error:
            starts = [episode.start for episode in description.episodes]
            episode = description.episodes[bisect_right(starts, row + offset) - 1]
            where = (
                f"{file}, episode {episode.index}, frame {row + offset - episode.start}, camera '{camera}'"
            )
            raise DatasetError(f"{where}: {error}") from error
        pictures[row + offset] = picture.transpose(2, 0, 1)


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
        f"the picture is {found[0]} x {found[1]} {found[2]}, meta/info.json says {size[0]} x {size[1]} RGB: correct one"
    )
