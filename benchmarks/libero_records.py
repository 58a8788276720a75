"""Finished episodes of `benchmarks.libero` in its results file, from which a fresh clone goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kept import refuse_other_settings
from benchmarks.metaworld import arm_settings, differs
from chunkrl.demo.arms import Arm
from chunkrl.errors import ChunkRLError
from chunkrl.files.atomic import write_text

Outcomes = dict[str, list[tuple[bool, int]]]  # task -> (success, steps) by initial state 0, 1, ...


@dataclass(frozen=True)
class Finished:
    """An arm's episodes of one seed. dataset: hash, frames and success of what it learned from."""

    dataset: Mapping[str, Any]
    outcomes: Outcomes

    def covers(self, tasks: Sequence[str], num_states: int) -> bool:
        """Whether all initial states of the tasks are there."""
        return all(len(self.outcomes.get(task, ())) >= num_states for task in tasks)


class Records:
    """What a results file has of one variant, by seed and arm.

    Args:
        path: the results file; what it has of other variants stays there.
        entry: the variant's name in it.
        settings: what all of its records were run with.

    Raises:
        ChunkRLError: its records were run with other settings.
    """

    def __init__(self, path: Path, entry: str, settings: Mapping[str, Any], arms: Sequence[Arm]) -> None:
        self._path, self._entry = path, entry
        self._settings, self._arms = dict(settings), {arm.name: arm for arm in arms}
        self._found: dict[tuple[int, str], Finished] = {}
        known = json.loads(path.read_text()).get(entry, {}) if path.is_file() else {}
        for record in known.get("records", []):
            made = self._arms.get(record["arm"])
            wrong = ["arm"] if made is None else differs(record, made)
            wrong += [name for name in settings if known["settings"].get(name) != settings[name]]
            refuse_other_settings(f"{record['arm']}, seed {record['seed']}, in {path}", wrong)
            outcomes = {
                task: [
                    (digit == "1", steps) for digit, steps in zip(row, record["num_steps"][task], strict=True)
                ]
                for task, row in record["success"].items()
            }
            self._found[record["seed"], record["arm"]] = Finished(record["dataset"], outcomes)

    def get(self, seed: int, arm: str) -> Finished | None:
        """What is known of it."""
        return self._found.get((seed, arm))

    def add(self, seed: int, arm: str, finished: Finished) -> None:
        """Takes it up, in place of what was known.

        Raises:
            ChunkRLError: another arm of the seed has learned from other data.
        """
        for (other, name), found in self._found.items():
            if other == seed and found.dataset["sha256"] != finished.dataset["sha256"]:
                raise ChunkRLError(
                    f"seed {seed}: {arm} has learned from other data than {name} in the results "
                    f"({finished.dataset['sha256'][:8]}, {found.dataset['sha256'][:8]}), so that they cannot be "
                    "compared: use another --results"
                )
        self._found[seed, arm] = finished

    def save(self, summary: Mapping[str, Any]) -> None:
        """Writes the entry with them and a summary; what else it has, and the file has, stays."""
        known = json.loads(self._path.read_text()) if self._path.is_file() else {}
        known[self._entry] = known.get(self._entry, {}) | dict(summary) | self._as_json()
        write_text(self._path, json.dumps(known, indent=1) + "\n")

    def _as_json(self) -> dict[str, Any]:
        records = [
            {
                "seed": seed,
                "arm": arm,
                "settings": arm_settings(self._arms[arm]),
                "dataset": dict(found.dataset),
                "success": {
                    task: "".join(str(int(success)) for success, _ in rows)
                    for task, rows in found.outcomes.items()
                },
                "num_steps": {task: [steps for _, steps in rows] for task, rows in found.outcomes.items()},
            }
            for (seed, arm), found in self._found.items()
        ]
        return {"settings": self._settings, "records": records}
