"""SigLIP: the vision transformer of PaliGemma (Zhai et al. 2023, arXiv 2303.15343).

Pre-norm, biases everywhere, learned position embedding, tanh-GELU, a final norm, no pooling. Parameter names
are those of the published checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from chunkrl.models.layers import LayerNorm, Linear, attend
from chunkrl.models.pi.config import VisionConfig

_LAYER_NORM_EPS = 1e-6


class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Embedding(config.num_tokens, config.width)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embedding(images.to(self.patch_embedding.weight.dtype))
        return patches.flatten(2).transpose(1, 2) + self.position_embedding.weight


class _Attention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.out_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v, None))


class _MLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.width, eps=_LAYER_NORM_EPS)
        self.self_attn = _Attention(config)
        self.layer_norm2 = LayerNorm(config.width, eps=_LAYER_NORM_EPS)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Encoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.depth)])


class SigLIP(nn.Module):
    """Images to one token per patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.post_layernorm = LayerNorm(config.width, eps=_LAYER_NORM_EPS)

    def layers(self) -> list[nn.Module]:
        """The transformer layers in order; each maps [B, T, W] to [B, T, W]."""
        return list(self.encoder.layers)

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to patch embeddings [B, T, W] in the layers' dtype."""
        layer = self.encoder.layers[0]
        assert isinstance(layer, _Layer)
        return self.embeddings(images).to(layer.self_attn.q_proj.weight.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to tokens [B, T, W]."""
        x = self.embed(images)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)
