"""The pipelines around ACT: LeRobot's."""

from __future__ import annotations

from typing import Any

from lerobot.policies.act.processor_act import make_act_pre_post_processors

from lerobot_policy_chunkrl.configuration_weighted_act import WeightedACTConfig


def make_weighted_act_pre_post_processors(
    config: WeightedACTConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """Both pipelines."""
    return make_act_pre_post_processors(config, dataset_stats)
