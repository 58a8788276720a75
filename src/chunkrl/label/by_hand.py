"""Labels that a person gives, episode by episode, in a file like those of `chunkrl label`, durable at every edit.

`labels/by_hand.parquet` is what others read: rows of the episodes that have a label and are not excluded. The folder
`labels/by_hand/` beside it has what it is made of: `base.parquet`, the labels before the first edit, and
`journal.jsonl`, a line an edit. An edit is in the journal, and in the labels, before whoever made it is told so.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from chunkrl.data.formats import DatasetDescription, without
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_files import BY_HAND, FOLDER, LEFT_OUT
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.sidecar import read_metadata, save_sidecar
from chunkrl.errors import ChunkRLError, DatasetError, LabelError, OutputFolderError
from chunkrl.files.output_folder import LOCK, check_file, hold
from chunkrl.label.base import base_labels, editable, given_of, load_base, noted_rule, save_base
from chunkrl.label.command import content_of, rule_record
from chunkrl.label.config import ReturnRule
from chunkrl.label.edited import EditedLabels
from chunkrl.label.journal import Entry, History, Journal, Step, now, read_journal
from chunkrl.label.marks import Edit, EpisodeMarks, apply

NAME = "by_hand.parquet"
_JOURNAL, _BASE = "journal.jsonl", "base.parquet"
_ENTRIES = "entries"  # of the journal, that the labels hold; in their metadata


class StaleEditError(ChunkRLError):
    """An edit of an episode that somebody else changed meanwhile. entries: what changed, oldest first."""

    def __init__(self, index: int, entries: list[Entry]) -> None:
        told = "; ".join(f"{entry.step}: {entry.told}" for entry in entries)
        super().__init__(
            f"episode {index} was changed meanwhile by another browser ({told}): yours was not applied; look at it "
            "as it is now, and press again if it is still what you want"
        )
        self.entries = entries


class HandLabels:
    """The labels of one data set, for one process at a time; several threads may call it.

    path: the file of labels. base: what there was before. is_new: whether nothing was edited yet.
    """

    def __init__(
        self,
        table: FrameTable,
        path: Path,
        rule: LabelRule = LabelRule(),
        returns: ReturnRule = ReturnRule(),
        blank: bool = False,
    ) -> None:
        """Begins labels at `path`, or resumes those that are there.

        Raises:
            DatasetError: the folder cannot be written, the labels there are of other data, were begun with other
                settings or are in use; as `base_labels` and `editable`.
            OutputFolderError: another file is there.
        """
        self.table, self.path, self.returns = table, path, returns
        self._folder, self._lock = path.with_suffix(""), threading.Lock()
        self._journal: Journal | None = None
        self._edited: EditedLabels | None = None
        self._is_closed = False
        self._held = _hold(self._folder)
        try:
            self._open(rule, returns, blank)
        except BaseException:
            self.close()
            raise

    def _open(self, rule: LabelRule, returns: ReturnRule, blank: bool) -> None:
        self._given, file = given_of(rule, returns, blank), self._folder / _BASE
        self._is_begun = is_begun(self.path)
        if self._is_begun:
            self.base, given = load_base(file, self.table)
            asked = self._given != given_of(LabelRule(), ReturnRule(), False)
            if asked and self._given != given:
                raise DatasetError(
                    f"{self.path}: these labels by hand were begun with other settings ({self.base.told}): leave the "
                    "rule's flags out, or begin others with --output FILE"
                )
            self._given = given
            self.returns = ReturnRule(**given["returns"])
        else:
            check_file(self.path, overwrite=False)
            base = editable(self.table, base_labels(self.table, rule, blank))
            if base.rule.subgoal_csv:  # its sub-goals are in the base: the file may go, or change
                base = replace(base, rule=replace(base.rule, subgoal_csv=content_of(base.rule.subgoal_csv)))
            self.base = base
        self._place = {int(index): place for place, index in enumerate(self.table.episode_ids)}
        self._histories: dict[int, History] = {}
        self._num_entries = self._replay()
        if self._num_entries and self._written_entries() != self._num_entries:
            self._write()  # a kill came between the journal and the labels

    def _replay(self) -> int:
        count = 0
        for where, entry in read_journal(self._folder / _JOURNAL):
            if entry.episode not in self._place:
                raise DatasetError(f"{where}: {self.table.description.root} has no episode {entry.episode}")
            try:
                self.history(self._place[entry.episode]).add(entry)
            except DatasetError as error:
                raise DatasetError(f"{where}: {error}: restore the file, or delete {self._folder}") from error
            count += 1
        return count

    def _written_entries(self) -> int | None:
        """How much of the journal is in the labels that are there; with none in use there are no labels."""
        if not self.path.exists():
            return self._num_entries if not self._used().any() else None
        return read_metadata(self.path).get(_ENTRIES)

    @property
    def is_new(self) -> bool:
        """Whether nothing was edited yet, so that no file of labels was written."""
        return self._num_entries == 0

    def history(self, position: int) -> History:
        """What the episode at this position of the table is and was."""
        if position not in self._histories:
            self._histories[position] = History([self.base.marks(self.table, position)])
        return self._histories[position]

    def marks(self, position: int) -> EpisodeMarks:
        """What is said of the episode at this position."""
        return self.history(position).marks

    def edit(self, position: int, version: int, edit: Edit, by: str = "") -> History:
        """Applies an edit to the episode as it was at `version`.

        Raises:
            StaleEditError: it has changed since. LabelError: a step that it has not. DatasetError: the disk does not
                take it.
        """
        with self._lock:
            history = self._fresh(position, version)
            length = int(self.table.episode_length[position])
            marks = apply(history.marks, edit, length, _goal(self.base.rule))
            self._take(position, history, "edit", edit.told(), marks, by)
            return history

    def step(self, position: int, version: int, step: Literal["undo", "redo"], by: str = "") -> History:
        """Takes the last edit of the episode back, or does it again.

        Raises:
            StaleEditError, DatasetError: as `edit`. LabelError: there is none.
        """
        with self._lock:
            history = self._fresh(position, version)
            if not (history.can_undo if step == "undo" else history.can_redo):
                index = int(self.table.episode_ids[position])
                raise LabelError(f"episode {index} has nothing to {step}")
            at = history.at - 1 if step == "undo" else history.at + 1
            told = history.told[min(at, history.at)]
            self._take(position, history, step, told, history.states[at], by)
            return history

    def _fresh(self, position: int, version: int) -> History:
        history = self.history(position)
        if version != history.version:
            index = int(self.table.episode_ids[position])
            raise StaleEditError(index, history.entries[max(version, 0) :])
        return history

    def _take(
        self, position: int, history: History, step: Step, told: str, marks: EpisodeMarks, by: str
    ) -> None:
        """Journal first, then the labels; where these cannot be written nothing has changed."""
        if self._is_closed:
            raise DatasetError(f"{self.path} is closed: start chunkrl label --browser again")
        if self._journal is None:
            if not self._is_begun:
                save_base(self._folder / _BASE, self.table, self.base, self._given)
                self._is_begun = True
            self._journal = Journal(self._folder / _JOURNAL)
        index = int(self.table.episode_ids[position])
        entry = Entry(index, history.version + 1, step, told, marks, by, now())
        before = history.copy()
        self._journal.append(entry)
        history.add(entry)
        self._num_entries += 1
        try:
            self._edited_labels().put(position, history.marks, history.states[0])
            self._write()
        except Exception:
            self._edited = None  # made again
            self._histories[position] = before
            self._num_entries -= 1
            self._journal.take_back()
            raise

    # ---- the labels that others read

    def _used(self) -> np.ndarray:
        return np.array([self.marks(position).is_used for position in range(self.table.num_episodes)])

    def _write(self) -> None:
        """Writes the labels as they are now; where no episode has any, there is no file."""
        used = self._used()
        if not used.any():
            self.path.unlink(missing_ok=True)
            return
        record = rule_record(self.base.rule, self.returns) | self._said(used)
        columns = self._edited_labels().file_columns(used)
        save_sidecar(self.path, _KeptEpisodes.of(self.table, used), columns, record)

    def _edited_labels(self) -> EditedLabels:
        """Made when labels are first written: who only looks needs none."""
        if self._edited is None:
            self._edited = EditedLabels(self.table, self.base, self.returns)
            for position, history in self._histories.items():
                if history.version:
                    self._edited.put(position, history.marks, history.states[0])
        return self._edited

    def _said(self, used: np.ndarray) -> dict[str, Any]:
        """What the file's metadata has beside the rule."""
        ids = self.table.episode_ids
        marks = [self.marks(position) for position in range(self.table.num_episodes)]
        excluded = np.array([one.excluded for one in marks])
        damaged = sorted({index for problem in self.table.problems for index in problem.episodes})
        left_out = {
            "excluded": ids[excluded].tolist(),
            "unlabelled": ids[~used & ~excluded].tolist(),
            "damaged": damaged,
        }
        return {
            LEFT_OUT: left_out,
            BY_HAND: sum(history.at > 0 for history in self._histories.values()),
            _ENTRIES: self._num_entries,
        }

    def close(self) -> None:
        """Lets others work on the labels, after the edit that is being made; without any, nothing is left behind."""
        with self._lock:
            self._is_closed = True
            if self._journal is not None:
                self._journal.close()
                self._journal = None
        (self._folder / LOCK).unlink(missing_ok=True)
        self._held.release()
        for folder in (self._folder, self._folder.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


@dataclass(frozen=True)
class _KeptEpisodes:
    """The episodes of a table that labels are written of (`sidecar.FrameRows`)."""

    description: DatasetDescription
    episode_ids: np.ndarray
    episode_start: np.ndarray
    episode_length: np.ndarray

    @classmethod
    def of(cls, table: FrameTable, used: np.ndarray) -> _KeptEpisodes:
        lengths = table.episode_length[used]
        left_out = frozenset(table.episode_ids[~used].tolist())
        description = without(table.description, left_out) if left_out else table.description
        return cls(description, table.episode_ids[used], np.cumsum(lengths) - lengths, lengths)

    @property
    def num_frames(self) -> int:
        return int(self.episode_length.sum())


def hand_file(root: Path, output: str | None) -> Path:
    """Where labels by hand of the data at `root` go: beside them, or where --output says."""
    return Path(output).expanduser() if output else root / FOLDER / NAME


def is_begun(path: Path) -> bool:
    """Whether an edit of the labels by hand at `path` is kept: without one, what they would begin from may change."""
    folder = path.with_suffix("")
    return (folder / _BASE).exists() and any(True for _ in read_journal(folder / _JOURNAL))


def begun_rule(path: Path) -> LabelRule | None:
    """What made the labels that those by hand at `path` began from; None where none are begun.

    Raises:
        DatasetError: the file is damaged.
    """
    file = path.with_suffix("") / _BASE
    return noted_rule(read_metadata(file), file) if is_begun(path) else None


def _goal(rule: LabelRule) -> Literal["success", "end", ""]:
    """Which sub-goal comes with a success by the rule."""
    return (
        "success" if rule.subgoal in ("auto", "success") else "end" if rule.subgoal == "episode_end" else ""
    )


def _hold(folder: Path):
    """The folder, made and held, which shows that it can be written.

    Raises:
        DatasetError: it cannot, or another process labels there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return hold(folder, "label --browser")
    except OutputFolderError as error:
        raise DatasetError(
            f"{folder} is in use by another chunkrl label --browser: use its page, or name another file with --output"
        ) from error
    except OSError as error:
        raise DatasetError(
            f"cannot write in {folder}: {error.strerror}; labels go elsewhere with --output FILE, and chunkrl "
            "inspect --browser shows the data without changing any"
        ) from error
