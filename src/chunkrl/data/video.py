"""Frames of an mp4 by time (PyAV)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av import CodecContext, VideoFrame
from av.container import InputContainer
from av.error import FFmpegError

from chunkrl.data.parquet import reading
from chunkrl.errors import DatasetError


def frames_at(
    file: Path, times: np.ndarray, tolerance: float, size: tuple[int, int], alone: bool
) -> Iterator[np.ndarray]:
    """Decodes the frame nearest to each time.

    Args:
        file: a video file.
        times: float64 [n], seconds in the file, increasing.
        tolerance: seconds that a frame may lie from its time; half a frame's duration finds a lost frame.
        size: (height, width) that every frame must have.
        alone: the file must end with the last of these frames.

    Yields:
        n pictures, uint8 RGB [height, width, 3].

    Raises:
        DatasetError: the file is missing or damaged, is too long, or has no frame near a time.
    """
    with reading(file, FFmpegError), av.open(str(file), metadata_errors="ignore") as container:
        # A video may have more frames a second than the data set: those of the last period are its own.
        end = times[-1] + 1.9 * tolerance if alone else math.inf
        frames = _frames_from(container, file, times[0] - tolerance, end)
        for time, (found, frame) in zip(times, _nearest(frames, times), strict=True):
            if frame is None or abs(found - time) > tolerance:
                nearest = "it has no more" if frame is None else f"the nearest is at {found:.4f} s"
                raise DatasetError(f"{file}: no frame at {time:.4f} s ({nearest}): fetch or record it again")
            if (frame.height, frame.width) != size:
                raise DatasetError(
                    f"{file}: the frame at {found:.4f} s is {frame.height} x {frame.width}, "
                    f"meta/info.json says {size[0]} x {size[1]}: correct one"
                )
            if frame.is_corrupt:
                raise DatasetError(f"{file}: the frame at {found:.4f} s is damaged: fetch or record it again")
            yield frame.to_ndarray(format="rgb24")
        if alone:
            deque(frames, maxlen=0)  # the rest, for the check of its times


def _frames_from(
    container: InputContainer, file: Path, start: float, end: float
) -> Iterator[tuple[float, VideoFrame]]:
    """Decoded frames with their times, from a key frame at or before `start` on; none may be after `end`."""
    if not container.streams.video:
        raise DatasetError(f"{file} has no video stream: fetch or record it again")
    stream = container.streams.video[0]
    decoder: CodecContext | None = stream.codec_context  # PyAV's types hide the None of unknown codecs
    if stream.time_base is None or decoder is None:
        raise DatasetError(f"{file}: its video has no time base or an unknown codec: record it again")
    # Episodes are decoded side by side, so one decoder takes one thread; damage is an error, not concealed.
    decoder.thread_count = 1
    decoder.options = {"err_detect": "explode"}
    container.seek(max(0, int(start / stream.time_base)), stream=stream)
    for frame in container.decode(stream):
        if frame.pts is None:
            raise DatasetError(f"{file}: a frame has no time: record it again")
        time = float(frame.pts * stream.time_base)
        if time > end:
            raise DatasetError(
                f"{file}: has a frame at {time:.4f} s, after the episode's end: "
                "fetch it again or correct the episode's length"
            )
        yield time, frame


def _nearest(
    frames: Iterator[tuple[float, VideoFrame]], times: np.ndarray
) -> Iterator[tuple[float, VideoFrame | None]]:
    """For each time the nearest frame, or None where there is no frame at all; reads one frame ahead."""
    best, frame = -np.inf, None
    following = next(frames, None)
    for time in times:
        while following is not None and abs(following[0] - time) <= abs(best - time):
            best, frame = following
            following = next(frames, None)
        yield best, frame
