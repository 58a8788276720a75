"""A data set and its labels as a new LeRobot v3.0 data set, whose columns (`LABEL_FEATURES`) are the labels: whoever
reads them by `label_frames` without a rule has equal labels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chunkrl.data.episode_rows import by_data_file, whole_episodes
from chunkrl.data.export_plan import LABEL_FEATURES, ExportPlan, plan_export
from chunkrl.data.formats import DatasetDescription
from chunkrl.data.frames import FrameTable
from chunkrl.data.interventions import LEROBOT_NAME
from chunkrl.data.label_rules import NEXT_SUBGOAL, Others
from chunkrl.data.labels import FrameLabels
from chunkrl.data.video_copy import EncodedVideo
from chunkrl.data.writer import DatasetWriter
from chunkrl.errors import DatasetError
from chunkrl.files.output_folder import kind_of, set_aside
from chunkrl.progress import Progress

TIME_TOLERANCE = 1e-4  # seconds, LeRobot's
_METADATA = {
    "info.json",
    "stats.json",
    "tasks.parquet",
    "tasks.jsonl",
    "episodes.jsonl",
    "episodes_stats.jsonl",
}


def export_labels(
    table: FrameTable,
    labels: FrameLabels,
    root: Path,
    progress: Progress,
    others: Others = "copy",
    overwrite: bool = False,
) -> None:
    """Writes a new data set: every column, text, image and task of `table`, and its labels as `next.*` columns, and
    who acted as LeRobot's `complementary_info.is_intervention`.

    Columns of those names are replaced; others that say such things stay, and are not read. LeRobot allows no `/` in
    names: `observation/image` becomes `observation.image`. Videos are copied packet by packet where a key frame
    begins each episode, as LeRobot's own do (`video_copy.packet_formats`); else they are encoded again and lose a
    little, which is said. Times are written as LeRobot writes them, frame / fps; where that moves one by more than
    LeRobot's tolerance it is said. The data set appears under its name when it is whole.

    others: what becomes of columns that are not understood (`plan_export`).
    overwrite: another data set at `root` makes place once this one is whole (`output_folder.set_aside`).

    Raises:
        DatasetError: `root` is not empty, or what `plan_export` and the writer raise; nothing is left of it then.
    """
    is_taken = root.exists() and (not root.is_dir() or any(root.iterdir()))
    replaces = overwrite and kind_of(root) == "collect" and root.resolve() != table.description.root.resolve()
    if is_taken and not replaces:
        raise DatasetError(
            f"{root} is not empty: export into a new folder, or put the new data set in the place of another one "
            "with --overwrite"
        )
    plan = plan_export(table, others)
    for name in plan.encoded:
        print(f"camera {name}: not every episode begins with a key frame, so its videos are encoded again")
    for old, new in plan.names.items():
        if new in plan.raw:
            print(f"{old}: copied as it is, without statistics")
    for name in plan.left_out:
        print(f"{name}: left out")
    for file in _more_metadata(table.description):
        print(f"meta/{file.name}: {'copied' if _is_kept(file, plan) else 'left out'}")
    if (moved := _moved(table)) > TIME_TOLERANCE:
        print(f"timestamp: written as frame / fps, which moves times by up to {moved:.2g} s")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        folder = root.with_name(f".{root.name}.partial-{os.getpid()}")
        folder.mkdir()
    except OSError as error:
        raise DatasetError(f"cannot write {root}: {error.strerror}; use a writable folder") from error
    try:
        _write(table, labels, plan, folder, progress)
        for file in _more_metadata(table.description):
            if _is_kept(file, plan):
                shutil.copyfile(file, folder / "meta" / file.name)
        if is_taken:
            set_aside(root)
        folder.replace(root)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(
    table: FrameTable, labels: FrameLabels, plan: ExportPlan, folder: Path, progress: Progress
) -> None:
    description = table.description
    with DatasetWriter(
        folder,
        fps=description.fps,
        features=plan.features,
        robot_type=description.robot_type,
        copied={name: formats[0] for name, formats in plan.copied.items()},
        raw=plan.raw,
    ) as writer:
        stored = _stored_columns(description, plan)
        for number, (episode, columns) in enumerate(zip(description.episodes, stored, strict=True)):
            rows = np.arange(episode.start, episode.start + episode.length)
            for old, new in plan.names.items():
                if new not in columns:
                    columns[new] = _values(table, plan, number, old, new, rows)
            last = rows == rows[-1]
            columns |= {
                "next.reward": labels.reward[rows],
                "next.done": labels.terminated[rows] | last,
                "next.success": labels.terminated[rows] & labels.success[number],
                "next.terminated": labels.terminated[rows],
                "next.truncated": labels.truncated[rows],
                NEXT_SUBGOAL: labels.subgoal[rows],
                LEROBOT_NAME: labels.human[rows],
            }
            assert columns.keys() >= LABEL_FEATURES.keys()
            writer.add_episode(columns, [table.task_text(int(row)) for row in rows])
            progress("writing episodes", number + 1, table.num_episodes)


def _more_metadata(description: DatasetDescription) -> list[Path]:
    """Files of `meta` that no version of LeRobot's needs."""
    files = (f for f in (description.root / "meta").iterdir() if f.is_file() and not f.name.startswith("."))
    return sorted(f for f in files if f.name not in _METADATA)


def _is_kept(file: Path, plan: ExportPlan) -> bool:
    """Whether a column that is exported counts in the file: LeRobot's texts of sub-tasks."""
    return file.name == "subtasks.parquet" and "subtask_index" in plan.names


def _stored_columns(description: DatasetDescription, plan: ExportPlan) -> Iterator[dict[str, Any]]:
    """What FrameTable does not have, of each episode by new name: texts, and raw columns as they stand there."""
    texts = {
        old
        for old, new in plan.names.items()
        if new in plan.features and plan.features[new].dtype == "string"
    }
    raw = {old for old, new in plan.names.items() if new in plan.raw and plan.raw[new].kind is not None}
    if not texts and not raw:
        yield from ({} for _ in description.episodes)
        return
    for file, episodes in by_data_file(description.episodes):
        for _, parts in whole_episodes(file, episodes, sorted(texts | raw)):
            read = pa.Table.from_batches(parts)
            yield {plan.names[old]: _column(read.column(old), old in texts) for old in texts | raw}


def _column(values: pa.ChunkedArray, is_text: bool) -> Any:
    return np.array(values.to_pylist(), dtype=object) if is_text else values.combine_chunks()


def _moved(table: FrameTable) -> float:
    """The most seconds that the times differ from frame / fps."""
    own = np.arange(table.num_frames) - np.repeat(table.episode_start, table.episode_length)
    return float(np.abs(table.timestamp - own / table.description.fps).max(initial=0.0))


def _values(table: FrameTable, plan: ExportPlan, number: int, old: str, new: str, rows: np.ndarray) -> Any:
    """A column of the episode that is `number` in the table's order."""
    episode = table.description.episodes[number]
    if new in plan.raw:
        span = episode.videos[old]
        return EncodedVideo(episode.length, span.file, span.from_timestamp, plan.copied[new][number])
    if old not in table.description.cameras:
        return np.asarray(table.column(old)[rows])
    pictures = table.images(old, rows).transpose(0, 2, 3, 1)
    if new not in plan.copied:
        return pictures
    span = episode.videos[old]
    return EncodedVideo(pictures, span.file, span.from_timestamp, plan.copied[new][number])
