"""A data set and its labels as a new LeRobot v3.0 data set, whose `next.*` columns are the labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chunkrl.data.episode_columns import FeatureSpec, default_features
from chunkrl.data.episode_rows import by_data_file, whole_episodes
from chunkrl.data.formats import DatasetDescription, image_size
from chunkrl.data.frames import FrameTable
from chunkrl.data.labels import FrameLabels
from chunkrl.data.video_copy import EncodedVideo, VideoFormat, common_format
from chunkrl.data.writer import DatasetWriter
from chunkrl.errors import DatasetError
from chunkrl.progress import Progress

LABEL_FEATURES = {
    "next.reward": FeatureSpec("float32", (1,)),
    "next.done": FeatureSpec("bool", (1,)),
    "next.success": FeatureSpec("bool", (1,)),
    "next.truncated": FeatureSpec("bool", (1,)),
    "next.subgoal": FeatureSpec("bool", (1,)),
}


def export_labels(table: FrameTable, labels: FrameLabels, root: Path, progress: Progress) -> None:
    """Writes a new data set: every column, text, picture and task of `table`, and its labels as `next.*` columns.

    Columns of those names are replaced. LeRobot allows no `/` in names: `observation/image` becomes
    `observation.image`. Videos are copied packet by packet where a key frame begins each episode, as LeRobot's own do
    (`video_copy.common_format`); else they are encoded again and lose a little, which is said.

    Raises:
        DatasetError: `root` is not empty, two columns get the same name, a text is missing, or the writer's.
    """
    description = table.description
    if root.exists() and any(root.iterdir()):
        raise DatasetError(f"{root} is not empty: export into a new folder")
    names = _new_names(description)
    features = {new: _spec(description, old) for old, new in names.items()} | LABEL_FEATURES
    copied = _copied_videos(table, names)
    with DatasetWriter(
        root, fps=description.fps, features=features, robot_type=description.robot_type, copied=copied
    ) as writer:
        texts = _texts(description, names)
        for number, (episode, columns) in enumerate(zip(description.episodes, texts, strict=True)):
            rows = np.arange(episode.start, episode.start + episode.length)
            others = {old: new for old, new in names.items() if new not in columns}
            columns |= {new: _values(table, old, rows) for old, new in others.items()}
            for old, new in names.items():
                if new in copied:
                    span = episode.videos[old]
                    columns[new] = EncodedVideo(columns[new], span.file, span.from_timestamp)
            last = rows == rows[-1]
            columns |= {
                "next.reward": labels.reward[rows],
                "next.done": labels.terminated[rows] | last,
                "next.success": labels.terminated[rows] & labels.success[number],
                "next.truncated": labels.truncated[rows],
                "next.subgoal": labels.subgoal[rows],
            }
            writer.add_episode(columns, [table.task_text(int(row)) for row in rows])
            progress("writing episodes", number + 1, table.num_episodes)


def _new_names(description: DatasetDescription) -> dict[str, str]:
    """Column to copy -> its name in the new data set."""
    made = set(default_features()) | set(LABEL_FEATURES)
    names: dict[str, str] = {}
    for name, feature in description.features.items():
        if name in made:
            continue
        if feature.is_camera and name not in description.cameras:
            raise DatasetError(
                f"{description.root}: camera '{name}' is in no role; name all cameras with --image-keys"
            )
        names[name] = name.replace("/", ".")
    if len(set(names.values())) < len(names):
        raise DatasetError(
            f"{description.root}: two of {sorted(names)} differ in '/' and '.' alone: rename one"
        )
    return names


def _copied_videos(table: FrameTable, names: dict[str, str]) -> dict[str, VideoFormat]:
    """Cameras, by new name, whose packets can be copied; says which cannot."""
    description = table.description
    copied: dict[str, VideoFormat] = {}
    for old, new in names.items():
        if description.features[old].dtype != "video":
            continue
        found = common_format(description, old, table.timestamp)
        if found is None:
            print(f"camera {old}: not every episode begins with a key frame, so its videos are encoded again")
        else:
            copied[new] = found
    return copied


def _texts(description: DatasetDescription, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The columns of texts of each episode, by new name; FrameTable has numbers alone."""
    texts = {old: new for old, new in names.items() if description.features[old].dtype == "string"}
    if not texts:
        yield from ({} for _ in description.episodes)
        return
    for file, episodes in by_data_file(description.episodes):
        for episode, parts in whole_episodes(file, episodes, list(texts)):
            read = pa.Table.from_batches(parts)
            columns = {new: read.column(old).to_pylist() for old, new in texts.items()}
            for name, values in columns.items():
                if not all(isinstance(value, str) for value in values):
                    raise DatasetError(
                        f"{file}, column '{name}', episode {episode.index}: a text is missing: write the file again"
                    )
            yield {name: np.array(values, dtype=object) for name, values in columns.items()}


def _spec(description: DatasetDescription, name: str) -> FeatureSpec:
    feature = description.features[name]
    size = image_size(feature) if feature.is_camera else None
    return FeatureSpec(feature.dtype, feature.shape if size is None else (*size, 3), feature.names)


def _values(table: FrameTable, name: str, rows: np.ndarray) -> Any:
    if name in table.description.cameras:
        return table.images(name, rows).transpose(0, 2, 3, 1)
    return np.asarray(table.column(name)[rows])
