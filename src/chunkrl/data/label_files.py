"""Labels in files: those that `chunkrl label` keeps beside a data set, and lists of the episodes that succeeded."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.config import record_of
from chunkrl.data.formats import DatasetDescription, without
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import AUTO_LABELS, NO_LABELS, LabelRule, columns_read
from chunkrl.data.problems import name_indices
from chunkrl.data.sidecar import is_sidecar, load_sidecar, read_metadata
from chunkrl.errors import DatasetError
from chunkrl.files.json_files import parse_json
from chunkrl.files.regular_files import open_regular

FOLDER = "labels"  # in a data set's own
LABELS_VERSION = 1  # of the meaning of the columns
COLUMNS = ("success", "terminated", "truncated", "reward", "subgoal")  # those that are read
HUMAN = "human"  # where a human acted: a column of files whose makers said it
LEFT_OUT, BY_HAND = "left_out", "by_hand"  # in a file's metadata
_CURE = "make the labels again (chunkrl label)"
_TRUTH = {"1": True, "true": True, "0": False, "false": False}
_INDEX, _OUTCOME = "episode_index", "success"


@dataclass(frozen=True)
class LabelFile:
    """A file of labels. name: as `--labels` takes it: in the data set's folder where it is there."""

    path: Path
    name: str

    def rule(self) -> LabelRule:
        """What made the labels. Raises DatasetError where the file does not say."""
        metadata = read_metadata(self.path)
        if metadata.get("version") != LABELS_VERSION:
            raise DatasetError(
                f"{self.path} holds no labels of success (version {metadata.get('version')!r}, expected "
                f"{LABELS_VERSION}): name a file that chunkrl label wrote"
            )
        return record_of(LabelRule, metadata.get("rule"), f"{self.path}, its rule", DatasetError, _CURE)

    def told(self) -> str:
        """Name, rule and what a person decided, for people."""
        rule, metadata = self.rule(), read_metadata(self.path)
        by_hand = rule.success == "auto" and BY_HAND in metadata  # nothing else said it
        success = "hand" if by_hand else rule.success
        told = [f"success by {success}, sub-goals by {rule.subgoal}, reward by {rule.step_reward}"]
        if BY_HAND in metadata:
            told.append(f"{metadata[BY_HAND]} episodes by hand")
        told += [f"{len(indices)} {why} left out" for why, indices in self.left_out().items() if indices]
        return f"{self.name} ({', '.join(told)})"

    def left_out(self) -> dict[str, list[int]]:
        """Why ("excluded", "unlabelled") -> indices of episodes of the data set that have no labels in the file."""
        found = read_metadata(self.path).get(LEFT_OUT, {})
        if not isinstance(found, dict) or not all(
            isinstance(indices, list) and all(type(index) is int for index in indices)
            for indices in found.values()
        ):
            raise DatasetError(f"{self.path}, its header: '{LEFT_OUT}' lists no episodes: {_CURE}")
        return found


def labels_beside(root: Path) -> list[LabelFile]:
    """The files of labels in a data set's folder, in the order of their names."""
    files = sorted((root / FOLDER).glob("*.parquet"))
    return [LabelFile(path, f"{FOLDER}/{path.name}") for path in files if is_sidecar(path)]


def chosen_labels(root: Path, rule: LabelRule) -> LabelFile | None:
    """The file that labels are read from by `rule`; None: from the columns.

    Raises:
        DatasetError: the file is not there, or there are several and none is named.
    """
    if rule.labels not in (AUTO_LABELS, NO_LABELS):
        return _named(root, rule.labels)
    if rule.labels == NO_LABELS or rule.explicit():
        return None
    found = labels_beside(root)
    if len(found) > 1:
        raise DatasetError(
            f"{root} has labels by {len(found)} rules: {'; '.join(file.told() for file in found)}. Say which are "
            f"used, with --labels {found[0].name}, or --labels {NO_LABELS} for what its columns say"
        )
    return found[0] if found else None


def _named(root: Path, text: str) -> LabelFile:
    """A file by its path from here, or from the data set's folder."""
    path = Path(text).expanduser()
    for candidate in (path, root / path):
        if candidate.exists():
            return LabelFile(candidate, text)
    there = ", ".join(file.name for file in labels_beside(root)) or "none"
    raise DatasetError(
        f"--labels {text}: no such file, neither here nor in {root}; labels there: {there}. chunkrl label makes "
        f"them; --labels {NO_LABELS} reads the columns"
    )


def label_columns(rule: LabelRule, description: DatasetDescription) -> Collection[str]:
    """The columns whose faults make an episode bad: those that made the labels."""
    file = chosen_labels(description.root, rule)
    if file is not None:
        rule = replace(file.rule(), human_key=rule.human_key)
    return columns_read(rule, description.features)


def labelled_part(rule: LabelRule, description: DatasetDescription) -> DatasetDescription:
    """The data set without the episodes that the file of its labels leaves out: whoever made it excluded them, or did
    not say whether they succeeded.

    Raises:
        DatasetError: as `chosen_labels`; no episode is left.
    """
    file = chosen_labels(description.root, rule)
    if file is None:
        return description
    left_out = frozenset(index for indices in file.left_out().values() for index in indices)
    there = {episode.index for episode in description.episodes}
    if there <= left_out:
        raise DatasetError(f"{file.path} leaves out every episode: label some with chunkrl label --browser")
    return without(description, left_out & there) if left_out & there else description


