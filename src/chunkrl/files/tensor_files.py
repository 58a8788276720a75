"""Safetensors files read whole: floats that are finite, and nothing that a library waits for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from chunkrl.errors import ChunkRLError
from chunkrl.files.regular_files import check_regular


def read_tensors(path: Path, error: type[ChunkRLError], cure: str, finite: bool = True) -> dict[str, Tensor]:
    """Name -> tensor on the CPU.

    Raises:
        error: the file is missing, damaged or no regular file, or, with `finite`, a tensor holds NaN or infinity
            (names it).
    """
    check_regular(path, error, cure)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, MemoryError) as reason:
        raise error(f"{path} is damaged ({reason}): {cure}") from reason
    for name, tensor in tensors.items() if finite else ():
        check_finite(name, tensor, path, error, cure)
    return tensors


def check_finite(name: str, tensor: Tensor, where: Path, error: type[ChunkRLError], cure: str) -> None:
    """Raises `error` where the tensor called `name` in the file or folder `where` holds NaN or infinity."""
    if not is_finite(tensor):
        raise error(f"{where}: {name} holds NaN or infinity: {cure}")


def is_finite(tensor: Tensor) -> bool:
    """Whether all entries are finite; in one pass, without a mask as large as the tensor."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    if tensor.dtype.itemsize == 1:  # float8 has no aminmax
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # NaN wins both
    return bool(torch.isfinite(low) & torch.isfinite(high))


def load_module(
    module: nn.Module, state: Mapping[str, Tensor], where: Path, error: type[ChunkRLError]
) -> None:
    """`module.load_state_dict`, which converts types without a word, of tensors that are of the module's.

    Raises:
        error: names, shapes or types are others (names them).
    """
    cure = "copy the folder again, or use the version of chunkrl that wrote it"
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise error(f"{where} holds other things where tensors belong: {cure}")
    for name, own in module.state_dict().items():
        if name in state and state[name].dtype != own.dtype:
            raise error(f"{where}: {name} is of {state[name].dtype}, expected {own.dtype}: {cure}")
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as reason:
        raise error(f"{where} does not fit its own description: {reason}: {cure}") from reason
