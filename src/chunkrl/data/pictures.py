"""A camera's pictures as they are decoded from a data set's files: parquet (PNG, JPEG) or mp4."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from av.error import FFmpegError
from deflate import DeflateError
from PIL import Image

from chunkrl.data.formats import DatasetDescription, Episode, image_size
from chunkrl.data.png import SIGNATURE, check_png, decode_plain
from chunkrl.data.resize import Resize
from chunkrl.data.video import VideoFile
from chunkrl.errors import DatasetError

_DECODER_ERRORS = (FFmpegError, DeflateError, zlib.error, struct.error)
_DAMAGE = (*_DECODER_ERRORS, OSError, SyntaxError, ValueError, EOFError, MemoryError)


@dataclass(frozen=True)
class Camera:
    """A camera to decode. timestamps: [N], seconds from the episode's start."""

    description: DatasetDescription
    name: str
    timestamps: np.ndarray
    resize: Resize | None = None

    def __post_init__(self) -> None:
        if self.name not in self.description.cameras:
            known = ", ".join(self.description.cameras) or "none"
            raise DatasetError(
                f"{self.description.root}: no camera '{self.name}' in the column mapping; cameras: {known}"
            )

    @property
    def is_video(self) -> bool:
        """Whether the pictures are in mp4 files."""
        return self.description.features[self.name].dtype == "video"

    @property
    def recorded_size(self) -> tuple[int, int]:
        """(height, width) in the files."""
        size = image_size(self.description.features[self.name])
        assert size is not None, "describe() admits RGB cameras only"
        return size

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as given to the user."""
        return self.recorded_size if self.resize is None else (self.resize.height, self.resize.width)

    def finish(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB [height, width, 3] as recorded -> [3, height, width] at the user's size."""
        return (picture if self.resize is None else self.resize(picture)).transpose(2, 0, 1)


def num_workers() -> int:
    """Threads to decode with: the processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def video_frames(
    camera: Camera, episode: Episode, frames: np.ndarray | None = None, video: VideoFile | None = None
) -> Iterator[np.ndarray]:
    """Pictures of an episode as recorded, uint8 RGB [height, width, 3].

    Args:
        frames: int [n], which ones, increasing; None: all, and that there are no more is checked.
        video: the episode's file, already open.

    Raises:
        DatasetError: names file, episode and camera.
    """
    span = episode.videos[camera.name]
    where = f"episode {episode.index}, camera '{camera.name}'"
    rows = slice(episode.start, episode.start + episode.length)
    times = camera.timestamps[rows].astype(np.float64) + span.from_timestamp
    half_frame = 0.5 / camera.description.fps
    if span.to_timestamp is not None and times[-1] > span.to_timestamp - half_frame:
        raise DatasetError(
            f"{span.file}, {where}: the metadata ends it at {span.to_timestamp:.4f} s, "
            f"but its last frame is at {times[-1]:.4f} s: correct the metadata or fetch it again"
        )
    alone = frames is None and span.to_timestamp is None
    chosen = times if frames is None else times[frames]
    try:
        if video is not None:
            yield from video.frames_at(chosen, half_frame, camera.recorded_size, alone)
            return
        with VideoFile(span.file) as opened:
            yield from opened.frames_at(chosen, half_frame, camera.recorded_size, alone)
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from error


def image_frames(
    camera: Camera, file: Path, episode: Episode, frames: Sequence[int] | range, column: pa.Array
) -> Iterator[np.ndarray]:
    """Decodes `column`, struct<bytes, path> with these frames of the episode, as recorded.

    Raises:
        DatasetError: names file, episode, frame and camera.
    """
    kind = column.type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DatasetError(
            f"{file}: camera '{camera.name}' holds {kind}, expected struct<bytes, path>: write the file again"
        )
    values = column.flatten()[kind.get_field_index("bytes")]
    is_binary = pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)
    encoded = (
        memoryview(value.as_buffer()).cast("B") if is_binary and value.is_valid else None for value in values
    )
    return decode_frames(camera, file, episode, frames, encoded)


def decode_frames(
    camera: Camera,
    file: Path,
    episode: Episode,
    frames: Sequence[int] | range,
    encoded: Iterable[memoryview | None],
) -> Iterator[np.ndarray]:
    """Decodes these frames of the episode, as recorded. encoded: the PNG or JPEG file of each.

    Raises:
        DatasetError: names file, episode, frame and camera.
    """
    size = camera.recorded_size
    for frame, content in zip(frames, encoded, strict=True):
        try:
            yield decode_picture(content, size)
        except DatasetError as error:
            where = f"{file}, episode {episode.index}, frame {frame}"
            raise DatasetError(f"{where}, camera '{camera.name}': {error}") from error


def decode_picture(data: bytes | memoryview | None, size: tuple[int, int]) -> np.ndarray:
    """Decodes a PNG or JPEG file to uint8 RGB [height, width, 3].

    Raises:
        DatasetError: it is damaged, of another size or not RGB; the message does not name the place.
    """
    if data is None:
        raise DatasetError("the picture's bytes are not in the parquet file: embed them")
    try:
        if data[: len(SIGNATURE)] == SIGNATURE:
            header = check_png(data)
            if header.is_plain and header.size == size:
                return decode_plain(header)
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            found = (image.height, image.width, image.mode)
            if found == (*size, "RGB"):
                image.verify()  # check sums, which decoding skips; ends this reading
        if found == (*size, "RGB"):
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                return np.asarray(image)
    except _DAMAGE as error:
        raise DatasetError(f"the picture is damaged ({error}): write the file again") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"the picture is not of {size[0]} x {size[1]} pixels ({error}): correct it"
        ) from error
    raise DatasetError(
        f"the picture is {found[0]} x {found[1]} {found[2]}, "
        f"meta/info.json says {size[0]} x {size[1]} RGB: correct one"
    )
