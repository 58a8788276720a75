"""chunkrl: chunk-level offline RL on pretrained vision-language-action policies."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chunkrl.data.chunks import ChunkDataset
    from chunkrl.report.commands import evaluate
    from chunkrl.run.config import TrainConfig
    from chunkrl.run.offline import ChunkLevelOfflineRL
    from chunkrl.run.policy_io import load_policy
    from chunkrl.types import Observation

from chunkrl.version import __version__

__all__ = [
    "ChunkDataset",
    "ChunkLevelOfflineRL",
    "Observation",
    "TrainConfig",
    "__version__",
    "evaluate",
    "load_policy",
]
_PLACES = {
    "ChunkDataset": "chunkrl.data.chunks",
    "ChunkLevelOfflineRL": "chunkrl.run.offline",
    "Observation": "chunkrl.types",
    "TrainConfig": "chunkrl.run.config",
    "evaluate": "chunkrl.report.commands",
    "load_policy": "chunkrl.run.policy_io",
}


def __getattr__(name: str) -> Any:
    # Late, because torch takes seconds to import: simulator and reader processes need none of it.
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
