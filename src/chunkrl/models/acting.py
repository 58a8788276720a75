"""What a policy is given to act on: checked whole, by name and with the cure, before any network sees it.

A policy answers to anything that has the right shape. Images of 0 to 1 where it learned from 0 to 255, of another
size, or a transposed one give other actions and no error, and an arm executes them. So what is not plainly what the
policy learned from is refused, and images become the training's size by the function that training used.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from chunkrl.data.resize import Resize
from chunkrl.errors import ChunkRLError, ObservationError
from chunkrl.models.config import ActionMode
from chunkrl.types import Observation

_LOG = logging.getLogger(__name__)
_GIVE = "give uint8 RGB with values 0 to 255, [3, height, width] or [height, width, 3]"
_LEROBOT = "lerobot_observation of chunkrl.integration.lerobot_frames makes one of LeRobot's frames"


@dataclass(frozen=True)
class CameraInput:
    """A camera of a policy.

    name: in the data. size: (height, width) that the networks take; None: any, as pi models resize themselves.
    recorded: sizes in the data before training resized them, other images must have the shape of one of them;
    None: any shape, what is over becomes black bars. () in policies of before sizes were noted: `size` alone.
    """

    name: str
    size: tuple[int, int] | None = None
    recorded: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Taken:
    """observation: batched, tensors, as the networks take them. single: it was one, without a batch dimension."""

    observation: Observation
    single: bool


@dataclass(frozen=True)
class ObservationInput:
    """What a policy takes.

    state_dim: S; 0: it reads no state. reads_task: whether the task's text counts. resize: what made the training's
    images of the recorded ones; None: they were as recorded.
    """

    cameras: tuple[CameraInput, ...]
    state_dim: int
    reads_task: bool
    resize: Resize | None = None
    _told: set[str] = field(default_factory=set, repr=False, compare=False)

    def take(self, observation: Observation) -> Taken:
        """The observation as the networks take it.

        Args:
            observation: one, or a batch; numpy or torch. images: exactly the policy's cameras, uint8 RGB, channels
                first or last. state: numbers [S] or [B, S]. task: a text; of a batch one for each row, or one for
                all.

        Raises:
            ObservationError: what is missing, unknown, or not as the policy learned it; says what to give.
        """
        if not isinstance(observation, Observation):
            raise ObservationError(
                f"the observation is {type(observation).__name__}: give a chunkrl.Observation ({_LEROBOT})"
            )
        if not isinstance(observation.task, str | tuple | list):
            raise ObservationError(
                f"the task is {type(observation.task).__name__}: give a text, or one per row"
            )
        check_cameras(
            observation.images, [camera.name for camera in self.cameras], "give exactly the policy's"
        )
        images = {c.name: _picture(c.name, observation.images[c.name]) for c in self.cameras}
        state = self._state(observation.state)
        batch = _batch_size(images, state, observation.task)
        task = self._task(observation.task, batch)
        single = batch is None
        images = {
            camera.name: self._sized(camera, images[camera.name][None] if single else images[camera.name])
            for camera in self.cameras
        }
        state = state[None] if single and state is not None else state
        return Taken(replace(observation, images=images, state=state, task=task), single)

    def check_size(self, camera: CameraInput, size: tuple[int, int]) -> Resize | None:
        """What makes images of `size` those of the networks; None: they are. Raises ObservationError if nothing
        does."""
        resize = self.resize
        if resize is None:
            if camera.size is None:
                return None
            resize = Resize(*camera.size)
        wanted = (resize.height, resize.width)
        if size == wanted:
            return None
        if camera.recorded is None or (self.resize is not None and size in camera.recorded):
            return resize
        told = f"camera {camera.name!r}: images are {_told(size)}, the policy learned from {_told(wanted)}"
        if not camera.recorded:
            raise ObservationError(
                f"{told} and does not say how they were resized (an earlier release saved it): give that size"
            )
        recorded = " or ".join(map(_told, camera.recorded))
        if not any(_same_shape(size, other) for other in camera.recorded):
            raise ObservationError(
                f"{told}, recorded as {recorded}: of this shape they would be seen with bars that were not there. "
                "Set the camera to the recorded size, or crop to its shape"
            )
        if size[0] < wanted[0]:
            raise ObservationError(
                f"{told}: they show less than it learned from. Set the camera to the recorded size ({recorded})"
            )
        if camera.name not in self._told:
            self._told.add(camera.name)
            _LOG.warning("%s, recorded as %s: they are resized. The recorded size is safer", told, recorded)
        return resize

    def _sized(self, camera: CameraInput, pictures: Tensor) -> Tensor:
        """uint8 [B, 3, h, w] at the size of the networks, by the data path's own function."""
        resize = self.check_size(camera, (pictures.shape[-2], pictures.shape[-1]))
        if resize is None:
            return pictures
        last = pictures.permute(0, 2, 3, 1).cpu().contiguous().numpy()
        found = [np.ascontiguousarray(resize(picture).transpose(2, 0, 1)) for picture in last]
        return torch.from_numpy(np.stack(found))

    def _state(self, state: Any) -> Tensor | None:
        """float32 [S] or [B, S]; None where there is none and none is needed."""
        if state is None:
            if self.state_dim:
                raise ObservationError(
                    f"the policy needs a state of {self.state_dim} values and the observation has none: give "
                    f"state=, [{self.state_dim}] or [B, {self.state_dim}] in the data's order and units"
                )
            return None
        values = _tensor("the state", state)
        if values.dtype.is_complex or values.dtype == torch.bool:
            raise ObservationError(
                f"the state is {_dtype(values)}: give numbers, in the data's order and units"
            )
        if values.ndim not in (1, 2) or (self.state_dim and values.shape[-1] != self.state_dim):
            needs = f"needs a state of {self.state_dim} values" if self.state_dim else "reads no state"
            width = self.state_dim or "S"
            raise ObservationError(
                f"the policy {needs}; got the shape {list(values.shape)}: give [{width}], or [B, {width}] for a "
                "batch, in the data's order and units"
            )
        values = values.float()
        if not bool(torch.isfinite(values).all()):
            place = torch.nonzero(~torch.isfinite(values))[0].tolist()
            where = f"value {place[-1]}" + (f" of row {place[0]}" if len(place) == 2 else "")
            raise ObservationError(
                f"the state holds NaN or infinity ({where}): a sensor or its driver failed; do not act on it"
            )
        return values

    def _task(self, task: Any, batch: int | None) -> tuple[str, ...]:
        """One text per row."""
        texts = (task,) * (batch or 1) if isinstance(task, str) else tuple(task)
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ObservationError(f"the task of row {row} is {text!r:.60}: give a text")
            if self.reads_task and not text.strip():
                raise ObservationError(
                    f"the task of row {row} is empty, and the policy reads it: give task=, as the data's tasks are "
                    "written"
                )
        return texts


