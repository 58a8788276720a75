"""Settings of a chunkrl policy in LeRobot: what `--policy.NAME=VALUE` can change of how it acts."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from lerobot import __version__ as lerobot_version
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig

TRIED = ("0.4.4", "0.6.1")
if lerobot_version not in TRIED:
    logging.getLogger(__name__).warning(
        "lerobot_policy_chunkrl was tried with LeRobot %s, and this is %s: compare a chunk with chunkrl's own "
        "(docs/deploy.md) before a robot moves",
        " and ".join(TRIED),
        lerobot_version,
    )


@PreTrainedConfig.register_subclass("chunkrl")
@dataclass
class ChunkRLConfig(PreTrainedConfig):
    """How the policy acts; None: as it was saved.

    chunk_size: H, which the policy's folder decides. n_action_steps: of a chunk that are executed.
    condition, guidance, guidance_from, flow_steps: of pi policies, the condition in the prompt ("" for none),
        guidance towards it, the condition that it leads away from ("" for none) and Euler steps.
    mode: `mode`, `sample` or `best_of_n`, of `num_candidates`; the noise is drawn from `seed`.
    rtc_config: set by LeRobot.
    """

    chunk_size: int = 0
    n_action_steps: int = 0
    condition: str | None = None
    guidance: float | None = None
    guidance_from: str | None = None
    flow_steps: int | None = None
    mode: str = "mode"
    num_candidates: int = 16
    seed: int = 0
    optimizer_lr: float = 2.5e-5
    rtc_config: RTCConfig | None = None
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_action_steps > self.chunk_size:
            raise ValueError(
                f"n_action_steps is {self.n_action_steps}, and the policy's chunks have {self.chunk_size} actions"
            )
        if self.mode not in ("mode", "sample", "best_of_n"):
            raise ValueError(f"mode is {self.mode!r}; use mode, sample or best_of_n")

    @property
    def observation_delta_indices(self) -> None:
        """One observation."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """None are read."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """For `lerobot-train`."""
        return AdamWConfig(lr=self.optimizer_lr)

    def get_scheduler_preset(self) -> None:
        """No schedule."""
        return None

    def validate_features(self) -> None:
        """The policy itself checks them when it is loaded."""
