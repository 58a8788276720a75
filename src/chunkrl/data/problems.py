"""What is wrong with a data set: refused at the first problem, or collected to the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chunkrl.errors import DatasetError


@dataclass(frozen=True)
class Problem:
    """message: names file, episode and cure. episodes: the `episode_index` of those it spoils; () where it
    concerns the data set as a whole."""

    message: str
    episodes: tuple[int, ...]


class Report(Protocol):
    """Is told of every problem: it raises the error, or takes note of it, and the reading goes on."""

    def __call__(self, error: DatasetError, episodes: Sequence[int] = ()) -> None:
        """episodes: as in `Problem`."""
        ...


def refuse(error: DatasetError, episodes: Sequence[int] = ()) -> None:
    """A `Report` that raises the first error."""
    raise error


def name_indices(indices: Sequence[int]) -> str:
    """Numbers in order for a message: 0 to 5, 8."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    names = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


class Collector:
    """A `Report` that keeps every problem."""

    def __init__(self) -> None:
        self._found: dict[str, Problem] = {}

    def __call__(self, error: DatasetError, episodes: Sequence[int] = ()) -> None:
        known = self._found.get(str(error), Problem(str(error), ()))
        self._found[str(error)] = Problem(str(error), tuple(dict.fromkeys((*known.episodes, *episodes))))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every problem once, in the order they were found."""
        return tuple(self._found.values())

    @property
    def bad_episodes(self) -> frozenset[int]:
        """`episode_index` of all episodes with a problem."""
        return frozenset(index for problem in self._found.values() for index in problem.episodes)
