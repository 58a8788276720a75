"""From LeRobot folders to chunk transitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chunkrl.data.chunks import ChunkDataset

__all__ = ["ChunkDataset"]


def __getattr__(name: str) -> Any:
    # Late, because torch takes seconds to import: reading and writing data sets needs none of it.
    if name == "ChunkDataset":
        from chunkrl.data.chunks import ChunkDataset

        return ChunkDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
