"""Layers whose arithmetic does not depend on the dtype their weights happen to be stored in.

Published checkpoints mix dtypes (norms and patch embedding in float32, the rest in bfloat16), so each layer
computes in its own weight's dtype and the caller decides what the residual stream is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """nn.Linear that takes inputs of any float dtype and answers in its weight's dtype (autocast: in autocast's)."""

    def forward(self, input: Tensor) -> Tensor:
        # Autocast casts by itself; casting up before it would keep one more copy of the input for each layer.
        if not torch.is_autocast_enabled(input.device.type):
            input = input.to(self.weight.dtype)
        return F.linear(input, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm in its weight's dtype; the answer has the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.to(self.weight.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).to(input.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), variance in float32; the weight starts at zero."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W] in x's dtype."""
        return (_unit_rms(x, self.eps) * (1.0 + self.weight.float())).to(x.dtype)


class AdaptiveRMSNorm(nn.Module):
    """RMSNorm whose scale, shift and gate are a linear function of a condition (the flow time in pi0.5).

    The modulation is computed apart from the norm: it depends on the time alone, so sampling computes it once
    per Euler step for all layers and all samples.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.dense = Linear(width, 3 * width)
        self.eps = eps

    def modulation(self, condition: Tensor) -> Tensor:
        """[..., W] -> [..., 3W]: scale, shift and gate side by side."""
        return self.dense(condition)

    def forward(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """x [R, S, W] and modulation [R or 1, 3W] -> (normed and modulated x, gate), both in x's dtype."""
        scale, shift, gate = modulation[:, None].chunk(3, dim=-1)
        y = _unit_rms(x, self.eps) * (1.0 + scale.float()) + shift.float()
        return y.to(x.dtype), gate.to(x.dtype)


def _unit_rms(x: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention with grouped keys.

    q [R, Q, heads, D]; k, v [R, K, kv_heads, D]; mask bool [R, Q, K] (True: visible) or None. Logits are
    accumulated in float32 by every kernel of `scaled_dot_product_attention`.

    Returns:
        [R, Q, heads * D].
    """
    rows, num_queries, heads, width = q.shape
    kv_heads = k.shape[2]
    if kv_heads != heads:
        # A stride-0 view where there is one key head: no copy of the cache per query head.
        shape = (rows, k.shape[1], kv_heads, heads // kv_heads, width)
        k = k[:, :, :, None].expand(shape).flatten(2, 3)
        v = v[:, :, :, None].expand(shape).flatten(2, 3)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask[:, None],
    )
    return out.transpose(1, 2).reshape(rows, num_queries, heads * width)
