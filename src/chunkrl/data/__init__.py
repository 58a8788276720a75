"""From LeRobot folders to chunk transitions."""

from chunkrl.data.chunks import ChunkDataset

__all__ = ["ChunkDataset"]
