"""The files of a v3.0 data set that grows by segments (`chunkrl.data.file_segments`): paths, recovery, merging."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chunkrl.data import file_segments as sg
from chunkrl.data.file_segments import Segment, VideoEncoding
from chunkrl.data.video_copy import VideoFormat
from chunkrl.errors import DatasetError
from chunkrl.files.atomic import replace_file

CHUNKS_SIZE = 1000
DATA_LIMIT_MB = 100
VIDEO_LIMIT_MB = 200
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{_FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{_FILE}.mp4"
EPISODES_PATH = f"meta/episodes/{_FILE}.parquet"
_MARK = b"chunkrl"


class DatasetFiles:
    """Where the segments of the data set at `root` lie.

    image_keys: cameras in the data file. video_keys: cameras with an mp4 of their own, encoded as `video` says or
    copied (`new_row`).

    Attributes:
        segments: in the order of their episodes.
    """

    def __init__(
        self,
        root: Path,
        fps: float,
        image_keys: Sequence[str],
        video_keys: Sequence[str],
        video: VideoEncoding,
    ) -> None:
        self.root = root
        self.segments: list[Segment] = []
        self.image_keys = tuple(image_keys)
        self.video_keys = tuple(video_keys)
        self._fps = fps
        settings = {"video": asdict(video), "libav": av.library_versions} if video_keys else {}
        self._settings: dict[str, Any] = {"segment": 1} | settings

    @property
    def next_index(self) -> int:
        """Index of the segment that the next episode makes."""
        return max((segment.index for segment in self.segments), default=-1) + 1

    def _path(self, template: str, index: int, key: str = "") -> Path:
        chunk, file = divmod(index, CHUNKS_SIZE)
        return self.root / template.format(chunk_index=chunk, file_index=file, video_key=key)

    def data_path(self, index: int) -> Path:
        """The data file of segment `index`."""
        return self._path(DATA_PATH, index)

    def video_path(self, index: int, key: str) -> Path:
        """The mp4 of camera `key` of segment `index`."""
        return self._path(VIDEO_PATH, index, key)

    def episodes_path(self, index: int) -> Path:
        """The file of `meta/episodes` of segment `index`."""
        return self._path(EPISODES_PATH, index)

    def new_row(self, row: Mapping[str, Any], copied: Mapping[str, VideoFormat]) -> pa.Table:
        """A row of `meta/episodes` for the next segment: `row` with the places of its files put in.

        row: episode_index, tasks, length, dataset_from_index, dataset_to_index, then the statistics. copied: the
        formats of the cameras whose packets were copied.
        """
        places: dict[str, Any] = {"data/chunk_index": 0, "data/file_index": 0}
        for key in self.video_keys:
            places |= {f"videos/{key}/{name}": 0 for name in ("chunk_index", "file_index")}
            places |= {f"videos/{key}/{name}": 0.0 for name in ("from_timestamp", "to_timestamp")}
        plain = {name: value for name, value in row.items() if not name.startswith("stats/")}
        statistics = {name: value for name, value in row.items() if name.startswith("stats/")}
        ends = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        table = pa.table(
            {
                name: pa.array([value], _arrow_type(value))
                for name, value in (plain | places | statistics | ends).items()
            }
        )
        # Packets of another encoder build, format or settings must not share a file: they need other headers.
        formats = {key: asdict(format_) for key, format_ in copied.items()}
        mark = json.dumps(self._settings | ({"copied": formats} if formats else {})).encode()
        table = table.replace_schema_metadata({_MARK: mark})
        return sg.join_episode_rows([table], self.next_index, CHUNKS_SIZE, self._fps)

    def write_rows(self, index: int, table: pa.Table) -> None:
        """Write the file of `meta/episodes` of segment `index`."""
        with replace_file(self.episodes_path(index)) as path:
            pq.write_table(table, path)

    def add(self, num_frames: int) -> None:
        """Count the next segment, whose files are there, as a committed episode."""
        index = self.next_index
        mark = pq.read_schema(self.episodes_path(index)).metadata[_MARK]
        self.segments.append(Segment(index, 1, num_frames, self._size(index), mark))

    def _size(self, index: int) -> float:
        """The fullest file of a segment as a fraction of its limit."""
        parquet = max(self.data_path(index).stat().st_size, self.episodes_path(index).stat().st_size)
        videos = [self.video_path(index, key).stat().st_size for key in self.video_keys]
        return max(parquet / (DATA_LIMIT_MB * 2**20), max(videos, default=0) / (VIDEO_LIMIT_MB * 2**20))

    def merge(self, everything: bool) -> None:
        """Join the last segments where `segments.merge_range` says so. Safe against a kill at any instant."""
        first = sg.merge_range(self.segments, everything)
        run = self.segments[first:]
        if len(run) < 2:
            return
        target = run[0].index
        with replace_file(self.data_path(target)) as path:
            sources = [(self.data_path(s.index), s.num_episodes) for s in run]
            sg.join_tables(sources, path, self.image_keys)
        for key in self.video_keys:
            with replace_file(self.video_path(target, key)) as path:
                sources = [(self.video_path(s.index, key), s.num_frames) for s in run]
                sg.join_videos(sources, path, self._fps)
        rows = [pq.read_table(self.episodes_path(s.index)).slice(0, s.num_episodes) for s in run]
        self.write_rows(target, sg.join_episode_rows(rows, target, CHUNKS_SIZE, self._fps))
        episodes, frames = sum(s.num_episodes for s in run), sum(s.num_frames for s in run)
        self.segments[first:] = [Segment(target, episodes, frames, self._size(target), run[0].mark)]
        for segment in run[1:]:
            self._delete(segment.index)

    def _delete(self, index: int) -> None:
        # The rows last: they are how a later session finds files that this one could not delete any more.
        self.data_path(index).unlink(missing_ok=True)
        for key in self.video_keys:
            self.video_path(index, key).unlink(missing_ok=True)
        self.episodes_path(index).unlink(missing_ok=True)

    def recover(self, total_episodes: int) -> list[pa.Table]:
        """Find the segments of the first `total_episodes` episodes, remove what lies beyond; each one's rows.

        The tables' types differ where LeRobot went on: 0.6 has the extremes of a bool column as numbers.

        Raises:
            DatasetError: the rows of `meta/episodes` disagree with `total_episodes`.
        """
        kept: list[pa.Table] = []
        leftover: list[int] = []
        known = 0
        for path in sorted(self.root.glob("meta/episodes/*/*.parquet")):
            table = pq.read_table(path)
            episodes = table["episode_index"].to_numpy()
            index = int(path.parent.name.removeprefix("chunk-")) * CHUNKS_SIZE + int(
                path.stem.removeprefix("file-")
            )
            end = min(known + len(episodes), total_episodes)
            if end > known and np.array_equal(episodes, np.arange(known, end)):
                self.segments.append(self._segment(index, table))
                kept.append(table)
                known = end
            elif (episodes >= total_episodes).all() or (episodes < known).all():
                leftover.append(index)
            else:
                raise DatasetError(
                    f"{path}: episodes {episodes.tolist()[:5]}... where {known} is next; restore meta/"
                )
        if known != total_episodes:
            raise DatasetError(
                f"{self.root}/meta/episodes lists {known} episodes, info.json {total_episodes}"
            )
        used = set().union(*(_indices(table) for table in kept)) if kept else set()
        for index in (*leftover, self.next_index):
            if index in used:
                raise DatasetError(
                    f"{self.episodes_path(index)}: rows of no episode over files in use; restore meta/"
                )
            self._delete(index)
        return kept

    def _segment(self, index: int, table: pa.Table) -> Segment:
        """A segment found on disk; it may be merged only if it is a whole one of this project's."""
        frames = int(table["length"].to_numpy().sum())
        mark = (table.schema.metadata or {}).get(_MARK)
        if mark is None or _indices(table) != {index}:
            return Segment(max(_indices(table) | {index}), table.num_rows, frames, 1.0, None)
        return Segment(index, table.num_rows, frames, self._size(index), mark)


_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def _arrow_type(value: Any) -> pa.DataType:
    """What pyarrow infers for a scalar or nested lists of one kind; it tries to import dateutil each time it infers,
    which took half of an episode's time."""
    if isinstance(value, list):
        return pa.list_(_arrow_type(value[0]) if value else pa.null())
    return _SCALARS[type(value)]


def _indices(table: pa.Table) -> set[int]:
    """All segment indices that rows of `meta/episodes` point to with their data and video columns."""
    names = [n.removesuffix("chunk_index") for n in table.schema.names if n.endswith("/chunk_index")]
    result: set[int] = set()
    for name in names:
        if not name.startswith("meta/"):
            chunk, file = table[f"{name}chunk_index"].to_numpy(), table[f"{name}file_index"].to_numpy()
            result |= set((chunk * CHUNKS_SIZE + file).tolist())
    return result
