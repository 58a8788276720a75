"""A saved policy, from its folder alone: neither the data set nor the run is needed."""

from __future__ import annotations

from pathlib import Path

import torch

from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.plugin_files import policy_below
from chunkrl.policies import registry


def load_policy(folder: str | Path, device: torch.device | str = "cpu", with_q: bool = True) -> ActingPolicy:
    """A policy that acts, of whichever family: what a run saved, or a published checkpoint that says its settings.

    folder: with LeRobot's files beside the policy's, or above them (`models.plugin_files`).
    with_q: False leaves Q in its folder where it is a large one of its own, which best-of-N alone needs.

    Raises CheckpointError when the folder is no whole policy.
    """
    folder = policy_below(Path(folder))
    return registry.family_in(folder).load(folder, device, with_q)
