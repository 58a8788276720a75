"""How well sub-goals of existing LIBERO episodes are found: by rules and by replays, against the simulator's truth.

    chunkrl collect --env libero_spatial --num-episodes 20 --seed 777 --output-dir data/spatial
    chunkrl label data/spatial --replay.suite libero_spatial --replay.events goal grasp lift
    python -m benchmarks.libero_subgoals --datasets data/spatial

Truth: the column `complementary_info.subgoal_kinds` of collected data. Prints Markdown: recall and precision of the
onsets of each kind, by tolerance in steps.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from chunkrl.collect.config import SUBGOAL_KINDS
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import LabelRule, PickPlaceRule
from chunkrl.data.labels import label_frames
from chunkrl.data.onsets import match_onsets
from chunkrl.data.pick_place import pick_place_events
from chunkrl.envs.libero_goals import KINDS, SubgoalKind
from chunkrl.errors import DatasetError
from chunkrl.progress import silent

Onsets = dict[tuple[int, SubgoalKind], list[int]]  # (episode, kind) -> actions


@dataclass(frozen=True)
class SubgoalsConfig:
    """What to compare."""

    datasets: tuple[str, ...]
    """Data sets of `chunkrl collect` on LIBERO; those with replays have labels/replay-*.csv."""
    tolerances: tuple[int, ...] = (0, 2, 5)
    """Steps."""


def truth_of(table: FrameTable) -> Onsets:
    """What the simulator said while it was collected."""
    bits = np.asarray(table.column(SUBGOAL_KINDS)).reshape(-1)
    found: Onsets = {}
    for episode, start, length in zip(
        table.episode_ids, table.episode_start, table.episode_length, strict=True
    ):
        rows = bits[start : start + length]
        for bit, kind in enumerate(KINDS):
            found[int(episode), kind] = np.flatnonzero(rows >> bit & 1).tolist()
    return found


def by_rule(table: FrameTable) -> Onsets:
    """What the rules on gripper and state find."""
    assert table.state is not None
    success = label_frames(table, LabelRule()).success
    found: Onsets = {}
    places = zip(table.episode_ids, table.episode_start, table.episode_length, success, strict=True)
    for episode, start, length, succeeded in places:
        rows = slice(int(start), int(start + length))
        command, state = np.asarray(table.action[rows, -1]), np.asarray(table.state[rows])
        events = pick_place_events(command, state, bool(succeeded), PickPlaceRule())
        found |= {(int(episode), kind): events[kind] for kind in KINDS}
    return found


def by_replay(table: FrameTable) -> Onsets:
    """What replays found; the newest of the data set's files. Raises DatasetError where there is none."""
    files = sorted((table.description.root / "labels").glob("replay-*.csv"), key=lambda f: f.stat().st_mtime)
    if not files:
        raise DatasetError(f"{table.description.root} has no replays: run chunkrl label with --replay.suite")
    found: Onsets = defaultdict(list)
    with files[-1].open(newline="") as file:
        for row in csv.DictReader(file):
            kind: SubgoalKind = row["event"]  # type: ignore[assignment]  # written by chunkrl label
            found[int(row["episode_index"]), kind].append(int(row["frame_index"]))
    return found


def main(config: SubgoalsConfig) -> None:
    """Prints the table."""
    counts: dict[tuple[str, str, SubgoalKind, int], np.ndarray] = defaultdict(lambda: np.zeros(3, dtype=int))
    for root in config.datasets:
        table = FrameTable.open(root, progress=silent)
        truth = truth_of(table)
        for method, found in (("rules", by_rule(table)), ("replay", by_replay(table))):
            for (episode, kind), onsets in truth.items():
                for tolerance in config.tolerances:
                    matched = match_onsets(
                        np.array(onsets), np.array(found.get((episode, kind), [])), tolerance
                    )
                    counts[Path(root).name, method, kind, tolerance] += matched
    cells = " | ".join(f"within {t}: recall, precision" for t in config.tolerances)
    print(
        f"| data | method | sub-goal | true, found | {cells} |\n|---|---|---|---|{'---|' * len(config.tolerances)}"
    )
    for name, method, kind in dict.fromkeys(key[:3] for key in counts):
        row = [counts[name, method, kind, tolerance] for tolerance in config.tolerances]
        parts = [f"{m / max(t, 1):.2f}, {m / max(f, 1):.2f}" for m, t, f in row]
        print(f"| {name} | {method} | {kind} | {row[0][1]}, {row[0][2]} | {' | '.join(parts)} |")


if __name__ == "__main__":
    main(tyro.cli(SubgoalsConfig))
