"""Labels as they are before a person changes any: by rule, of a file, or none where nothing says who succeeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.config import record_of
from chunkrl.data.frames import FrameTable
from chunkrl.data.interventions import human_frames
from chunkrl.data.label_files import COLUMNS, HUMAN, chosen_labels
from chunkrl.data.label_rules import REWARDS, LabelRule, subgoal_column
from chunkrl.data.labels import label_frames, says_success
from chunkrl.data.outcomes import OutcomeRule
from chunkrl.data.problems import name_indices
from chunkrl.data.sidecar import load_part, load_sidecar, save_sidecar
from chunkrl.data.subgoals import subgoal_frames
from chunkrl.errors import DatasetError
from chunkrl.files.json_files import as_json
from chunkrl.label.config import ReturnRule
from chunkrl.label.marks import EpisodeMarks, spans_of

_CURE = "delete the folder: labels by hand then begin again"
_OF_OUTCOMES = ("auto", "success", "episode_end")  # sub-goals that come with a success
_OUTCOME = ("terminated", "truncated", "reward")


@dataclass(frozen=True)
class BaseLabels:
    """Labels of the N frames and E episodes of a table.

    rule: what made them, with "auto" resolved. frames: `label_files.COLUMNS` and `HUMAN`, [N] each. said: bool [E],
    whether anything says whether the episode succeeded. excluded: bool [E]. told: where they are from, in words.
    """

    rule: LabelRule
    frames: Mapping[str, np.ndarray]
    said: np.ndarray
    excluded: np.ndarray
    told: str

    def marks(self, table: FrameTable, position: int) -> EpisodeMarks:
        """What they say of the episode at a position of the table."""
        start = int(table.episode_start[position])
        rows = slice(start, start + int(table.episode_length[position]))
        here = {name: np.flatnonzero(self.frames[name][rows]) for name in ("terminated", "subgoal", HUMAN)}
        success = bool(self.frames["success"][start]) if self.said[position] else None
        return EpisodeMarks(
            success=success,
            success_step=int(here["terminated"][0]) if success else None,
            subgoals=tuple(here["subgoal"].tolist()),
            human=spans_of(here[HUMAN].tolist()),
            excluded=bool(self.excluded[position]),
        )


def base_labels(table: FrameTable, rule: LabelRule, blank: bool = False) -> BaseLabels:
    """The labels that there are by `rule`. blank: none, whatever the columns say.

    Raises:
        DatasetError: as `label_frames`, but not where nothing says which episodes succeeded: then outcomes are
            missing, and sub-goals are there by the rule.
    """
    if blank:
        return _blank(table, rule)
    if not says_success(table, rule):
        return _without_outcomes(table, rule)
    file = chosen_labels(table.description.root, rule)
    if file is None or not any(file.left_out().values()):
        labels = label_frames(table, rule)
        frames = {name: np.asarray(getattr(labels, name)) for name in (*_OUTCOME, "subgoal", HUMAN)}
        frames["success"] = np.repeat(labels.success, table.episode_length)
        told = labels.file_told or f"success by {labels.rule.success}, sub-goals by {labels.rule.subgoal}"
        everyone = np.ones(table.num_episodes, bool)
        return BaseLabels(labels.rule, frames, everyone, ~everyone, told)
    sidecar, is_said = load_part(file.path, table)
    frames = dict(sidecar.arrays)
    if missing := [name for name in COLUMNS if name not in frames]:
        raise DatasetError(
            f"{file.path} has no column '{missing[0]}' of labels: name another file with --labels"
        )
    human = human_frames(table, rule.human_key)[1]
    if HUMAN in frames and rule.human_key == "auto":
        human = np.where(is_said, frames[HUMAN], human)
    frames[HUMAN] = human
    excluded = np.isin(table.episode_ids, file.left_out().get("excluded", []))
    return BaseLabels(file.rule(), frames, is_said[table.episode_start], excluded, file.told())


def _blank(table: FrameTable, rule: LabelRule) -> BaseLabels:
    if rule.subgoal not in _OF_OUTCOMES:
        raise DatasetError(
            f"--blank begins without labels, and --subgoal {rule.subgoal} is a rule for some: leave one out"
        )
    return _unsaid(table, rule, np.zeros(table.num_frames, bool), "no labels yet")


def _without_outcomes(table: FrameTable, rule: LabelRule) -> BaseLabels:
    """Sub-goals that no outcome decides: of a column that is there, of the gripper, of a file."""
    declared = [name for name in table.description.features if table.has_column(name)]
    if rule.subgoal == "auto" and (column := subgoal_column(rule, declared)) is not None:
        rule = replace(rule, subgoal="column", subgoal_key=column)
    if rule.subgoal in _OF_OUTCOMES:
        return _unsaid(table, rule, np.zeros(table.num_frames, bool), "no labels yet")
    if rule.subgoal == "pick_place" and "goal" in rule.pick_place.subgoal_events:
        raise DatasetError(
            f"{table.description.root} does not say which episodes succeeded, and placements of --subgoal pick_place "
            "are of those alone: say who succeeded with --success, or ask for --subgoal-events grasp lift"
        )
    none = np.zeros(0, np.int64)
    found = subgoal_frames(table, rule, none, none)
    return _unsaid(table, rule, found, f"no outcomes yet, sub-goals by {rule.subgoal}")


def _unsaid(table: FrameTable, rule: LabelRule, subgoal: np.ndarray, told: str) -> BaseLabels:
    """Labels without an outcome. subgoal: bool [N]."""
    flags = dict.fromkeys(("success", "terminated", "truncated"), np.zeros(table.num_frames, bool))
    human = human_frames(table, rule.human_key)[1]
    nobody = np.zeros(table.num_episodes, bool)
    frames = flags | {"subgoal": subgoal, "reward": np.zeros(table.num_frames, np.float32), HUMAN: human}
    rule = replace(rule, step_reward="success" if rule.step_reward == "auto" else rule.step_reward)
    return BaseLabels(rule, frames, nobody, nobody, told)


def editable(table: FrameTable, base: BaseLabels) -> BaseLabels:
    """The same, with a rule by which rewards follow from an outcome that a person changes.

    Raises:
        DatasetError: rewards are recorded, and say something else than success.
    """
    if base.rule.step_reward == "progress" and not Path(base.rule.progress).is_file():
        raise DatasetError(
            f"{table.description.root}: rewards of {base.told} are progress, and cannot be made again for labels "
            "that are changed: begin with --step-reward progress in place of that file, or with success or cost"
        )
    if base.rule.step_reward != "auto":
        return base
    recorded = next((name for name in REWARDS if table.has_column(name)), None)
    rule = replace(base.rule, step_reward="success")
    if recorded is not None:
        starts = np.where(base.frames["terminated"] & base.frames["success"])[0]
        first = np.full(table.num_episodes, table.num_frames)
        first[table.episode_of(starts)] = starts
        ours, theirs = OutcomeRule.read(table, rule).outcomes(first).reward, base.frames["reward"]
        differ = np.unique(table.episode_of(np.flatnonzero(ours != theirs)))
        if len(differ):
            raise DatasetError(
                f"{table.description.root}: '{recorded}' says more than who succeeded (episodes "
                f"{name_indices(table.episode_ids[differ].tolist())}), and would contradict a label that is changed: "
                "say how rewards follow from labels, with --step-reward success (1 at success) or cost (-1 a step)"
            )
    return replace(base, rule=rule)


# ---- kept, so that labels by hand do not change with what they began from


def save_base(path: Path, table: FrameTable, base: BaseLabels, given: dict[str, Any]) -> None:
    """Writes the labels; given: what they were asked for with. Raises DatasetError where it cannot."""
    arrays = dict(base.frames) | {
        name: np.repeat(values, table.episode_length)
        for name, values in (("said", base.said), ("excluded", base.excluded))
    }
    save_sidecar(path, table, arrays, {"rule": asdict(base.rule), "told": base.told, "given": given})


def load_base(path: Path, table: FrameTable) -> tuple[BaseLabels, dict[str, Any]]:
    """What `save_base` wrote, and `given`.

    Raises:
        DatasetError: the file is missing, damaged or of other data.
    """
    sidecar = load_sidecar(path, table)
    names = (*COLUMNS, HUMAN, "said", "excluded")
    if missing := [name for name in names if name not in sidecar.arrays]:
        raise DatasetError(f"{path} has no column '{missing[0]}': {_CURE}")
    rule = noted_rule(sidecar.metadata, path)
    frames = {name: sidecar.arrays[name] for name in (*COLUMNS, HUMAN)}
    said, excluded = (sidecar.arrays[name][table.episode_start].astype(bool) for name in ("said", "excluded"))
    base = BaseLabels(rule, frames, said, excluded, str(sidecar.metadata.get("told", "")))
    return base, dict(sidecar.metadata.get("given", {}))


def noted_rule(metadata: Mapping[str, Any], path: Path) -> LabelRule:
    """The rule in the metadata of what `save_base` wrote to `path`. Raises DatasetError where it is damaged."""
    return record_of(LabelRule, metadata.get("rule"), f"{path}, its rule", DatasetError, _CURE)


def given_of(rule: LabelRule, returns: ReturnRule, blank: bool) -> dict[str, Any]:
    """What labels by hand were asked for with, as JSON: they are resumed with nothing else."""
    return as_json({"rule": asdict(rule), "returns": asdict(returns), "blank": blank})
