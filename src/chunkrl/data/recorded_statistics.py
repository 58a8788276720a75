"""A data set's own statistics (meta/stats.json, of episodes in v2.1 and v3) against its values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.data.formats import DatasetDescription
from chunkrl.data.frames import FrameTable
from chunkrl.data.metadata import json_lines, json_object, metadata_files
from chunkrl.data.parquet import open_parquet, reading
from chunkrl.data.problems import Problem
from chunkrl.errors import DatasetError


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
                    "numbers each: compute the statistics anew"
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
                f"{outside.worst[1]}: correct the values, or compute the statistics anew"
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
    for number, episode in enumerate(table.episode_ids.tolist()):
        if recorded.episode not in (None, episode):
            continue
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
    meta = description.root / "meta"
    if (meta / "stats.json").exists():
        yield from _of_record(meta / "stats.json", None, json_object(meta / "stats.json"), keys)
    if (meta / "episodes_stats.jsonl").exists():
        for _, row in json_lines(meta / "episodes_stats.jsonl"):
            yield from _of_record(
                meta / "episodes_stats.jsonl", row.get("episode_index"), row.get("stats"), keys
            )
    for file in metadata_files(description.root, description.version)[2:] if description.shares_files else ():
        wanted = [f"stats/{key}/{side}" for key in keys for side in ("min", "max")]
        with reading(file), open_parquet(file) as parquet:
            names = [name for name in parquet.schema_arrow.names if name in wanted]
            rows = parquet.read(["episode_index", *names]).to_pylist()
        for row in rows:
            sides = {
                key: {side: row.get(f"stats/{key}/{side}") for side in ("min", "max")}
                for key in keys
                if f"stats/{key}/min" in names
            }
            yield from _of_record(file, row["episode_index"], sides, keys)


def _of_record(file: Path, episode: Any, statistics: Any, keys: tuple[str, ...]) -> Iterator[_Recorded]:
    """Those of the columns; a file that does not say minimum and maximum says nothing."""
    for key in keys:
        sides = statistics.get(key) if isinstance(statistics, dict) else None
        if isinstance(sides, dict) and sides.get("min") is not None and sides.get("max") is not None:
            yield _Recorded(file, key, episode, sides["min"], sides["max"])
