"""Episodes as the metadata of a LeRobot folder lists them, and where each lies in the files (see `metadata`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chunkrl.data.metadata import Episode, Info, VideoSpan, integer, json_lines, metadata_files
from chunkrl.data.parquet import all_rows
from chunkrl.data.problems import Report
from chunkrl.errors import DatasetError


def _path(root: Path, info: Info, template: str | None, what: str, **values: Any) -> Path:
    if template is None:
        raise DatasetError(f"{info.file}: '{what}' is missing, but the data set has video columns: add it")
    try:
        relative = Path(template.format(**values))
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"{info.file}: '{what}' is {template!r}, which {info.version} cannot fill in ({error!r}): "
            "correct it"
        ) from error
    # A data set from elsewhere must not make us read files outside it.
    if relative.is_absolute() or ".." in relative.parts or "\0" in str(relative):
        raise DatasetError(
            f"{info.file}: '{what}' is {template!r}, which leaves the data set's folder: correct it"
        )
    return root / relative


def _episode_v2(root: Path, info: Info, row: dict[str, Any], videos: Sequence[str], where: str) -> Episode:
    index = integer(row, "episode_index", where)
    values = {"episode_index": index, "episode_chunk": index // info.chunks_size}
    spans = {
        key: VideoSpan(_path(root, info, info.video_path, "video_path", video_key=key, **values), 0.0, None)
        for key in videos
    }
    return Episode(
        index=index,
        length=integer(row, "length", f"{where}, episode {index}"),
        start=0,
        offset=0,
        tasks=_texts(row, f"{where}, episode {index}"),
        data_file=_path(root, info, info.data_path, "data_path", **values),
        videos=spans,
    )


def _texts(row: dict[str, Any], where: str) -> tuple[str, ...]:
    texts = row.get("tasks")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DatasetError(f"{where}: 'tasks' is {texts!r}, expected a list of texts: correct it")
    return tuple(texts)


def _episode_v3(root: Path, info: Info, row: dict[str, Any], videos: Sequence[str], where: str) -> Episode:
    index = integer(row, "episode_index", where)
    where = f"{where}, episode {index}"
    length = integer(row, "length", where)
    span = integer(row, "dataset_to_index", where) - integer(row, "dataset_from_index", where)
    if span != length:
        raise DatasetError(
            f"{where}: 'length' is {length}, but its rows in the data set are {span}: correct one"
        )

    def place(prefix: str) -> dict[str, int]:
        return {key: integer(row, f"{prefix}/{key}", where) for key in ("chunk_index", "file_index")}

    spans = {}
    for key in videos:
        begin, end = (row.get(f"videos/{key}/{side}_timestamp") for side in ("from", "to"))
        # `not begin < end` is also true of NaN.
        if not isinstance(begin, float) or not isinstance(end, float) or not 0 <= begin < end < math.inf:
            raise DatasetError(
                f"{where}: '{key}' lies from {begin!r} to {end!r} s in its video: correct this"
            )
        file = _path(root, info, info.video_path, "video_path", video_key=key, **place(f"videos/{key}"))
        spans[key] = VideoSpan(file, begin, end)
    data_file = _path(root, info, info.data_path, "data_path", **place("data"))
    return Episode(index, length, 0, 0, _texts(row, where), data_file, spans)


def read_episodes(root: Path, info: Info, videos: Sequence[str], report: Report) -> tuple[list[Episode], int]:
    """All episodes in order of their index, `start` and `offset` still 0, and the number of their rows.

    v3.0: the first `total_episodes` rows in order of the files are the data set. What stands behind them is
    what a killed writer leaves (`chunkrl.data.writer`): episodes that do not exist yet, and copies.

    videos: the video columns to locate.
    report: is told what is wrong with single episodes, which are left out where it does not raise.

    Raises:
        DatasetError: a file is missing or damaged, an entry is missing, an index occurs twice.
    """
    files = metadata_files(root, info.version)[2:]
    if not files and info.num_episodes > 0:
        raise DatasetError(
            f"{root / 'meta' / 'episodes'} has no chunk-*/file-*.parquet: fetch the data set again"
        )
    episodes: dict[int, Episode] = {}
    num_rows = 0
    for file in files:
        if info.version == "v3.0":
            rows: Any = ((str(file), row) for row in all_rows(file, skip_prefix="stats/"))
            read = _episode_v3
        else:
            rows, read = json_lines(file), _episode_v2
        for where, row in rows:
            if info.version == "v3.0" and num_rows == info.num_episodes:
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
    """Refuses a row behind the last episode that no killed writer leaves: the totals must be wrong."""
    index = integer(row, "episode_index", where)
    if index not in episodes and index < max(episodes, default=-1):
        raise DatasetError(
            f"{where}: episode {index} stands behind the {len(episodes)} episodes that meta/info.json counts: "
            "correct 'total_episodes' or the order of the rows"
        )
