"""Which columns of a data set are the state, the action and the cameras, and why others are left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.metadata import Feature, Info
from chunkrl.errors import DatasetError

STATE_NAMES = ("observation.state", "observation/state", "state")
ACTION_NAMES = ("action", "actions")
REQUIRED_NAMES = ("timestamp", "frame_index", "episode_index", "task_index")
MOST_PIXELS, LONGEST_SIDE, LONGEST_VECTOR = 10**8, 16384, 2**16  # no camera and no robot has more
SAME_CAMERA = (
    ("observation.images.image", "observation/image", "image"),
    ("observation.images.image2", "observation/wrist_image", "wrist_image", "observation.images.wrist_image"),
)
"""Names of one camera: of environments and LeRobot data sets, of openpi's transforms, of its LIBERO checkpoints."""
_CAMERA = re.compile(r"observation\.images\..+|observation\.image|observation/.*image.*|image|wrist_image")


@dataclass(frozen=True)
class Roles:
    """state, action, cameras: columns, () for none. left_out: columns that nobody can use as they are -> why."""

    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: tuple[str, ...]
    left_out: dict[str, str]


def find_roles(info: Info, mapping: ColumnMapping) -> Roles:
    """The columns by role.

    Raises:
        DatasetError: a column that is named or needed is absent or unsuitable, or several could be meant.
    """
    state = _vectors(info, "state", mapping.state_key, STATE_NAMES)
    action = _vectors(info, "action", mapping.action_key, ACTION_NAMES)
    if not action:
        raise DatasetError(
            f"{info.file}: no action column ({' or '.join(ACTION_NAMES)}): name it with --action-key, or several, "
            f"which are joined in order; {describe_columns(info.features.values())}"
        )
    for name in REQUIRED_NAMES:
        feature = info.features.get(name)
        if feature is None:
            raise DatasetError(f"{info.file}: no column '{name}', which every LeRobot data set has: add it")
        if not feature.is_numeric or feature.shape != (1,):
            raise DatasetError(
                f"{info.file}: column '{name}' {_as(feature)}, expected one number per frame: correct it"
            )
    cameras = _cameras(info, mapping.image_keys)
    left_out = {f.name: f.fault for f in info.features.values() if f.fault is not None}
    languages = (f.name for f in info.features.values() if f.dtype == "language")
    left_out |= dict.fromkeys(languages, "has the dtype 'language', which is not read")
    if mapping.image_keys is None:
        left_out |= {
            f.name: _why_no_camera(f)
            or "has a name that is not recognised: name all cameras with --image-keys"
            for f in info.features.values()
            if f.is_camera and f.name not in cameras
        }
    return Roles(state, action, cameras, left_out)


def image_size(feature: Feature) -> tuple[int, int] | None:
    """(height, width) of an RGB camera's images, None for a camera that is not RGB."""
    if len(feature.shape) != 3:
        return None
    first, middle, last = feature.shape
    # Where three rows or columns could be meant, the axes' names decide.
    channels_first = first == 3 and (last != 3 or (feature.names or ("",))[0].startswith("channel"))
    if channels_first:
        return middle, last
    return (first, middle) if last == 3 else None


def vector_names(features: Sequence[Feature]) -> tuple[str, ...] | None:
    """What info.json calls the entries of joined columns; None where it has no names."""
    named = [f.names is not None and len(f.names) == f.shape[0] for f in features]
    if not any(named):
        return None
    return tuple(
        name
        for f, is_named in zip(features, named, strict=True)
        for name in ((f.names or ()) if is_named else (f"{f.name}[{i}]" for i in range(f.shape[0])))
    )


def state_choices(features: Iterable[Feature]) -> list[str]:
    """Columns that are no action by their name, and could be a state."""
    others = re.compile(r"action|reward|done|success|goal|return|value|info", re.IGNORECASE)
    return [
        f.name
        for f in features
        if _is_choice(f) and f.dtype.startswith("float") and not others.search(f.name)
    ]


def describe_columns(features: Iterable[Feature]) -> str:
    """What there is to choose from, with the flags that choose it."""
    vectors = [f"{f.name} [{f.shape[0]}]" for f in features if _is_choice(f)]
    cameras = [f"{f.name} {list(f.shape)}" for f in features if f.is_camera]
    return (
        f"vectors (--state-key, --action-key): {', '.join(vectors) or 'none'}; "
        f"cameras (--image-keys): {', '.join(cameras) or 'none'}"
    )


def _is_choice(feature: Feature) -> bool:
    """Whether the column could be a state or an action."""
    made = feature.name in (*REQUIRED_NAMES, "index") or feature.name.startswith("next.")
    return feature.is_numeric and len(feature.shape) == 1 and feature.dtype != "bool" and not made


def _as(feature: Feature) -> str:
    """What a column is declared as, after its name."""
    return feature.fault or f"is {feature.dtype} {list(feature.shape)}"


def _vectors(info: Info, role: str, wanted: tuple[str, ...] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The columns in this role, checked to be numeric vectors; () for none."""
    features = info.features
    if wanted is None:
        found = tuple(name for name in known if name in features)
        if len(found) > 1:
            raise DatasetError(
                f"{info.file}: {' and '.join(found)} could both be the {role}: name one with --{role}-key"
            )
    else:
        found = wanted
        for name in wanted:
            if name not in features:
                raise DatasetError(
                    f"{info.file}: no column '{name}', which --{role}-key names; columns: {', '.join(features)}"
                )
    for name in found:
        feature = features[name]
        if not feature.is_numeric or len(feature.shape) != 1:
            raise DatasetError(
                f"{info.file}: column '{name}' {_as(feature)}, the {role} must be a numeric vector: "
                f"correct info.json, or name other columns with --{role}-key; {describe_columns(features.values())}"
            )
    if sum(features[name].shape[0] for name in found) > LONGEST_VECTOR:
        raise DatasetError(
            f"{info.file}: the {role} ({', '.join(found)}) has more than {LONGEST_VECTOR} values per frame: correct "
            "its shape, or name other columns"
        )
    return found


def _cameras(info: Info, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    cameras = {feature.name: feature for feature in info.features.values() if feature.is_camera}
    for name in wanted or ():
        if name not in cameras:
            raise DatasetError(
                f"{info.file}: no camera '{name}', which --image-keys names; "
                f"cameras: {', '.join(cameras) or 'none'}"
            )
        if (fault := _why_no_camera(cameras[name])) is not None:
            raise DatasetError(f"{info.file}: camera '{name}' {fault}: leave it out of --image-keys")
    if wanted is None:
        recognised = [f for f in cameras.values() if _CAMERA.fullmatch(f.name)]
        wanted = tuple(f.name for f in recognised if _why_no_camera(f) is None)
    for name in wanted:
        size = image_size(cameras[name])
        assert size is not None
        if max(size) > LONGEST_SIDE or size[0] * size[1] > MOST_PIXELS:
            raise DatasetError(
                f"{info.file}: camera '{name}' has images of {size[0]} x {size[1]}, which no camera has: correct "
                "its shape, or leave it out with --image-keys"
            )
    return wanted


def _why_no_camera(feature: Feature) -> str | None:
    """Why nobody can see through a camera; None: one can."""
    shape = feature.shape
    if image_size(feature) is not None:
        return None
    sizes = {shape[0], shape[-1]} & {1, 2, 4} if len(shape) == 3 else set()
    channels = f"{min(sizes)} channel{'s' * (min(sizes) > 1)} (depth?)" if sizes else "other images"
    return f"has shape {list(shape)}, {channels}: only RGB images are read"
