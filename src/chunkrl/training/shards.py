"""Tensors whose rows are divided over the processes of a run (FSDP2's DTensor), to and from whole ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from chunkrl import ranks


class Rows(Protocol):
    """A whole tensor somewhere, of which rows can be read."""

    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> Tensor: ...


def is_sharded(value: Any) -> bool:
    """Whether this process holds only some of the tensor's rows."""
    if ranks.world_size() == 1:  # single processes need no PyTorch that has DTensor
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def shard_rows(num_rows: int, rank: int, num_ranks: int) -> slice:
    """Rows of a tensor that `rank` holds, as FSDP2 divides them: as `torch.chunk`, the last ones may have none."""
    size = -(-num_rows // num_ranks)
    return slice(min(rank * size, num_rows), min((rank + 1) * size, num_rows))


def shard_like(source: Tensor | Rows, target: Any) -> Any:
    """This process's part of `source` where `target` is sharded and of the same shape; else `source` as it is.

    No process sends anything: each reads its rows.
    """
    if not is_sharded(target) or is_sharded(source) or tuple(source.shape) != tuple(target.shape):
        return source
    from torch.distributed.tensor import DTensor

    mesh = target.device_mesh
    rows = shard_rows(target.shape[0], mesh.get_local_rank(), mesh.size())
    local = source[rows].to(target.device).clone()
    return DTensor.from_local(
        local, mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride()
    )


def shard_tree_like(state: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """`shard_like` for nested mappings, where both have a name."""
    return {
        key: shard_tree_like(item, template[key] if isinstance(template.get(key), Mapping) else {})
        if isinstance(item, Mapping)
        else shard_like(item, template.get(key))
        for key, item in state.items()
    }


@torch.no_grad()
def gather(tensor: Tensor, keep: bool) -> Tensor | None:
    """The whole tensor on the CPU, where `keep`, else None. All processes call it: each gives its rows."""
    whole: Any = tensor.detach()
    if is_sharded(whole):
        whole = whole.full_tensor()
    return whole.cpu() if keep else None
