"""Real-time chunking: a new chunk that goes on from what is left of the last one, which is executed meanwhile.

arXiv 2506.07339. The new chunk is asked for while the old one runs: the first `delay` actions of that will have been
executed before it is there, so they are frozen, and those after them should not jump. A flow is guided there without
any training. At each time t of the flow (1 is noise) it is heading for the chunk x_1 = x_t - t v(x_t); the gradient
of that chunk's weighted distance to what is left turns the velocity:

    v - w(t) J^T W (left - x_1),  J = d x_1 / d x_t,  w(t) = min(most, t / (1 - t) * ((1 - t)^2 + t^2) / t^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from chunkrl.errors import ChunkRLError

Schedule = Literal["linear", "exp", "ones", "zeros"]


@dataclass(frozen=True)
class Overlap:
    """What is left of the last chunk when an observation is made.

    actions: float32 [B, T, A] in the data's units; the first of them is executed at the observation.
    delay: d, actions that will have been executed before the new chunk is there: they weigh 1.
    horizon: from here on nothing weighs; between, `schedule` fades from 1 to 0.
    most: the strongest guidance, where the formula's grows without bound.
    """

    actions: Tensor
    delay: int
    horizon: int
    schedule: Schedule = "linear"
    most: float = 10.0

    def __post_init__(self) -> None:
        if self.actions.ndim != 3 or self.actions.shape[1] < 1:
            raise ChunkRLError(
                f"what is left of a chunk has the shape {list(self.actions.shape)}: give [B, T, A], T at least 1"
            )
        if self.delay < 0 or self.horizon < 0 or not 0 < self.most < math.inf:
            raise ChunkRLError(
                f"delay is {self.delay}, horizon {self.horizon} and the strongest guidance {self.most}: they must "
                "not be negative"
            )
        if self.schedule not in get_args(Schedule):
            raise ChunkRLError(f"schedule is {self.schedule!r}; use one of {', '.join(get_args(Schedule))}")
        if not bool(torch.isfinite(self.actions).all()):
            raise ChunkRLError("what is left of the last chunk holds NaN or infinity")

    def weights(self, total: int) -> Tensor:
        """W of each of a chunk's `total` actions, float32 [total] in [0, 1]."""
        end = min(self.horizon, self.actions.shape[1], total)
        start = min(self.delay, end)
        between = torch.linspace(1, 0, end - start + 2)[1:-1]
        faded = {
            "linear": between,
            "exp": between * torch.expm1(between) / (math.e - 1),
            "ones": torch.ones_like(between),
            "zeros": torch.zeros_like(between),
        }[self.schedule]
        return torch.cat([torch.ones(start), faded, torch.zeros(total - end)])

    def padded(self, total: int) -> Tensor:
        """The actions as a chunk of `total`, [B, total, A]: cut, or with the last one repeated, which weighs 0."""
        left = self.actions[:, :total]
        last = left[:, -1:].expand(-1, total - left.shape[1], -1)
        return torch.cat([left, last], dim=1)


@dataclass(frozen=True)
class Guide:
    """An overlap as a network sees it. target: [B, H, A], normalised; weights: [H, A]; most: see `Overlap`."""

    target: Tensor
    weights: Tensor
    most: float

    @classmethod
    def of(cls, overlap: Overlap, target: Tensor, action_dim: int) -> Guide:
        """target: [B, H, A] normalised, of whose values the first `action_dim` are real."""
        horizon, width = target.shape[1:]
        weights = overlap.weights(horizon).to(target.device)[:, None].expand(-1, action_dim)
        return cls(target.float(), F.pad(weights, (0, width - action_dim)), overlap.most)

    def repeated(self, num_samples: int) -> Guide:
        """For N samples of each row."""
        return Guide(self.target.repeat_interleave(num_samples, dim=0), self.weights, self.most)

    def velocity(self, plain: Callable[[Tensor], Tensor], x: Tensor, time: float) -> Tensor:
        """The guided velocity at x [B, H, A]. plain: the network's, differentiated even where gradients are off."""
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            velocity = plain(point)
            heading = point - time * velocity
            error = ((self.target - heading) * self.weights).detach()
            (correction,) = torch.autograd.grad(heading, point, error)
        return velocity.detach() - self.strength(time) * correction

    def strength(self, time: float) -> float:
        """w(t)."""
        if time >= 1:
            return self.most
        return min(self.most, time / (1 - time) * ((1 - time) ** 2 + time**2) / time**2)


def check_overlap(overlap: Overlap, batch: int, action_dim: int, mode: str) -> None:
    """Raises ChunkRLError unless chunks of a batch can go on from what is left."""
    if mode == "best_of_n":
        raise ChunkRLError("best-of-N chooses among whole chunks: use mode `mode` or `sample` in real time")
    expected = (batch, action_dim)
    if (overlap.actions.shape[0], overlap.actions.shape[2]) != expected:
        raise ChunkRLError(
            f"what is left of the last chunk has the shape {list(overlap.actions.shape)}: expected {batch} rows of "
            f"{action_dim} values an action"
        )
