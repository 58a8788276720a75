"""Training on several processes with FSDP2, PyTorch's `fully_shard`: start with `torchrun`, see docs/training.md.

Parameters, gradients, moments and averages are divided by rows; a layer's parameters are whole only while it
computes. Precision is as in one process: float32 masters, and layers compute under `optim.autocast`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from packaging.version import Version
from torch import nn

from chunkrl import ranks
from chunkrl.errors import ChunkRLError
from chunkrl.training.shards import gather

Module = TypeVar("Module", bound=nn.Module)

# Older ones do not see tensors in the records that layers pass on (KeyValues, LayerModulation).
_LEAST_TORCH = "2.13"
# The main process may read and decode data for hours while the others wait for its caches.
_TIMEOUT = timedelta(hours=24)


class ShardRoot(Protocol):
    """A network whose parameters can be divided.

    What is called of it or its units besides `forward`, and needs their parameters, stands in `sharded_methods`.
    """

    def shard_units(self) -> list[nn.Module]:
        """Parts whose parameters are gathered and freed together; the root has the rest."""
        ...


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes that `torchrun` started for the length of the block; a single process joins nothing.

    A process that fails leaves at once: torchrun then ends the others.

    Raises:
        ChunkRLError: this PyTorch cannot shard, or there are more processes than GPUs on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if Version(torch.__version__).release < Version(_LEAST_TORCH).release:
        raise ChunkRLError(
            f"training on several processes needs PyTorch {_LEAST_TORCH} or newer, this is {torch.__version__}"
        )
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ChunkRLError(
                f"process {local} of this machine has no GPU of its own, there are {torch.cuda.device_count()}: "
                "lower torchrun's --nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    yield
    # Only here: where a process fails, the others may be in the middle of an exchange with it.
    dist.destroy_process_group()


def shard(module: Module) -> Module:
    """Divides the parameters of every `ShardRoot` in `module` over the processes, in place.

    Call it on the device where `module` trains, after choosing what trains and before building optimisers and
    averages. In one process it does nothing.
    """
    if ranks.world_size() == 1:
        return module
    roots: list[Any] = [part for part in module.modules() if hasattr(part, "shard_units")]
    if not roots:
        raise ChunkRLError(f"{type(module).__name__} does not train on several processes: start one")
    # FSDP warns of in-place changes of what its modules return; no module here makes any.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    for root in roots:
        for unit in root.shard_units():
            _shard(unit)
        _shard(root)
    return module


def _shard(module: nn.Module) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    device = next(module.parameters()).device
    # Also the root's: what stays whole after a pass without gradient would miss the next update.
    fully_shard(module, mesh=init_device_mesh(device.type, (ranks.world_size(),)), reshard_after_forward=True)
    for method in getattr(module, "sharded_methods", ()):
        register_fsdp_forward_method(module, method)


def gather_state(module: nn.Module) -> dict[str, torch.Tensor] | None:
    """The module's whole tensors by name, on the CPU of the main process, None on the others; all call it."""
    if ranks.world_size() == 1:
        return module.state_dict()
    whole = ((name, gather(tensor, ranks.is_main())) for name, tensor in module.state_dict().items())
    state = {name: tensor for name, tensor in whole if tensor is not None}
    return state if ranks.is_main() else None
