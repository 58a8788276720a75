"""A data set's own statistics (meta/stats.json, of episodes in v2.1 and v3) against its values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.data.formats import DatasetDescription
from chunkrl.data.frames import FrameTable
from chunkrl.data.metadata import CURE, integer, metadata_files
from chunkrl.data.parquet import open_parquet, reading
from chunkrl.data.problems import Problem
from chunkrl.errors import DatasetError
from chunkrl.files.json_files import json_lines, read_json


@dataclass(frozen=True)
class _Recorded:
    """The minimum and the maximum that a file gives of a column: of one episode, or of all (None)."""

    file: Path
    key: str
    episode: int | None
    low: Any
    high: Any


@dataclass
class _Outside:
    """What lies outside of the statistics of one file and column. worst: how far, and what to say of it."""

    count: int = 0
    episodes: set[int] = field(default_factory=set)
    worst: tuple[float, str] = (0.0, "")


def compare_with_recorded(table: FrameTable) -> list[Problem]:
    """States and actions outside the minimum and maximum that the data set's statistics give; by file and column."""
    keys = (*table.description.action_keys, *table.description.state_keys)
    found: dict[tuple[Path, str], _Outside] = {}
    problems: dict[str, Problem] = {}
    try:
        for recorded in _recorded(table.description, keys):
            values = table.column(recorded.key).reshape(table.num_frames, -1)
            range_ = _range(recorded, values.shape[1])
            if range_ is None:
                message = (
                    f"{recorded.file}: minimum and maximum of '{recorded.key}' are not {values.shape[1]} "
                    "numbers each: compute the statistics again"
                )
                problems[message] = Problem(message, ())
                continue
            _compare(
                table, recorded, values, *range_, found.setdefault((recorded.file, recorded.key), _Outside())
            )
    except DatasetError as error:
        problems[str(error)] = Problem(str(error), ())
    for (file, key), outside in found.items():
        if outside.count:
            message = (
                f"{file}: {outside.count} values of '{key}' lie outside its minimum and maximum, the farthest in "
                f"{outside.worst[1]}: correct the values, or compute the statistics again"
            )
            problems[message] = Problem(message, tuple(sorted(outside.episodes)))
    return list(problems.values())


def _compare(
    table: FrameTable,
    recorded: _Recorded,
    values: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    outside: _Outside,
) -> None:
    """Adds to `outside` what of values [N, D] is: of the episode, or of all."""
    room = 1e-4 * (high - low) + 1e-5 * np.maximum(np.abs(low), np.abs(high)) + 1e-9
    ids = table.episode_ids
    if recorded.episode is None:
        numbers = range(len(ids))
    else:  # they stand in order
        number = int(np.searchsorted(ids, recorded.episode))
        numbers = [number] if number < len(ids) and ids[number] == recorded.episode else []
    for number in numbers:
        episode = int(ids[number])
        first = int(table.episode_start[number])
        own = np.asarray(values[first : first + int(table.episode_length[number])], np.float64)
        excess = np.maximum(low - own, own - high)
        is_outside = excess > room
        if not is_outside.any():
            continue
        outside.count += int(is_outside.sum())
        outside.episodes.add(episode)
        frame, dim = np.unravel_index(int(excess.argmax()), excess.shape)
        if excess[frame, dim] > outside.worst[0]:
            said = f"{low[dim]:.6g} to {high[dim]:.6g}"
            place = (
                f"episode {episode}, frame {frame}, dimension {dim}: {own[frame, dim]:.6g} (they say {said})"
            )
            outside.worst = (float(excess[frame, dim]), place)


def _range(recorded: _Recorded, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Minimum and maximum, float64 [width]; None where the file has others."""
    try:
        low, high = (np.asarray(side, np.float64).reshape(-1) for side in (recorded.low, recorded.high))
    except (TypeError, ValueError):
        return None
    is_range = len(low) == len(high) == width and np.isfinite(low).all() and np.isfinite(high).all()
    return (low, high) if is_range and (low <= high).all() else None


def _recorded(description: DatasetDescription, keys: tuple[str, ...]) -> Iterator[_Recorded]:
    """The recorded statistics of the episodes; of the columns that have none, those of the whole data set, which a
    killed writer leaves as they were before the last episode."""
    of_episodes: set[str] = set()
    for recorded in _of_episodes(description, keys):
        of_episodes.add(recorded.key)
        yield recorded
    file = description.root / "meta" / "stats.json"
    if file.exists():
        yield from _of_record(
            file,
            None,
            read_json(file, dict, DatasetError, CURE, nan=True),
            tuple(key for key in keys if key not in of_episodes),
        )


def _of_episodes(description: DatasetDescription, keys: tuple[str, ...]) -> Iterator[_Recorded]:
    lines = description.root / "meta" / "episodes_stats.jsonl"
    if lines.exists():
        for where, row in json_lines(lines, DatasetError, CURE):
            yield from _of_record(lines, integer(row, "episode_index", where), row.get("stats"), keys)
    for file in metadata_files(description.root, description.version)[2:] if description.shares_files else ():
        wanted = {f"stats/{key}/{side}": (key, side) for key in keys for side in ("min", "max")}
        with reading(file), open_parquet(file) as parquet:
            names = [name for name in parquet.schema_arrow.names if name in wanted]
            rows = parquet.read(["episode_index", *names]).to_pylist()
        for row in rows:
            sides: dict[str, dict[str, Any]] = {}
            for name in names:
                key, side = wanted[name]
                sides.setdefault(key, {})[side] = row[name]
            yield from _of_record(file, integer(row, "episode_index", str(file)), sides, keys)


def _of_record(file: Path, episode: Any, statistics: Any, keys: tuple[str, ...]) -> Iterator[_Recorded]:
    """The statistics of the columns; a file that does not say minimum and maximum says nothing."""
    for key in keys:
        sides = statistics.get(key) if isinstance(statistics, dict) else None
        if isinstance(sides, dict) and sides.get("min") is not None and sides.get("max") is not None:
            yield _Recorded(file, key, episode, sides["min"], sides["max"])
