"""`chunkrl label`: labels by rule into a file beside the data, and into a data set with `next.*` columns."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.data.chunk_semantics import cut_segments
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.export import export_labels
from chunkrl.data.formats import DatasetDescription
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_files import (
    BY_HAND,
    FOLDER,
    LABELS_VERSION,
    chosen_labels,
    label_columns,
    labelled_part,
    labels_beside,
)
from chunkrl.data.label_rules import AUTO_LABELS, NO_LABELS, LabelRule
from chunkrl.data.labels import FrameLabels, label_frames
from chunkrl.data.notes import column_notes, label_notes
from chunkrl.data.problems import name_indices
from chunkrl.data.returns import lambda_returns, n_step_returns, normalize_per_task
from chunkrl.data.sidecar import load_sidecar, read_metadata, save_sidecar
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.files.json_files import as_json
from chunkrl.files.output_folder import check_file
from chunkrl.files.regular_files import open_regular
from chunkrl.label.config import LabelCommand, ReturnRule
from chunkrl.progress import Progress


def label_dataset(command: LabelCommand, progress: Progress) -> tuple[FrameTable, FrameLabels]:
    """Writes the labels and says what they are; returns them with the data's frames.

    Labels of a file (`rule.labels`) are there already: they are exported, with the episodes that it has.
    """
    if not command.dataset:
        raise ChunkRLError("name a data set: chunkrl label FOLDER, or owner/name on the Hub")
    if command.rule.labels not in (AUTO_LABELS, NO_LABELS):
        return _export_of_file(command, progress)
    rule = replace(command.rule, labels=NO_LABELS)  # it reads columns
    table = _open(command, rule, progress)
    if command.export:
        _check_not_by_hand(table, command.rule)
    labels = label_frames(table, _with_replays(table, replace(command, rule=rule), progress))
    for note in (*column_notes(table), *label_notes(table, labels)):
        print(f"note: {note}")
    arrays = label_arrays(table, labels, command.returns)
    record = rule_record(labels.rule, command.returns)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]
    path = Path(command.output or table.description.root / FOLDER / f"{digest}.parquet")
    if command.output:  # the other name says which rule it is of
        check_file(path, command.overwrite, lambda file: _is_of(file, as_json(record)))
    if command.export:  # first: where it fails, nothing was written
        _export(command, command.export, table, labels, progress)
    save_sidecar(path, table, arrays, record)
    print(
        f"{path}: {labels.success.mean():.1%} of {table.num_episodes} episodes succeed (by {labels.rule.success}), "
        f"{int(labels.subgoal.sum())} sub-goals (by {labels.rule.subgoal}), returns from "
        f"{arrays['return'].min():.4g} to {arrays['return'].max():.4g}"
    )
    print(found_by(table.description.root, path))
    if command.export:
        print(_exported(command.export, table))
    return table, labels


def _open(
    command: LabelCommand,
    rule: LabelRule,
    progress: Progress,
    part: Callable[[DatasetDescription], DatasetDescription] = lambda whole: whole,
) -> FrameTable:
    table = FrameTable.open(
        command.dataset,
        command.mapping,
        command.revision,
        progress=progress,
        settings=FrameSettings(cache=False, skip_bad_episodes=command.skip_bad_episodes),
        label_columns=partial(label_columns, rule),
        part=part,
    )
    for problem in table.problems:
        print(f"set aside  episodes {list(problem.episodes)}: {problem.message}")
    return table


def read_labelled(command: LabelCommand, progress: Progress) -> tuple[FrameTable, FrameLabels]:
    """A data set's frames and labels as training reads them by `command.rule`: of a file of labels where the rule
    finds one, without the episodes that it leaves out. Writes nothing."""
    table = _open(command, command.rule, progress, partial(labelled_part, command.rule))
    return table, label_frames(table, command.rule)


# ---- a data set with the labels in it


def _export_of_file(command: LabelCommand, progress: Progress) -> tuple[FrameTable, FrameLabels]:
    """A new data set of the episodes that the file of labels has, without those that it leaves out."""
    rule = command.rule
    if not command.export:
        raise ChunkRLError(
            f"--labels {rule.labels}: chunkrl label makes labels, from the columns: leave it out, or export those of "
            "the file with --export FOLDER"
        )
    given = {
        "--output": command.output is not None,
        "--replay.suite": bool(command.replay.suite),
        "--gamma, --time-out, --n-step and --values": command.returns != ReturnRule(),
    }
    if wrong := next((name for name, is_given in given.items() if is_given), None):
        raise ChunkRLError(f"{wrong}: the labels of {rule.labels} are exported as they are: leave it out")
    table, labels = read_labelled(command, progress)
    for note in (*column_notes(table), *label_notes(table, labels)):
        print(f"note: {note}")
    _export(command, command.export, table, labels, progress)
    file = chosen_labels(table.description.root, rule)
    left_out = {} if file is None else file.left_out()
    told = [f"{name_indices(which)} ({why})" for why, which in left_out.items() if which]
    print(
        f"{_exported(command.export, table)}, by {labels.file_told}"
        + (f"; episodes left out: {', '.join(told)}; the others are numbered from 0" if told else "")
    )
    return table, labels


def _check_not_by_hand(table: FrameTable, rule: LabelRule) -> None:
    """Raises ChunkRLError where labels by hand are beside the data, and nothing says that others are exported."""
    if rule.labels == NO_LABELS or rule.explicit():
        return
    for file in labels_beside(table.description.root):
        if BY_HAND in read_metadata(file.path):
            raise ChunkRLError(
                f"{table.description.root} has labels by hand: --labels {file.name} exports them, --labels "
                f"{NO_LABELS} what the columns say: give one of the two"
            )


def _export(
    command: LabelCommand, folder: str, table: FrameTable, labels: FrameLabels, progress: Progress
) -> None:
    root = Path(folder).expanduser()
    export_labels(table, labels, root, progress, command.export_others, command.overwrite)


def _exported(folder: str, table: FrameTable) -> str:
    return f"{folder}: {table.num_episodes} episodes with next.* columns"


# ---- a file of labels


def found_by(root: Path, path: Path) -> str:
    """Who finds the labels in the file, and what they must be told."""
    users, there = "chunkrl train, learner, inspect and report", labels_beside(root)
    own = next((file.name for file in there if file.path.samefile(path)), None)
    if own is None:
        return f"{users} use it with --labels {path}"
    if len(there) > 1:
        return f"{users} must be told which of the {len(there)} files of labels there to use: --labels {own}"
    return f"{users} find it beside the data"


def _is_of(file: Path, rule: dict[str, Any]) -> bool:
    """Whether a file holds labels by this rule."""
    try:
        return read_metadata(file) == rule
    except DatasetError:  # something else
        return False


def _with_replays(table: FrameTable, command: LabelCommand, progress: Progress) -> LabelRule:
    """The rule, whose sub-goals are those of the replays where they are asked for."""
    if not command.replay.suite:
        return command.rule
    if command.rule.subgoal != "auto":
        raise ChunkRLError(
            f"--subgoal {command.rule.subgoal} and --replay.suite both say where sub-goals are: leave one out"
        )
    from chunkrl.label.replay import replay_subgoals

    return replace(
        command.rule, subgoal="csv", subgoal_csv=str(replay_subgoals(table, command.replay, progress))
    )


def rule_record(rule: LabelRule, returns: ReturnRule) -> dict[str, Any]:
    """All that the labels depend on besides the data, as JSON; files count by content, not by name."""
    own = {name: value for name, value in asdict(rule).items() if name not in ("labels", "success_file")}
    if not rule.progress:  # as in files of before there was progress
        del own["progress"]
    record: dict[str, Any] = {"version": LABELS_VERSION, "rule": own, "returns": asdict(returns)}
    for part, name, file in (
        ("rule", "subgoal_csv", rule.subgoal_csv),
        ("rule", "progress", rule.progress),
        ("returns", "values", returns.values),
    ):
        if file:
            record[part][name] = content_of(file)
    return record


def content_of(file: str) -> str:
    """The sha256 of a file; where it stands in place of the name already, as a file of labels notes it, the same."""
    path = Path(file).expanduser()
    if re.fullmatch("[0-9a-f]{64}", file) and not path.exists():
        return file
    with open_regular(path, DatasetError, "name a file of labels") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def label_arrays(table: FrameTable, labels: FrameLabels, rule: ReturnRule) -> Mapping[str, np.ndarray]:
    """The columns of the file, [N] each: success (of the episode), terminated, truncated, reward, subgoal, return
    (Monte-Carlo), return_normalized (per task, on [-1, 0]), and n_step_return where asked for.

    Raises:
        DatasetError: the file of values is missing or of another data set.
    """
    value = np.zeros(table.num_frames, np.float32)
    if rule.values is not None:
        known = load_sidecar(rule.values, table).arrays
        if "value" not in known:
            raise DatasetError(
                f"{rule.values}: no column 'value', it has {', '.join(known)}: name another file"
            )
        value = known["value"]
    segments = cut_segments(labels.terminated, table.episode_start, table.episode_length)
    returns = lambda_returns(value, labels.reward, segments, rule.gamma, 1.0, rule.time_out)
    arrays = {
        "success": np.repeat(labels.success, table.episode_length),
        "terminated": labels.terminated,
        "truncated": labels.truncated,
        "reward": labels.reward,
        "subgoal": labels.subgoal,
        "return": returns,
        "return_normalized": normalize_per_task(returns, table.task_index),
    }
    if rule.n_step is not None:
        arrays["n_step_return"] = n_step_returns(
            value, labels.reward, segments, rule.gamma, rule.n_step, rule.time_out
        )
    return arrays
