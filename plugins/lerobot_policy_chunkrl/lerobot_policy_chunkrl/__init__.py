"""chunkrl's policies as LeRobot's policy type `chunkrl`, and ACT that samples can be weighted for as `weighted_act`:
LeRobot imports this module wherever it is installed."""

from lerobot_policy_chunkrl.configuration_chunkrl import ChunkRLConfig
from lerobot_policy_chunkrl.configuration_weighted_act import WeightedACTConfig

__all__ = ["ChunkRLConfig", "WeightedACTConfig"]
