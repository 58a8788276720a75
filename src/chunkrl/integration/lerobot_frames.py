"""Observations from LeRobot's frames: what `LeRobotDataset[i]`, its data loader and its robots' processors give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chunkrl.data.roles import STATE_NAMES
from chunkrl.errors import ObservationError
from chunkrl.types import Observation


def lerobot_observation(
    frame: Mapping[str, Any], cameras: Sequence[str], state_keys: Sequence[str] | None = None
) -> Observation:
    """The observation in a frame, or in a batch of frames, for a policy's `act`.

    Args:
        frame: LeRobot's dictionary; images float [..., 3, height, width] in [0, 1], as its data sets give them, or
            uint8. Floats become the grey levels that they were made of; other keys are not read.
        cameras: the policy's (`policy.cameras`).
        state_keys: columns of the state, joined in this order; None: the usual one (`observation.state`, `state`)
            where there is one.

    Raises:
        ObservationError: a camera or a column of the state is not there, or images are floats outside [0, 1].
    """
    if state_keys is None:
        state_keys = [name for name in STATE_NAMES if name in frame]
        if len(state_keys) > 1:
            raise ObservationError(
                f"{' and '.join(state_keys)} could both be the state: name it with state_keys"
            )
    if missing := [name for name in (*cameras, *state_keys) if name not in frame]:
        raise ObservationError(f"the frame has no {missing}, which the policy sees; it has {sorted(frame)}")
    images = {name: _grey_levels(name, torch.as_tensor(frame[name])) for name in cameras}
    state = torch.cat([torch.as_tensor(frame[key]) for key in state_keys], -1) if state_keys else None
    task = frame.get("task", "")
    return Observation(images, state, task if isinstance(task, str) else tuple(task))


def _grey_levels(name: str, pictures: Tensor) -> Tensor:
    """uint8 of LeRobot's floats: k / 255 gives k."""
    if not pictures.is_floating_point():
        return pictures
    if pictures.dtype == torch.bfloat16:
        raise ObservationError(
            f"camera {name!r}: bfloat16 does not tell 256 grey levels apart: give float32 or uint8"
        )
    low, high = pictures.min().item(), pictures.max().item()
    if not (low >= 0 and high <= 1):  # NaN too
        raise ObservationError(
            f"camera {name!r}: the images are {pictures.dtype} with values {low:.4g} to {high:.4g}; LeRobot's "
            "floats lie in [0, 1]: give them before any normalisation"
        )
    return (pictures.float() * 255).round().byte()
