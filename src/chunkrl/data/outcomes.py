"""What follows from which actions succeeded: where episodes end, and what every action earned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chunkrl.data.frames import FrameTable
from chunkrl.data.label_columns import check_values, first_row, label_column, place_of, to_action
from chunkrl.data.label_rules import REWARDS, LabelRule
from chunkrl.data.large_arrays import by_blocks, zeros
from chunkrl.data.progress_files import progress_rewards, read_progress
from chunkrl.errors import DatasetError


@dataclass(frozen=True)
class Outcomes:
    """Ends and rewards of some episodes' n rows: [n] each, as in `FrameLabels`."""

    terminated: np.ndarray
    truncated: np.ndarray
    after_success: np.ndarray
    reward: np.ndarray


@dataclass(frozen=True, eq=False)
class OutcomeRule:
    """How ends and rewards of a table's E episodes follow; columns and files that say a part of it are read once.

    rule: without "auto" in what names files. recorded: rewards of the data, float32 [N], where the rule takes these.
    progress: float32 [N], where rewards are what it gains. fails: bool [E], the episode's last action ended the task
        where it did not succeed.
    """

    table: FrameTable
    rule: LabelRule
    recorded: np.ndarray | None
    progress: np.ndarray | None
    fails: np.ndarray

    @classmethod
    def read(cls, table: FrameTable, rule: LabelRule) -> OutcomeRule:
        """Raises DatasetError where the rule's column or file is missing, or holds other things."""
        recorded = _recorded_rewards(table, rule) if rule.step_reward == "auto" else None
        is_progress = rule.step_reward == "progress"
        progress = read_progress(Path(rule.progress), table, "--progress") if is_progress else None
        fails = np.ones(table.num_episodes, bool) if rule.failure_terminal else _declared_failures(table)
        return cls(table, rule, recorded, progress, fails)

    def outcomes(self, first_success: np.ndarray, episodes: slice = slice(None)) -> Outcomes:
        """Ends and rewards of the rows of `episodes` (their positions, one after the other).

        first_success: int64, of each of these episodes, the row in the table of the action that succeeded; N: none.
        """
        table = self.table
        start, length = table.episode_start[episodes], table.episode_length[episodes]
        begin, num_rows = int(start[0]), int(length.sum())
        success, last = first_success < table.num_frames, start + length - 1 - begin
        first = first_success[success] - begin
        terminated, truncated, after_success = (zeros(table.cache_dir, num_rows, bool) for _ in range(3))
        terminated[first] = True
        for after, end in zip(first + 1, last[success] + 1, strict=True):
            after_success[after:end] = True
        reward = self._reward(slice(begin, begin + num_rows), terminated, last, ~success, after_success)
        failed_end, failed = last[~success], self.fails[episodes][~success]
        terminated[failed_end[failed]] = truncated[failed_end[~failed]] = True
        return Outcomes(terminated, truncated, after_success, reward)

    def _reward(
        self, own: slice, success: np.ndarray, last: np.ndarray, unsuccessful: np.ndarray, after: np.ndarray
    ) -> np.ndarray:
        """float32 [n], of the n rows `own` of the table.

        success, after: bool [n], succeeding actions and frames after a success. last: int [e], last rows of episodes,
        counted from the first of `own`. unsuccessful: bool [e].
        """
        rule, num_rows, folder = self.rule, len(success), self.table.cache_dir
        if rule.step_reward == "cost":

            def cost(rows: slice) -> np.ndarray:
                return np.where(success[rows] | after[rows], 0.0, -1.0)

            reward = by_blocks(folder, num_rows, np.float32, cost)
            reward[last[unsuccessful]] = -rule.failure_penalty
            return reward
        if self.progress is not None:
            gained = progress_rewards(self.progress[own], last, success, after)
            return by_blocks(folder, num_rows, np.float32, lambda rows: gained[rows])
        if self.recorded is not None:
            return self.recorded[own]
        return by_blocks(folder, num_rows, np.float32, lambda rows: success[rows])


def _recorded_rewards(table: FrameTable, rule: LabelRule) -> np.ndarray | None:
    """float32 [N], at the actions that earned them; None where the data have none."""
    name = next((name for name in REWARDS if table.has_column(name)), None)
    if name is None:
        return None
    values = label_column(table, name, "column")
    reward = by_blocks(table.cache_dir, table.num_frames, np.float32, lambda rows: values[rows])
    row = first_row(reward, lambda part: ~np.isfinite(part))
    if row is not None:
        raise DatasetError(f"{place_of(table, row)}: '{name}' is NaN or inf; correct it")
    return to_action(table, name, reward, rule.flag_at)


def _declared_failures(table: FrameTable) -> np.ndarray:
    """bool [E], the data say that the episode's last action ended the task."""
    if not table.has_column("next.terminated"):
        return np.zeros(table.num_episodes, bool)
    values = label_column(table, "next.terminated", "column")
    check_values(table, "next.terminated", values, (0, 1), "a flag: correct the column")
    return values[table.episode_start + table.episode_length - 1].astype(bool)
