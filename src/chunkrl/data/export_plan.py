"""What an export will write, found out and checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from chunkrl.data.episode_columns import RawFeature, default_features
from chunkrl.data.episode_rows import by_data_file, whole_episodes
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.formats import DatasetDescription, Feature, image_size
from chunkrl.data.frames import FrameTable
from chunkrl.data.interventions import LEROBOT_NAME
from chunkrl.data.label_rules import NEXT_SUBGOAL, Others
from chunkrl.data.parquet import open_parquet, reading
from chunkrl.data.problems import refuse
from chunkrl.data.video_copy import VideoFormat, packet_formats
from chunkrl.data.video_spans import check_spans
from chunkrl.errors import DatasetError

LABEL_FEATURES = {
    "next.reward": FeatureSpec("float32", (1,)),
    "next.done": FeatureSpec("bool", (1,)),
    "next.success": FeatureSpec("bool", (1,)),
    "next.terminated": FeatureSpec("bool", (1,)),
    "next.truncated": FeatureSpec("bool", (1,)),
    NEXT_SUBGOAL: FeatureSpec("bool", (1,)),
    LEROBOT_NAME: FeatureSpec("bool", (1,)),
}
_LEAVE_OUT = "leave such columns out with --export-others leave_out"


@dataclass(frozen=True)
class ExportPlan:
    """names: column -> its name in the new data set, of those that are understood and of raw ones.

    features, raw: by new name. copied: cameras, by new name, whose packets are copied, with their format an episode.
    encoded: cameras, by old name, that are encoded again. left_out: columns that are not written.
    """

    names: Mapping[str, str]
    features: Mapping[str, FeatureSpec]
    raw: Mapping[str, RawFeature]
    copied: Mapping[str, Sequence[VideoFormat]]
    encoded: tuple[str, ...]
    left_out: tuple[str, ...]


def plan_export(table: FrameTable, others: Others) -> ExportPlan:
    """What an export of the table will write.

    others: what becomes of columns that are not understood (of unknown types, with missing values, cameras that
        nobody sees through): copied as they are, or left out.

    Raises:
        DatasetError: a task has no text, two columns get the same name, or a column cannot be copied.
    """
    description = table.description
    _check_tasks(table)
    made = set(default_features()) | set(LABEL_FEATURES)
    names = {name: name.replace("/", ".") for name in description.features}
    names = {old: new for old, new in names.items() if new not in made}
    strange = {name for name in names if not _is_understood(table, description.features[name])}
    strange |= _with_missing_texts(description, set(names) - strange)
    left_out = tuple(name for name in names if name in strange and others == "leave_out")
    names = {old: new for old, new in names.items() if old not in left_out}
    if len(set(names.values())) < len(names):
        raise DatasetError(
            f"{description.root}: two of {sorted(names)} differ in '/' and '.' alone: rename one"
        )
    features = {new: _spec(description, old) for old, new in names.items() if old not in strange}
    raw = {new: _raw(description, old) for old, new in names.items() if old in strange}
    copied: dict[str, Sequence[VideoFormat]] = {}
    encoded = []
    for old, new in names.items():
        if description.features[old].dtype != "video":
            continue
        found = _packet_formats(table, old, is_raw=old in strange)
        if found is None:
            encoded.append(old)
        else:
            copied[new] = found
    return ExportPlan(names, features | LABEL_FEATURES, raw, copied, tuple(encoded), left_out)


def _check_tasks(table: FrameTable) -> None:
    for index in np.unique(table.task_index).tolist():
        if not table.description.tasks[index].strip():
            raise DatasetError(
                f"{table.description.root}/meta: task {index} has an empty text, which LeRobot does not "
                "take: write one into meta/tasks (and meta/episodes), and export then"
            )


def _is_understood(table: FrameTable, feature: Feature) -> bool:
    """Whether the writer takes the column, with statistics and all."""
    if feature.is_camera:
        return feature.name in table.description.cameras
    if feature.dtype == "string":
        return feature.fault is None and feature.shape == (1,)
    return feature.is_numeric and len(feature.shape) <= 5 and table.is_finite(feature.name)


def _with_missing_texts(description: DatasetDescription, names: set[str]) -> set[str]:
    """The columns of texts of which a text is missing, or that hold something else."""
    texts = {name for name in names if description.features[name].dtype == "string"}
    strange: set[str] = set()
    for file, episodes in by_data_file(description.episodes) if texts else ():
        for _, parts in whole_episodes(file, episodes, sorted(texts)):
            read = pa.Table.from_batches(parts)
            strange |= {name for name in texts if not _are_texts(read.column(name))}
    return strange


def _are_texts(values: pa.ChunkedArray) -> bool:
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    return not values.null_count and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _spec(description: DatasetDescription, name: str) -> FeatureSpec:
    feature = description.features[name]
    size = image_size(feature) if feature.is_camera else None
    return FeatureSpec(feature.dtype, feature.shape if size is None else (*size, 3), feature.names)


def _raw(description: DatasetDescription, name: str) -> RawFeature:
    """How a column is copied as it is; it must have one type in all files."""
    feature = description.features[name]
    if not isinstance(feature.record, Mapping):
        raise DatasetError(
            f"{description.root}/meta/info.json: '{name}' is no record: correct it, or {_LEAVE_OUT}"
        )
    if feature.dtype == "video":
        return RawFeature(feature.record, None)
    kinds = set()
    for file, _ in by_data_file(description.episodes):
        with reading(file), open_parquet(file) as parquet:
            schema = parquet.schema_arrow
        if schema.names.count(name) != 1:
            raise DatasetError(f"{file}: has {schema.names.count(name)} columns '{name}': {_LEAVE_OUT}")
        kinds.add(schema.field(name).type)
    if len(kinds) > 1:
        found = " and ".join(sorted(map(str, kinds)))
        raise DatasetError(f"{description.root}: '{name}' holds {found} in several files: {_LEAVE_OUT}")
    return RawFeature(feature.record, kinds.pop())


def _packet_formats(table: FrameTable, name: str, is_raw: bool) -> Sequence[VideoFormat] | None:
    """The format of a camera's packets, an episode; None where they cannot be copied; raw ones must be."""
    description = table.description
    if not is_raw:
        return packet_formats(description, name, table.timestamp)
    try:
        lost = [episode.index for episode in description.episodes if name not in episode.videos]
        if lost:
            raise DatasetError(f"{description.root}: episode {lost[0]} has no video of it")
        check_spans(description.episodes, [name], description.fps, False, refuse)
        found = packet_formats(description, name, table.timestamp)
        if found is None:
            raise DatasetError(f"{description.root}: not every episode begins with a key frame")
    except DatasetError as error:
        raise DatasetError(f"camera '{name}' cannot be copied ({error}): {_LEAVE_OUT}") from error
    return found
