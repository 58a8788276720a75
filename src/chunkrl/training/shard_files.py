"""Tensors whose rows lie in the files of the processes that wrote them, read on any number of processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from chunkrl import ranks
from chunkrl.config import load_config
from chunkrl.errors import CheckpointError
from chunkrl.files.regular_files import check_regular
from chunkrl.files.tensor_files import check_finite
from chunkrl.training.shards import shard_rows

SHARDS = "shards.json"


def shards_file(rank: int, num_ranks: int) -> str:
    """The file with the rows of one process."""
    return f"state-rank{rank}-of-{num_ranks}.safetensors"


class StoredTensor:
    """A tensor whose rows lie in the files of the processes that wrote it.

    shape: of the whole. Indexed with a slice of rows it reads those.
    """

    def __init__(self, files: list[Path], name: str, shape: tuple[int, ...]) -> None:
        self._files, self._name, self.shape = files, name, shape

    def __getitem__(self, rows: slice) -> torch.Tensor:
        begin, end, _ = rows.indices(self.shape[0])
        parts: list[torch.Tensor] = []
        for rank, path in enumerate(self._files):
            held = shard_rows(self.shape[0], rank, len(self._files))
            first, last = max(begin, held.start), min(end, held.stop)
            # of a process without rows, one file is asked for an empty part: it knows the dtype
            if first < last or (begin >= end and not parts):
                with safe_open(path, "pt") as file:
                    stored = file.get_slice(self._name)
                    parts.append(stored[max(0, first - held.start) : max(0, last - held.start)])
                check_finite(self._name, parts[-1], path, CheckpointError, "use another checkpoint")
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class _Layout:
    """`shards.json`: number of files, and shapes of the whole tensors by name."""

    num_ranks: int
    shapes: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if not 1 <= self.num_ranks <= 65536:
            raise CheckpointError(f"num_ranks is {self.num_ranks}")
        for name, shape in self.shapes.items():
            if not shape or any(not 0 <= size < 2**48 for size in shape):
                raise CheckpointError(f"the shape of {name} is {list(shape)}")


def read_shards(folder: Path, cure: str) -> dict[str, Any]:
    """The sharded tensors of a checkpoint: whole in one process, on several as `StoredTensor`.

    Raises CheckpointError where a file is missing or damaged, or is no part of them; cure: what the user does.
    """
    layout = load_config(_Layout, folder / SHARDS, CheckpointError, cure)
    stored = _stored_tensors(folder, layout, cure)
    if ranks.world_size() > 1:
        return dict(stored)
    return {name: tensor[: tensor.shape[0]] for name, tensor in stored.items()}


def _stored_tensors(folder: Path, layout: _Layout, cure: str) -> dict[str, StoredTensor]:
    files = [folder / shards_file(rank, layout.num_ranks) for rank in range(layout.num_ranks)]
    for rank, path in enumerate(files):
        check_regular(path, CheckpointError, cure)
        try:
            with safe_open(path, "pt") as file:
                if missing := layout.shapes.keys() - set(file.keys()):
                    raise CheckpointError(f"{path} lacks {min(missing)}: {cure}")
                for name, shape in layout.shapes.items():
                    rows = shard_rows(shape[0], rank, layout.num_ranks)
                    found = list(file.get_slice(name).get_shape())
                    if found != [rows.stop - rows.start, *shape[1:]]:
                        raise CheckpointError(f"{path}: {name} is {found}, a part of {list(shape)}: {cure}")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): {cure}") from error
    return {name: StoredTensor(files, name, shape) for name, shape in layout.shapes.items()}
