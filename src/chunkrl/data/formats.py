"""One description of a LeRobot data set of any readable version: metadata only, no frame is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

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
from chunkrl.errors import DatasetError

__all__ = ["RECOGNISE", "ColumnMapping", "DatasetDescription", "Episode", "Feature", "VideoSpan"]
__all__ += ["describe", "without"]

STATE_NAMES = ("observation.state", "observation/state", "state")
ACTION_NAMES = ("action", "actions")
REQUIRED_NAMES = ("timestamp", "frame_index", "episode_index", "task_index")
_CAMERA = re.compile(r"observation\.images\..+|observation\.image|observation/.*image.*|image|wrist_image")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class ColumnMapping:
    """Which columns are the state, the action and the cameras; None recognises the usual names."""

    state_key: str | None = None
    """Column of the state; default: the names of LeRobot, openpi and the chunk-level document."""
    action_key: str | None = None
    """Column of the actions; default: the same."""
    image_keys: tuple[str, ...] | None = None
    """Columns of the cameras (no name: none is used); default: the same."""


RECOGNISE = ColumnMapping()


@dataclass(frozen=True)
class DatasetDescription:
    """What a data set holds.

    version: `v2.0`, `v2.1` or `v3.0`.
    fps: frames a second.
    tasks: task index -> text.
    state_key, action_key, cameras: columns by role.
    fingerprint: of the contents of metadata, data and video files (`chunkrl.data.fingerprint`).
    """

    root: Path
    version: str
    fps: float
    robot_type: str | None
    features: Mapping[str, Feature]
    episodes: tuple[Episode, ...]
    tasks: Mapping[int, str]
    state_key: str | None
    action_key: str
    cameras: tuple[str, ...]
    fingerprint: str

    @property
    def num_frames(self) -> int:
        """Frames in all episodes."""
        return sum(episode.length for episode in self.episodes)


def describe(
    dataset: str | Path,
    mapping: ColumnMapping = RECOGNISE,
    revision: str | None = None,
    report: Report = refuse,
) -> DatasetDescription:
    """Describes a LeRobot data set, v2.0, v2.1 or v3.0.

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
    for name in REQUIRED_NAMES:
        if name not in info.features:
            raise DatasetError(f"{info.file}: no column '{name}', which every LeRobot data set has: add it")
    state_key = _column(info, "state", mapping.state_key, STATE_NAMES)
    action_key = _column(info, "action", mapping.action_key, ACTION_NAMES)
    if action_key is None:
        raise DatasetError(
            f"{info.file}: no action column ({' or '.join(ACTION_NAMES)}): name it with --action-key; "
            f"columns: {', '.join(info.features)}"
        )
    cameras = _cameras(info, mapping.image_keys)
    videos = [name for name, feature in info.features.items() if feature.dtype == "video"]
    found, num_rows = read_episodes(root, info, videos, report)
    episodes = _with_starts(info, found, num_rows, report)
    return DatasetDescription(
        root=root,
        version=info.version,
        fps=info.fps,
        robot_type=info.robot_type,
        features=info.features,
        episodes=episodes,
        tasks=read_tasks(root, info.version),
        state_key=state_key,
        action_key=action_key,
        cameras=cameras,
        fingerprint=dataset_fingerprint(root, info, episodes, cameras, report),
    )


def image_size(feature: Feature) -> tuple[int, int] | None:
    """(height, width) of an RGB camera's pictures, None for a camera that is not RGB."""
    if len(feature.shape) != 3:
        return None
    first, middle, last = feature.shape
    # Where three rows or columns could be meant, the axes' names decide.
    channels_first = first == 3 and (last != 3 or (feature.names or ("",))[0].startswith("channel"))
    if channels_first:
        return middle, last
    return (first, middle) if last == 3 else None


def _resolve(dataset: str | Path, revision: str | None) -> Path:
    path = Path(dataset).expanduser()
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


def _column(info: Info, role: str, wanted: str | None, known: Sequence[str]) -> str | None:
    """The column in this role, checked to be a numeric vector."""
    names = [name for name in ([wanted] if wanted is not None else known) if name in info.features]
    if wanted is not None and not names:
        raise DatasetError(
            f"{info.file}: no column '{wanted}', which --{role}-key names; "
            f"columns: {', '.join(info.features)}"
        )
    if len(names) > 1:
        raise DatasetError(
            f"{info.file}: {' and '.join(names)} could both be the {role}: name one with --{role}-key"
        )
    if not names:
        return None
    feature = info.features[names[0]]
    if len(feature.shape) != 1 or not feature.is_numeric:
        raise DatasetError(
            f"{info.file}: column '{feature.name}' is {feature.dtype} {list(feature.shape)}, "
            f"the {role} must be a numeric vector: name another column with --{role}-key"
        )
    return feature.name


def _cameras(info: Info, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    if wanted is None:
        found = [feature for feature in info.features.values() if feature.is_camera]
        return tuple(f.name for f in found if _CAMERA.fullmatch(f.name) and image_size(f) is not None)
    for name in wanted:
        feature = info.features.get(name)
        cameras = [item.name for item in info.features.values() if item.is_camera]
        if feature is None or not feature.is_camera:
            raise DatasetError(
                f"{info.file}: no camera '{name}', which --image-keys names; "
                f"cameras: {', '.join(cameras) or 'none'}"
            )
        if image_size(feature) is None:
            raise DatasetError(
                f"{info.file}: camera '{name}' has shape {list(feature.shape)}, expected RGB pictures"
            )
    return tuple(wanted)


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
    digest = hashlib.sha256(description.fingerprint.encode())
    digest.update(repr(sorted(episode.index for episode in kept)).encode())
    return replace(description, episodes=tuple(kept), fingerprint=digest.hexdigest()[:32])


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
    if not placed:
        raise DatasetError(f"{info.file.parent}: the data set has no episodes: record some")
    return tuple(placed)
