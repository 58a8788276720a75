"""How success, rewards and sub-goals are read: the settings, and the columns that they name."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from chunkrl.errors import DatasetError

SuccessRule = Literal[
    "auto", "next.success", "next.reward", "reward", "subgoal_last", "episode_flag", "all", "episodes"
]
SubgoalRule = Literal["auto", "column", "success", "episode_end", "gripper", "pick_place", "csv"]
RewardRule = Literal["auto", "success", "cost", "progress"]
AUTO = ("next.success", "next.reward", "reward", "subgoal_last")
NO_COLUMN = "none"  # of human_key
AUTO_LABELS, NO_LABELS = "auto", "none"  # of labels
REWARDS = ("next.reward", "reward")
SUBGOAL_KEY = "subgoal"
NEXT_SUBGOAL = "next.subgoal"  # what `chunkrl label --export` writes: True where an action reached a sub-goal


FlagAt = Literal["action", "observation"]
PickPlaceEvent = Literal["goal", "grasp", "lift"]
TimeOut = Literal["failure", "bootstrap"]
Others = Literal["copy", "leave_out"]  # episodes that an export does not label


@dataclass(frozen=True)
class PickPlaceRule:
    """Settings of `--subgoal pick_place`; defaults fit LIBERO's 8-D state (metres).

    subgoal_events: which events are sub-goals: goal (a placement), grasp, lift.
    subgoal_objects: objects of the task: its first grasps and lifts and last placements count, others are retries.
    finger_entries: entries of the state with the finger joints. height_entry: entry with the hand's height.
    finger_still_m: fingers that close by less than this in a step have met something.
    finger_width_m: and what they hold is wider than this, else they closed on nothing.
    lift_m: a lift is so much above the height of the grasp.
    """

    subgoal_events: tuple[PickPlaceEvent, ...] = ("goal",)
    subgoal_objects: int = 1
    finger_entries: tuple[int, int] = (6, 7)
    height_entry: int = 2
    finger_still_m: float = 0.0015
    finger_width_m: float = 0.002
    lift_m: float = 0.03

    def __post_init__(self) -> None:
        unknown = set(self.subgoal_events) - set(get_args(PickPlaceEvent))
        if unknown or not self.subgoal_events:
            raise DatasetError(
                f"--subgoal-events {list(self.subgoal_events)}: choose of {', '.join(get_args(PickPlaceEvent))}"
            )
        if self.subgoal_objects < 1:
            raise DatasetError(f"--subgoal-objects {self.subgoal_objects}: at least 1")


@dataclass(frozen=True)
class LabelRule:
    """How a data set's columns are read. The command line's flags have the same names (`--success`, ...).

    success: which episodes succeed, and at which action.
        auto: next.success if there is one, else next.reward, else reward, else subgoal_last.
        next.success: at its first True.
        next.reward, reward: at the first reward of 1 (rewards 0 and 1), or the first 0 (rewards -1 and 0).
        subgoal_last: the last frame of an episode whose last frame has the sub-goal flag.
        episode_flag: the last frame of an episode whose last frame has the flag or reward `success_key`: for columns
        that repeat an episode's outcome at all of its frames.
        all: the last frame of every episode. episodes: the last frame of `success_episodes`.
    success_episodes: episode indices for success="episodes". success_key: the column of success="episode_flag".
    subgoal: auto: next.subgoal, which an export writes, or the column `subgoal_key`, the first that is there, else
        success; of another `subgoal_key` than the default that one alone. column: where the flag rises; of
        next.subgoal wherever it is True. success: where the episode succeeds. episode_end: the last frame of a
        successful episode. gripper: where the gripper's command crosses the middle of its range.
        pick_place: grasps, lifts and placements by rules on command and state (`pick_place`; LIBERO).
        csv: at the frames that the file `subgoal_csv` lists (columns episode_index, frame_index).
    subgoal_csv: the file of subgoal="csv". failure_penalty: what a failure costs with step_reward="cost".
    subgoal_key: the column with the sub-goal flags. gripper_index: the action's dimension of the gripper.
    pick_place: settings of subgoal="pick_place".
    step_reward: auto: next.reward if there is one, else reward, else success. success: 1 at success, else 0.
        cost: -1 per step, 0 at success, -`failure_penalty` at the last action of an unsuccessful episode, and 0
        after a success: the return says how long success takes (the advantage-conditioned document's reward).
        progress: what the action added to the progress of LeRobot's reward models (`progress`), and at success what
        was left to 1.
    progress: the parquet file of step_reward="progress", its path from here or from the data set's folder; "": the
        sarm_progress.parquet, robometer_progress.parquet or topreward_progress.parquet there.
    failure_terminal: the last action of every unsuccessful episode ended the task (no bootstrap), for example
        because the recording was stopped at a failure and not for lack of time; else that of those which
        `next.terminated` says it of.
    flag_at: what a flag outside `next.*` belongs to: its frame's action, or its frame's observation.
    human_key: the column that is true where a human acted in place of the policy; auto: LeRobot's
        complementary_info.is_intervention where there is one, else a flag called `intervention` or `is_intervention`
        (`chunkrl.data.interventions`); none: no frame is a human's.
    labels: a file of labels of `chunkrl label`, which stand in place of what the columns say; its path from here or
        from the data set's folder. auto: the one in that folder where there is one, and no other of these settings
        (but human_key) is given; several are an error. none: no file.
    success_file: a list of the episodes that succeeded, in place of success_episodes: .txt (an index a line), .csv
        (columns episode_index and, as needed, success) or .json ([0, 3], or {"0": true, "1": false}).
    """

    success: SuccessRule = "auto"
    success_episodes: tuple[int, ...] = ()
    success_key: str = "next.success"
    subgoal: SubgoalRule = "auto"
    subgoal_key: str = SUBGOAL_KEY
    gripper_index: int = -1
    pick_place: PickPlaceRule = PickPlaceRule()
    subgoal_csv: str = ""
    step_reward: RewardRule = "auto"
    failure_penalty: float = 100.0
    failure_terminal: bool = False
    progress: str = ""
    flag_at: FlagAt = "action"
    human_key: str = "auto"
    labels: str = AUTO_LABELS
    success_file: str = ""

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
        if self.success_file and self.success == "auto":
            object.__setattr__(self, "success", "episodes")
        if bool(self.success_episodes or self.success_file) != (self.success == "episodes"):
            raise DatasetError(
                "--success episodes goes with --success-episodes 0 3 ... or --success-file FILE: give both or neither"
            )
        if self.success_episodes and self.success_file:
            raise DatasetError("--success-episodes and --success-file both list the successes: leave one out")
        if bool(self.subgoal_csv) != (self.subgoal == "csv"):
            raise DatasetError("--subgoal csv and --subgoal-csv FILE go together: give both or neither")
        if self.progress and self.step_reward != "progress":
            raise DatasetError("--progress FILE goes with --step-reward progress: give both, or neither")
        if not 0 <= self.failure_penalty < math.inf:
            raise DatasetError(f"--failure-penalty {self.failure_penalty}: a finite number, at least 0")
        if self.labels not in (AUTO_LABELS, NO_LABELS) and (given := self.explicit()):
            raise DatasetError(
                f"--labels {self.labels} and {', '.join(given)} both say what the labels are: leave one out"
            )

    def explicit(self) -> list[str]:
        """The flags of the settings that say what the labels are and have not their defaults."""
        own = (f for f in fields(self) if f.name not in ("human_key", "labels"))
        return [f"--{f.name.replace('_', '-')}" for f in own if getattr(self, f.name) != f.default]


def success_column(rule: LabelRule, declared: Collection[str]) -> tuple[str, SuccessRule] | None:
    """The column that says who succeeded, and the rule without "auto"; None where "auto" finds none."""
    columns: dict[str, tuple[tuple[str, SuccessRule], ...]] = {
        "next.success": (("next.success", "next.success"),),
        "next.reward": (("next.reward", "next.reward"),),
        "reward": (("reward", "reward"),),
        "subgoal_last": ((rule.subgoal_key, "subgoal_last"),),
        "episode_flag": ((rule.success_key, "episode_flag"),),
    }
    if rule.success != "auto":
        return next(iter(columns.get(rule.success, ())), None)
    known = [pair for name in AUTO for pair in columns[name]]
    return next((pair for pair in known if pair[0] in declared), None)


def subgoal_column(rule: LabelRule, declared: Collection[str]) -> str | None:
    """The column that says where sub-goals are reached; None where the rule reads none, or "auto" finds none."""
    if rule.subgoal != "auto":
        return rule.subgoal_key if rule.subgoal == "column" else None
    names = [rule.subgoal_key]
    # what an export says stands before what its data said; with subgoal_last the key says who succeeded too
    if rule.subgoal_key == SUBGOAL_KEY and rule.success != "subgoal_last":
        names.insert(0, NEXT_SUBGOAL)
    return next((name for name in names if name in declared), None)


def columns_read(rule: LabelRule, declared: Collection[str]) -> list[str]:
    """The columns that `label_frames` reads by this rule, of a data set that declares these."""
    success = success_column(rule, declared)
    names = [] if success is None else [success[0]]
    if success is not None:
        rule = replace(rule, success=success[1])
    if (subgoal := subgoal_column(rule, declared)) is not None:
        names.append(subgoal)
    if rule.step_reward == "auto":
        names += [name for name in REWARDS if name in declared][:1]
    if not rule.failure_terminal:
        names.append("next.terminated")
    if rule.human_key not in ("auto", NO_COLUMN):
        names.append(rule.human_key)
    return [name for name in dict.fromkeys(names) if name in declared]
