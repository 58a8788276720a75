"""Frames of an mp4 by time (PyAV)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from chunkrl.data.parquet import reading
from chunkrl.errors import DatasetError


def frames_at(file: Path, times: np.ndarray, tolerance: float, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Decodes the frame nearest to each time.

    Args:
        file: a video file.
        times: float64 [n], seconds in the file, increasing.
        tolerance: seconds that a frame may lie from its time; half a frame's duration finds a lost frame.
        size: (height, width) that every frame must have.

    Yields:
        n pictures, uint8 RGB [height, width, 3].

    Raises:
        DatasetError: the file is missing or damaged, or has no frame near a time.
    """
    with reading(file, FFmpegError), av.open(str(file), metadata_errors="ignore") as container:
        if not container.streams.video:
            raise DatasetError(f"{file} has no video stream: fetch or record it again")
        yield from _matched(container, file, times, tolerance, size)


def _matched(
    container: InputContainer,
    file: Path,
    times: np.ndarray,
    tolerance: float,
    size: tuple[int, int],
) -> Iterator[np.ndarray]:
    stream = container.streams.video[0]
    if stream.time_base is None:
        raise DatasetError(f"{file}: its video has no time base: record it again")
    # Episodes are decoded side by side, so one decoder takes one thread; damage is an error, not concealed.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode"}
    container.seek(max(0, int((times[0] - tolerance) / stream.time_base)), stream=stream)
    wanted = 0
    best: av.VideoFrame | None = None
    best_time = -np.inf

    def picture() -> np.ndarray:
        time = times[wanted]
        if best is None or abs(best_time - time) > tolerance:
            nearest = "it ends before" if best is None else f"the nearest is at {best_time:.4f} s"
            raise DatasetError(f"{file}: no frame at {time:.4f} s ({nearest}): fetch or record it again")
        if best.is_corrupt:
            raise DatasetError(f"{file}: the frame at {best_time:.4f} s is damaged: fetch or record it again")
        if (best.height, best.width) != size:
            raise DatasetError(
                f"{file}: the frame at {best_time:.4f} s is {best.height} x {best.width}, "
                f"meta/info.json says {size[0]} x {size[1]}: correct one"
            )
        return best.to_ndarray(format="rgb24")

    for frame in container.decode(stream):
        if frame.pts is None:
            raise DatasetError(f"{file}: a frame has no time: record it again")
        time = float(frame.pts * stream.time_base)
        # A frame further from the wanted time than the one before it: that one was the nearest.
        while wanted < len(times) and abs(time - times[wanted]) > abs(best_time - times[wanted]):
            yield picture()
            wanted += 1
        if wanted == len(times):
            return
        best, best_time = frame, time
    while wanted < len(times):
        yield picture()
        wanted += 1
