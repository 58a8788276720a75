"""Where sub-goals are reached: by a column, a file, the gripper, the robot's state, success or the episode's end."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chunkrl.data.frames import FrameTable
from chunkrl.data.label_columns import flag_column, to_action
from chunkrl.data.label_rules import NEXT_SUBGOAL
from chunkrl.data.large_arrays import by_blocks, zeros
from chunkrl.data.pick_place import pick_place_events
from chunkrl.errors import DatasetError
from chunkrl.files.regular_files import check_regular

if TYPE_CHECKING:
    from chunkrl.data.label_rules import LabelRule

_CSV_COLUMNS = ("episode_index", "frame_index")


def subgoal_frames(
    table: FrameTable, rule: LabelRule, succeeding: np.ndarray, success_end: np.ndarray
) -> np.ndarray:
    """bool [N], the actions that reached a sub-goal.

    succeeding, success_end: int, rows of the succeeding actions, and the last ones of their episodes.

    Raises:
        DatasetError: the rule does not fit the data set or its CSV file.
    """
    if rule.subgoal in ("success", "episode_end"):
        flags = zeros(table.cache_dir, table.num_frames, bool)
        flags[succeeding if rule.subgoal == "success" else success_end] = True
        return flags
    if rule.subgoal == "column":
        flags = flag_column(table, rule.subgoal_key, "--subgoal")
        if rule.subgoal_key == NEXT_SUBGOAL:  # two in a row are two
            return flags
        # A flag already up at an episode's first observation was reached by no action of the episode.
        given = rule.flag_at == "observation" and not rule.subgoal_key.startswith("next.")
        return to_action(table, rule.subgoal_key, _rises(table, flags, given), rule.flag_at)
    if rule.subgoal == "csv":
        return to_action(table, rule.subgoal_csv, _from_csv(table, rule), rule.flag_at)
    if not -table.action.shape[1] <= rule.gripper_index < table.action.shape[1]:
        raise DatasetError(
            f"--gripper-index {rule.gripper_index}: actions have {table.action.shape[1]} dimensions"
        )
    command = np.asarray(table.action[:, rule.gripper_index])
    if rule.subgoal == "pick_place":
        return _pick_place(table, rule, command, success_end)
    if command.min() == command.max():
        raise DatasetError(
            f"{table.description.root}: action {rule.gripper_index} never moves; set --gripper-index"
        )
    middle = (command.min() + command.max()) / 2
    is_high = by_blocks(table.cache_dir, table.num_frames, bool, lambda rows: command[rows] > middle)
    is_low = by_blocks(table.cache_dir, table.num_frames, bool, lambda rows: ~is_high[rows])
    flags = _rises(table, is_high, True)
    flags |= _rises(table, is_low, True)
    return flags


def _pick_place(
    table: FrameTable, rule: LabelRule, command: np.ndarray, success_end: np.ndarray
) -> np.ndarray:
    """bool [N], the events of `rule.pick_place`. command: [N], positive closes the gripper."""
    settings = rule.pick_place
    needed = max(*settings.finger_entries, settings.height_entry) + 1
    if table.state is None or table.state.shape[1] < needed:
        has = "no state" if table.state is None else f"{table.state.shape[1]} state entries"
        raise DatasetError(
            f"{table.description.root}: --subgoal pick_place reads the state's entries "
            f"{list(settings.finger_entries)} (fingers) and {settings.height_entry} (height), and the data set has "
            f"{has}: set --finger-entries and --height-entry"
        )
    flags = zeros(table.cache_dir, table.num_frames, bool)
    successful = set(success_end.tolist())
    for start, length in zip(table.episode_start, table.episode_length, strict=True):
        rows = slice(int(start), int(start + length))
        found = pick_place_events(
            command[rows], np.asarray(table.state[rows]), rows.stop - 1 in successful, settings
        )
        for event in settings.subgoal_events:
            flags[rows.start + np.asarray(found[event], dtype=int)] = True
    return flags


def _rises(table: FrameTable, flags: np.ndarray, given: bool) -> np.ndarray:
    """Where flags [N] become True; one that is True at an episode's first frame counts unless `given`."""

    def in_block(rows: slice) -> np.ndarray:
        before = np.maximum(np.arange(rows.start, rows.stop) - 1, 0)
        return flags[rows] & ~flags[before]

    rises = by_blocks(table.cache_dir, len(flags), bool, in_block)
    rises[table.episode_start] = False if given else flags[table.episode_start]
    return rises


def _from_csv(table: FrameTable, rule: LabelRule) -> np.ndarray:
    """bool [N], the frames that the rule's CSV file lists."""
    path = Path(rule.subgoal_csv).expanduser()
    check_regular(path, DatasetError, "name a CSV file with --subgoal-csv")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = set(_CSV_COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise DatasetError(
                    f"{path}: its first line lacks {', '.join(sorted(missing))}; it must name the columns "
                    "episode_index and frame_index"
                )
            rows = [(reader.line_num, [row[name] for name in _CSV_COLUMNS]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read ({error}): correct --subgoal-csv") from error
    position = {int(index): i for i, index in enumerate(table.episode_ids)}
    flags = zeros(table.cache_dir, table.num_frames, bool)
    for line, texts in rows:
        try:
            episode, frame = (int(text) for text in texts)
        except (TypeError, ValueError) as error:
            raise DatasetError(
                f"{path}, line {line}: {texts} are not two integers: correct the line"
            ) from error
        if episode not in position:
            if episode in table.description.left_out_episodes:
                continue
            raise DatasetError(f"{path}, line {line}: {table.description.root} has no episode {episode}")
        start, length = table.episode_start[position[episode]], table.episode_length[position[episode]]
        first = 0 if rule.flag_at == "action" else 1
        if not first <= frame < length:
            raise DatasetError(
                f"{path}, line {line}: episode {episode} has frames {first} to {length - 1} whose "
                f"{rule.flag_at} can reach a sub-goal, not {frame}: correct the line"
            )
        flags[start + frame] = True
    return flags
