"""Pictures decoded when they are asked for: no disk space, but every batch pays for decoding.

Decoders work outside Python's lock, so threads share the cores; all cameras share one set of threads.
"""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from chunkrl.data.formats import Episode
from chunkrl.data.parquet import reading
from chunkrl.data.parquet_pages import BinaryPages
from chunkrl.data.pictures import Camera, decode_frames, image_frames, num_workers, video_frames
from chunkrl.data.video import VideoFile
from chunkrl.errors import DatasetError

MAX_OPEN_FILES = 32
MAX_ENCODED_BYTES = 256 * 2**20
SEEK_FRAMES = 4  # to decode this many frames in between takes no longer than to seek

_OF_PARENTS: list[object] = []
"""What a forked process has of its parent and must not close."""

K = TypeVar("K")
V = TypeVar("V")


class _Recent(Generic[K, V]):
    """The values used last, up to a total size; the oldest are closed and forgotten. For several threads."""

    def __init__(self, limit: int, size: Callable[[V], int], close: Callable[[V], None]) -> None:
        self._limit, self._size, self._close = limit, size, close
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._total = 0
        self._lock = Lock()

    def take(self, key: K) -> V | None:
        """The value, which is the caller's until it is given back with `put`."""
        with self._lock:
            value = self._kept.pop(key, None)
            if value is not None:
                self._total -= self._size(value)
            return value

    def put(self, key: K, value: V) -> None:
        """Keeps the value."""
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


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Of this process, for all cameras: as many as it has cores."""
    return ThreadPoolExecutor(num_workers(), thread_name_prefix="decode")


if hasattr(os, "register_at_fork"):  # threads stay behind in the parent
    os.register_at_fork(after_in_child=_threads.cache_clear)


class OnDemandCamera:
    """Decodes chosen rows of a camera, on all cores.

    Keeps 32 files open. Of pictures in parquet only the pages asked for are read; where a file's layout does not
    allow that, whole row groups, of which the last are kept (256 MB for all cameras of the data set).
    """

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self._starts = np.array([episode.start for episode in camera.description.episodes])
        self._open_nothing()

    def _open_nothing(self) -> None:
        self._process = os.getpid()
        self._videos: _Recent[Path, VideoFile] = _Recent(MAX_OPEN_FILES, lambda _: 1, VideoFile.close)
        self._parquet: _Recent[Path, BinaryPages] = _Recent(MAX_OPEN_FILES, lambda _: 1, BinaryPages.close)
        self._groups: _Recent[tuple[Path, int], pa.Array] = _Recent(
            MAX_ENCODED_BYTES // max(1, len(self._camera.description.cameras)),
            pa.Array.get_total_buffer_size,
            lambda _: None,
        )

    def read(self, rows: np.ndarray) -> np.ndarray:
        """uint8 RGB [n, 3, height, width] of int rows [n] of the table.

        Raises:
            DatasetError: a picture or a video is missing or damaged.
        """
        return self.start(rows)()

    def start(self, rows: np.ndarray) -> Callable[[], np.ndarray]:
        """Begins to `read`; the function that it returns waits for the pictures, or raises what was wrong."""
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
        file = episode.data_file
        with reading(file):
            pages = self._parquet.take(file) or BinaryPages(file)
            groups = np.searchsorted(pages.first_rows, episode.offset + frames, side="right") - 1
            for group in np.unique(groups):
                chosen = np.flatnonzero(groups == group)
                rows = episode.offset + frames[chosen] - pages.first_rows[group]
                decoded = self._decoded(pages, episode, int(group), rows, frames[chosen].tolist())
                for place, picture in zip(places[chosen], decoded, strict=True):
                    pictures[place] = self._camera.finish(picture)
            self._parquet.put(file, pages)

    def _decoded(
        self, pages: BinaryPages, episode: Episode, group: int, rows: np.ndarray, frames: list[int]
    ) -> Iterator[np.ndarray]:
        """The pictures at int rows [n] of a row group, which are these frames of the episode."""
        file, camera = pages.file, self._camera
        if pages.names.count(camera.name) != 1:
            raise DatasetError(f"{file}: has no single column '{camera.name}': write the file again")
        if group >= pages.parquet.num_row_groups:
            raise DatasetError(f"{file}: has fewer rows than the metadata says: fetch the file again")
        if (encoded := pages.read(group, f"{camera.name}.bytes", rows.tolist())) is not None:
            return decode_frames(camera, file, episode, frames, encoded)
        array = self._groups.take((file, group))
        if array is None:
            table = pages.parquet.read_row_group(group, columns=[camera.name], use_threads=False)
            array = table.column(camera.name).combine_chunks()
        self._groups.put((file, group), array)
        return image_frames(camera, file, episode, frames, array.take(pa.array(rows)))
