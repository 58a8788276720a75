"""Who succeeded, what is rewarded, where sub-goals lie: by rules that name a column, never by a guess.

Conventions, all decided here:
- Columns `next.*` say what the action of their frame led to. Other columns do so too, unless
  `flag_at="observation"`: then a flag or reward at frame t was earned by the action of frame t - 1.
- A success ends the task: `terminated` is True at the first frame whose action succeeded, once an episode.
  Frames recorded after it stay in the data set; `after_success` marks them, and rewards there are the data's.
- `next.done` says only that a recording ends and is not read. An episode without success (or a failure
  declared terminal) is truncated at its last frame: value functions bootstrap there.
- A sub-goal counts when it is reached (its onset), not for every frame that it stays reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from chunkrl.data.frames import FrameTable
from chunkrl.errors import DatasetError

SuccessRule = Literal["auto", "next.success", "next.reward", "reward", "subgoal_last", "all", "episodes"]
SubgoalRule = Literal["auto", "column", "success", "episode_end", "gripper"]
_SUCCESS_RULES = ("auto", "next.success", "next.reward", "reward", "subgoal_last", "all", "episodes")
_SUBGOAL_RULES = ("auto", "column", "success", "episode_end", "gripper")


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
    subgoal_key: the column with the sub-goal flags. gripper_index: the action's dimension of the gripper.
    failure_terminal: the last action of an unsuccessful episode ended the task (no bootstrap), for example
        because the recording was stopped at a failure and not for lack of time.
    flag_at: what a flag outside `next.*` belongs to: its frame's action, or its frame's observation.
    """

    success: SuccessRule = "auto"
    success_episodes: tuple[int, ...] = ()
    subgoal: SubgoalRule = "auto"
    subgoal_key: str = "subgoal"
    gripper_index: int = -1
    failure_terminal: bool = False
    flag_at: Literal["action", "observation"] = "action"

    def __post_init__(self) -> None:
        allowed = {"success": _SUCCESS_RULES, "subgoal": _SUBGOAL_RULES, "flag_at": ("action", "observation")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise DatasetError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: use one of {', '.join(values)}"
                )
        if bool(self.success_episodes) != (self.success == "episodes"):
            raise DatasetError(
                "--success episodes and --success-episodes 0 3 ... go together: give both or neither"
            )


@dataclass(frozen=True)
class FrameLabels:
    """Labels of the N frames and E episodes of a FrameTable, in its order.

    reward: float32 [N], of the action of the frame: next.reward, else reward, else 1 at success.
    subgoal: bool [N], the action of the frame reached a sub-goal.
    terminated: bool [N], the action of the frame ended the task (at most once an episode).
    truncated: bool [N], last frame of an episode that did not terminate.
    after_success: bool [N], frames recorded after the task had ended.
    success: bool [E].
    rule: the rule with "auto" resolved.
    """

    reward: np.ndarray
    subgoal: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    after_success: np.ndarray
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
    first, last = table.episode_start, table.episode_start + table.episode_length - 1
    fired = _success(table, rule)
    order = np.cumsum(fired)
    before_episode = order[first] - fired[first]
    episode = np.repeat(np.arange(table.num_episodes), table.episode_length)
    num_fired = order - before_episode[episode]
    terminated = fired & (num_fired == 1)
    success = num_fired[last] > 0
    after_success = (num_fired > 0) & ~terminated
    is_last = np.zeros(table.num_frames, bool)
    is_last[last] = True
    failed_end = is_last & ~success[episode]
    return FrameLabels(
        reward=_reward(table, rule, terminated),
        subgoal=_subgoal(table, rule, terminated, is_last & success[episode]),
        terminated=terminated | (failed_end & rule.failure_terminal),
        truncated=failed_end & (not rule.failure_terminal),
        after_success=after_success,
        success=success,
        rule=rule,
    )


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


def _column(table: FrameTable, name: str, flag: str) -> np.ndarray:
    """A column with one value a frame, [N]."""
    if not table.has_column(name):
        raise DatasetError(f"{table.description.root} has no column '{name}': choose another {flag}")
    values = np.asarray(table.column(name)).reshape(table.num_frames, -1)
    if values.shape[1] != 1:
        raise DatasetError(
            f"{table.description.root}: '{name}' has {values.shape[1]} values a frame, expected one"
        )
    return values[:, 0]


def _flags(table: FrameTable, name: str, flag: str) -> np.ndarray:
    """A column of flags, bool [N]."""
    values = _column(table, name, flag)
    _check_values(table, name, values, (0, 1), f"a flag; choose another {flag}")
    return values.astype(bool)


def _check_values(
    table: FrameTable, name: str, values: np.ndarray, allowed: Sequence[int], what: str
) -> None:
    wrong = ~np.isin(values, allowed)
    if wrong.any():
        row = int(wrong.argmax())
        raise DatasetError(f"{_place(table, row)}: '{name}' is {values[row]}, which is not {what}")


def _place(table: FrameTable, row: int) -> str:
    episode = int(np.searchsorted(table.episode_start, row, side="right")) - 1
    frame = row - int(table.episode_start[episode])
    return f"{table.description.root}, episode {int(table.episode_ids[episode])}, frame {frame}"


