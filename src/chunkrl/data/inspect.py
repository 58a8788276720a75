"""`chunkrl inspect`: what a data set holds, how much of it carries reward, and every problem in it."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from chunkrl.data.cache import cache_folder
from chunkrl.data.chunk_semantics import chunk_reward, chunk_steps, cut_segments
from chunkrl.data.control import Control, recognise_control
from chunkrl.data.formats import DatasetDescription, describe, without
from chunkrl.data.frames import FrameTable
from chunkrl.data.images import store_bytes
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.data.label_files import label_columns, labelled_part
from chunkrl.data.labels import FrameLabels, label_frames
from chunkrl.data.notes import column_notes, label_notes
from chunkrl.data.outliers import outliers
from chunkrl.data.problems import Collector, Problem, name_indices
from chunkrl.data.recorded_statistics import compare_with_recorded
from chunkrl.data.survey import examine
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.progress import Progress

NUM_BINS = 10
_CONTROLS = {
    "absolute": "targets near the next state",
    "delta": "motions",
    "unclear": "targets or motions, which is unclear",
}
BATCH_STARTS = 65536


@dataclass(frozen=True)
class CameraReport:
    """size: (height, width). store_gb: disk space of its decoded images, GB."""

    name: str
    dtype: str
    size: tuple[int, int]
    store_gb: float


@dataclass(frozen=True)
class RewardReport:
    """What is earned in the good episodes: share that succeed, share of frames that reach a sub-goal or have a reward
    other than 0, and of the `num_chunks` starts those whose chunk of `horizon` actions reaches a sub-goal.

    rules: what success and sub-goals were taken from."""

    rules: tuple[str, str]
    success_rate: float
    subgoal_density: float
    reward_density: float
    horizon: int
    num_chunks: int
    num_rewarded_chunks: int


@dataclass(frozen=True)
class DatasetReport:
    """What `chunkrl inspect` found; its fields are the keys of `--json`.

    num_episodes, num_frames: by the metadata. num_bad_episodes: those with a problem; all that follows is of
        the others. tasks: text -> episodes that begin with it.
    length_histogram: (shortest, longest, episodes) of each bin, frames.
    rewards: None where the data does not say who succeeded.
    control: what the actions are, targets or motions; None where no episode is good.
    notes: what to know that is no problem, such as columns that are left out.
    """

    root: str
    version: str
    fps: float
    robot_type: str | None
    num_episodes: int
    num_frames: int
    num_bad_episodes: int
    tasks: dict[str, int]
    state: tuple[str, int] | None
    action: tuple[str, int]
    cameras: tuple[CameraReport, ...]
    length_histogram: tuple[tuple[int, int, int], ...]
    rewards: RewardReport | None
    control: Control | None
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]


def inspect_dataset(command: InspectCommand, progress: Progress) -> None:
    """Prints the report; exits with status 1 where the data set has a problem."""
    if not command.dataset:
        raise ChunkRLError("name a data set: chunkrl inspect FOLDER, or owner/name on the Hub")
    report = make_report(command, progress)
    print(json.dumps(asdict(report), indent=2) if command.json else to_text(report))
    if report.problems:
        sys.exit(1)


def make_report(command: InspectCommand, progress: Progress, cache_dir: Path | None = None) -> DatasetReport:
    """Reads the whole data set and reports on it.

    Raises:
        DatasetError: there is nothing to report on: no data set, an unknown version, no readable info.json.
    """
    if command.horizon < 1:
        raise ChunkRLError(f"horizon is {command.horizon}; a chunk has at least 1 action")
    found = Collector()
    description = describe(command.dataset, command.mapping, command.revision, found)
    folder = cache_folder(description.fingerprint, cache_dir)
    read = label_columns(command.labels, description)
    problems = list(examine(description, found, folder, progress, command.images, read))
    bad = frozenset(index for problem in problems for index in problem.episodes)
    tasks, histogram, rewards, control, notes = {}, (), None, None, []
    if not all(episode.index in bad for episode in description.episodes):
        try:
            good = labelled_part(command.labels, without(description, bad) if bad else description)
            table = FrameTable(good, cache_folder(good.fingerprint, cache_dir), progress)
            notes += column_notes(table)
            control = recognise_control(table)
            problems += [*compare_with_recorded(table), *outliers(table)]
            tasks = dict(Counter(table.task_text(int(row)) for row in table.episode_start).most_common())
            histogram = length_histogram(table.episode_length)
            labels = label_frames(table, command.labels)
            notes += label_notes(table, labels)
            rewards = _rewards(table, labels, command.horizon)
        except DatasetError as error:
            problems.append(Problem(str(error), ()))
    report = _report(description, tasks, histogram, rewards, notes, problems)
    return replace(report, control=control)


def _report(
    description: DatasetDescription,
    tasks: dict[str, int],
    histogram: tuple[tuple[int, int, int], ...],
    rewards: RewardReport | None,
    notes: list[str],
    problems: list[Problem],
) -> DatasetReport:
    from chunkrl.data.image_decoding import Camera

    def size(names: Sequence[str]) -> tuple[str, int]:
        return " + ".join(names), sum(description.features[name].shape[0] for name in names)

    bad = frozenset(index for problem in problems for index in problem.episodes)
    known = frozenset(episode.index for episode in description.episodes)
    cameras = []
    for name in description.cameras:
        camera = Camera(description, name, np.empty(0))
        dtype = description.features[name].dtype
        cameras.append(CameraReport(name, dtype, camera.size, store_bytes(camera) / 1e9))
    return DatasetReport(
        root=str(description.root),
        version=description.version,
        fps=description.fps,
        robot_type=description.robot_type,
        num_episodes=len(known | bad),
        num_frames=description.num_frames,
        num_bad_episodes=len(bad),
        tasks=tasks,
        state=size(description.state_keys) if description.state_keys else None,
        action=size(description.action_keys),
        cameras=tuple(cameras),
        length_histogram=histogram,
        rewards=rewards,
        control=None,
        notes=tuple(notes),
        problems=tuple(problems),
    )


def length_histogram(lengths: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """(shortest, longest, episodes) of at most 10 bins of equal width; lengths int [E], frames."""
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // NUM_BINS)
    counts = np.bincount((lengths - low) // width)
    return tuple(
        (low + i * width, min(high, low + (i + 1) * width - 1), int(count)) for i, count in enumerate(counts)
    )


def _rewards(table: FrameTable, labels: FrameLabels, horizon: int) -> RewardReport:
    segments = cut_segments(labels.terminated, table.episode_start, table.episode_length)
    rewarded = 0
    for begin in range(0, table.num_frames, BATCH_STARTS):
        starts = np.arange(begin, min(begin + BATCH_STARTS, table.num_frames))
        steps = chunk_steps(starts, horizon, segments)
        rewarded += int(chunk_reward("any", steps, labels.reward, labels.subgoal, 1.0).sum())
    return RewardReport(
        rules=(labels.rule.success, labels.rule.subgoal),
        success_rate=float(labels.success.mean()),
        subgoal_density=float(labels.subgoal.mean()),
        reward_density=np.count_nonzero(labels.reward) / table.num_frames,
        horizon=horizon,
        num_chunks=table.num_frames,
        num_rewarded_chunks=rewarded,
    )


def to_text(report: DatasetReport) -> str:
    """The report for people."""
    rows = [
        f"{report.root}: LeRobot {report.version}, {report.fps:g} frames per second"
        + (f", robot {report.robot_type}" if report.robot_type else ""),
        f"episodes   {report.num_episodes} ({report.num_bad_episodes} with problems), "
        f"{report.num_frames} frames",
        f"state      {report.state[0]} [{report.state[1]}]" if report.state else "state      none",
        f"action     {report.action[0]} [{report.action[1]}]",
    ]
    if report.control is not None:
        rows.append(f"           {_CONTROLS[report.control.kind]} ({report.control.told})")
    rows += [
        f"camera     {c.name}, {c.dtype}, {c.size[0]} x {c.size[1]}, decoded {c.store_gb:.2f} GB"
        for c in report.cameras
    ]
    if report.cameras:
        total = sum(camera.store_gb for camera in report.cameras)
        free = shutil.disk_usage(report.root).free / 1e9
        rows.append(f"           {total:.2f} GB in all; {free:.2f} GB are free on the data set's disk")
    rows += [f"task       {count:>6} episodes: {text}" for text, count in report.tasks.items()]
    most = max((count for _, _, count in report.length_histogram), default=1)
    rows += [
        f"length     {low:>5} to {high:>5} frames {count:>6} {'#' * round(40 * count / most)}"
        for low, high, count in report.length_histogram
    ]
    if (rewards := report.rewards) is not None:
        rows += [
            f"success    {rewards.success_rate:.1%} of the episodes (by {rewards.rules[0]})",
            f"sub-goals  {rewards.subgoal_density:.3%} of the frames (by {rewards.rules[1]}); "
            f"reward other than 0: {rewards.reward_density:.3%}",
            f"chunks     {rewards.num_rewarded_chunks} of {rewards.num_chunks} reach a sub-goal within "
            f"{rewards.horizon} actions ({rewards.horizon / report.fps:.2g} s)",
        ]
    rows += [f"note       {note}" for note in report.notes]
    rows += [f"problem    {_with_episodes(problem)}" for problem in report.problems] or [
        "problems   none found"
    ]
    return "\n".join(rows)


def _with_episodes(problem: Problem) -> str:
    """The message, with the episodes before it where they are several."""
    if len(problem.episodes) < 2:
        return problem.message
    return f"episodes {name_indices(problem.episodes)}: {problem.message}"
