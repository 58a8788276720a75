"""One description of a LeRobot data set of any readable version: metadata only, no frame is read.

Library considered: lerobot (it needs torch < 2.11 and so an environment of its own, and reads one version of the
format; older ones have to be converted first).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.episode_metadata import read_episodes
from chunkrl.data.fingerprint import dataset_fingerprint
from chunkrl.data.metadata import (
    Episode,
    Feature,
    Info,
    VideoSpan,
    read_info,
    read_tasks,
)
from chunkrl.data.problems import Report, refuse
from chunkrl.data.roles import find_roles, image_size, vector_names
from chunkrl.data.video_spans import check_spans
from chunkrl.errors import DatasetError

__all__ = ["RECOGNISE", "DatasetDescription", "Episode", "Feature", "VideoSpan"]
__all__ += ["describe", "image_size", "part_fingerprint", "without"]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
RECOGNISE = ColumnMapping()
ROWS_PER_BYTE = 64  # no parquet file holds more frames: their times alone take more room


@dataclass(frozen=True)
class DatasetDescription:
    """What a data set holds.

    version: `v2.0`, `v2.1`, `v3.0` or `v3.1`; shares_files: whether several episodes stand in one file.
    fps: frames per second.
    tasks: task index -> text.
    state_keys, action_keys: columns by role, joined in this order; state_keys may be (). cameras: columns.
    left_out: columns that are not read -> why ("has ...").
    total_frames: that info.json counts, whatever episodes are left. video_ends: where the last span of a video file
        ends, seconds, of files of several episodes.
    fingerprint: of the contents of metadata, data and video files (`chunkrl.data.fingerprint`). whole_fingerprint: of
        the data set with the episodes that were left out; "" where none was. left_out_episodes: their indices.
    """

    root: Path
    version: str
    fps: float
    robot_type: str | None
    features: Mapping[str, Feature]
    episodes: tuple[Episode, ...]
    tasks: Mapping[int, str]
    state_keys: tuple[str, ...]
    action_keys: tuple[str, ...]
    cameras: tuple[str, ...]
    left_out: Mapping[str, str]
    shares_files: bool
    total_frames: int
    video_ends: Mapping[Path, float]
    fingerprint: str
    whole_fingerprint: str = ""
    left_out_episodes: frozenset[int] = frozenset()

    @property
    def num_frames(self) -> int:
        """Frames in all episodes."""
        return sum(episode.length for episode in self.episodes)

    @property
    def state_names(self) -> tuple[str, ...] | None:
        """What info.json calls the entries of a state; None where it does not say."""
        return vector_names([self.features[key] for key in self.state_keys])

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """What info.json calls the entries of an action; None where it does not say."""
        return vector_names([self.features[key] for key in self.action_keys])


def describe(
    dataset: str | Path,
    mapping: ColumnMapping = RECOGNISE,
    revision: str | None = None,
    report: Report = refuse,
) -> DatasetDescription:
    """Describes a LeRobot data set, v2.0 to v3.1.

    Args:
        dataset: a folder, or a repository id on the Hugging Face Hub (downloaded on first use).
        mapping: columns by role, where their names are not recognised.
        revision: branch, tag or commit of a Hub repository.
        report: is told what is wrong with single episodes and with the totals; where it does not raise, the
            description may hold episodes that it was told of.

    Raises:
        DatasetError: the data set is absent, of an unknown version, incomplete or inconsistent.
    """
    root = _resolve(dataset, revision)
    info = read_info(root)
    roles = find_roles(info, mapping)
    videos = {f.name: f.name in roles.cameras for f in info.features.values() if f.dtype == "video"}
    found, num_rows = read_episodes(root, info, videos, report)
    found = _with_possible_lengths(found, report)
    episodes = _with_starts(info, found, num_rows, report)
    complete = len(episodes) == num_rows
    used = [key for key, is_used in videos.items() if is_used]
    ends = check_spans(episodes, used, info.fps, complete, report)
    return DatasetDescription(
        root=root,
        version=info.version,
        fps=info.fps,
        robot_type=info.robot_type,
        features=info.features,
        episodes=episodes,
        tasks=read_tasks(root, info.version),
        state_keys=roles.state,
        action_keys=roles.action,
        cameras=roles.cameras,
        left_out=roles.left_out,
        shares_files=info.shares_files,
        total_frames=info.num_frames,
        video_ends=ends,
        fingerprint=dataset_fingerprint(root, info, episodes, roles.cameras, report),
    )


def _is_a_path(path: Path) -> bool:
    try:
        path.exists()
    except OSError:  # too long
        return False
    return True


def _resolve(dataset: str | Path, revision: str | None) -> Path:
    if not str(dataset):
        raise DatasetError("no data set is named: name a LeRobot folder, or a Hub repository as owner/name")
    path = Path(dataset).expanduser()
    if not _is_a_path(path):
        raise DatasetError(f"{str(path)[:80]!r}... is no name of a folder: name a LeRobot folder")
    if path.is_dir():
        if revision is not None:
            raise DatasetError(f"{path} is a local folder, which has no revision {revision!r}: leave it out")
        return path.resolve()
    if path.exists():
        raise DatasetError(f"{path} is a file: name the data set's folder (the one above meta/)")
    if isinstance(dataset, Path) or not _REPO_ID.fullmatch(dataset):
        raise DatasetError(
            f"{path}: no such folder: name a LeRobot folder, or a Hub repository as owner/name"
        )
    try:
        return Path(snapshot_download(dataset, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DatasetError(
            f"{dataset}: no such folder, and not to be had from the Hub as a data set ({reason}): "
            "check the name, the revision, the network and your login"
        ) from error


def _with_possible_lengths(episodes: Sequence[Episode], report: Report) -> list[Episode]:
    """The episodes without those of files that cannot hold so many frames, before memory is taken for them."""
    by_file: dict[Path, list[Episode]] = {}
    for episode in episodes:
        by_file.setdefault(episode.data_file, []).append(episode)
    impossible: set[int] = set()
    for file, own in by_file.items():
        length, size = sum(episode.length for episode in own), file.stat().st_size if file.is_file() else None
        if size is not None and length > ROWS_PER_BYTE * size:
            indices = [episode.index for episode in own]
            error = f"{file}: has {size} bytes, the metadata says that it holds {length} frames"
            report(DatasetError(f"{error}: correct the lengths, or fetch the file again"), indices)
            impossible |= set(indices)
    return [episode for episode in episodes if episode.index not in impossible]


def without(description: DatasetDescription, excluded: frozenset[int]) -> DatasetDescription:
    """The data set without the episodes of these indices; a fingerprint, and so a cache, of its own.

    Raises:
        DatasetError: no episode is left.
    """
    kept, start = [], 0
    for episode in description.episodes:
        if episode.index not in excluded:
            kept.append(replace(episode, start=start))
            start += episode.length
    if not kept:
        raise DatasetError(
            f"{description.root}: no episode without a problem is left: fetch the data set again"
        )
    whole = description.whole_fingerprint or description.fingerprint
    return replace(
        description,
        episodes=tuple(kept),
        fingerprint=part_fingerprint(whole, (episode.index for episode in kept)),
        whole_fingerprint=whole,
        left_out_episodes=description.left_out_episodes | excluded,
    )


def part_fingerprint(whole: str, kept: Iterable[int]) -> str:
    """The fingerprint of the episodes `kept` (their indices) of a data set, whatever order the others went in."""
    digest = hashlib.sha256(whole.encode())
    digest.update(repr(sorted(kept)).encode())
    return digest.hexdigest()[:32]


def _with_starts(
    info: Info, episodes: Sequence[Episode], num_rows: int, report: Report
) -> tuple[Episode, ...]:
    """The episodes with their first rows; checks lengths against info.json's totals.

    num_rows: of the metadata, more than episodes where some were left out.
    """
    placed, start = [], 0
    rows: dict[Path, int] = {}
    for episode in episodes:
        if episode.length == 0:
            empty = f"{info.file.parent}: episode {episode.index} has no frames: remove it"
            report(DatasetError(empty), (episode.index,))
            continue
        offset = rows.get(episode.data_file, 0)
        placed.append(replace(episode, start=start, offset=offset))
        rows[episode.data_file] = offset + episode.length
        start += episode.length
    if num_rows != info.num_episodes or (num_rows == len(episodes) and start != info.num_frames):
        totals = DatasetError(
            f"{info.file}: says {info.num_episodes} episodes and {info.num_frames} frames, "
            f"the metadata of the episodes has {num_rows} and {start}: "
            "correct the totals or fetch the metadata again"
        )
        report(totals)
    if not placed and num_rows == 0:
        raise DatasetError(f"{info.file.parent}: the data set has no episodes: record some")
    return tuple(placed)