def check_cameras(found: Mapping[str, Any], known: Sequence[str], cure: str) -> None:
    """Raises ObservationError, which names them, unless exactly the `known` cameras are `found`."""
    if not isinstance(found, Mapping):
        raise ObservationError(f"images is {type(found).__name__}: give a dictionary, camera name -> image")
    if set(found) == set(known):
        return
    missing, unknown = sorted(set(known) - set(found)), sorted(set(found) - set(known), key=str)
    raise ObservationError(
        f"the observation has the cameras {sorted(found, key=str)} and the policy takes {list(known)}: missing "
        f"{missing}, unknown {unknown}; {cure}"
    )


def check_request(
    mode: str, generators: Sequence[torch.Generator], batch_size: int, num_candidates: int
) -> None:
    """Raises ChunkRLError unless noise can be drawn for every row as `mode` needs it."""
    if mode not in get_args(ActionMode):
        raise ChunkRLError(f"mode is {mode!r}; use one of {', '.join(get_args(ActionMode))}")
    if mode != "mode" and len(generators) != batch_size:
        raise ChunkRLError(
            f"mode {mode!r} needs a generator for each of {batch_size} observations, got {len(generators)}"
        )
    if num_candidates < 1:
        raise ChunkRLError(f"num_candidates is {num_candidates}; it must be at least 1")


def draw_noise(
    mode: str, generators: Sequence[torch.Generator], batch: int, shape: tuple[int, ...]
) -> Tensor:
    """The noise of each row's generator, [B, *shape]; zero in mode `mode`."""
    if mode == "mode":
        return torch.zeros(batch, *shape)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _tensor(what: str, value: Any) -> Tensor:
    """An array as a tensor, in the machine's byte order; copied only where torch cannot read it."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
        kind = f"of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ObservationError(f"{what} is {kind}: give a numpy array or a torch tensor of numbers")
    if value.dtype.kind == "u" and value.dtype.itemsize > 1:
        value = value.astype(np.int64)  # of these torch has no type that says all
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    # a camera's buffer may be read-only, or flipped (BGR to RGB)
    return torch.from_numpy(np.ascontiguousarray(native) if native.flags.writeable else native.copy())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _picture(camera: str, value: Any) -> Tensor:
    """uint8 [3, h, w] or [B, 3, h, w] of an image or a batch of them, channels first or last."""
    picture = _tensor(f"camera {camera!r}: the image", value)
    found = f"camera {camera!r}: the images are {_dtype(picture)} {list(picture.shape)}"
    if picture.dtype != torch.uint8:
        values = picture.double() if picture.numel() and not picture.is_complex() else None
        told = "" if values is None else f" with values {values.min():.4g} to {values.max():.4g}"
        of_floats = (
            "; of floats in [0, 1] that is (255 * image).round()" if picture.is_floating_point() else ""
        )
        raise ObservationError(
            f"{found}{told}, and the policy learned from uint8: {_GIVE}{of_floats} ({_LEROBOT})"
        )
    if picture.ndim not in (3, 4) or 0 in picture.shape[-3:]:
        raise ObservationError(f"{found}: {_GIVE}, or a batch of them")
    first, last = picture.shape[-3] == 3, picture.shape[-1] == 3
    if first == last:
        what = (
            "both the first and the last could be the channels"
            if first
            else "neither first nor last are 3 channels"
        )
        raise ObservationError(f"{found}, {what}: {_GIVE}")
    # laid out as the data path's, whose sums of products round alike
    return picture if first else picture.movedim(-1, -3).contiguous()


def _batch_size(images: Mapping[str, Tensor], state: Tensor | None, task: Any) -> int | None:
    """B of a batch, None for one observation. Raises ObservationError where the parts differ."""
    sizes: dict[str, int | None] = {
        f"camera {name!r}": len(picture) if picture.ndim == 4 else None for name, picture in images.items()
    }
    if state is not None:
        sizes["the state"] = len(state) if state.ndim == 2 else None
    if not isinstance(task, str) or not sizes:  # one text serves a batch of anything
        sizes["the task"] = None if isinstance(task, str) else len(task)
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {'one' if n is None else f'a batch of {n}'}" for name, n in sizes.items())
        raise ObservationError(
            f"the observation's parts do not belong together: {told}. Give one observation (image [3, height, "
            "width], state [S], a text) or the same number of rows of everything"
        )
    batch = next(iter(sizes.values()))
    if batch == 0:
        raise ObservationError("the observation is a batch of 0 rows: give at least one")
    return batch


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether the ratio of the sides is the same, to a pixel."""
    return abs(size[0] * other[1] - size[1] * other[0]) < max(*size, *other)


def _told(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"
