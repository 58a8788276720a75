"""Whether a learner can store what an actor records, and train on it: asked when the actor greets, before anything
moves, and not when episodes were recorded for nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from chunkrl.data.alike import ACTION, CAMERAS, ORDER, RATE, STATE, Likeness, check_alike, check_names
from chunkrl.data.chunk_settings import ChunkSettings
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.file_segments import check_rate
from chunkrl.errors import CheckpointError, DatasetError
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.online.learner.replay import replay_features
from chunkrl.online.link.records import StreamSpec
from chunkrl.policies import registry
from chunkrl.policies.small import SmallFamily

_PREFIX = "observation.images."
_OTHER_ROBOT = (
    "that is another robot: use the one that the learner's data are of, or begin a learner with other data"
)
_OTHER_ORDER = f"{_OTHER_ROBOT}; where meta/info.json of the data names them wrongly, correct it"


@dataclass(frozen=True)
class FitsLearner:
    """What the steps of every actor of a learner must look like.

    offline: the data sets that stay. settings: of the replay's shards (`data.replay_settings`). action_dim: values an
    action, where they are given. kept_as: how the replay keeps images. share: of the batches that the replay gives
    where there are data that stay. initial: whose networks it begins with (`initial_policy`), where no data stay.
    """

    offline: Sequence[ChunkDataset]
    settings: ChunkSettings
    action_dim: int | None
    kept_as: Literal["video", "image"]
    share: float
    initial: ActingPolicy | None = None

    def __call__(self, name: str, spec: StreamSpec) -> None:
        """Raises DatasetError where the steps of `spec` do not; name: whose they are, for the message."""
        sizes = {f"{_PREFIX}{camera}": (size[0], size[1]) for camera, size in spec.cameras.items()}
        self._check_settings(name, spec, sizes)
        if self.offline:
            self._check_offline(name, spec, sizes)
        elif self.initial is not None:
            self._check_initial(name, spec, tuple(sizes), self.initial)

    def _check_settings(self, name: str, spec: StreamSpec, cameras: Collection[str]) -> None:
        """What the settings alone ask for. cameras: the columns of its cameras."""
        num_actions, settings = len(spec.action_names), self.settings
        if self.action_dim not in (None, num_actions) and not self.offline:  # else data are compared
            raise DatasetError(
                f"{name}: {ACTION}: {num_actions}, but the learner has --action-dim {self.action_dim}: begin one "
                f"with --action-dim {num_actions}, or without"
            )
        missing = [camera for camera in settings.cameras or () if camera not in cameras]
        if missing:
            raise DatasetError(
                f"{name}: cameras {list(cameras)}, but the learner has --cameras {' '.join(settings.cameras or ())}: "
                f"{_name_it(missing[0])}, or begin a learner with other --cameras"
            )
        try:
            settings.hold.check(num_actions)
            settings.encoding.check(num_actions, len(spec.state_names))
            replay_features(spec, self.kept_as)
            check_rate(spec.fps, self.kept_as == "video" and bool(cameras))
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}") from error

    def _check_offline(self, name: str, spec: StreamSpec, sizes: Mapping[str, tuple[int, int]]) -> None:
        """By the rules of a collection, in which the shards would stand beside the data that stay."""
        ours = [Likeness.of(dataset) for dataset in self.offline]
        first = ours[0].values
        used = tuple(sizes) if self.settings.cameras is None else self.settings.cameras
        if self.share == 1:
            # no batch has both: networks need what those of the first data read, and may be given more
            used = tuple(camera for camera in sizes if camera in first[CAMERAS])
        resize = self.settings.frames.image_resize
        cameras = {
            camera: sizes[camera] if resize is None else (resize.height, resize.width) for camera in used
        }
        entries = {"action": spec.action_names, "state": spec.state_names}
        dims = (len(spec.action_names), len(spec.state_names))
        theirs = Likeness.expected(name, self.settings, entries, dims, cameras, spec.fps)
        if self.share == 1:
            theirs = replace(theirs, values={**theirs.values, RATE: first[RATE]})
        check_alike(ours[0], theirs, lambda differing: _cure(differing, first, theirs.values))
        for other in ours:
            check_names(other, theirs, lambda differing: _cure(differing, first, theirs.values))

    def _check_initial(
        self, name: str, spec: StreamSpec, cameras: tuple[str, ...], initial: ActingPolicy
    ) -> None:
        dims = (len(spec.action_names), len(spec.state_names))
        if initial.action_dim != dims[0] or initial.state_dim not in (0, dims[1]):
            raise DatasetError(
                f"{name}: {dims[0]} values an action and {dims[1]} per state, but the policy of --init has "
                f"{initial.action_dim} and {initial.state_dim}: that is another robot: use the one that the policy "
                "is of, or begin a learner with another --init"
            )
        if self.settings.cameras is None and cameras != initial.cameras:
            cure = _cure_of_cameras(dict.fromkeys(initial.cameras), dict.fromkeys(cameras))
            raise DatasetError(
                f"{name}: cameras {list(cameras)}, but the policy of --init has {list(initial.cameras)}: {cure}"
            )


def initial_policy(init: Path) -> ActingPolicy | None:
    """The policy of a run, a checkpoint or a saved policy that a learner begins with (--init); None where no policy
    is saved there, or it takes of the data what it needs (a pi policy's)."""
    runs = [init, *([init.parent.parent] if init.name.isdecimal() else [])]
    for folder in (init, *(run / "policy" for run in runs)):
        try:
            family = registry.family_in(folder)
        except CheckpointError:
            continue
        return family.load(folder, "cpu", False) if isinstance(family, SmallFamily) else None
    return None


def _cure(differing: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What to do about an actor whose values `theirs` are not those of the data, `ours`."""
    if differing == CAMERAS:
        return _cure_of_cameras(ours[CAMERAS], theirs[CAMERAS])
    if differing == RATE:
        return (
            f'give the robot\'s file "rate_hz": {ours[RATE]:g}, or begin a learner with data of {theirs[RATE]:g} '
            "frames per second (a simulator's rate is its own)"
        )
    if differing == STATE and not ours[STATE]:
        return "begin a learner whose --state-key names the state of its data"
    return _OTHER_ORDER if differing == ORDER else _OTHER_ROBOT


def _cure_of_cameras(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Cameras by column, with their sizes."""
    missing = [camera for camera in ours if camera not in theirs]
    extra = [camera.removeprefix(_PREFIX) for camera in theirs if camera not in ours]
    common = " ".join(camera for camera in ours if camera in theirs)
    chosen = f"begin a learner with --cameras {common or '(and no name)'}"
    if missing:
        return f"{_name_it(missing[0])}, or {chosen}"
    if extra:
        return f"leave {', '.join(extra)} out of the robot's file, or {chosen}"
    differing = [size for camera, size in ours.items() if theirs[camera] != size]
    if not differing:  # in another order
        return chosen
    height, width = differing[0]
    return (
        f"record {height} x {width} (height and width in the robot's file, --camera-size of a simulator), or begin a "
        f"learner with --resize {height} {width}"
    )


def _name_it(camera: str) -> str:
    """How an actor's camera gets the name of a column."""
    if not camera.startswith(_PREFIX):
        return f"an actor's cameras are called {_PREFIX}NAME: rename {camera} in the learner's data"
    return f"name a camera {camera.removeprefix(_PREFIX)} in the robot's file (--rename of a simulator)"
