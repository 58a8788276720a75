"""chunkrl: chunk-level offline RL on pretrained vision-language-action policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chunkrl.offline import ChunkLevelOfflineRL
    from chunkrl.train_config import TrainConfig

__version__ = "0.1.0"
__all__ = ["ChunkLevelOfflineRL", "TrainConfig", "__version__"]


def __getattr__(name: str) -> Any:
    # Late, because torch takes seconds to import: simulator and reader processes need none of it.
    if name in ("ChunkLevelOfflineRL", "TrainConfig"):
        from chunkrl import offline

        return getattr(offline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
