"""Images decoded when they are asked for: no disk space, but every batch pays for decoding.

Decoders work outside Python's lock, so threads share the cores; all cameras share one set of threads.
"""

from __future__ import annotations

import functools
import itertools
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from chunkrl.data.formats import Episode
from chunkrl.data.image_decoding import Camera, decode_frames, image_frames, num_workers, video_frames
from chunkrl.data.parquet import reading
from chunkrl.data.parquet_pages import BinaryPages
from chunkrl.data.video import VideoFile
from chunkrl.errors import DatasetError

MAX_OPEN_VIDEOS = 32
MAX_MAPPED_FILES = 256
MAX_ENCODED_BYTES = 256 * 2**20
SEEK_FRAMES = 4  # to decode this many frames in between takes no longer than to seek

_OF_PARENTS: list[object] = []
"""What a forked process has of its parent and must not close."""

K = TypeVar("K")
V = TypeVar("V")


class _Recent(Generic[K, V]):
    """The values used last, up to a total size; the oldest are closed and forgotten. For several threads."""

    def __init__(
        self, limit: int, size: Callable[[V], int], close: Callable[[V], None] = lambda _: None
    ) -> None:
        self._limit, self._size, self._close = limit, size, close
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._total = 0
        self._lock = Lock()

    def take(self, key: K) -> V | None:
        """The value, which is the caller's alone until it is given back with `put`."""
        with self._lock:
            value = self._kept.pop(key, None)
            if value is not None:
                self._total -= self._size(value)
            return value

    def put(self, key: K, value: V) -> None:
        """Keeps the value, unless another one is kept."""
        with self._lock:
            if key in self._kept:
                self._close(value)
                return
            self._kept[key] = value
            self._total += self._size(value)
            while self._total > self._limit and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._total -= self._size(old)
                self._close(old)

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value, which several threads may use; made where there is none."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        self.put(key, value)
        return value


class DataFiles:
    """The parquet files of a data set: open for all its cameras, and for all threads of one process.

    Of images only the pages asked for are read; where a file's layout does not allow that, whole row groups, of
    which the last are kept.
    """

    def __init__(self) -> None:
        self._open_nothing()

    def _open_nothing(self) -> None:
        self._process = os.getpid()
        self._files: _Recent[Path, BinaryPages] = _Recent(MAX_MAPPED_FILES, lambda _: 1)
        self._groups: _Recent[tuple[Path, int, str], pa.Array] = _Recent(
            MAX_ENCODED_BYTES, pa.Array.get_total_buffer_size
        )

    def after_fork(self) -> None:
        """Threads of the parent may hold the locks for ever."""
        if self._process != os.getpid():
            self._open_nothing()

    def pictures(self, camera: Camera, episode: Episode, frames: Sequence[int]) -> Iterator[np.ndarray]:
        """Decodes these frames of the episode, increasing, as recorded.

        Raises:
            DatasetError: names file, episode, frame and camera.
        """
        file = episode.data_file
        with reading(file):
            pages = self._files.get(file, lambda: BinaryPages(file))
            if pages.names.count(camera.name) != 1:
                raise DatasetError(f"{file}: has no single column '{camera.name}': write the file again")
            if episode.offset + frames[-1] >= pages.first_rows[-1]:
                raise DatasetError(f"{file}: has fewer rows than the metadata says: fetch the file again")

            def group_of(frame: int) -> int:
                return bisect_right(pages.first_rows, episode.offset + frame) - 1

            for group, part in itertools.groupby(frames, group_of):
                own = list(part)
                first = pages.first_rows[group] - episode.offset
                yield from self._decoded(camera, episode, pages, group, own, [frame - first for frame in own])

    def _decoded(
        self,
        camera: Camera,
        episode: Episode,
        pages: BinaryPages,
        group: int,
        frames: list[int],
        rows: list[int],
    ) -> Iterator[np.ndarray]:
        """The images at these rows of a row group, which are these frames of the episode."""
        file, name = pages.file, camera.name
        if (encoded := pages.read(group, f"{name}.bytes", rows)) is not None:
            return decode_frames(camera, file, episode, frames, encoded)
        array = self._groups.get((file, group, name), lambda: pages.read_group(group, name))
        return image_frames(camera, file, episode, frames, array.take(pa.array(rows)))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """The decoding threads of this process, for all cameras: as many as it has cores."""
    return ThreadPoolExecutor(num_workers(), thread_name_prefix="decode")


if hasattr(os, "register_at_fork"):  # threads stay behind in the parent
    os.register_at_fork(after_in_child=_threads.cache_clear)


class OnDemandCamera:
    """Decodes chosen rows of a camera, on all cores.

    Keeps 32 videos open. files: of its data set, which all its cameras share.
    """

    def __init__(self, camera: Camera, files: DataFiles) -> None:
        self._camera, self._files = camera, files
        self._starts = np.array([episode.start for episode in camera.description.episodes])
        self._open_nothing()

    def _open_nothing(self) -> None:
        self._process = os.getpid()
        self._videos: _Recent[Path, VideoFile] = _Recent(MAX_OPEN_VIDEOS, lambda _: 1, VideoFile.close)
        self._files.after_fork()

    def read(self, rows: np.ndarray) -> np.ndarray:
        """uint8 RGB [n, 3, height, width] of int rows [n] of the table.

        Raises:
            DatasetError: an image or a video is missing or damaged.
        """
        return self.start(rows)()

    def start(self, rows: np.ndarray) -> Callable[[], np.ndarray]:
        """Begins to `read`; the function that it returns waits for the images, or raises what was wrong."""
        if self._process != os.getpid():
            # A forked process would move the parent's place in the files; decoders wait for threads as they close.
            _OF_PARENTS.append(self._videos)
            self._open_nothing()
        wanted, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
        pictures = np.empty((len(rows), 3, *self._camera.size), np.uint8)
        positions = np.searchsorted(self._starts, wanted, side="right") - 1
        decode = self._decode_video if self._camera.is_video else self._decode_images
        cuts = np.flatnonzero(np.diff(positions)) + 1
        tasks = []
        for part in np.split(np.arange(len(wanted)), cuts):
            episode = self._camera.description.episodes[positions[part[0]]]
            frames = wanted[part] - episode.start
            tasks.append(_threads().submit(decode, episode, frames, first[part], pictures))

        def finish() -> np.ndarray:
            try:
                wait(tasks, return_when=FIRST_EXCEPTION)  # wakes once: a waking thread takes Python's lock
                for task in tasks:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
            again = np.setdiff1d(np.arange(len(rows)), first)
            pictures[again] = pictures[first[inverse[again]]]
            return pictures

        return finish

    def _decode_video(
        self, episode: Episode, frames: np.ndarray, places: np.ndarray, pictures: np.ndarray
    ) -> None:
        file = episode.videos[self._camera.name].file
        video = self._videos.take(file) or VideoFile(file)
        runs = np.flatnonzero(np.diff(frames) > SEEK_FRAMES) + 1
        for run, at in zip(np.split(frames, runs), np.split(places, runs), strict=True):
            for place, picture in zip(at, video_frames(self._camera, episode, run, video), strict=True):
                pictures[place] = self._camera.finish(picture)
        self._videos.put(file, video)

    def _decode_images(
        self, episode: Episode, frames: np.ndarray, places: np.ndarray, pictures: np.ndarray
    ) -> None:
        decoded = self._files.pictures(self._camera, episode, frames.tolist())
        for place, picture in zip(places.tolist(), decoded, strict=True):
            pictures[place] = self._camera.finish(picture)
