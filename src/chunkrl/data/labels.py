"""Who succeeded, what is rewarded, where sub-goals lie: by rules that name a column, never by a guess.

Conventions, all decided here:
- Columns `next.*` say what the action of their frame led to. Other columns do so too, unless
  `flag_at="observation"`: then a flag or reward at frame t was earned by the action of frame t - 1.
- A success ends the task: `terminated` is True at the first frame whose action succeeded, once an episode.
  Frames recorded after it stay in the data set; `after_success` marks them, and rewards there are the data's.
- `next.done` says only that a recording ends and is not read. An episode without success failed where
  `next.terminated` is True at its last frame (a human said so), or where failures are declared terminal; else it is
  truncated there: value functions bootstrap.
- A sub-goal counts when it is reached (its onset), not for every frame that it stays reached.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from chunkrl.data.frames import FrameTable
from chunkrl.data.label_columns import (
    FlagAt,
    check_values,
    first_row,
    flag_column,
    label_column,
    place_of,
    to_action,
)
from chunkrl.data.large_arrays import blocks, by_blocks, zeros
from chunkrl.data.pick_place import PickPlaceRule
from chunkrl.data.subgoals import subgoal_frames
from chunkrl.errors import DatasetError

SuccessRule = Literal["auto", "next.success", "next.reward", "reward", "subgoal_last", "all", "episodes"]
SubgoalRule = Literal["auto", "column", "success", "episode_end", "gripper", "pick_place", "csv"]
RewardRule = Literal["auto", "success", "cost"]


@dataclass(frozen=True)
class LabelRule:
    """How a data set's columns are read. The command line's flags have the same names (`--success`, ...).

    success: which episodes succeed, and at which action.
        auto: next.success if there is one, else next.reward, else reward, else subgoal_last.
        next.success: at its first True.
        next.reward, reward: at the first reward of 1 (rewards 0 and 1), or the first 0 (rewards -1 and 0).
        subgoal_last: the last frame of an episode whose last frame has the sub-goal flag.
        all: the last frame of every episode. episodes: the last frame of `success_episodes`.
    success_episodes: episode indices for success="episodes".
    subgoal: auto: the column `subgoal_key` if there is one, else success.
        column: where the flag rises. success: where the episode succeeds. episode_end: the last frame of a
        successful episode. gripper: where the gripper's command crosses the middle of its range.
        pick_place: grasps, lifts and placements by rules on command and state (`pick_place`; LIBERO).
        csv: at the frames that the file `subgoal_csv` lists (columns episode_index, frame_index).
    subgoal_key: the column with the sub-goal flags. gripper_index: the action's dimension of the gripper.
    pick_place: settings of subgoal="pick_place".
    step_reward: auto: next.reward if there is one, else reward, else success. success: 1 at success, else 0.
        cost: -1 a step, 0 at success, -`failure_penalty` at the last action of an unsuccessful episode, and 0
        after a success: the return says how long success takes (the advantage-conditioned document's reward).
    failure_terminal: the last action of every unsuccessful episode ended the task (no bootstrap), for example
        because the recording was stopped at a failure and not for lack of time; else that of those which
        `next.terminated` says it of.
    flag_at: what a flag outside `next.*` belongs to: its frame's action, or its frame's observation.
    human_key: the column that is true where a human acted in place of the policy; auto: LeRobot's
        complementary_info.is_intervention where there is one, else no frame is a human's.
    """

    success: SuccessRule = "auto"
    success_episodes: tuple[int, ...] = ()
    subgoal: SubgoalRule = "auto"
    subgoal_key: str = "subgoal"
    gripper_index: int = -1
    pick_place: PickPlaceRule = PickPlaceRule()
    subgoal_csv: str = ""
    step_reward: RewardRule = "auto"
    failure_penalty: float = 100.0
    failure_terminal: bool = False
    flag_at: FlagAt = "action"
    human_key: str = "auto"

    def __post_init__(self) -> None:
        allowed = {
            "success": SuccessRule,
            "subgoal": SubgoalRule,
            "step_reward": RewardRule,
            "flag_at": FlagAt,
        }
        for name, values in ((name, get_args(kind)) for name, kind in allowed.items()):
            if getattr(self, name) not in values:
                raise DatasetError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: use one of {', '.join(values)}"
                )
        if bool(self.success_episodes) != (self.success == "episodes"):
            raise DatasetError(
                "--success episodes and --success-episodes 0 3 ... go together: give both or neither"
            )
        if bool(self.subgoal_csv) != (self.subgoal == "csv"):
            raise DatasetError("--subgoal csv and --subgoal-csv FILE go together: give both or neither")
        if not 0 <= self.failure_penalty < np.inf:
            raise DatasetError(f"--failure-penalty {self.failure_penalty}: a finite number, at least 0")


@dataclass(frozen=True)
class FrameLabels:
    """Labels of the N frames and E episodes of a FrameTable, in its order.

    reward: float32 [N], of the action of the frame.
    subgoal: bool [N], the action of the frame reached a sub-goal.
    terminated: bool [N], the action of the frame ended the task (at most once an episode).
    truncated: bool [N], last frame of an episode that did not terminate.
    after_success: bool [N], frames recorded after the task had ended.
    human: bool [N], a human chose the frame's action (an intervention).
    success: bool [E].
    rule: the rule with "auto" resolved.
    """

    reward: np.ndarray
    subgoal: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    after_success: np.ndarray
    human: np.ndarray
    success: np.ndarray
    rule: LabelRule


def label_frames(table: FrameTable, rule: LabelRule = LabelRule()) -> FrameLabels:
    """Labels of a data set's frames by `rule`.

    Raises:
        DatasetError: no column says who succeeded and no rule does; the rule's column is missing; a flag is
        not
            0 or 1; an episode is successful before its first action; unknown episodes.
    """
    rule = _resolve(table, rule)
    last = table.episode_start + table.episode_length - 1
    first_success = _first_in_episodes(table, _success(table, rule))
    success = first_success < table.num_frames
    terminated, truncated, after_success = (zeros(table.cache_dir, table.num_frames, bool) for _ in range(3))
    terminated[first_success[success]] = True
    for begin, end in zip(first_success[success] + 1, last[success] + 1, strict=True):
        after_success[begin:end] = True
    failed_end = last[~success]
    reward = _reward(table, rule, terminated, failed_end, after_success)
    subgoal = subgoal_frames(table, rule, terminated, last[success])
    failed = np.ones(len(failed_end), bool)
    if not rule.failure_terminal:
        failed = _declared_failures(table, failed_end)
    terminated[failed_end[failed]] = truncated[failed_end[~failed]] = True
    return FrameLabels(
        reward=reward,
        subgoal=subgoal,
        terminated=terminated,
        truncated=truncated,
        after_success=after_success,
        human=_human(table, rule.human_key),
        success=success,
        rule=rule,
    )


def _declared_failures(table: FrameTable, failed_end: np.ndarray) -> np.ndarray:
    """bool [n], of the last rows int [n] of unsuccessful episodes: those whose action ended the task."""
    if not table.has_column("next.terminated"):
        return np.zeros(len(failed_end), bool)
    values = label_column(table, "next.terminated", "column")
    check_values(table, "next.terminated", values, (0, 1), "a flag: correct the column")
    return values[failed_end].astype(bool)


def _first_in_episodes(table: FrameTable, flags: np.ndarray) -> np.ndarray:
    """int64 [E], the first row of each episode where flags bool [N] are True; N where none is."""
    first = np.full(table.num_episodes, table.num_frames)
    for rows in blocks(table.num_frames):
        found = rows.start + np.flatnonzero(flags[rows])
        np.minimum.at(first, table.episode_of(found), found)
    return first


def _resolve(table: FrameTable, rule: LabelRule) -> LabelRule:
    """The rule without "auto"."""
    success, subgoal = rule.success, rule.subgoal
    if success == "auto":
        columns: tuple[tuple[str, SuccessRule], ...] = (
            ("next.success", "next.success"),
            ("next.reward", "next.reward"),
            ("reward", "reward"),
            (rule.subgoal_key, "subgoal_last"),
        )
        found = [name for column, name in columns if table.has_column(column)]
        if not found:
            raise DatasetError(
                f"{table.description.root} does not say which episodes succeeded: none of the columns "
                f"{', '.join(column for column, _ in columns)}. Say it with --success all (all of them), "
                "--success episodes --success-episodes 0 3 ... (those) or --subgoal-key NAME (a flag column)"
            )
        success = found[0]
    if subgoal == "auto":
        subgoal = "column" if table.has_column(rule.subgoal_key) else "success"
    return replace(rule, success=success, subgoal=subgoal)


_INTERVENTION = "complementary_info.is_intervention"  # LeRobot's name


def _human(table: FrameTable, key: str) -> np.ndarray:
    """bool [N], actions of a human."""
    if key == "auto" and not table.has_column(_INTERVENTION):
        return zeros(table.cache_dir, table.num_frames, bool)
    return flag_column(table, _INTERVENTION if key == "auto" else key, "--human-key")


def _success(table: FrameTable, rule: LabelRule) -> np.ndarray:
    """bool [N], the actions that succeeded."""
    first, last = table.episode_start, table.episode_start + table.episode_length - 1
    fired = zeros(table.cache_dir, table.num_frames, bool)
    if rule.success == "all":
        fired[last] = True
        return fired
    if rule.success == "episodes":
        unknown = sorted(set(rule.success_episodes) - set(table.episode_ids.tolist()))
        if unknown:
            raise DatasetError(
                f"{table.description.root} has no episodes {unknown}: correct --success-episodes"
            )
        fired[last[np.isin(table.episode_ids, rule.success_episodes)]] = True
        return fired
    if rule.success == "next.success":
        return flag_column(table, "next.success", "--success")
    if rule.success == "subgoal_last":
        name = rule.subgoal_key
        fired[last] = flag_column(table, name, "--subgoal-key")[last]
    else:
        name = rule.success
        fired = _success_rewards(table, name)
    if rule.flag_at == "observation" and not name.startswith("next.") and fired[first].any():
        row = int(first[fired[first].argmax()])
        raise DatasetError(f"{place_of(table, row)}: successful before any action; leave the episode out")
    return to_action(table, name, fired, rule.flag_at)


def _success_rewards(table: FrameTable, name: str) -> np.ndarray:
    """bool [N], the frames whose reward says success."""
    values = label_column(table, name, "--success")
    costs = first_row(values, lambda part: part == -1) is not None
    what = "a reward of success (0 and 1, or -1 a step and 0 at success): use another --success"
    check_values(table, name, values, (-1, 0) if costs else (0, 1), what)
    wanted = 0 if costs else 1
    return by_blocks(table.cache_dir, len(values), bool, lambda rows: values[rows] == wanted)


def _reward(
    table: FrameTable, rule: LabelRule, success: np.ndarray, failed_end: np.ndarray, after: np.ndarray
) -> np.ndarray:
    """float32 [N]. success, after: bool [N], succeeding actions and frames after a success. failed_end: int, last
    rows of unsuccessful episodes."""
    num_frames, folder = table.num_frames, table.cache_dir
    if rule.step_reward == "cost":

        def cost(rows: slice) -> np.ndarray:
            return np.where(success[rows] | after[rows], 0.0, -1.0)

        reward = by_blocks(folder, num_frames, np.float32, cost)
        reward[failed_end] = -rule.failure_penalty
        return reward
    recorded = [name for name in ("next.reward", "reward") if table.has_column(name)]
    if rule.step_reward == "success" or not recorded:
        return by_blocks(folder, num_frames, np.float32, lambda rows: success[rows])
    values = label_column(table, recorded[0], "column")
    reward = by_blocks(folder, num_frames, np.float32, lambda rows: values[rows])
    row = first_row(reward, lambda part: ~np.isfinite(part))
    if row is not None:
        raise DatasetError(f"{place_of(table, row)}: '{recorded[0]}' is NaN or inf; correct it")
    return to_action(table, recorded[0], reward, rule.flag_at)
