"""The columns of labels by hand: an edit computes those of its episode, and none of another one."""

from __future__ import annotations

import numpy as np

from chunkrl.data.chunk_semantics import cut_segments
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_files import COLUMNS, HUMAN
from chunkrl.data.outcomes import OutcomeRule
from chunkrl.data.returns import lambda_returns, normalize_per_task
from chunkrl.label.base import BaseLabels
from chunkrl.label.config import ReturnRule
from chunkrl.label.marks import EpisodeMarks

_RETURN = "return"


class EditedLabels:
    """What the file of labels holds, of all N frames of a table as they are now; in the beginning those of `base`.

    Raises:
        DatasetError: as `OutcomeRule.read`.
    """

    def __init__(self, table: FrameTable, base: BaseLabels, returns: ReturnRule) -> None:
        self._table, self._base, self._returns = table, base, returns
        self._outcomes = OutcomeRule.read(table, base.rule)
        self._columns = {
            name: np.array(base.frames[name], np.float32 if name == "reward" else bool)
            for name in (*COLUMNS, HUMAN)
        }
        self._columns[_RETURN] = self._returns_of(slice(None))

    def put(self, position: int, marks: EpisodeMarks, before: EpisodeMarks) -> None:
        """Says of the episode at a position what `marks` say; `before` is what `base` says of it."""
        table, columns, step = self._table, self._columns, marks.success_step
        start, length = int(table.episode_start[position]), int(table.episode_length[position])
        own, episode = slice(start, start + length), slice(position, position + 1)
        columns["success"][own] = step is not None
        if (marks.success, step) == (before.success, before.success_step):
            for name in ("terminated", "truncated", "reward"):
                columns[name][own] = self._base.frames[name][own]
        else:
            first = np.array([table.num_frames if step is None else start + step])
            outcomes = self._outcomes.outcomes(first, episode)
            for name in ("terminated", "truncated", "reward"):
                columns[name][own] = getattr(outcomes, name)
        columns["subgoal"][own] = columns[HUMAN][own] = False
        columns["subgoal"][start + np.array(marks.subgoals, np.int64)] = True
        for first_step, last_step in marks.human:
            columns[HUMAN][start + first_step : start + last_step + 1] = True
        columns[_RETURN][own] = self._returns_of(episode)

    def file_columns(self, used: np.ndarray) -> dict[str, np.ndarray]:
        """The columns that `label_arrays` gives, and `HUMAN`, of the episodes that are `used`, bool [E].

        Returns on the scale of their task are all computed again: they hang on its lowest and its highest.
        """
        rows = np.repeat(used, self._table.episode_length)
        found = {name: self._columns[name][rows] for name in (*COLUMNS, _RETURN)}
        found["return_normalized"] = normalize_per_task(found[_RETURN], self._table.task_index[rows])
        return found | {HUMAN: self._columns[HUMAN][rows]}

    def _returns_of(self, episodes: slice) -> np.ndarray:
        """Returns of the rows of the episodes at these positions, one after the other."""
        start, length = self._table.episode_start[episodes], self._table.episode_length[episodes]
        own = slice(int(start[0]), int(start[-1] + length[-1]))
        reward, terminated = self._columns["reward"][own], self._columns["terminated"][own]
        segments = cut_segments(terminated, start - own.start, length)
        nothing = np.zeros(len(reward), np.float32)  # V: by hand an unfinished recording is a failure
        return lambda_returns(nothing, reward, segments, self._returns.gamma, 1.0, self._returns.time_out)
