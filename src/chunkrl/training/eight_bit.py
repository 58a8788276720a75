"""8-bit AdamW of torchao (extra `eightbit`), with its quantised moments as plain tensors for checkpoints.

Library considered: torchao, which updates; written here is what it leaves out, moments as plain tensors.
bitsandbytes is 125 MB, and has kernels of its own where torchao compiles torch's.

A moment is one byte a parameter and one float32 scale for each block of 256 (arXiv 2110.02861). torchao leaves
parameters of fewer than 4096 elements, or of no whole number of blocks, unquantised.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from chunkrl.install import MissingExtraError

_BLOCK_SIZE, _LEAST_ELEMENTS = 256, 4096
_PARTS = ("codes", "scale", "qmap")
_SIGNED = "signed"


def _torchao_optim() -> Any:
    try:
        import torchao.optim  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("The 8-bit optimiser (adamw_8bit)", "torchao", "eightbit") from error
    return torchao.optim


def eight_bit_adamw(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """torchao's AdamW8bit. Its step is compiled once for each shape, so the first update takes long."""
    return _torchao_optim().AdamW8bit(
        parameters, lr=lr, betas=betas, weight_decay=weight_decay, block_size=_BLOCK_SIZE
    )


def is_quantised(parameter: Tensor) -> bool:
    """Whether torchao keeps this parameter's moments in 8 bits."""
    return parameter.numel() >= _LEAST_ELEMENTS and parameter.numel() % _BLOCK_SIZE == 0


def moment_bytes(parameter: Tensor) -> int:
    """Bytes of both moments of a parameter: codes, scales and two tables of 256 values."""
    if not is_quantised(parameter):
        return 2 * parameter.nbytes
    table = 256 * torch.float32.itemsize
    return 2 * (parameter.numel() + parameter.numel() // _BLOCK_SIZE * torch.float32.itemsize + table)


def pack_moment(value: Any) -> Any:
    """A quantised moment as a mapping of its plain tensors; anything else as it is."""
    if not hasattr(value, "qmap"):
        return value
    return {name: getattr(value, name) for name in _PARTS} | {_SIGNED: bool(value.signed)}


def is_packed(value: Any) -> bool:
    """Whether `pack_moment` packed it."""
    return isinstance(value, dict)


def unpack_moment(value: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The inverse of `pack_moment`, on `device`; dtype: of the parameter."""
    from torchao.optim.subclass_8bit import OptimState8bit  # pyright: ignore[reportMissingImports]

    codes, scale, qmap = (value[name].to(device) for name in _PARTS)
    return OptimState8bit(codes, scale, qmap, value[_SIGNED], dtype)
