"""chunkrl's policies as LeRobot's policy type `chunkrl`: LeRobot imports this module wherever it is installed."""

from lerobot_policy_chunkrl.configuration_chunkrl import ChunkRLConfig

__all__ = ["ChunkRLConfig"]
