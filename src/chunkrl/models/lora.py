"""Low-rank adaptation of linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685).

Library considered: PEFT (155 MB with what it needs beside torch; it renames a layer's weights to
base_model.model.*.base_layer, so that a plain checkpoint no longer fits).

y = W x + b + (alpha / rank) B A x, with W and b frozen, A [rank, in] random and B [out, rank] zero, so that the
function does not change at the start. W + B A is formed once, when merging, and never in training. W keeps its
name, so a plain checkpoint's names are a subset of the adapted model's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chunkrl.errors import ChunkRLError
from chunkrl.models.config import LoRAConfig
from chunkrl.models.layers import Linear
from chunkrl.models.name_patterns import match_names

# Subclasses with a forward of their own are not ours to replace.
_ADAPTABLE = (nn.Linear, Linear)


class LoRALinear(Linear):
    """A linear layer with a trained low-rank update; weight and bias are the base layer's own parameters."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.base_type = type(base)
        self.scale = alpha / rank
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=torch.float32, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train(base.training)
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the base layer's dtype."""
        y = super().forward(input)
        if not torch.is_autocast_enabled(input.device.type):
            input = input.to(self.lora_A.dtype)
        return y + (self.scale * F.linear(F.linear(input, self.lora_A), self.lora_B)).to(y.dtype)

    @torch.no_grad()
    def merged(self, dtype: torch.dtype | None) -> nn.Linear:
        """A layer of the base's type with W + (alpha / rank) B A, trainable."""
        update = self.scale * (self.lora_B @ self.lora_A)
        weight = (self.weight.float() + update).to(dtype or self.weight.dtype)
        base = self.base_type(self.in_features, self.out_features, self.bias is not None, device="meta")
        base.weight = nn.Parameter(weight)
        base.bias = None if self.bias is None else nn.Parameter(self.bias.detach())  # pyright: ignore
        return base.train(self.training)


def apply_lora(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Adapts the matching linear layers of `model` in place and freezes their own weights; other parameters stay
    as they are (`training.trainable.select_trainable` chooses among them).

    Layers that are frozen already are left alone: a pi model freezes those that reach no output. Build what
    copies layers (critics) before.

    Returns:
        The adapted modules' names.

    Raises:
        ChunkRLError: a target matches no linear layer, or only frozen ones; the model is adapted already.
    """
    if adapted_modules(model):
        raise ChunkRLError("the model has LoRA layers already; merge_lora them first")
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module) in _ADAPTABLE
    }
    matched = match_names(config.targets, linear, "linear layer")
    names = [name for name in linear if name in matched and linear[name].weight.requires_grad]
    if not names:
        raise ChunkRLError(f"LoRA targets {', '.join(config.targets)} leave no layer that is not frozen")
    for name in names:
        _replace(model, name, LoRALinear(linear[name], config.rank, config.alpha))
    return names


def merge_lora(model: nn.Module, dtype: torch.dtype | None = None) -> list[str]:
    """Replaces every LoRA layer of `model` in place by a plain one with the merged weight; returns their names.

    dtype: of the merged weights, None: as before. Small updates of bfloat16 weights are rounded away; float32
    keeps them.
    """
    layers = adapted_modules(model)
    for name, layer in layers.items():
        _replace(model, name, layer.merged(dtype))
    return list(layers)


def copy_lora_layers(source: nn.Module, target: nn.Module) -> None:
    """Gives `target`, a plain model like the one that `source` was, LoRA layers where `source` has them; the weights
    stay as they are."""
    for name, layer in adapted_modules(source).items():
        base, rank = target.get_submodule(name), layer.lora_A.shape[0]
        assert isinstance(base, nn.Linear)
        _replace(target, name, LoRALinear(base, rank, layer.scale * rank))


def adapted_modules(model: nn.Module) -> dict[str, LoRALinear]:
    """LoRA layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
