"""From LeRobot folders to chunk transitions."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chunkrl.data.chunk_settings import ChunkSettings
    from chunkrl.data.chunks import ChunkDataset
    from chunkrl.data.collection import ChunkCollection
    from chunkrl.data.loader import ChunkLoader

__all__ = ["ChunkCollection", "ChunkDataset", "ChunkLoader", "ChunkSettings"]
_MODULES = {
    "ChunkCollection": "collection",
    "ChunkDataset": "chunks",
    "ChunkLoader": "loader",
    "ChunkSettings": "chunk_settings",
}


def __getattr__(name: str) -> Any:
    # Late, because torch takes seconds to import: reading and writing data sets needs none of it.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
