"""`chunkrl label`: labels by rule into a file beside the data, and into a data set with `next.*` columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from chunkrl.data.chunk_semantics import cut_segments
from chunkrl.data.export import export_labels
from chunkrl.data.export_plan import Others
from chunkrl.data.formats import ColumnMapping
from chunkrl.data.frames import FrameSettings, FrameTable
from chunkrl.data.label_rules import LabelRule, columns_read
from chunkrl.data.labels import FrameLabels, label_frames
from chunkrl.data.notes import column_notes, label_notes
from chunkrl.data.regular_files import open_regular
from chunkrl.data.returns import TimeOut, lambda_returns, n_step_returns, normalize_per_task
from chunkrl.data.sidecar import load_sidecar, save_sidecar
from chunkrl.envs.libero_replay import ReplayConfig
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.progress import Progress

LABELS_VERSION = 1  # of the meaning of the columns


@dataclass(frozen=True)
class ReturnRule:
    """How rewards become returns."""

    gamma: float = 0.99
    """Discount factor a step."""
    time_out: TimeOut = "failure"
    """What follows an unfinished recording: nothing (not succeeding in time is failing), or its last value."""
    n_step: int | None = None
    """Also N-step returns, on the values of --values."""
    values: str | None = None
    """File of labels with a `value` a frame, as `chunkrl train` writes (values.parquet)."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise DatasetError(f"--gamma {self.gamma}: a discount lies between 0 and 1")
        if self.n_step is not None and self.n_step < 1:
            raise DatasetError(f"--n-step {self.n_step}: at least 1")
        if self.values is None and (self.n_step is not None or self.time_out == "bootstrap"):
            raise DatasetError("--n-step and --time-out bootstrap need values: give --values FILE")


@dataclass(frozen=True)
class LabelCommand:
    """Labels of a LeRobot data set by rule, into a file beside the data, which stays as it is."""

    dataset: Annotated[str, tyro.conf.Positional] = ""
    """Folder or Hub repository id."""
    rule: Annotated[LabelRule, tyro.conf.OmitArgPrefixes] = field(default_factory=LabelRule)
    """Success, sub-goals and rewards."""
    returns: Annotated[ReturnRule, tyro.conf.OmitArgPrefixes] = field(default_factory=ReturnRule)
    """Returns."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """Sub-goals by replaying LIBERO episodes in the simulator."""
    output: str | None = None
    """The file; default: labels/<digest of the rule>.parquet in the data set's folder."""
    export: str | None = None
    """Also write a new LeRobot v3.0 data set with the labels as `next.*` columns, into this folder."""
    export_others: Others = "copy"
    """What becomes of columns and cameras that are not understood: copied as they are, or left out."""
    mapping: Annotated[ColumnMapping, tyro.conf.OmitArgPrefixes] = field(default_factory=ColumnMapping)
    """Columns with other names than LeRobot's, openpi's or the document's."""
    revision: str | None = None
    """Hub revision of the data set."""
    skip_bad_episodes: bool = False
    """Set episodes with a problem aside and list them, rather than stop at the first."""


def label_dataset(command: LabelCommand, progress: Progress) -> tuple[FrameTable, FrameLabels]:
    """Writes the labels and says what they are; returns them with the data's frames."""
    if not command.dataset:
        raise ChunkRLError("name a data set: chunkrl label FOLDER, or owner/name on the Hub")
    settings = FrameSettings(cache=False, skip_bad_episodes=command.skip_bad_episodes)
    table = FrameTable.open(
        command.dataset,
        command.mapping,
        command.revision,
        progress=progress,
        settings=settings,
        label_columns=partial(columns_read, command.rule),
    )
    for problem in table.problems:
        print(f"set aside  episodes {list(problem.episodes)}: {problem.message}")
    labels = label_frames(table, _with_replays(table, command, progress))
    for note in (*column_notes(table), *label_notes(table, labels)):
        print(f"note: {note}")
    arrays = label_arrays(table, labels, command.returns)
    rule = rule_record(labels.rule, command.returns)
    digest = hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()[:12]
    path = Path(command.output or table.description.root / "labels" / f"{digest}.parquet")
    if command.export:  # first: where it fails, nothing was written
        export_labels(table, labels, Path(command.export).expanduser(), progress, command.export_others)
    save_sidecar(path, table, arrays, rule)
    print(
        f"{path}: {labels.success.mean():.1%} of {table.num_episodes} episodes succeed (by {labels.rule.success}), "
        f"{int(labels.subgoal.sum())} sub-goals (by {labels.rule.subgoal}), returns from "
        f"{arrays['return'].min():.4g} to {arrays['return'].max():.4g}"
    )
    if command.export:
        print(f"{command.export}: {table.num_episodes} episodes with next.* columns")
    return table, labels


def _with_replays(table: FrameTable, command: LabelCommand, progress: Progress) -> LabelRule:
    """The rule, whose sub-goals are those of the replays where they are asked for."""
    if not command.replay.suite:
        return command.rule
    if command.rule.subgoal != "auto":
        raise ChunkRLError(
            f"--subgoal {command.rule.subgoal} and --replay.suite both say where sub-goals are: leave one out"
        )
    from chunkrl.data.replay_labels import replay_subgoals

    return replace(
        command.rule, subgoal="csv", subgoal_csv=str(replay_subgoals(table, command.replay, progress))
    )


def rule_record(rule: LabelRule, returns: ReturnRule) -> dict[str, Any]:
    """All that the labels depend on besides the data, as JSON; files count by content, not by name."""
    record: dict[str, Any] = {"version": LABELS_VERSION, "rule": asdict(rule), "returns": asdict(returns)}
    for part, name, file in (
        ("rule", "subgoal_csv", rule.subgoal_csv),
        ("returns", "values", returns.values),
    ):
        if file:
            with open_regular(Path(file).expanduser(), DatasetError, "name a file of labels") as stream:
                record[part][name] = hashlib.sha256(stream.read()).hexdigest()
    return record


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
