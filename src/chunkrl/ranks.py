"""Which process this is of a run on several (`torchrun`), and the little that all of them must agree on.

Every process draws the same random numbers and takes its own rows of them, and every number that decides or is
logged is summed over all: a run on n processes is the run on one, in n parts. In one process, and wherever no
process group was started, all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from chunkrl.errors import ChunkRLError


def _is_running() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _is_running() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _is_running() else 1


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


def barrier() -> None:
    """Returns when all processes are here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others do, which find its caches.

    Raises:
        ChunkRLError: in the others, where the main process failed: it says why.
    """
    if world_size() == 1 or not is_main():
        if _num_failed(False):
            raise ChunkRLError("the main process could not prepare the data; its message says why")
        yield
        return
    try:
        yield
    except BaseException:
        _num_failed(True)
        raise
    _num_failed(False)


@contextmanager
def all_succeed() -> Iterator[None]:
    """What fails inside in one process fails in all; all processes call it.

    Raises:
        ChunkRLError: in the others, where one failed: it says why.
    """
    try:
        yield
    except BaseException:
        _num_failed(True)
        raise
    if _num_failed(False):
        raise ChunkRLError("another process failed; its message says why")


def _num_failed(failed: bool) -> int:
    """How many processes failed; all processes call it."""
    return int(sum_over_ranks(torch.tensor(int(failed))))


def own_rows(num_rows: int) -> slice:
    """This process's rows of a batch of all: those that `ChunkLoader` gives it."""
    return slice(rank(), num_rows, world_size())


def draw_rows(draw: Callable[..., Tensor], shape: tuple[int, ...], **options: Any) -> Tensor:
    """Random numbers [B, ...] for this process's B rows: the ones that one process would draw for them.

    All processes draw for all rows, so their generators, which start alike, stay alike.

    Args:
        draw: torch.rand or torch.randn. options: of it.
    """
    num_rows, *rest = shape
    return draw((num_rows * world_size(), *rest), **options)[rank() :: world_size()]


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values`, summed over the processes; no gradient flows."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def from_main(value: int) -> int:
    """The main process's value, in all of them."""
    return int(sum_over_ranks(torch.tensor(value if is_main() else 0)))


def mean_over_ranks(value: float) -> float:
    """The mean of a number over the processes."""
    if world_size() == 1:
        return value
    return float(sum_over_ranks(torch.tensor(value, dtype=torch.float64))) / world_size()


def sum_counts(sums: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    """Sums and counts by name, over the processes, which must all have the same names."""
    if world_size() == 1:
        return dict(sums)
    names = sorted(sums)
    table = sum_over_ranks(torch.tensor([sums[name] for name in names], dtype=torch.float64)).tolist()
    summed = {name: (total, int(count)) for name, (total, count) in zip(names, table, strict=True)}
    return {name: summed[name] for name in sums}
