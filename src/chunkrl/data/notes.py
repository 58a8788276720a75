"""What to know of a data set that is no fault: what is left out and why, and what looks like something else."""

from __future__ import annotations

from collections.abc import Sequence

from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.control import control_notes
from chunkrl.data.frames import FrameTable
from chunkrl.data.interventions import likely_interventions
from chunkrl.data.label_rules import NO_COLUMN, NO_LABELS
from chunkrl.data.labels import FrameLabels
from chunkrl.data.metadata import CAMERA_DTYPES
from chunkrl.data.outliers import outliers
from chunkrl.data.problems import name_indices
from chunkrl.data.roles import describe_columns, state_choices


def column_notes(table: FrameTable) -> list[str]:
    """Columns and cameras that nobody can use, each with the reason."""
    description = table.description
    notes = []
    for name, why in description.left_out.items():
        kind = "camera" if description.features[name].dtype in CAMERA_DTYPES else "column"
        notes.append(f"{kind} '{name}' is left out: it {why}")
    notes += [f"column '{name}' is left out: {why}" for name, why in table.column_faults.items()]
    features = description.features.values()
    if table.state is None and state_choices(features):
        notes.append(f"no state is read: {describe_columns(features)}")
    return notes


def file_notes(labels: FrameLabels) -> list[str]:
    """Which file the labels are of, or which ones are passed over."""
    if labels.file:
        return [f"labels are those of {labels.file_told}; --labels {NO_LABELS}: what the columns say"]
    if labels.unused:
        return [
            f"labels beside the data are not used, as other rules are given: {', '.join(labels.unused)}; --labels "
            "FILE alone uses one"
        ]
    return []


def label_notes(table: FrameTable, labels: FrameLabels) -> list[str]:
    """What was recognised or passed over in the columns that labels are read from."""
    notes = file_notes(labels)
    if labels.rule.human_key != NO_COLUMN:
        notes.append(
            f"{labels.human.mean():.1%} of the frames are a human's (by '{labels.rule.human_key}'; --human-key "
            f"{NO_COLUMN}: none is)"
        )
    said = labels.file and labels.rule.human_key == labels.file  # by whoever made the file
    for name, what in ({} if said else likely_interventions(table, labels.rule.human_key)).items():
        notes.append(
            f"column '{name}' {what}; it looks like a human's interventions, and is not read: --human-key NAME names "
            "the column that says where a human acted"
        )
    if labels.file:  # whoever made them was told
        return notes
    early = labels.success & labels.terminated[table.episode_start] & (table.episode_length > 1)
    if early.any():
        which = name_indices(table.episode_ids[early].tolist())
        notes.append(
            f"by '{labels.rule.success}' {int(early.sum())} of {int(labels.success.sum())} successful episodes "
            f"succeed at their first frame already ({which}): where that is the outcome, repeated at every "
            "frame, use --success episode_flag --success-key NAME"
        )
    return notes


def data_notes(datasets: Sequence[ChunkDataset], encodes: bool = True) -> list[str]:
    """Notes and values out of all proportion of every data set, with its name where there are several.

    encodes: whether the networks can write actions otherwise than recorded, as pi policies do not.
    """
    notes = []
    for dataset in datasets:
        found = [
            *column_notes(dataset.table),
            *control_notes(
                dataset.settings.hold, dataset.control, encodes and dataset.encoding.kind == "absolute"
            ),
            *label_notes(dataset.table, dataset.frame_labels),
            *(problem.message for problem in outliers(dataset.table)),
        ]
        notes += [f"{dataset.name}: {note}" if len(datasets) > 1 else note for note in found]
    return notes
