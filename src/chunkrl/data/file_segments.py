"""The files of a growing v3.0 data set: when they are merged, and how they are encoded and joined.

A *segment* is a run of whole episodes with one data file, one file of `meta/episodes` and one mp4 per camera,
all under the same chunk and file index. A new episode is a new segment. Merging joins the last segments into
the first of them, and `merge_range` chooses so that a byte is copied O(log(file limit / episode size)) times,
not once per later episode: merging waits for `LEAVES` single-episode segments, and then takes in an earlier
segment only while that is no larger than everything after it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from chunkrl.errors import DatasetError

LEAVES = 8
VIDEO_CODECS = {"libsvtav1": "av1", "libx264": "h264", "libx265": "hevc"}


@dataclass(frozen=True)
class Segment:
    """index: chunk index * chunks_size + file index. size: its fullest file as a fraction of the limit.

    mark: how its files are encoded, as this project wrote it beside them; files of one mark may share one. None:
    written by others, whose files are never rewritten.
    """

    index: int
    num_episodes: int
    num_frames: int
    size: float
    mark: bytes | None


def merge_range(segments: Sequence[Segment], everything: bool) -> int:
    """Position of the first segment of the run to merge (`len(segments) - 1` or more: nothing to merge).

    everything: merge as much of the tail as one file may hold (at the end of a session).
    """
    leaves = 0
    while leaves < min(LEAVES, len(segments)) and segments[-1 - leaves].num_episodes == 1:
        leaves += 1
    if not segments or (leaves < LEAVES and not everything):
        return len(segments)
    first, total = len(segments) - 1, segments[-1].size
    while first > 0 and segments[first].mark is not None and segments[first - 1].mark == segments[first].mark:
        previous = segments[first - 1].size
        is_leaf = len(segments) - first < leaves
        if total + previous > 1 or not (everything or is_leaf or previous <= total):
            break
        first, total = first - 1, total + previous
    return first


def file_rate(fps: float) -> Fraction:
    """fps as the exact rate of a video file."""
    return Fraction(fps).limit_denominator(1001)


def check_rate(fps: float, has_videos: bool) -> None:
    """Raises DatasetError where a data set cannot have so many frames per second."""
    if not fps > 0 or (has_videos and abs(float(file_rate(fps)) / fps - 1) > 1e-9):
        raise DatasetError(f"fps {fps}: a positive number, for videos a ratio such as 30 or 30000 / 1001")


@dataclass(frozen=True)
class VideoEncoding:
    """How cameras of dtype "video" are encoded; the defaults are LeRobot 0.4.4's.

    codec: an FFmpeg encoder of `VIDEO_CODECS`. gop: frames from key frame to key frame. crf: lower is better.
    preset: the encoder's own name or number of its speed. threads: encoder threads, 0 for its choice.
    """

    codec: str = "libsvtav1"
    pixel_format: str = "yuv420p"
    gop: int = 2
    crf: int = 30
    preset: str = ""
    threads: int = 0

    def __post_init__(self) -> None:
        if self.codec not in VIDEO_CODECS:
            raise DatasetError(f"video codec '{self.codec}' is not one of {', '.join(VIDEO_CODECS)}")
        if self.codec not in av.codecs_available:
            raise DatasetError(
                f"this build of PyAV has no encoder '{self.codec}': use another of {list(VIDEO_CODECS)}"
            )

    def options(self) -> dict[str, str]:
        """FFmpeg options of the encoder."""
        preset = self.preset or {"libsvtav1": "12"}.get(self.codec, "medium")
        options = {"g": str(self.gop), "crf": str(self.crf), "preset": preset}
        if self.threads:
            key = "svtav1-params" if self.codec == "libsvtav1" else "threads"
            options[key] = f"lp={self.threads}" if self.codec == "libsvtav1" else str(self.threads)
        return options

    def describe(self, shape: tuple[int, ...], fps: float) -> dict[str, Any]:
        """The "info" of a camera of `shape` (height, width, 3) in `meta/info.json`."""
        return describe_video(VIDEO_CODECS[self.codec], self.pixel_format, shape, fps)


def describe_video(codec: str, pixel_format: str, shape: tuple[int, ...], fps: float) -> dict[str, Any]:
    """The "info" of a camera of `shape` (height, width, 3) in `meta/info.json`."""
    return {
        "video.height": shape[0],
        "video.width": shape[1],
        "video.codec": codec,
        "video.pix_fmt": pixel_format,
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }


def encode_video(frames: Sequence[Image.Image], path: Path, fps: float, encoding: VideoEncoding) -> None:
    """Encode RGB frames to an mp4 at `path`; frame i is shown at i / fps seconds."""
    os.environ.setdefault(
        "SVT_LOG", "1"
    )  # Errors only: the encoder prints thirty lines an episode otherwise.
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream(encoding.codec, rate=file_rate(fps), options=encoding.options())
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = encoding.pixel_format
        for image in frames:
            output.mux(stream.encode(av.VideoFrame.from_image(image)))
        output.mux(stream.encode(None))


def join_videos(sources: Sequence[tuple[Path, int]], target: Path, fps: float) -> None:
    """Put the first n frames of each (mp4, n) one after the other into `target`, packets copied unchanged.

    A file may hold more than n frames where an earlier merge was interrupted; what follows is not its own.
    """
    with av.open(str(target), "w", format="mp4") as output:
        stream, done = None, 0
        for path, num_frames in sources:
            with av.open(str(path)) as source:
                template = source.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(template, opaque=True)
                base = template.time_base or Fraction(1)
                shift = round(done / file_rate(fps) / base)
                copied = 0
                for packet in source.demux(template):
                    if packet.dts is None or packet.pts is None or copied == num_frames:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    output.mux(packet)
                    copied += 1
            if copied != num_frames:
                raise DatasetError(
                    f"{path} has {copied} frames where {num_frames} are expected: restore the file"
                )
            done += num_frames


def join_tables(sources: Sequence[tuple[Path, int]], target: Path, binary_columns: Sequence[str]) -> None:
    """Put the first n row groups (n episodes) of each (parquet file, n) into `target`, one at a time."""
    with pq.ParquetFile(sources[0][0]) as first:
        schema = first.schema_arrow
    with pq.ParquetWriter(target, schema, **parquet_options(schema, binary_columns)) as writer:
        for path, num_groups in sources:
            with pq.ParquetFile(path) as source:
                for group in range(num_groups):
                    writer.write_table(source.read_row_group(group))


def parquet_options(schema: pa.Schema, binary_columns: Sequence[str]) -> dict[str, Any]:
    """Writer options: no dictionary, no min/max and no further compression for encoded images.

    A reader of one image looks at the header of every page before its own, once per file, and at the length of every
    image before its own in the page; of compressed pages it would have to decompress the whole. The writer looks
    after every `write_batch_size` values whether a page is full: so 8 images get a page, small ones share it.
    """
    plain = [name for name in schema.names if name not in binary_columns]
    options: dict[str, Any] = {"use_dictionary": plain, "write_statistics": plain}
    if binary_columns:
        options |= {"compression": "none", "write_batch_size": 8, "data_page_size": 32 * 2**10}
    return options


def join_episode_rows(tables: Sequence[pa.Table], index: int, chunks_size: int, fps: float) -> pa.Table:
    """Rows of `meta/episodes` of several segments, all pointing to the files of segment `index`."""
    table = pa.concat_tables(tables).combine_chunks()
    chunk, file = divmod(index, chunks_size)
    ends = np.cumsum(table["length"].to_numpy())
    starts = ends - table["length"].to_numpy()
    values = {
        "chunk_index": np.full(len(ends), chunk, np.int64),
        "file_index": np.full(len(ends), file, np.int64),
        "from_timestamp": starts / fps,
        "to_timestamp": ends / fps,
    }
    for position, name in enumerate(table.schema.names):
        kind = name.rpartition("/")[2]
        if kind in values and not name.startswith("stats/"):
            table = table.set_column(position, table.schema.field(name), pa.array(values[kind]))
    return table
