"""Whether video files of several episodes end where the last of them does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chunkrl.data.image_decoding import Camera
from chunkrl.data.metadata import Episode
from chunkrl.data.parquet import group_starts
from chunkrl.data.problems import Report, name_indices
from chunkrl.data.video import VideoFile
from chunkrl.data.video_spans import SPANS_CURE
from chunkrl.errors import DatasetError


def check_ends(camera: Camera, episodes: Sequence[Episode], report: Report) -> None:
    """Checks that a camera's files end with their last episode: frames after it are a sign that spans are wrong.

    Those of episodes that stand after it in the data file too are what a killed merge leaves (see the `writer`).

    Args:
        episodes: those to be read. report: is told what is wrong.
    """
    fps, ends = camera.description.fps, camera.description.video_ends
    files: dict[Path, list[Episode]] = {}
    for episode in episodes if camera.is_video else ():
        files.setdefault(episode.videos[camera.name].file, []).append(episode)
    for file, own in files.items():
        if file not in ends:
            continue
        indices = [episode.index for episode in own]
        try:
            expected = round(ends[file] * fps)
            with VideoFile(file) as video:
                video.check_rate(fps, expected)
                excess = 0.0 if video.end is None else (video.end - ends[file]) * fps
                # one whose last frame's duration is not said has all frames; one with a gap ends where it should
                lost = expected - video.num_frames if video.num_frames and excess < -0.5 else 0
            if excess > 0.75 and abs(excess - _rows_behind(own[-1], episodes)) > 0.75:
                raise DatasetError(
                    f"{file}: goes on for {excess:.4g} frames after its last episode, which ends at "
                    f"{ends[file]:.4g} s: {SPANS_CURE}"
                )
            if excess < -1.5:
                raise DatasetError(
                    f"{file}: ends {-excess:.4g} frames before its last episode does: {SPANS_CURE}"
                )
            if lost > 0:
                raise DatasetError(
                    f"{file}: has {video.num_frames} frames, its episodes {name_indices(indices)} have {expected}, "
                    f"and nothing says which are missing: {SPANS_CURE}"
                )
        except DatasetError as error:
            report(error, indices)


def _rows_behind(last: Episode, episodes: Sequence[Episode]) -> int:
    """How many rows stand in the data file of `last` after the episodes that the metadata puts there."""
    own = [episode for episode in episodes if episode.data_file == last.data_file]
    return int(group_starts(last.data_file)[-1]) - own[-1].offset - own[-1].length
