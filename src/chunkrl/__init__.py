"""chunkrl: chunk-level offline RL on pretrained vision-language-action policies."""

__version__ = "0.1.0"

from chunkrl.offline import ChunkLevelOfflineRL, TrainConfig

__all__ = ["ChunkLevelOfflineRL", "TrainConfig", "__version__"]
