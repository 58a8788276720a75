"""Episodes as the metadata of a LeRobot folder lists them, and where each lies in the files (see `metadata`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from chunkrl.data.metadata import CURE, Episode, Info, VideoSpan, integer, metadata_files
from chunkrl.data.parquet import all_rows
from chunkrl.data.path_templates import fill
from chunkrl.data.problems import Report
from chunkrl.errors import DatasetError
from chunkrl.files.json_files import json_lines

Videos: TypeAlias = Mapping[str, bool]
"""Video column -> whether a role uses it."""


def _episode_v2(root: Path, info: Info, row: dict[str, Any], videos: Videos, where: str) -> Episode:
    index = integer(row, "episode_index", where)
    values = {"episode_chunk": index // info.chunks_size, "episode_index": index}

    def span(key: str) -> VideoSpan:
        return VideoSpan(fill(root, info, "video_path", {"video_key": key, **values}), 0.0, None)

    return Episode(
        index=index,
        length=integer(row, "length", f"{where}, episode {index}"),
        start=0,
        offset=0,
        tasks=_texts(row, f"{where}, episode {index}"),
        data_file=fill(root, info, "data_path", {**values}),
        videos=_spans(videos, span),
    )


def _spans(videos: Videos, span: Callable[[str], VideoSpan]) -> dict[str, VideoSpan]:
    """Video column -> its span. Of a camera that nobody uses a wrong entry stops nobody: it is left out."""
    found = {}
    for key, is_used in videos.items():
        try:
            found[key] = span(key)
        except DatasetError:
            if is_used:
                raise
    return found


def _texts(row: dict[str, Any], where: str) -> tuple[str, ...]:
    texts = row.get("tasks")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DatasetError(f"{where}: 'tasks' is {texts!r}, expected a list of texts: correct it")
    return tuple(texts)


def _episode_v3(root: Path, info: Info, row: dict[str, Any], videos: Videos, where: str) -> Episode:
    index = integer(row, "episode_index", where)
    where = f"{where}, episode {index}"
    length = integer(row, "length", where)
    rows = integer(row, "dataset_to_index", where) - integer(row, "dataset_from_index", where)
    if rows != length:
        raise DatasetError(
            f"{where}: 'length' is {length}, but its rows in the data set are {rows}: correct one"
        )

    def place(prefix: str) -> dict[str, int]:
        return {key: integer(row, f"{prefix}/{key}", where) for key in ("chunk_index", "file_index")}

    def span(key: str) -> VideoSpan:
        sides = [row.get(f"videos/{key}/{side}_timestamp") for side in ("from", "to")]
        # `not begin < end` is also true of NaN.
        numbers = all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in sides)
        if not numbers or not 0 <= sides[0] < sides[1] < math.inf:  # type: ignore[operator]
            raise DatasetError(
                f"{where}: '{key}' lies from {sides[0]!r} to {sides[1]!r} s in its video: correct this"
            )
        file = fill(root, info, "video_path", {"video_key": key, **place(f"videos/{key}")})
        return VideoSpan(file, float(sides[0]), float(sides[1]))  # type: ignore[arg-type]

    data_file = fill(root, info, "data_path", {**place("data")})
    return Episode(index, length, 0, 0, _texts(row, where), data_file, _spans(videos, span))


def read_episodes(root: Path, info: Info, videos: Videos, report: Report) -> tuple[list[Episode], int]:
    """All episodes in order of their index, `start` and `offset` still 0, and the number of their rows.

    v3: the first `total_episodes` rows in order of the files are the data set. What stands after them is
    what a killed writer leaves (`chunkrl.data.writer`): episodes that do not exist yet, and copies.

    videos: the video columns to locate; those that no role uses may lack an entry.
    report: is told what is wrong with single episodes, which are left out where it does not raise.

    Raises:
        DatasetError: a file is missing or damaged, an entry is missing, an index occurs twice.
    """
    _check_layout(root, info)
    files = metadata_files(root, info.version)[2:]
    episodes: dict[int, Episode] = {}
    num_rows = 0
    for file in files:
        if info.shares_files:
            rows: Any = ((str(file), row) for row in all_rows(file, skip_prefix="stats/"))
            read = _episode_v3
        else:
            rows, read = json_lines(file, DatasetError, CURE), _episode_v2
        for where, row in rows:
            if info.shares_files and num_rows == info.num_episodes:
                _check_leftover(row, episodes, where)
                continue
            num_rows += 1
            index = integer(row, "episode_index", where)
            try:
                episode = read(root, info, row, videos, where)
            except DatasetError as error:
                report(error, (index,))
                continue
            if index in episodes:
                report(DatasetError(f"{where}: episode {index} occurs twice: keep one"), (index,))
            episodes[index] = episode
    return [episodes[index] for index in sorted(episodes)], num_rows


def _check_leftover(row: dict[str, Any], episodes: Mapping[int, Episode], where: str) -> None:
    """Refuses a row after the last episode that no killed writer leaves: the totals must be wrong."""
    index = integer(row, "episode_index", where)
    if index not in episodes and index < max(episodes, default=-1):
        raise DatasetError(
            f"{where}: episode {index} stands after the {len(episodes)} episodes that meta/info.json counts: "
            "correct 'total_episodes' or the order of the rows"
        )


def _check_layout(root: Path, info: Info) -> None:
    """Refuses metadata of another version than info.json says, and v3 without files of episodes."""
    meta = root / "meta"
    has_lines, files = (meta / "episodes.jsonl").exists(), any(meta.glob("episodes/chunk-*/file-*.parquet"))
    found = "v2 (meta/episodes.jsonl)" if info.shares_files else "v3 (meta/episodes/*)"
    if (has_lines if info.shares_files else files) and has_lines != files:
        raise DatasetError(
            f"{info.file}: codebase_version is {info.version}, but the files are laid out as of {found}: correct it, "
            "or convert the data set"
        )
    if info.shares_files and not files and info.num_episodes > 0:
        raise DatasetError(f"{meta / 'episodes'} has no chunk-*/file-*.parquet: fetch the data set again")
