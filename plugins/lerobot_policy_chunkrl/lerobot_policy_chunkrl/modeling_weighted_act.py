"""ACT that `lerobot-train --sample_weighting.type=rabc` can train; it acts, saves and loads as LeRobot's own."""

from __future__ import annotations

from typing import Any

from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.utils.constants import ACTION, OBS_IMAGES
from torch import Tensor

from lerobot_policy_chunkrl.configuration_weighted_act import WeightedACTConfig


class WeightedACTPolicy(ACTPolicy):
    """See the module's text."""

    config_class = WeightedACTConfig
    name = "weighted_act"

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """ACT's loss, or with "none" that of each chunk, [B], whose mean is LeRobot 0.6.1's loss (0.4.4 divides
        by padded actions as well)."""
        if reduction == "mean":
            return super().forward(batch)
        if reduction != "none":
            raise ValueError(f"reduction is {reduction!r}; use mean or none")
        if self.config.image_features:
            batch = batch | {OBS_IMAGES: [batch[key] for key in self.config.image_features]}
        actions, (mean, log_variance) = self.model(batch)
        valid = ~batch["action_is_pad"].unsqueeze(-1)
        counted = valid.sum().clamp_min(1) * actions.shape[-1] / len(actions)
        loss = ((batch[ACTION] - actions).abs() * valid).sum(dim=(1, 2)) / counted
        told = {"l1_loss": loss.mean().item()}
        if self.config.use_vae and log_variance is not None:
            divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
            told["kld_loss"] = divergence.mean().item()
            loss = loss + divergence * self.config.kl_weight
        return loss, told
