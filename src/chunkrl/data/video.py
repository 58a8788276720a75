"""Frames of an mp4 by time (PyAV)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av import CodecContext, VideoFrame, VideoStream
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from chunkrl.data.parquet import reading
from chunkrl.errors import DatasetError

SAME_TIME = 1e-3  # of a frame's duration: no other frame can be nearer


def rgb_pixels(frame: VideoFrame) -> np.ndarray:
    """uint8 RGB [height, width, 3] of an rgb24 frame, in the frame's own memory: nothing is copied."""
    plane: Any = frame.planes[0]  # a buffer, which PyAV's types do not say
    lines = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)
    return lines[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)


class VideoFile:
    """An open video; not for several threads at once.

    Raises:
        DatasetError: the file is missing or damaged, or has no video that can be decoded.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with reading(file, FFmpegError):
            self._container = av.open(str(file), metadata_errors="ignore")
            self._stream = self._open_stream()
        self._to_rgb = VideoReformatter()  # kept: to prepare a conversion takes longer than to convert

    @property
    def end(self) -> float | None:
        """Where its last frame ends, seconds, as the file says; None: it does not say."""
        duration, start, base = self._stream.duration, self._stream.start_time or 0, self._stream.time_base
        return None if duration is None or base is None else float((start + duration) * base)

    @property
    def num_frames(self) -> int:
        """Frames, as the file counts them; 0 where it does not."""
        return self._stream.frames

    @property
    def rate(self) -> float:
        """Frames per second, as the file says; NaN where it does not."""
        return float(self._stream.average_rate or math.nan)

    def check_rate(self, fps: float, num_frames: int) -> None:
        """Refuses a video whose frames drift away from those of a data set within `num_frames` frames.

        One with half as many again, or more, is taken for one with more frames per second than the data set, and is
        searched by time.

        Raises:
            DatasetError: names both rates.
        """
        base = self._stream.base_rate
        # A frame that is lost, or whose duration is not said, changes the average alone.
        if not base or abs(float(base) / fps - 1) < 1e-4:
            return
        drift = abs(self.rate / fps - 1) * num_frames
        if drift > 0.5 and self.rate < 1.5 * fps:
            raise DatasetError(
                f"{self.file}: its video has {self.rate:.6g} frames per second, meta/info.json says {fps:g}: correct "
                "'fps', or encode the video again"
            )

    def check_whole(self, times: np.ndarray, tolerance: float) -> None:
        """Refuses a file that, by its own index, has not the frames of these times, or goes on after them.

        times, tolerance: as `frames_at` takes them, of all that the file holds.

        Raises:
            DatasetError: what follows a frame that is lost stands too early, and nothing in the images says so.
        """
        many = self.rate > 1.5 / (2 * tolerance)  # more frames per second than the data set
        fewer = 0 < self.num_frames < len(times)
        longer = self.end is not None and self.end > times[-1] + 3.9 * tolerance
        if fewer or longer or (self.num_frames > len(times) and not many):
            raise DatasetError(
                f"{self.file}: has {self.num_frames} frames and ends at {self.end or math.nan:.6g} s, the episode "
                f"has {len(times)}: fetch or record it again, or correct the episode's length"
            )

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_stream(self) -> VideoStream:
        if not self._container.streams.video:
            raise DatasetError(f"{self.file} has no video stream: fetch or record it again")
        stream = self._container.streams.video[0]
        decoder: CodecContext | None = stream.codec_context  # PyAV's types hide the None of unknown codecs
        if stream.time_base is None or decoder is None:
            raise DatasetError(
                f"{self.file}: its video has no time base or an unknown codec: record it again"
            )
        # Episodes are decoded side by side, so one decoder takes one thread; damage is an error, not concealed.
        decoder.thread_count = 1
        decoder.options = {"err_detect": "explode"}
        return stream

    def frames_at(
        self, times: np.ndarray, tolerance: float, size: tuple[int, int], alone: bool = False
    ) -> Iterator[np.ndarray]:
        """Decodes the frame nearest to each time, from the key frame before the first to the last.

        Args:
            times: float64 [n], seconds in the file, increasing.
            tolerance: seconds that a frame may lie from its time; half a frame's duration finds a lost frame.
            size: (height, width) that every frame must have.
            alone: the file must end with the last of these frames.

        Yields:
            n images, uint8 RGB [height, width, 3].

        Raises:
            DatasetError: the file is damaged, is too long, or has no frame near a time.
        """
        with reading(self.file, FFmpegError):
            # A video may have more frames per second than the data set: those of the last period are its own.
            end = times[-1] + 1.9 * tolerance if alone else math.inf
            frames = self._frames_from(times[0], end)
            nearest_frames = _nearest(frames, times, 2 * tolerance * SAME_TIME)
            for time, (found, frame) in zip(times, nearest_frames, strict=True):
                if frame is None or abs(found - time) > tolerance:
                    nearest = "it has no more" if frame is None else f"the nearest is at {found:.4f} s"
                    raise DatasetError(
                        f"{self.file}: no frame at {time:.4f} s ({nearest}): fetch or record it again"
                    )
                if (frame.height, frame.width) != size:
                    raise DatasetError(
                        f"{self.file}: the frame at {found:.4f} s is {frame.height} x {frame.width}, "
                        f"meta/info.json says {size[0]} x {size[1]}: correct one"
                    )
                if frame.is_corrupt:
                    raise DatasetError(
                        f"{self.file}: the frame at {found:.4f} s is damaged: fetch or record it again"
                    )
                yield rgb_pixels(self._to_rgb.reformat(frame, format="rgb24"))
            if alone:
                deque(frames, maxlen=0)  # the rest, for the check of its times

    def _frames_from(self, start: float, end: float) -> Iterator[tuple[float, VideoFrame]]:
        """Decoded frames with their times, from a key frame at or before `start` on; none may be after `end`."""
        time_base = self._stream.time_base
        assert time_base is not None, "checked on opening"
        for frame in self._decoded_from(start, float(time_base)):
            if frame.pts is None:
                raise DatasetError(f"{self.file}: a frame has no time: record it again")
            time = float(frame.pts * time_base)
            if time > end:
                raise DatasetError(
                    f"{self.file}: has a frame at {time:.4f} s, after the episode's end: "
                    "fetch it again or correct the episode's length"
                )
            yield time, frame

    def _decoded_from(self, start: float, time_base: float) -> Iterator[VideoFrame]:
        """Decoded frames from one at or before `start` on, earlier ones where that is not found.

        They come from the last key frame that allows it: FFmpeg seeks by decoding time, which lies before the time
        shown where frames are reordered; and what follows a key frame may need frames before it.
        """
        back, wanted = 0.0, start / time_base
        while True:
            target = max(0, round((start - back) / time_base))
            self._container.seek(target, stream=self._stream)
            decoded = self._decoded()
            try:
                first = next(decoded, None)
                reached = deque([] if first is None else [first], maxlen=2)
                while reached and reached[-1].pts is not None and reached[-1].pts < wanted - 1:
                    if (frame := next(decoded, None)) is None:
                        break
                    reached.append(frame)
            except FFmpegError:
                if target == 0:
                    raise
                first, reached = None, deque()
            misses = first is None or first.pts is None or first.pts > wanted + 1
            if target > 0 and (misses or any(frame.is_corrupt for frame in reached)):
                back = 2 * back + 1.0
                continue
            yield from reached
            yield from decoded
            return

    def _decoded(self) -> Iterator[VideoFrame]:
        """Decoded frames from where the file stands on, without those shown before the key frame there.

        After a key frame of an open group of images such frames follow that cannot be decoded from it.
        """
        first: int | None = None
        for packet in self._container.demux(self._stream):
            if first is None:
                first = packet.pts
            if first is not None and packet.pts is not None and packet.pts < first:
                continue
            yield from packet.decode()


def _nearest(
    frames: Iterator[tuple[float, VideoFrame]], times: np.ndarray, same: float
) -> Iterator[tuple[float, VideoFrame | None]]:
    """For each time the nearest frame, or None where there is no frame at all.

    Reads one frame ahead, unless a frame lies within `same` seconds of its time."""
    best, frame = -np.inf, None
    following: tuple[float, VideoFrame] | None = None
    ended = False
    for time in times:
        while abs(best - time) > same and not ended:
            following = following or next(frames, None)
            ended = following is None
            if following is None or abs(following[0] - time) > abs(best - time):
                break
            best, frame = following
            following = None
        yield best, frame