def _to_action(table: FrameTable, name: str, values: np.ndarray, rule: LabelRule) -> np.ndarray:
    """Values [N] at the action that earned them; 0 for an action whose result was not recorded."""
    if rule.flag_at == "action" or name.startswith("next."):
        return values
    shifted = np.zeros_like(values)
    shifted[:-1] = values[1:]
    shifted[table.episode_start + table.episode_length - 1] = 0
    return shifted


def _success(table: FrameTable, rule: LabelRule) -> np.ndarray:
    """bool [N], the actions that succeeded."""
    first, last = table.episode_start, table.episode_start + table.episode_length - 1
    fired = np.zeros(table.num_frames, bool)
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
        return _flags(table, "next.success", "--success")
    if rule.success == "subgoal_last":
        name = rule.subgoal_key
        fired[last] = _flags(table, name, "--subgoal-key")[last]
    else:
        name = rule.success
        fired = _success_rewards(table, name)
    if rule.flag_at == "observation" and not name.startswith("next.") and fired[first].any():
        row = int(first[fired[first].argmax()])
        raise DatasetError(f"{_place(table, row)}: successful before any action; leave the episode out")
    return _to_action(table, name, fired, rule)


def _success_rewards(table: FrameTable, name: str) -> np.ndarray:
    """bool [N], the frames whose reward says success."""
    values = _column(table, name, "--success")
    costs = bool((values == -1).any())
    what = "a reward of success (0 and 1, or -1 a step and 0 at success): use another --success"
    _check_values(table, name, values, (-1, 0) if costs else (0, 1), what)
    return values == (0 if costs else 1)


def _reward(table: FrameTable, rule: LabelRule, terminated: np.ndarray) -> np.ndarray:
    for name in ("next.reward", "reward"):
        if table.has_column(name):
            values = _column(table, name, "column").astype(np.float32)
            if not np.isfinite(values).all():
                row = int((~np.isfinite(values)).argmax())
                raise DatasetError(f"{_place(table, row)}: '{name}' is NaN or inf; correct it")
            return _to_action(table, name, values, rule)
    return terminated.astype(np.float32)


def _subgoal(table: FrameTable, rule: LabelRule, success: np.ndarray, success_end: np.ndarray) -> np.ndarray:
    """bool [N]. success: the succeeding actions. success_end: the last frames of successful episodes."""
    if rule.subgoal == "success":
        return success.copy()
    if rule.subgoal == "episode_end":
        return success_end
    if rule.subgoal == "column":
        flags = _flags(table, rule.subgoal_key, "--subgoal")
        # A flag already up at an episode's first observation was reached by no action of the episode.
        given = rule.flag_at == "observation" and not rule.subgoal_key.startswith("next.")
        return _to_action(table, rule.subgoal_key, _rises(flags, table.episode_start, given), rule)
    if not -table.action.shape[1] <= rule.gripper_index < table.action.shape[1]:
        raise DatasetError(
            f"--gripper-index {rule.gripper_index}: actions have {table.action.shape[1]} dimensions"
        )
    command = np.asarray(table.action[:, rule.gripper_index])
    if command.min() == command.max():
        raise DatasetError(
            f"{table.description.root}: action {rule.gripper_index} never moves; set --gripper-index"
        )
    is_high = command > (command.min() + command.max()) / 2
    return _rises(is_high, table.episode_start, True) | _rises(~is_high, table.episode_start, True)


def _rises(flags: np.ndarray, episode_start: np.ndarray, given: bool) -> np.ndarray:
    """Where flags [N] become True; one that is True at an episode's first frame counts unless `given`."""
    before = np.concatenate([[False], flags[:-1]])
    before[episode_start] = flags[episode_start] if given else False
    return flags & ~before


def discounted_returns(
    reward: np.ndarray,
    terminated: np.ndarray,
    episode_start: np.ndarray,
    episode_length: np.ndarray,
    gamma: float,
    *,
    bootstrap: np.ndarray | None = None,
) -> np.ndarray:
    """Monte-Carlo return-to-go float32 [N]: sum_i gamma^i r_{t+i}, to the episode's end or its termination.

    reward, terminated: [N]. episode_start, episode_length: int [E].
    bootstrap: [E], value of what follows the last frame; an episode that does not terminate adds gamma^T
    times it
        (T rewards before it). Without it that value counts as 0.
    """
    if not 0 <= gamma <= 1:
        raise DatasetError(f"--gamma {gamma}: a discount lies between 0 and 1")
    result = np.zeros(len(reward))
    following = np.zeros(len(episode_start)) if bootstrap is None else np.array(bootstrap, np.float64)
    for back in range(1, int(episode_length.max(initial=0)) + 1):
        active = np.flatnonzero(episode_length >= back)
        rows = episode_start[active] + episode_length[active] - back
        following[active] = reward[rows] + gamma * np.where(terminated[rows], 0.0, following[active])
        result[rows] = following[active]
    return result.astype(np.float32)
