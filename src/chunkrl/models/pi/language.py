"""Gemma: the prefix language model of PaliGemma and the action expert that reads its keys and values.

Gemma (arXiv 2403.08295): RMSNorm with (1 + weight), rotary positions in float32, grouped-query attention,
GeGLU. Nothing in the prefix sees the suffix, so the two run one after the other: the prefix yields each
layer's keys and values, the expert attends to them and to its own. Parameter names are those of the
published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chunkrl.models.layers import AdaptiveRMSNorm, Linear, RMSNorm, attend
from chunkrl.models.pi.config import PiConfig

_ROPE_BASE = 10_000.0


@dataclass(frozen=True)
class KeyValues:
    """One layer's keys (rotated) and values, each [B, K, kv_heads, D]."""

    keys: Tensor
    values: Tensor

    def followed_by(self, later: KeyValues) -> KeyValues:
        """These tokens' keys and values and then `later`'s, in its dtype."""
        keys = torch.cat((self.keys.to(later.keys.dtype), later.keys), dim=1)
        return KeyValues(keys, torch.cat((self.values.to(later.values.dtype), later.values), dim=1))

    def repeated(self, times: int) -> KeyValues:
        """Every row `times` times, one after the other: [B * times, ...]."""
        if times == 1:
            return self
        return KeyValues(
            self.keys.repeat_interleave(times, dim=0), self.values.repeat_interleave(times, dim=0)
        )


@dataclass(frozen=True)
class LayerModulation:
    """One layer's adaptive norms: scale, shift, gate before attention and before the MLP, each [R or 1, 3W]."""

    attention: Tensor
    mlp: Tensor


@dataclass(frozen=True)
class Modulations:
    """All adaptive norms of the action expert at given flow times."""

    layers: tuple[LayerModulation, ...]
    final: Tensor

    def row(self, index: int) -> Modulations:
        """The modulations of one time only, as [1, 3W]: they broadcast over all samples."""
        one = slice(index, index + 1)
        layers = tuple(LayerModulation(m.attention[one], m.mlp[one]) for m in self.layers)
        return Modulations(layers, self.final[one])


