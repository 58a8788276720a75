"""The optimiser step: AdamW, mixed precision on GPUs, gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chunkrl.errors import ChunkRLError


@dataclass(frozen=True)
class OptimConfig:
    """lr: AdamW's learning rate. weight_decay: AdamW's. grad_clip: largest gradient norm of a clip group."""

    lr: float = 3e-4
    weight_decay: float = 0.0
    grad_clip: float = 10.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.grad_clip <= 0 or self.weight_decay < 0:
            raise ChunkRLError("lr and grad_clip must be positive and weight_decay not negative")


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 mixed precision on a GPU (fp32 masters, no loss scaling needed), full precision on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


class Optimizer:
    """AdamW over groups of parameters; each group is clipped by its own gradient norm.

    groups: cross-fitted networks are a group each, because one norm over all of them would let the gradient
        of a network that sees an episode scale the step of the network that must not.
    """

    def __init__(self, groups: Sequence[Iterable[nn.Parameter]], config: OptimConfig) -> None:
        self._groups = [[p for p in group if p.requires_grad] for group in groups]
        self._parameters = [p for group in self._groups for p in group]
        self._config = config
        self._adam = torch.optim.AdamW(
            self._parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )

    def step(self, loss: Tensor) -> float:
        """One step down `loss` (a scalar); returns the norm of all gradients before clipping."""
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        clip = self._config.grad_clip
        norms = [float(torch.nn.utils.clip_grad_norm_(group, clip)) for group in self._groups]
        self._adam.step()
        return math.hypot(*norms)

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts by parameter position."""
        state = self._adam.state_dict()["state"]
        return {str(index): dict(entry) for index, entry in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        groups = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict(
            {"state": {int(index): entry for index, entry in state.items()}, "param_groups": groups}
        )


@torch.no_grad()
def update_ema(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- (1 - rate) target + rate online, parameters only (buffers are shared statistics)."""
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.lerp_(new, rate)