def read_labels(table: FrameTable, file: LabelFile) -> Mapping[str, np.ndarray]:
    """The columns `COLUMNS` of a file of labels, and `HUMAN` where it is there, [N] each, in the table's order; of a
    data set whose bad episodes were set aside, those of the others.

    Raises:
        DatasetError: the file is damaged, of other data, or holds no such labels.
    """
    try:
        arrays = load_sidecar(file.path, table, of_whole=True).arrays
    except DatasetError as error:
        raise DatasetError(f"{error}, or read what the columns say with --labels {NO_LABELS}") from error
    for name in (*COLUMNS, *({HUMAN} & arrays.keys())):
        if name not in arrays or (name != "reward" and arrays[name].dtype != np.bool_):
            raise DatasetError(
                f"{file.path} has no column '{name}' of labels; it has {sorted(arrays)}: {_CURE}"
            )
    if not np.isfinite(arrays["reward"]).all():
        raise DatasetError(f"{file.path}: a reward is NaN or inf: {_CURE}")
    ended = np.add.reduceat(arrays["terminated"].astype(np.int64), table.episode_start)
    outcomes = np.add.reduceat(arrays["success"].astype(np.int64), table.episode_start)
    wrong = (ended > 1) | ((outcomes > 0) & ((outcomes < table.episode_length) | (ended != 1)))
    if wrong.any():
        raise DatasetError(
            f"{file.path}: episodes {name_indices(table.episode_ids[wrong].tolist())} have no one outcome: {_CURE}"
        )
    return {name: arrays[name] for name in (*COLUMNS, HUMAN) if name in arrays}


# ---- lists of episodes that succeeded


def read_successes(file: str, table: FrameTable) -> tuple[int, ...]:
    """The indices of the episodes that succeeded, of a list: text with an index a line (# begins a comment), CSV with
    the columns episode_index and, if not all that it lists succeeded, success, or JSON: [0, 3] or {"0": true, "1":
    false}.

    Raises:
        DatasetError: another kind of file, an episode that the data set has not or that is there twice, a line that
            says no episode.
    """
    path = Path(file).expanduser()
    kinds = {".txt": _text_list, ".csv": _csv_list, ".json": _json_list}
    if path.suffix.lower() not in kinds:
        raise DatasetError(
            f"--success-file {file}: its name must end in {', '.join(kinds)}, which says how it is read"
        )
    with open_regular(path, DatasetError, "name a list of episodes with --success-file") as stream:
        content = stream.read()
    listed = kinds[path.suffix.lower()](path, content)
    if twice := [index for index, count in Counter(index for index, _ in listed).items() if count > 1]:
        raise DatasetError(f"{path} lists episodes {name_indices(sorted(twice))} more than once: correct it")
    known = set(table.episode_ids.tolist()) | table.description.left_out_episodes
    if unknown := sorted(index for index, _ in listed if index not in known):
        raise DatasetError(
            f"{path} lists episodes {name_indices(unknown)}, and {table.description.root} has none of these: it has "
            f"{len(known)} episodes, {name_indices(sorted(known))}"
        )
    successes = tuple(sorted(index for index, success in listed if success))
    if not successes:
        raise DatasetError(f"{path} names no successful episode: without one there is nothing to learn from")
    return successes


_Listed = Sequence[tuple[int, bool]]


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text ({error}): write it as UTF-8") from error


def _index(path: Path, line: int, text: str | None) -> int:
    text = (text or "").strip()
    if not text.isascii() or not text.isdecimal():
        raise DatasetError(f"{path}, line {line}: {text!r} is no episode's index: write an integer from 0")
    return int(text)


def _text_list(path: Path, content: bytes) -> _Listed:
    lines = [line.split("#")[0].strip() for line in _decoded(path, content).splitlines()]
    return [(_index(path, number, line), True) for number, line in enumerate(lines, start=1) if line]


def _csv_list(path: Path, content: bytes) -> _Listed:
    reader = csv.DictReader(io.StringIO(_decoded(path, content), newline=""))
    names = [name.strip() for name in reader.fieldnames or ()]
    if names.count(_INDEX) != 1 or names.count(_OUTCOME) > 1:
        raise DatasetError(
            f"{path}: its first line is {','.join(names)!r}; it must name the column {_INDEX} and may name "
            f"{_OUTCOME} (1 or 0), each once"
        )
    reader.fieldnames = names
    listed = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DatasetError(
                    f"{path}, line {reader.line_num}: expected {len(names)} values: correct the line"
                )
            outcome = row.get(_OUTCOME, "1").strip().lower()
            if outcome not in _TRUTH:
                raise DatasetError(
                    f"{path}, line {reader.line_num}: success is {outcome!r}, expected 1 or 0, true or false"
                )
            listed.append((_index(path, reader.line_num, row[_INDEX]), _TRUTH[outcome]))
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: {error}: correct it") from error
    return listed


def _json_list(path: Path, content: bytes) -> _Listed:
    args = (str(path), DatasetError, "correct it")
    is_list = content.lstrip()[:1] == b"["
    value: Any = parse_json(content, list, *args) if is_list else parse_json(content, dict, *args)
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return [(index, True) for index in value]
    if isinstance(value, dict) and all(isinstance(item, bool) for item in value.values()):
        return [(_index(path, 1, name), item) for name, item in value.items()]
    raise DatasetError(
        f'{path}: expected a list of episodes, [0, 3], or an object that says which succeeded, {{"0": true, "1": '
        "false}"
    )
