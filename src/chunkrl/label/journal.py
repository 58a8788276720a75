"""The edits of a person, a line each, on the disk before they count; what an episode was before can be had again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from chunkrl.config import record_of
from chunkrl.errors import DatasetError
from chunkrl.files.json_files import json_lines
from chunkrl.label.marks import EpisodeMarks

Step = Literal["edit", "undo", "redo"]
_CURE = "copy it again, or delete the folder: labels by hand then begin again"


@dataclass(frozen=True)
class Entry:
    """One line.

    episode: its index. version: of the episode after it, from 1 on. step: what was done; undo and redo change the
    marks back and forth. told: in words. marks: of the episode after it. by: whose browser. at: time, UTC, ISO 8601.
    """

    episode: int
    version: int
    step: Step
    told: str
    marks: EpisodeMarks
    by: str = ""
    at: str = ""


@dataclass
class History:
    """What an episode was: states[0] at the beginning, states[at] now; those after it can be had again by redo."""

    states: list[EpisodeMarks]
    told: list[str] = field(default_factory=list)
    at: int = 0
    entries: list[Entry] = field(default_factory=list)

    @property
    def marks(self) -> EpisodeMarks:
        """What it is now."""
        return self.states[self.at]

    @property
    def version(self) -> int:
        """How often it has changed."""
        return len(self.entries)

    @property
    def can_undo(self) -> bool:
        """Whether anything can be taken back."""
        return self.at > 0

    @property
    def can_redo(self) -> bool:
        """Whether anything that was taken back can be had again."""
        return self.at < len(self.states) - 1

    def copy(self) -> History:
        """The same, which stays as it is when this one changes."""
        return History(list(self.states), list(self.told), self.at, list(self.entries))

    def add(self, entry: Entry) -> None:
        """Takes an entry in. Raises DatasetError where it does not follow on what was."""
        if entry.version != self.version + 1:
            raise DatasetError(
                f"version {entry.version} of episode {entry.episode} follows on {self.version}"
            )
        if entry.step == "edit":
            del self.states[self.at + 1 :], self.told[self.at :]
            self.states.append(entry.marks)
            self.told.append(entry.told)
            self.at += 1
        else:
            self.at += 1 if entry.step == "redo" else -1
            if not 0 <= self.at < len(self.states) or self.marks != entry.marks:
                raise DatasetError(
                    f"{entry.step} of episode {entry.episode} gives other marks than there were"
                )
        self.entries.append(entry)


class Journal:
    """The file, open for appending. `append` returns when the line is on the disk.

    Raises:
        DatasetError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._cut_end()
            self._size = os.fstat(self._file).st_size  # before the last entry
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the file's name
            os.close(folder)
        except OSError as error:
            raise self._unwritable(error) from error

    def _cut_end(self) -> None:
        """Takes away what a kill left of a line that nobody was told of."""
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        if content and not content.endswith(b"\n"):
            os.ftruncate(self._file, content.rfind(b"\n") + 1)

    def append(self, entry: Entry) -> None:
        """Writes the entry, whole or not at all."""
        self._size = os.fstat(self._file).st_size
        line = memoryview((json.dumps(asdict(entry), allow_nan=False) + "\n").encode())
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            self.take_back()
            raise self._unwritable(error) from error

    def take_back(self) -> None:
        """Takes the last entry away, that nobody was told of."""
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _unwritable(self, error: OSError) -> DatasetError:
        reason = error.strerror or error
        return DatasetError(f"cannot write {self._path}: {reason}; free some space, or use --output FILE")


def read_journal(path: Path) -> Iterator[tuple[str, Entry]]:
    """Where it stands, and the entry, of every whole line; none where there is no file. Raises DatasetError."""
    if not path.exists():
        return
    for where, record in json_lines(path, DatasetError, _CURE, cut_end=True):
        yield where, record_of(Entry, record, where, DatasetError, _CURE)


def now() -> str:
    """The time, for an entry."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
