"""What training a pi model keeps in GPU memory besides activations: counted, without the memory.

The model is built on PyTorch's meta device with the functions that training itself uses, and its parameters are
counted. Activations, CUDA's context and kernels' workspaces come on top: measure those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn

from chunkrl.models.config import LoRAConfig
from chunkrl.models.lora import apply_lora
from chunkrl.models.pi.config import PiConfig
from chunkrl.models.pi.flow import PiModel
from chunkrl.training.config import OptimizerKind
from chunkrl.training.eight_bit import moment_bytes
from chunkrl.training.optim import prepare_precision
from chunkrl.training.trainable import select_trainable

_CAST_BYTES = torch.bfloat16.itemsize


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes; `str` is a table in GB (1e9).

    weights: of the model, masters included. gradients: of what trains. optimizer: its state. ema: float32 averages
    of what trains. casts: bfloat16 copies that autocast keeps of float32 masters in linear and convolution layers,
    from their first use in the forward pass on. critics: all of these for the critics, and their targets; gradients
    and casts of one, for the critics compute one after the other.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    casts: int
    critics: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        rows = [(field.name, getattr(self, field.name)) for field in fields(self)] + [("total", self.total)]
        return "\n".join(f"{name:<10} {size / 1e9:7.2f} GB" for name, size in rows)


def memory_plan(
    config: PiConfig,
    trainable: tuple[str, ...] | None,
    *,
    lora: LoRAConfig | None = None,
    optimizer: OptimizerKind = "adamw",
    frozen_dtype: torch.dtype | None = torch.bfloat16,
    ema: bool = False,
    critics: Sequence[nn.Module] = (),
    critic_targets: bool = True,
    one_by_one: bool = False,
) -> MemoryPlan:
    """The plan for one GPU.

    Args:
        trainable: patterns for `select_trainable`; None: inference, everything is frozen.
        lora: applied before.
        frozen_dtype: of frozen weights; what trains is float32.
        ema: whether averages of what trains are kept.
        critics: trained alongside it, with the same optimiser; on any device, so also built on meta.
        critic_targets: whether each has a float32 target network (Monte-Carlo targets need none).
        one_by_one: as `--fit.fold-order`; one critic is there at a time, and its target while nothing is computed
            with the critic.
    """
    model = meta_model(config)
    if lora is not None:
        apply_lora(model, lora)
    if trainable is None:
        model.requires_grad_(False)
    else:
        select_trainable(model, trainable)
    prepare_precision(model, frozen_dtype)
    plan = _count(model, optimizer, ema)
    counts = [_count(critic, optimizer, ema=False) for critic in critics]
    target = max([critic_targets * count.weights for count in counts], default=0)
    computing = max([count.gradients + count.casts for count in counts], default=0)
    lasting = [count.weights + count.optimizer for count in counts]
    if one_by_one:
        total = max(lasting, default=0) + max(computing, target)
    else:
        total = sum(lasting) + len(counts) * target + computing
    return MemoryPlan(*(getattr(plan, f.name) for f in fields(plan)[:-1]), critics=total)


def meta_model(config: PiConfig) -> PiModel:
    """A model without memory, for counting; a `PiPolicy` of it lets critics be built on the meta device too."""
    with torch.device("meta"):
        return PiModel(config)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _count(module: nn.Module, optimizer: OptimizerKind, ema: bool) -> MemoryPlan:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    state = sum(moment_bytes(p) if optimizer == "adamw_8bit" else 2 * p.nbytes for p in trained)
    return MemoryPlan(
        weights=_bytes(module),
        gradients=sum(parameter.nbytes for parameter in trained),
        optimizer=state,
        ema=sum(parameter.numel() * torch.float32.itemsize for parameter in trained) if ema else 0,
        casts=sum(parameter.numel() * _CAST_BYTES for parameter in _cast_by_autocast(module)),
        critics=0,
    )


def _cast_by_autocast(module: nn.Module) -> list[nn.Parameter]:
    """Masters of layers that autocast runs in bfloat16; it keeps copies of trained float32 parameters alone."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    parameters = {p: None for layer in layers for p in layer.parameters(recurse=False)}
    return [p for p in parameters if p.requires_grad and p.dtype == torch.float32]
