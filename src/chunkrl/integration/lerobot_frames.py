"""Observations from LeRobot's frames: what `LeRobotDataset[i]`, its data loader and its robots' processors give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chunkrl.errors import ObservationError
from chunkrl.types import Observation

STATE = "observation.state"


def lerobot_observation(
    frame: Mapping[str, Any], cameras: Sequence[str], state_keys: Sequence[str] = (STATE,)
) -> Observation:
    """The observation in a frame, or in a batch of frames, for a policy's `act`.

    Args:
        frame: LeRobot's dictionary; pictures float [..., 3, height, width] in [0, 1], as its data sets give them, or
            uint8. Floats become the grey levels that they were made of; other keys are not read.
        cameras: the policy's (`policy.cameras`). state_keys: columns of the state, joined in this order; absent ones
            are none.

    Raises:
        ObservationError: a camera is not there, or its pictures are floats outside [0, 1].
    """
    if missing := [name for name in cameras if name not in frame]:
        raise ObservationError(f"the frame has no {missing}, which the policy sees; it has {sorted(frame)}")
    images = {name: _grey_levels(name, torch.as_tensor(frame[name])) for name in cameras}
    states = [torch.as_tensor(frame[key]) for key in state_keys if key in frame]
    if states and len(states) < len(state_keys):
        raise ObservationError(f"the frame has not all of {list(state_keys)}; it has {sorted(frame)}")
    task = frame.get("task", "")
    task = task if isinstance(task, str) else tuple(task)
    return Observation(images, torch.cat(states, -1) if states else None, task)


def _grey_levels(name: str, pictures: Tensor) -> Tensor:
    """uint8 of LeRobot's floats: k / 255 gives k."""
    if not pictures.is_floating_point():
        return pictures
    low, high = pictures.min().item(), pictures.max().item()
    if not (low >= 0 and high <= 1):  # NaN too
        raise ObservationError(
            f"camera {name!r}: the pictures are {pictures.dtype} with values {low:.4g} to {high:.4g}; LeRobot's "
            "floats lie in [0, 1]: give them before any normalisation"
        )
    return (pictures.float() * 255).round().byte()