def rotary_angles(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Positions int [B, S] -> (cos, sin), float32 [B, S, 1, head_dim / 2], frequencies 10000^(-2i / head_dim)."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].float() / _ROPE_BASE**exponent
    return angles.cos()[:, :, None], angles.sin()[:, :, None]


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding, half-split, in float32: x [B, S, heads, D] -> the same shape and dtype."""
    cos, sin = angles
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, config: PiConfig, width: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = Linear(width, config.num_heads * config.head_dim, bias=False)
        self.k_proj = Linear(width, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = Linear(width, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = Linear(config.num_heads * config.head_dim, width, bias=False)

    def keys_values(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> KeyValues:
        keys = rotate(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), angles)
        return KeyValues(keys, self.v_proj(x).unflatten(-1, (-1, self.head_dim)))

    def queries(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        return rotate(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), angles)


class _MLP(nn.Module):
    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, mlp_width, bias=False)
        self.up_proj = Linear(width, mlp_width, bias=False)
        self.down_proj = Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class PrefixLayer(nn.Module):
    """One layer of the prefix language model."""

    sharded_methods = ("keys_values",)  # `chunkrl.training.distributed`

    def __init__(self, config: PiConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.prefix_width)
        self.self_attn = _Attention(config, config.prefix_width)
        self.post_attention_layernorm = RMSNorm(config.prefix_width)
        self.mlp = _MLP(config.prefix_width, config.prefix_mlp_width)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        earlier: KeyValues | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, P, W], mask bool [B, P, E + P] or None -> (x, its keys, its values).

        earlier: keys and values of E tokens before x, which x sees and which do not see x.
        """
        normed = self.input_layernorm(x)
        own = self.self_attn.keys_values(normed, angles)
        seen = own if earlier is None else earlier.followed_by(own)
        attended = attend(self.self_attn.queries(normed, angles), seen.keys, seen.values, mask)
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x)), own.keys, own.values

    def keys_values(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> KeyValues:
        """Keys and values only: all that the expert needs of the last layer."""
        return self.self_attn.keys_values(self.input_layernorm(x), angles)


class PrefixLM(nn.Module):
    """The prefix language model without its output head (which is tied to `embed_tokens` and unused)."""

    def __init__(self, config: PiConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.prefix_width)
        self.layers = nn.ModuleList([PrefixLayer(config) for _ in range(config.depth)])
        # Published with the checkpoint and applied to nothing: only keys and values leave the prefix.
        self.norm = RMSNorm(config.prefix_width)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the residual stream."""
        layer = self.layers[0]
        assert isinstance(layer, PrefixLayer)
        return layer.self_attn.q_proj.weight.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] -> embeddings [B, L, W] times sqrt(W)."""
        return self.embed_tokens(tokens) * self.config.prefix_width**0.5

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> tuple[KeyValues, ...]:
        """x [B, P, W], positions int [B, P], mask bool [B, P, P] or None -> keys and values of every layer.

        The last layer's attention output, MLP and norms feed nothing and are not computed.
        """
        x = x.to(self.dtype)
        angles = rotary_angles(positions, self.config.head_dim)
        cache: list[KeyValues] = []
        for layer in self.layers[:-1]:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, keys, values = checkpoint(layer, x, angles, mask, use_reentrant=False)  # pyright: ignore
            else:
                x, keys, values = layer(x, angles, mask)
            cache.append(KeyValues(keys, values))
        last = self.layers[-1]
        assert isinstance(last, PrefixLayer)
        return (*cache, last.keys_values(x, angles))


class ExpertLayer(nn.Module):
    """One layer of the action expert; its norms are adaptive in pi0.5."""

    sharded_methods = ("modulation",)  # `chunkrl.training.distributed`

    def __init__(self, config: PiConfig) -> None:
        super().__init__()
        norm = AdaptiveRMSNorm if config.kind == "pi05" else RMSNorm
        self.input_layernorm = norm(config.expert_width)
        self.self_attn = _Attention(config, config.expert_width)
        self.post_attention_layernorm = norm(config.expert_width)
        self.mlp = _MLP(config.expert_width, config.expert_mlp_width)

    def modulation(self, condition: Tensor) -> LayerModulation:
        """condition [T, W] -> this layer's modulation at the T times (pi0.5 only)."""
        first, second = self.input_layernorm, self.post_attention_layernorm
        assert isinstance(first, AdaptiveRMSNorm) and isinstance(second, AdaptiveRMSNorm)
        return LayerModulation(first.modulation(condition), second.modulation(condition))

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        prefix: KeyValues,
        modulation: LayerModulation | None,
    ) -> Tensor:
        """x [R, S, W], mask bool [R, S, P + S] or None, prefix [R, P, ...] -> x."""
        normed, gate = _norm(self.input_layernorm, x, modulation and modulation.attention)
        own = self.self_attn.keys_values(normed, angles)
        seen = prefix.followed_by(own)
        attended = attend(self.self_attn.queries(normed, angles), seen.keys, seen.values, mask)
        x = x + _gated(self.self_attn.o_proj(attended), gate)
        normed, gate = _norm(self.post_attention_layernorm, x, modulation and modulation.mlp)
        return x + _gated(self.mlp(normed), gate)


class ActionExpert(nn.Module):
    """The small Gemma that turns noisy actions into velocities, reading the prefix through its cache."""

    def __init__(self, config: PiConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.layers = nn.ModuleList([ExpertLayer(config) for _ in range(config.depth)])
        self.norm = (AdaptiveRMSNorm if config.kind == "pi05" else RMSNorm)(config.expert_width)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the residual stream."""
        layer = self.layers[0]
        assert isinstance(layer, ExpertLayer)
        return layer.self_attn.q_proj.weight.dtype

    def modulations(self, condition: Tensor) -> Modulations:
        """condition [T, W] -> every adaptive norm's scale, shift and gate at the T times (pi0.5 only)."""
        assert isinstance(self.norm, AdaptiveRMSNorm)
        layers = []
        for layer in self.layers:
            assert isinstance(layer, ExpertLayer)
            layers.append(layer.modulation(condition))
        return Modulations(tuple(layers), self.norm.modulation(condition))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        prefix: tuple[KeyValues, ...],
        modulations: Modulations | None,
    ) -> Tensor:
        """x [R, S, W], positions int [R, S], mask bool [R, S, P + S] or None -> normed output [R, S, W]."""
        x = x.to(self.dtype)
        angles = rotary_angles(positions, self.config.head_dim)
        for index, layer in enumerate(self.layers):
            modulation = None if modulations is None else modulations.layers[index]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, angles, mask, prefix[index], modulation, use_reentrant=False)  # pyright: ignore
            else:
                x = layer(x, angles, mask, prefix[index], modulation)
        return _norm(self.norm, x, None if modulations is None else modulations.final)[0]


def _norm(norm: nn.Module, x: Tensor, modulation: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if isinstance(norm, AdaptiveRMSNorm):
        assert modulation is not None, "pi0.5's norms need the flow time's modulation"
        return norm(x, modulation)
    return norm(x), None


def _gated(y: Tensor, gate: Tensor | None) -> Tensor:
    return y if gate is None else y * gate
