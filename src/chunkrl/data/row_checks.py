"""Whether a parquet file has the rows that the metadata says, and where it has not, what stands there instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from chunkrl.data.episode_rows import BATCH_ROWS, groups_of
from chunkrl.data.metadata import Episode
from chunkrl.data.parquet import group_starts, row_batches
from chunkrl.errors import DatasetError


class MisplacedRowsError(DatasetError):
    """A file whose rows are not those that the metadata says; `explain` looks for the cause."""


def check_rows(file: Path, episodes: Sequence[Episode], closed: bool) -> None:
    """Checks that a parquet file has every row of its episodes, and outside their places none.

    closed: the file holds these episodes alone (v2.x). After its episodes a v3.0 file may have others, which
        a killed merge left (`chunkrl.data.writer`), and between them such as were set aside.

    Raises:
        MisplacedRowsError: rows are missing or too many.
        DatasetError: the file is damaged.
    """
    starts = group_starts(file)
    num_rows = int(starts[-1])
    expected = sum(episode.length for episode in episodes)
    outside = np.ones(num_rows, dtype=bool)
    for episode in episodes:
        outside[episode.offset : episode.offset + episode.length] = False
    misplaced = outside.any() and (closed or _claimed(file, episodes, outside, starts))
    if episodes[-1].offset + episodes[-1].length > num_rows or misplaced:
        raise MisplacedRowsError(
            f"{file}: has {num_rows} rows, the metadata gives its episodes {episodes[0].index} to "
            f"{episodes[-1].index} {expected} frames"
        )


def _claimed(file: Path, episodes: Sequence[Episode], outside: np.ndarray, starts: np.ndarray) -> bool:
    """Whether a row of `outside`, bool [rows], says by its `episode_index` that it belongs to one of the episodes.

    Row groups that hold no row of theirs may be damaged: then those are of episodes that were set aside.
    """
    own = [episode.index for episode in episodes]
    needed = set(groups_of(episodes, starts).tolist())
    for group, (begin, end) in enumerate(pairwise(starts)):
        if not outside[begin:end].any():
            continue
        try:
            found = _episode_indices(file, [group])
        except DatasetError:
            if group in needed:
                raise
            continue
        if len(found) != end - begin or np.isin(found[outside[begin:end]], own).any():
            return True
    return False


@dataclass(frozen=True)
class Explanation:
    """error: names the cause and the cure. episodes: `episode_index` of those whose rows are misplaced."""

    error: DatasetError
    episodes: tuple[int, ...]


def explain(
    error: MisplacedRowsError, file: Path, episodes: Sequence[Episode], files: Mapping[int, Path]
) -> Explanation:
    """Why the rows of a file's episodes are not there: whose rows are.

    files: `episode_index` -> the file where the metadata puts it, of all episodes.
    """
    own = tuple(episode.index for episode in episodes)
    try:
        indices = _episode_indices(file, range(len(group_starts(file)) - 1))
    except DatasetError:
        return Explanation(DatasetError(f"{error}: fetch the file again"), own)
    begins = np.flatnonzero(np.diff(indices, prepend=np.nan))
    runs = [
        (int(indices[begin]), begin, end - begin) for begin, end in pairwise([*begins.tolist(), len(indices)])
    ]
    bad = [e.index for e in episodes if (e.index, e.offset, e.length) not in runs]
    causes = _causes(file, episodes, runs, files) or ["fetch the file again or correct the metadata"]
    return Explanation(DatasetError(f"{error}: {'; '.join(causes[:3])}"), tuple(bad) or own)


def _causes(
    file: Path, episodes: Sequence[Episode], runs: Sequence[tuple[int, int, int]], files: Mapping[int, Path]
) -> list[str]:
    """runs: (episode_index, first row, rows) of what stands in the file, in order."""
    own = {episode.index for episode in episodes}
    length = dict.fromkeys(own, 0)
    last = max((number for number, run in enumerate(runs) if run[0] in own), default=len(runs))
    causes = []
    for number, (index, _, count) in enumerate(runs):
        if index in own:
            length[index] += count
        elif files.get(index) not in (None, file):
            causes.append(
                f"rows of episode {index} stand here, which the metadata puts into {files[index].name}: correct "
                "where it says the episode is (data/file_index), or fetch the file again"
            )
        elif number < last:
            between = [f"episode {runs[n][0]}" for n in (number - 1, number + 1) if 0 <= n < len(runs)]
            causes.append(
                f"rows of episode {index}, which the metadata does not list, stand {'between' * (len(between) > 1)}"
                f"{'beside' * (len(between) < 2)} those of {' and '.join(between)}: list it, or write the data set "
                "again without it"
            )
    for episode in episodes:
        if length[episode.index] == 0:
            causes.append(
                f"no row of episode {episode.index} stands here: correct where the metadata says that it is "
                "(data/file_index), or fetch the file again"
            )
        elif length[episode.index] != episode.length:
            causes.append(
                f"{length[episode.index]} rows of episode {episode.index} stand here, the metadata says "
                f"{episode.length}: correct its length, or fetch the file again"
            )
    return causes


def _episode_indices(file: Path, groups: Sequence[int]) -> np.ndarray:
    """The column episode_index of some row groups, [n]."""
    batches = row_batches(file, ["episode_index"], BATCH_ROWS, groups)
    found = [batch.column(0).to_numpy(zero_copy_only=False) for batch in batches]
    return np.concatenate([np.zeros(0), *found])
