"""Episodes of an mp4 copied without decoding: packet by packet, where a key frame begins them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.packet import Packet

from chunkrl.data.file_segments import describe_video
from chunkrl.data.formats import DatasetDescription, Episode
from chunkrl.data.parquet import reading
from chunkrl.errors import DatasetError

TIME_TOLERANCE = 5e-5  # seconds; LeRobot refuses frames that lie 1e-4 from their time


@dataclass(frozen=True)
class VideoFormat:
    """What packets of several files must share to stand in one: codec, pixels, size and the decoder's header."""

    codec: str
    pixel_format: str
    size: tuple[int, int]
    header: str

    def describe(self, shape: tuple[int, ...], fps: float) -> dict[str, Any]:
        """The "info" of a camera of `shape` (height, width, 3) in `meta/info.json`."""
        return describe_video(self.codec, self.pixel_format, shape, fps)


@dataclass(frozen=True)
class EncodedVideo:
    """An episode's images with the packets that they were decoded from.

    images: uint8 RGB [T, height, width, 3], or how many they are where nobody looks at them. file, start: the mp4,
    and the time of the first of them in it, seconds. format: of the packets.
    """

    pictures: np.ndarray | int
    file: Path
    start: float
    format: VideoFormat

    @property
    def num_frames(self) -> int:
        """T."""
        return self.pictures if isinstance(self.pictures, int) else len(self.pictures)


def packet_formats(
    description: DatasetDescription, camera: str, timestamps: np.ndarray
) -> list[VideoFormat] | None:
    """The format of a video camera's packets, an episode; None where not every one can be copied (then encode again).

    They can where images have one size, an episode begins with a key frame, its packets are its frames alone, and
    these are as far apart as `fps` says. timestamps: [N], seconds from the episode's start.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    formats: dict[Path, VideoFormat] = {}
    for episode in description.episodes:
        span = episode.videos[camera]
        if span.file not in formats:
            formats[span.file] = _format(span.file)
        own = timestamps[episode.start : episode.start + episode.length]
        even = np.abs(own - np.arange(episode.length) / description.fps).max() < 0.25 / description.fps
        if not even or _packets_of(span.file, episode, span.from_timestamp, description.fps) is None:
            return None
    found = [formats[episode.videos[camera].file] for episode in description.episodes]
    return found if len({format_.size for format_ in found}) == 1 else None


def copy_video(video: EncodedVideo, target: Path, fps: float) -> None:
    """Writes the packets of the video's frames to `target`, the first at 0 seconds.

    Raises:
        DatasetError: the file is missing or damaged, or cannot be copied from (see `packet_formats`).
    """
    num_frames = video.num_frames
    with reading(video.file, FFmpegError), av.open(str(video.file)) as source:
        template = source.streams.video[0]
        packets = _select(source, template, video.start, num_frames, fps)
        if packets is None:
            raise DatasetError(
                f"{video.file}: no key frame begins the {num_frames} frames from {video.start:.4f} s: "
                "encode them again"
            )
        with av.open(str(target), "w", format="mp4") as output:
            stream = output.add_stream_from_template(template, opaque=True)
            shift = round(video.start / template.time_base)
            for packet in packets:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                output.mux(packet)


def _format(file: Path) -> VideoFormat:
    with reading(file, FFmpegError), av.open(str(file)) as container:
        if not container.streams.video:
            raise DatasetError(f"{file} has no video stream: fetch or record it again")
        context = container.streams.video[0].codec_context
        header = hashlib.sha256(context.extradata or b"").hexdigest()
        codec = context.codec.canonical_name
        return VideoFormat(codec, str(context.pix_fmt), (context.height, context.width), header)


def _packets_of(file: Path, episode: Episode, start: float, fps: float) -> list[Packet] | None:
    with reading(file, FFmpegError), av.open(str(file)) as container:
        return _select(container, container.streams.video[0], start, episode.length, fps)


def _select(container: Any, stream: Any, start: float, num_frames: int, fps: float) -> list[Packet] | None:
    """The packets of `num_frames` frames from `start` seconds on, in the file's order; None where they are not the
    next ones after a key frame there, one each 1 / fps."""
    container.seek(max(0, round(start / stream.time_base)), stream=stream)
    packets = _first(container.demux(stream), start - TIME_TOLERANCE, float(stream.time_base), num_frames)
    times = np.array([float(packet.pts * stream.time_base) for packet in packets])
    if len(packets) < num_frames or not packets[0].is_keyframe or abs(times[0] - start) > TIME_TOLERANCE:
        return None
    expected = start + np.arange(num_frames) / fps
    return packets if np.abs(np.sort(times) - expected).max() < TIME_TOLERANCE else None


def _first(packets: Iterable[Packet], start: float, time_base: float, num_frames: int) -> list[Packet]:
    found: list[Packet] = []
    for packet in packets:
        if packet.pts is None or packet.dts is None:
            continue
        if not found and packet.pts * time_base < start:
            continue
        found.append(packet)
        if len(found) == num_frames:
            break
    return found
