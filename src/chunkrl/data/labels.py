"""Who succeeded, what is rewarded, where sub-goals lie: by rules that name a column, never by a guess.

Conventions, all decided here:
- Columns `next.*` say what the action of their frame led to. Other columns do so too, unless
  `flag_at="observation"`: then a flag or reward at frame t was earned by the action of frame t - 1.
- A success ends the task: `terminated` is True at the first frame whose action succeeded, once per episode.
  Frames recorded after it stay in the data set; `after_success` marks them, and rewards there are the data's.
- `next.done` says only that a recording ends and is not read. An episode without success failed where
  `next.terminated` is True at its last frame (a human said so), or where failures are declared terminal; else it is
  truncated there: value functions bootstrap.
- A sub-goal counts when it is reached (its onset), not for every frame that it stays reached.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from chunkrl.data.frames import FrameTable
from chunkrl.data.interventions import human_frames
from chunkrl.data.label_columns import (
    check_values,
    first_row,
    flag_column,
    label_column,
    place_of,
    to_action,
)
from chunkrl.data.label_files import (
    HUMAN,
    LabelFile,
    chosen_labels,
    labels_beside,
    read_labels,
    read_successes,
)
from chunkrl.data.label_rules import AUTO, AUTO_LABELS, LabelRule, subgoal_column, success_column
from chunkrl.data.large_arrays import blocks, by_blocks, zeros
from chunkrl.data.outcomes import OutcomeRule
from chunkrl.data.progress_files import progress_file
from chunkrl.data.subgoals import subgoal_frames
from chunkrl.errors import DatasetError


@dataclass(frozen=True)
class FrameLabels:
    """Labels of the N frames and E episodes of a FrameTable, in its order.

    reward: float32 [N], of the action of the frame.
    subgoal: bool [N], the action of the frame reached a sub-goal.
    terminated: bool [N], the action of the frame ended the task (at most once per episode).
    truncated: bool [N], last frame of an episode that did not terminate.
    after_success: bool [N], frames recorded after the task had ended.
    human: bool [N], a human chose the frame's action (an intervention).
    success: bool [E].
    rule: the rule with "auto" resolved; of a file of labels, the one that made it. file: that file, as
        `LabelRule.labels` names it; "" for labels that were read from columns. file_told: with what made it.
        unused: files of labels beside the data that were passed over, because other rules were given.
    """

    reward: np.ndarray
    subgoal: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    after_success: np.ndarray
    human: np.ndarray
    success: np.ndarray
    rule: LabelRule
    file: str = ""
    file_told: str = ""
    unused: tuple[str, ...] = ()


def label_frames(table: FrameTable, rule: LabelRule = LabelRule()) -> FrameLabels:
    """Labels of a data set's frames by `rule`.

    Raises:
        DatasetError: no column says who succeeded and no rule does; the rule's column is missing; a flag is
        not 0 or 1; an episode is successful before its first action, or all that succeed do so at their first;
        unknown episodes; files of labels of which none is named, or one that is not of these data.
    """
    root = table.description.root
    file = chosen_labels(root, rule)
    if file is not None:
        return _from_file(table, rule, file)
    passed_over = labels_beside(root) if rule.labels == AUTO_LABELS else ()
    rule = _resolve(table, rule)
    last = table.episode_start + table.episode_length - 1
    fired = _success(table, rule)
    first_success = _first_in_episodes(table, fired)
    success = first_success < table.num_frames
    _check_not_repeated(table, rule, fired, first_success)
    human_key, human = human_frames(table, rule.human_key)
    outcomes = OutcomeRule.read(table, rule).outcomes(first_success)
    return FrameLabels(
        reward=outcomes.reward,
        subgoal=subgoal_frames(table, rule, first_success[success], last[success]),
        terminated=outcomes.terminated,
        truncated=outcomes.truncated,
        after_success=outcomes.after_success,
        human=human,
        success=success,
        rule=replace(rule, human_key=human_key),
        unused=tuple(found.name for found in passed_over),
    )


def says_success(table: FrameTable, rule: LabelRule) -> bool:
    """Whether anything says which episodes succeeded: the rule, a file of labels that it finds, or a column."""
    if rule.success != "auto" or chosen_labels(table.description.root, rule) is not None:
        return True
    return success_column(rule, [n for n in table.description.features if table.has_column(n)]) is not None


def _from_file(table: FrameTable, rule: LabelRule, file: LabelFile) -> FrameLabels:
    """The labels of a file; who acted is read from the columns where the file does not say it, or human_key does."""
    arrays = read_labels(table, file)
    if HUMAN in arrays and rule.human_key == "auto":
        human_key, human = file.name, arrays[HUMAN]
    else:
        human_key, human = human_frames(table, rule.human_key)

    def kept(name: str, dtype: npt.DTypeLike) -> np.ndarray:
        return by_blocks(table.cache_dir, table.num_frames, dtype, lambda rows: arrays[name][rows])

    terminated = kept("terminated", bool)
    success = arrays["success"][table.episode_start]
    after_success = zeros(table.cache_dir, table.num_frames, bool)
    ends = table.episode_start + table.episode_length
    first = _first_in_episodes(table, terminated)
    for begin, end in zip(first[success] + 1, ends[success], strict=True):
        after_success[begin:end] = True
    return FrameLabels(
        reward=kept("reward", np.float32),
        subgoal=kept("subgoal", bool),
        terminated=terminated,
        truncated=kept("truncated", bool),
        after_success=after_success,
        human=human,
        success=success,
        rule=replace(file.rule(), human_key=human_key),
        file=file.name,
        file_told=file.told(),
    )


def _first_in_episodes(table: FrameTable, flags: np.ndarray) -> np.ndarray:
    """int64 [E], the first row of each episode where flags bool [N] are True; N where none is."""
    first = np.full(table.num_episodes, table.num_frames)
    for rows in blocks(table.num_frames):
        found = rows.start + np.flatnonzero(flags[rows])
        np.minimum.at(first, table.episode_of(found), found)
    return first


def _resolve(table: FrameTable, rule: LabelRule) -> LabelRule:
    """The rule without "auto", which names the files that are there."""
    success, declared = rule.success, [n for n in table.description.features if table.has_column(n)]
    if rule.step_reward == "progress":
        rule = replace(rule, progress=str(progress_file(table.description.root, rule.progress)))
    if rule.success_file:
        rule = replace(rule, success_episodes=read_successes(rule.success_file, table), success_file="")
    if success == "auto":
        found = success_column(rule, declared)
        if found is None:
            outcomes = [name for name in table.description.features if "succe" in name.lower()]
            raise DatasetError(
                f"{table.description.root} does not say which episodes succeeded: none of the columns "
                f"{', '.join((*AUTO[:3], rule.subgoal_key))}. Say it with --success all (all of them), "
                "--success episodes --success-episodes 0 3 ... or --success-file FILE (those), --subgoal-key NAME (a "
                "flag column) or "
                "--success episode_flag --success-key NAME (a column with an episode's outcome"
                f"{': ' * bool(outcomes) + ', '.join(outcomes)}); chunkrl label "
                "with one of these keeps it beside the data"
            )
        success = found[1]
    rule = replace(rule, success=success)
    if rule.subgoal == "auto":
        column = subgoal_column(rule, declared)
        own = ("success", rule.subgoal_key) if column is None else ("column", column)
        rule = replace(rule, subgoal=own[0], subgoal_key=own[1])
    return rule


def _check_not_repeated(
    table: FrameTable, rule: LabelRule, fired: np.ndarray, first_success: np.ndarray
) -> None:
    """Refuses a column that gives an episode's outcome at each of its frames: no frame would lead to success.

    fired: bool [N], what the column says.
    """
    several = table.episode_length > 1
    at_first = several & (first_success == table.episode_start)
    repeated = at_first & fired[table.episode_start + table.episode_length - 1]
    others = (first_success < table.num_frames) & several & ~repeated
    if rule.success not in ("next.success", "next.reward", "reward") or not repeated.any() or others.any():
        return
    cure = "--success episode_flag"
    if rule.success != "next.success":
        cure += f" --success-key {rule.success} --step-reward success"
    raise DatasetError(
        f"{table.description.root}: by '{rule.success}' all {int(repeated.sum())} successful episodes of "
        f"several frames succeed at their first frame already: is it the outcome, repeated at every frame? "
        f"Then use {cure} (success at the last action); else correct the column"
    )


def _success(table: FrameTable, rule: LabelRule) -> np.ndarray:
    """bool [N], the actions that succeeded."""
    first, last = table.episode_start, table.episode_start + table.episode_length - 1
    fired = zeros(table.cache_dir, table.num_frames, bool)
    if rule.success == "all":
        fired[last] = True
        return fired
    if rule.success == "episodes":
        known = set(table.episode_ids.tolist()) | table.description.left_out_episodes
        unknown = sorted(set(rule.success_episodes) - known)
        if unknown:
            raise DatasetError(
                f"{table.description.root} has no episodes {unknown}: correct --success-episodes"
            )
        fired[last[np.isin(table.episode_ids, rule.success_episodes)]] = True
        return fired
    if rule.success == "next.success":
        return flag_column(table, "next.success", "--success")
    if rule.success == "episode_flag":
        fired[last] = _success_rewards(table, rule.success_key)[last]
        return fired
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
    what = "a reward of success (0 and 1, or -1 per step and 0 at success): use another --success"
    check_values(table, name, values, (-1, 0) if costs else (0, 1), what)
    wanted = 0 if costs else 1
    return by_blocks(table.cache_dir, len(values), bool, lambda rows: values[rows] == wanted)
