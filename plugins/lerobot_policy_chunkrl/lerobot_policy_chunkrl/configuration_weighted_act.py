"""LeRobot's ACT with a loss for each chunk, which its sample weighting needs: policy type `weighted_act`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig


@PreTrainedConfig.register_subclass("weighted_act")
@dataclass
class WeightedACTConfig(ACTConfig):
    """Settings of ACT, all of them."""
