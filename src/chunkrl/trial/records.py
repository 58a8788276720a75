"""What a trial is and what happened in it, as records and in its folder: one file an attempt, on the disk at once."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from chunkrl.config import load_config, save_config
from chunkrl.errors import ChunkRLError
from chunkrl.files.atomic import remove_temporaries, write_text
from chunkrl.files.output_folder import begin_folder, hold
from chunkrl.models.config import ActionMode

Outcome = Literal["success", "failure", "timeout", "crashed", "discarded"]
"""timeout: the time limit passed, which counts as a failure. crashed: the policy raised an error; discarded: a
person had it repeated, or the session ended. These two count as neither and are made again."""
COUNTED: tuple[Outcome, ...] = ("success", "failure", "timeout")
SETTINGS_FILE, ORDER_FILE, ATTEMPTS = "trial.json", "order.json", "attempts"


@dataclass(frozen=True)
class PolicyEntry:
    """A policy of a trial. folder: as given, for people; fingerprint: of its contents."""

    name: str
    folder: str
    fingerprint: str


@dataclass(frozen=True)
class TrialSettings:
    """Everything that the outcome of a trial depends on, but who acts when.

    policies: the one to judge first. where: the simulator's task, or the robot's file; robot: a digest of that file's
    contents, "" of a simulator. fps: control steps per second. exec_steps, prefetch_steps: of each chunk. The others:
    as in `TrialCommand`.
    """

    policies: tuple[PolicyEntry, ...]
    where: str
    robot: str
    error: float
    seed: int
    max_steps: int
    fps: float
    exec_steps: int
    prefetch_steps: int
    mode: ActionMode
    condition: str | None
    guidance: float | None
    flow_steps: int | None
    camera_size: int | None
    rate_hz: float | None
    device: str
    guidance_from: str | None = None

    def __post_init__(self) -> None:
        if len(self.policies) < 2 or not 0 < self.error < 1 or min(self.fps, self.max_steps) <= 0:
            raise ChunkRLError(
                "a trial has two policies, an error in (0, 1), a rate and a time limit above 0"
            )

    @property
    def error_each(self) -> float:
        """The error of each comparison: the first policy is compared with each of the others, which share it."""
        return self.error / (len(self.policies) - 1)

    def differences(self, other: TrialSettings) -> list[str]:
        """What differs, in words: names of settings with both values; where a policy's folder lies is no
        difference."""
        found = []
        for name in (field.name for field in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if name == "policies":
                mine, theirs = ([f"{p.name} {p.fingerprint}" for p in each] for each in (mine, theirs))
            if mine != theirs and name != "where":
                found.append(f"{name} {mine!r} there, {theirs!r} asked for")
        if self.where != other.where and not (self.robot and self.robot == other.robot):
            found.append(f"where {self.where!r} there, {other.where!r} asked for")
        return found


@dataclass(frozen=True)
class Attempt:
    """One episode of a trial; which policy acted follows from the order, which is not here.

    pair: from 0; place: in its order. seed: of the initial state. num_steps: environment steps. note: of a crash.
    """

    pair: int
    place: int
    outcome: Outcome
    seed: int
    num_steps: int
    episode_id: str
    note: str = ""

    def __post_init__(self) -> None:
        if min(self.pair, self.place, self.seed, self.num_steps) < 0:
            raise ChunkRLError(f"an attempt has a negative number: {self}")

    @property
    def counts(self) -> bool:
        """It is a trial, and is not made again."""
        return self.outcome in COUNTED


@dataclass(frozen=True)
class _Order:
    seed: int


class TrialFolder:
    """`trial.json`, `order.json`, `attempts/NUMBER.json`; every file is written whole or not at all.

    order.json says who acts when, as one number from which it is drawn. One process at a time holds the folder.
    """

    def __init__(
        self, root: Path, settings: TrialSettings, order_seed: int | None, overwrite: bool = False
    ) -> None:
        """
        order_seed: None: what is there, or a drawn one.

        Raises:
            ChunkRLError: the folder belongs to a trial with other settings or policies, holds something else, or is
            in use.
        """
        self.root = begin_folder(root, "trial", resumes=not overwrite, overwrite=overwrite)
        self._lock = hold(self.root, "trial")
        try:
            remove_temporaries(self.root)
            self._keep(settings)
            self.order_seed = self._order(order_seed)
            self.attempts = self._read()
        except BaseException:
            self._lock.release()
            raise

    def save(self, attempt: Attempt) -> None:
        """Keeps an attempt; it is on the disk when this returns."""
        write_text(self._file(len(self.attempts)), json.dumps(asdict(attempt)) + "\n")
        self.attempts.append(attempt)

    def close(self) -> None:
        """Lets others use the folder."""
        self._lock.release()

    def _file(self, number: int) -> Path:
        return self.root / ATTEMPTS / f"{number:06d}.json"

    def _keep(self, settings: TrialSettings) -> None:
        file = self.root / SETTINGS_FILE
        if not file.is_file() and self._file(0).is_file():
            raise ChunkRLError(
                f"{file} is missing, and without it nobody knows what the attempts there are of: restore it, or "
                "begin again in another --output-dir"
            )
        if not file.is_file():
            save_config(settings, file)
        elif different := load_config(TrialSettings, file).differences(settings):
            raise ChunkRLError(
                f"{self.root} holds a trial of other settings ({'; '.join(different)}): give another --output-dir, "
                "the same settings to resume it, or --overwrite to put the new one in its place"
            )

    def _order(self, given: int | None) -> int:
        file = self.root / ORDER_FILE
        if file.is_file():
            there = load_config(_Order, file).seed
            if given not in (None, there):
                raise ChunkRLError(
                    f"{self.root} holds a trial in another order: leave --order-seed out to resume it"
                )
            return there
        if self._file(0).is_file():
            raise ChunkRLError(
                f"{file} is missing, and without it nobody knows which policy acted: restore it, or begin again in "
                "another --output-dir"
            )
        seed = secrets.randbits(53) if given is None else given
        save_config(_Order(seed), file)
        return seed

    def _read(self) -> list[Attempt]:
        found: list[Attempt] = []
        while (file := self._file(len(found))).is_file():
            found.append(
                load_config(Attempt, file, cure="restore it, or begin again in another --output-dir")
            )
        if len(found) < len(list((self.root / ATTEMPTS).glob("*.json"))):
            raise ChunkRLError(f"{file} is missing, and later ones are there: restore it")
        return found
