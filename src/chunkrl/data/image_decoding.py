"""A camera's images as they are decoded from a data set's files: parquet (PNG, JPEG, WebP) or mp4."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from av.error import FFmpegError
from deflate import DeflateError
from PIL import Image, UnidentifiedImageError

from chunkrl.data.checks import late_start
from chunkrl.data.formats import DatasetDescription, Episode, image_size
from chunkrl.data.png import SIGNATURE, check_png, decode_plain
from chunkrl.data.resize import Resize
from chunkrl.data.video import VideoFile
from chunkrl.errors import DatasetError

READ_FORMATS = "PNG, JPEG and WebP"
_FORMATS = ("PNG", "JPEG", "WEBP")
_OWN = {SIGNATURE[:4]: "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP"}
_OTHERS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"qoif": "QOI",
    b"P5": "PGM",
    b"P6": "PPM",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xffO\xffQ": "JPEG 2000",
    b"\x93NUMPY": "NumPy",
}
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
        """Whether the images are in mp4 files."""
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
    """Images of an episode as recorded, uint8 RGB [height, width, 3].

    Args:
        frames: int [n], which ones, increasing; None: all. That a file of this episode alone has no more, and no
            fewer, is checked: by decoding all, or by what the file says.
        video: the episode's file, already open.

    Raises:
        DatasetError: names file, episode and camera.
    """
    span, fps = episode.videos[camera.name], camera.description.fps
    where = f"episode {episode.index}, camera '{camera.name}'"
    rows = slice(episode.start, episode.start + episode.length)
    own = camera.timestamps[rows].astype(np.float64)
    times, half_frame = own + span.from_timestamp, 0.5 / fps
    alone = frames is None and span.to_timestamp is None
    chosen = times if frames is None else times[frames]
    try:
        with nullcontext(video) if video is not None else VideoFile(span.file) as opened:
            end = opened.end if span.to_timestamp is None else span.to_timestamp - 2 * half_frame
            opened.check_rate(fps, episode.length)
            if end is not None and times[-1] > end + half_frame:
                rates = f" (its video has {opened.rate:.6g} frames per second, meta/info.json says {fps:g})"
                raise DatasetError(
                    f"{span.file}: ends at {end:.6g} s, the episode's last frame is at {round(times[-1], 4):.14g} s"
                    f"{rates if abs(opened.rate / fps - 1) > 1e-4 else ''}: correct the timestamps or the metadata, "
                    "or fetch it again"
                )
            if frames is not None and span.to_timestamp is None:
                opened.check_whole(times, half_frame)
            yield from opened.frames_at(chosen, half_frame, camera.recorded_size, alone)
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}{late_start(own, fps)}") from error


def image_frames(
    camera: Camera, file: Path, episode: Episode, frames: Sequence[int] | range, column: pa.Array
) -> Iterator[np.ndarray]:
    """Decodes `column`, struct<bytes, path> with these frames of the episode, as recorded.

    Raises:
        DatasetError: names file, episode, frame and camera.
    """
    kind = column.type
    values = column.flatten()[kind.get_field_index("bytes")] if _has_bytes(kind) else None
    is_binary = values is not None and (
        pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)
    )
    if values is None or not (is_binary or pa.types.is_null(values.type)):
        raise DatasetError(
            f"{file}: camera '{camera.name}' holds {kind}, expected struct<bytes, path> with the bytes of "
            f"{READ_FORMATS} files: write the file again"
        )
    encoded = (
        memoryview(value.as_buffer()).cast("B") if is_binary and value.is_valid else None for value in values
    )
    return decode_frames(camera, file, episode, frames, encoded)


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def decode_frames(
    camera: Camera,
    file: Path,
    episode: Episode,
    frames: Sequence[int] | range,
    encoded: Iterable[memoryview | None],
) -> Iterator[np.ndarray]:
    """Decodes these frames of the episode, as recorded. encoded: the image file of each.

    Raises:
        DatasetError: names file, episode, frame and camera.
    """
    size = camera.recorded_size
    for frame, content in zip(frames, encoded, strict=True):
        try:
            yield decode_image(content, size)
        except DatasetError as error:
            where = f"{file}, episode {episode.index}, frame {frame}"
            raise DatasetError(f"{where}, camera '{camera.name}': {error}") from error


def decode_image(data: bytes | memoryview | None, size: tuple[int, int]) -> np.ndarray:
    """Decodes a PNG, JPEG or WebP file to uint8 RGB [height, width, 3].

    Raises:
        DatasetError: it is damaged, of another format or size, or not RGB; the message does not name the place.
    """
    if data is None:
        raise DatasetError("the image's bytes are not in the parquet file: embed them")
    try:
        if data[: len(SIGNATURE)] == SIGNATURE:
            header = check_png(data)
            if header.is_plain and header.size == size:
                return decode_plain(header)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            found = (image.height, image.width, image.mode)
            if getattr(image, "n_frames", 1) > 1:
                raise DatasetError(
                    f"the image is a video of {image.n_frames} frames: write one image per frame"
                )
            if found == (*size, "RGB"):
                image.verify()  # check sums, which decoding skips; ends this reading
        if found == (*size, "RGB"):
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return np.asarray(image)
    except DatasetError:
        raise
    except UnidentifiedImageError as error:
        raise DatasetError(f"the image {_unread(bytes(data[:16]))}") from error
    except _DAMAGE as error:
        raise DatasetError(f"the image is damaged ({error}): write the file again") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"the image is not of {size[0]} x {size[1]} pixels ({error}): correct it"
        ) from error
    raise DatasetError(
        f"the image is {found[0]} x {found[1]} {found[2]}, "
        f"meta/info.json says {size[0]} x {size[1]} RGB: correct one"
    )


def _unread(start: bytes) -> str:
    """What is wrong with an image that begins like this, and what to do."""
    if not start:
        return "is damaged (empty): write the file again"
    for signature, name in _OWN.items():
        if start.startswith(signature):
            return f"is damaged (a {name} file whose header is not): write the file again"
    for signature, name in _OTHERS.items():
        if start.startswith(signature):
            return f"is a {name} file; {READ_FORMATS} are read: convert it"
    if start[4:8] == b"ftyp":  # AVIF, HEIC, ...
        name = start[8:12].decode("ascii", "replace").upper()
        return f"is a file of the kind {name}; {READ_FORMATS} are read: convert it"
    return (
        f"is of an unknown format (it begins with {start[:8].hex(' ')}); {READ_FORMATS} are read: convert it"
    )
