"""Where episodes lie in video files, by the metadata: whether spans fit each other and their lengths.

A span that is wrong gives the images of other frames without a sign: LeRobot's own merge tool has written such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chunkrl.data.metadata import Episode
from chunkrl.data.problems import Report, name_indices
from chunkrl.errors import DatasetError

SPANS_CURE = "correct meta/episodes, or merge or fetch the data set again"


@dataclass(frozen=True)
class _Span:
    """An episode's place in a file, seconds."""

    index: int
    length: int
    begin: float
    end: float

    def __str__(self) -> str:
        return f"episode {self.index} ({self.begin:.4g} to {self.end:.4g} s)"


def check_spans(
    episodes: Sequence[Episode], cameras: Sequence[str], fps: float, is_complete: bool, report: Report
) -> dict[Path, float]:
    """Checks the spans of the cameras' video files against each other, by the metadata alone.

    Args:
        episodes: all that could be read, in order of their index.
        is_complete: those are all that the metadata lists.
        report: is told what is wrong.

    Returns:
        Where the last span of a file ends, seconds, of those files of which that is known.
    """
    users: dict[Path, dict[str, list[Episode]]] = {}
    for episode in episodes:
        for camera in cameras:
            file = episode.videos[camera].file
            users.setdefault(file, {}).setdefault(camera, []).append(episode)
    known = {episode.index for episode in episodes}
    last = episodes[-1].index if is_complete and episodes else None
    ends: dict[Path, float] = {}
    for file, by_camera in users.items():
        indices = [episode.index for own in by_camera.values() for episode in own]
        if len(by_camera) > 1:
            error = f"{file}: is the video of the cameras {' and '.join(by_camera)}: correct 'video_path'"
            report(DatasetError(error), indices)
            continue
        ((camera, own),) = by_camera.items()
        spans = [
            _Span(e.index, e.length, e.videos[camera].from_timestamp, to)
            for e in own
            if (to := e.videos[camera].to_timestamp) is not None
        ]
        if not spans and len(own) > 1:
            error = f"{file}: is the video of the episodes {name_indices(indices)}, which have one each"
            report(DatasetError(f"{error}: correct 'video_path'"), indices)
        _check_file(file, spans, known, fps, report)
        if spans and (spans[-1].index == last or spans[-1].index + 1 in known):
            ends[file] = spans[-1].end
    return ends


def _check_file(file: Path, spans: Sequence[_Span], known: set[int], fps: float, report: Report) -> None:
    """The spans of one file, in order of their episodes. Half a frame is the most that anything may be off."""
    near = 0.5 / fps
    overlaps: dict[str, tuple[int, int]] = {}
    longest: _Span | None = None
    for number, span in enumerate(spans):
        if abs(span.end - span.begin - span.length / fps) > near:
            error = (
                f"{file}: {span} has {span.length} frames, which last {span.length / fps:.4g} s: {SPANS_CURE}"
            )
            report(DatasetError(error), (span.index,))
        if longest is not None and span.begin < longest.end - near:
            overlaps[f"{longest} and {span}"] = (longest.index, span.index)
        elif longest is not None and span.begin > longest.end + near and _follows(longest, span, known):
            error = f"{file}: {span} does not begin where {longest} ends: {SPANS_CURE}"
            report(DatasetError(error), (longest.index, span.index))
        elif number == 0 and span.begin > near and (span.index == 0 or span.index - 1 in known):
            error = f"{file}: no episode stands before {span}, which does not begin at 0: {SPANS_CURE}"
            report(DatasetError(error), (span.index,))
        if longest is None or span.end > longest.end:
            longest = span
    if overlaps:
        bad = sorted({index for pair in overlaps.values() for index in pair})
        report(
            DatasetError(
                f"{file}: episodes {name_indices(bad)} lie at the same time in it, such as {next(iter(overlaps))}: "
                f"{SPANS_CURE}"
            ),
            bad,
        )


def _follows(before: _Span, after: _Span, known: set[int]) -> bool:
    """Whether no episode may stand between the two that the metadata lost."""
    return all(index in known for index in range(before.index + 1, after.index))
