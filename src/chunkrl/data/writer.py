"""Write LeRobot v3.0 data sets, an episode at a time, so that a kill loses at most the episode being written.

Library considered: lerobot (as for reading; besides, its parquet files cannot be read until `finalize`, so that a
kill loses the episodes of the open file).

Order of an episode's files: data and videos, tasks, its row of `meta/episodes`, then `meta/info.json`,
whose `total_episodes` says what exists; every file is renamed into place. What lies beyond the first
`total_episodes` rows of `meta/episodes` (in file order) does not exist yet or is a copy left by an
interrupted merge: readers take the first rows, find a row's frames by its episode index, and the next
writer removes the rest. A merge (`chunkrl.data.file_segments`) takes no file away before every row points to its
successor. A byte is written about 2 + log2(file limit / 8 episodes) times while writing, and once more, at
most one file's limit, on `close`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chunkrl.data import dataset_files as df
from chunkrl.data import episode_columns as ec
from chunkrl.data import episode_stats as es
from chunkrl.data import file_segments as sg
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.file_segments import VideoEncoding
from chunkrl.data.metadata import integer
from chunkrl.data.video_copy import EncodedVideo, VideoFormat, copy_video
from chunkrl.errors import DatasetError
from chunkrl.files.atomic import remove_temporaries, replace_file, write_text
from chunkrl.files.json_files import read_json
from chunkrl.files.output_folder import WRITER_LOCK

__all__ = ["DatasetWriter", "FeatureSpec", "VideoEncoding"]


class DatasetWriter:
    """Creates a v3.0 data set at `root`, or appends to one that was written with the same features and fps.

    features: name -> FeatureSpec, without the default columns (timestamp, frame_index, episode_index, index,
        task_index), which are made here.
    overwrite: delete the data set at `root` first.
    video: encoder settings of cameras of dtype "video".
    copied: cameras of dtype "video" whose episodes are given as `EncodedVideo`, not encoded again; `meta/info.json`
        tells of the format given here. An mp4 holds episodes of one format.
    raw: further columns, which are written as they are given; videos among them are in `copied`.

    Attributes:
        num_episodes, num_frames: what the data set holds.

    Raises:
        DatasetError: another writer is open, other features, other files in the way, bad columns, full disk.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: float,
        features: Mapping[str, FeatureSpec],
        robot_type: str | None = None,
        overwrite: bool = False,
        video: VideoEncoding | None = None,
        copied: Mapping[str, VideoFormat] | None = None,
        raw: Mapping[str, ec.RawFeature] | None = None,
    ) -> None:
        self._raw = dict(raw or {})
        ec.check_features([*features, *self._raw])
        self.root = Path(root)
        self.fps = fps
        self.features = dict(features)
        self.num_episodes = 0
        self.num_frames = 0
        self._video = video or VideoEncoding()
        self._copied = dict(copied or {})
        self._all_features = self.features | ec.default_features()
        self._tasks: dict[str, int] = {}
        self._statistics: dict[str, es.FeatureStatistics] = {}
        videos = [key for key, spec in features.items() if spec.dtype == "video"]
        images = [key for key, spec in features.items() if spec.dtype == "image"]
        videos += [key for key, spec in self._raw.items() if spec.kind is None]
        images += [key for key, spec in self._raw.items() if spec.record.get("dtype") == "image"]
        sg.check_rate(fps, bool(videos))
        self._files = df.DatasetFiles(self.root, fps, images, videos, self._video)
        self._lock = self._acquire()
        try:
            self._info = self._open(robot_type, overwrite)
        except BaseException:
            self._lock.release()
            raise

    def add_episode(self, columns: Mapping[str, Any], task: str | Sequence[str]) -> int:
        """Append one episode and return its index; when this returns, the episode is on the disk.

        columns: feature -> [T, *shape]; [T] serves for shape (1,). Cameras: uint8 [T, height, width, 3], or an
            `EncodedVideo` for those of `copied`. Raw columns: arrow arrays [T].
        task: the episode's text, or one text per frame.

        Raises:
            DatasetError: names the episode and the column; the data set keeps its earlier episodes.
        """
        if not self._lock.is_locked:
            raise DatasetError(f"the writer of {self.root} is closed: open a new one to append")
        episode = self.num_episodes
        encoded = {key: values for key, values in columns.items() if isinstance(values, EncodedVideo)}
        if set(encoded) != set(self._copied):
            raise DatasetError(
                f"episode {episode}: cameras {sorted(encoded)} are given encoded, the writer copies "
                f"{sorted(self._copied)}: give those as EncodedVideo"
            )
        decoded = {key: video.pictures for key, video in encoded.items()}
        given = {key: values for key, values in {**columns, **decoded}.items() if key not in self._raw}
        arrays, num_frames = ec.check_columns(self.features, given, episode)
        raw = ec.raw_columns(self._raw, columns, num_frames, episode)
        texts = ec.frame_tasks(task, num_frames, episode)
        tasks = {text: i for i, text in enumerate(dict.fromkeys([*self._tasks, *texts]))}
        arrays |= self._default_columns(num_frames, np.array([tasks[text] for text in texts]))
        statistics = self._write_frames(arrays, encoded, raw)
        if len(tasks) > len(self._tasks):
            with replace_file(self.root / "meta/tasks.parquet") as path:
                pq.write_table(ec.tasks_table(list(tasks)), path)
        self._tasks = tasks
        row: dict[str, Any] = {
            "episode_index": episode,
            "tasks": list(dict.fromkeys(texts)),
            "length": num_frames,
        }
        row |= {"dataset_from_index": self.num_frames, "dataset_to_index": self.num_frames + num_frames}
        for key, value in statistics.items():
            row |= {f"stats/{key}/{name}": entry for name, entry in value.as_dict().items()}
        formats = {key: video.format for key, video in encoded.items()}
        self._files.write_rows(self._files.next_index, self._files.new_row(row, formats))
        self._write_info(episode + 1, self.num_frames + num_frames)
        self._files.add(num_frames)
        for key, value in statistics.items():
            known = self._statistics.get(key)
            self._statistics[key] = es.merge_statistics(known, value) if known else value
        self._write_statistics()
        self._files.merge(everything=False)
        return episode

    def close(self) -> None:
        """Merge the small files of this session and let other writers in; further calls do nothing."""
        if not self._lock.is_locked:
            return
        try:
            self._files.merge(everything=True)
        finally:
            self._lock.release()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _acquire(self) -> filelock.BaseFileLock:
        # any thread may close the writer
        lock = filelock.FileLock(self.root / WRITER_LOCK, thread_local=False)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise DatasetError(f"{self.root}: another writer is open; close it first") from error
        except OSError as error:
            raise DatasetError(
                f"cannot write in {self.root}: {error.strerror}; use a writable folder"
            ) from error
        return lock

    def _open(self, robot_type: str | None, overwrite: bool) -> dict[str, Any]:
        """The present `info.json`, after recovery, or that of a new data set."""
        path = self.root / "meta/info.json"
        remove_temporaries(self.root)
        if path.exists() and overwrite:
            for folder in ("videos", "data", "meta"):
                if (self.root / folder).exists():
                    shutil.rmtree(self.root / folder)
        if path.exists():
            return self._append_to(path, robot_type)
        # Empty folders are what a kill before the first info.json leaves.
        if any(entry.is_file() and entry.name != WRITER_LOCK for entry in self.root.rglob("*")):
            raise DatasetError(f"{self.root} is not empty and has no meta/info.json: use another folder")
        self._info = {
            "codebase_version": "v3.0",
            "robot_type": robot_type,
            "total_episodes": 0,
            "total_frames": 0,
            "total_tasks": 0,
            "chunks_size": df.CHUNKS_SIZE,
            "data_files_size_in_mb": df.DATA_LIMIT_MB,
            "video_files_size_in_mb": df.VIDEO_LIMIT_MB,
            "fps": int(self.fps) if float(self.fps).is_integer() else self.fps,
            "splits": {},
            "data_path": df.DATA_PATH,
            "video_path": df.VIDEO_PATH if self._files.video_keys else None,
            "features": {key: spec.to_json() for key, spec in (self._all_features | self._raw).items()},
        }
        for key in self._files.video_keys:
            if key in self._raw:
                continue
            made = self._copied.get(key, self._video)
            self._info["features"][key]["info"] = made.describe(self.features[key].shape, self._info["fps"])
        self._write_info(0, 0)
        return self._info

    def _append_to(self, path: Path, robot_type: str | None) -> dict[str, Any]:
        """Check that the data set at hand is one of these features, and take up its state."""
        info = read_json(path, dict, DatasetError, "restore it, or pass overwrite=True")
        cure = "write to another folder, or pass overwrite=True"
        expected = {"codebase_version": "v3.0", "fps": self.fps, "chunks_size": df.CHUNKS_SIZE}
        expected |= {
            "data_path": df.DATA_PATH,
            "robot_type": info.get("robot_type") if robot_type is None else robot_type,
        }
        expected |= {"video_path": df.VIDEO_PATH} if self._files.video_keys else {}
        for key, value in expected.items():
            if info.get(key) != value:
                raise DatasetError(f"{path}: {key} is {info.get(key)!r}, not {value!r}; {cure}")
        features = info.get("features")
        if not isinstance(features, dict) or not all(isinstance(item, dict) for item in features.values()):
            raise DatasetError(f"{path}: 'features' are damaged: restore it, or pass overwrite=True")
        old = {k: {n: v.get(n) for n in ("dtype", "shape", "names")} for k, v in features.items()}
        new = {
            key: {n: spec.to_json().get(n) for n in ("dtype", "shape", "names")}
            for key, spec in (self._all_features | self._raw).items()
        }
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise DatasetError(f"{path}: feature '{key}' is {old.get(key)}, not {new.get(key)}; {cure}")
        totals = [integer(info, key, str(path)) for key in ("total_episodes", "total_frames")]
        rows = self._files.recover(totals[0])
        self.num_episodes, self.num_frames = totals
        self._info = info
        tasks = self.root / "meta/tasks.parquet"
        if self.num_episodes:
            self._tasks = ec.read_tasks(tasks)
            self._statistics = self._rebuild_statistics(rows)
            self._write_statistics()
        return info

    def _rebuild_statistics(self, rows: Sequence[pa.Table]) -> dict[str, es.FeatureStatistics]:
        """The aggregate of all episodes' rows (a kill may have come before `stats.json` was written)."""
        result = {}
        for key, spec in self._all_features.items():
            if spec.dtype == "string":
                continue
            names = {field: f"stats/{key}/{field}" for field in es.FIELDS}
            missing = {name for table in rows for name in names.values() if name not in table.schema.names}
            if missing:
                raise DatasetError(
                    f"{self.root}/meta/episodes lacks {min(missing)}: write a new data set instead"
                )
            columns = {
                field: np.concatenate([np.asarray(table[name].to_pylist()) for table in rows])
                for field, name in names.items()
            }
            result[key] = es.aggregate_statistics(columns)
        return result

    def _default_columns(self, num_frames: int, task_index: np.ndarray) -> dict[str, np.ndarray]:
        """timestamp (seconds in the episode), frame_index, episode_index, index, task_index: [T, 1]."""
        frames = np.arange(num_frames)
        columns = {
            "timestamp": (frames / self.fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(num_frames, self.num_episodes),
            "index": frames + self.num_frames,
            "task_index": task_index,
        }
        return {key: values[:, None] for key, values in columns.items()}

    def _write_frames(
        self,
        arrays: Mapping[str, np.ndarray],
        encoded: Mapping[str, EncodedVideo],
        raw: list[pa.Array],
    ) -> dict[str, es.FeatureStatistics]:
        """Write data file and videos of the next segment; the episode's statistics."""
        index = self._files.next_index
        statistics: dict[str, es.FeatureStatistics] = {}
        stored: list[pa.Array] = []
        for key, spec in self._all_features.items():
            if not spec.is_camera:
                stored.append(ec.to_arrow(spec, arrays[key]))
                if spec.dtype != "string":
                    statistics[key] = es.column_statistics(arrays[key])
                continue
            frames = ec.Frames(arrays[key])
            statistics[key] = es.image_statistics(frames)
            if spec.dtype == "image":
                stored.append(ec.images_to_arrow(ec.encode_images(frames)))
                continue
            with replace_file(self._files.video_path(index, key)) as path:
                if key in encoded:
                    copy_video(encoded[key], path, self.fps)
                else:
                    sg.encode_video(frames, path, self.fps, self._video)
        for key in self._raw.keys() & encoded.keys():
            with replace_file(self._files.video_path(index, key)) as path:
                copy_video(encoded[key], path, self.fps)
        schema = ec.table_schema(self._all_features, self._raw)
        table = pa.Table.from_arrays([*stored, *raw], schema=schema)
        with replace_file(self._files.data_path(index)) as path:
            options = sg.parquet_options(table.schema, self._files.image_keys)
            pq.write_table(table, path, row_group_size=len(table), **options)
        return statistics

    def _write_info(self, num_episodes: int, num_frames: int) -> None:
        """Write `info.json`: from here on the data set has `num_episodes` episodes."""
        totals = {"total_episodes": num_episodes, "total_frames": num_frames, "total_tasks": len(self._tasks)}
        info = self._info | totals | {"splits": {"train": f"0:{num_episodes}"}}
        write_text(self.root / "meta/info.json", json.dumps(info, indent=4, ensure_ascii=False))
        self._info, self.num_episodes, self.num_frames = info, num_episodes, num_frames

    def _write_statistics(self) -> None:
        statistics = {key: value.as_dict() for key, value in self._statistics.items()}
        write_text(self.root / "meta/stats.json", json.dumps(statistics, indent=4))
