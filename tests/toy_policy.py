"""A family of policies of one file, as one is added: a transformer that decodes a whole chunk at once (as ACT)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chunkrl.errors import ChunkRLError
from chunkrl.models.config import PolicySettings
from chunkrl.models.factory import NetworkFactory
from chunkrl.models.policy import ImitationLoss, PolicyModel, masked_mean
from chunkrl.policies.small import SmallFamily
from chunkrl.types import Observation


@dataclass(frozen=True)
class ToyConfig(PolicySettings):
    """width: of the decoder. depth: its layers. heads: of its attention. jitter: deviation of samples, normalised."""

    kind: str = "act"
    width: int = 32
    depth: int = 1
    heads: int = 2
    jitter: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.depth < 1:
            raise ChunkRLError(
                f"policy width {self.width} must be a multiple of {self.heads} heads, depth at least 1"
            )


class ToyPolicy(PolicyModel):
    """A query a step, which looks at the observation's features and at the other queries; an L1 loss."""

    def __init__(self, parts: NetworkFactory, config: ToyConfig) -> None:
        super().__init__()
        self.encoder, self.shape, self.config = parts.encoder(parts.network), parts.shape, config
        self.action_normalizer = copy.deepcopy(parts.action_normalizer)
        self.action_low: Tensor
        self.action_high: Tensor
        self.register_buffer("action_low", parts.action_range[0].float().clone())
        self.register_buffer("action_high", parts.action_range[1].float().clone())
        self.seen = nn.Linear(self.encoder.out_dim, config.width)
        self.queries = nn.Parameter(torch.randn(self.shape.horizon, config.width))
        layer = nn.TransformerDecoderLayer(
            config.width, config.heads, 4 * config.width, 0.0, batch_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, config.depth)
        self.out = nn.Linear(config.width, self.shape.action_dim)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(H, A)."""
        return self.shape.horizon, self.shape.action_dim

    def _decoded(self, observation: Observation) -> Tensor:
        """Normalised actions [B, H, A]."""
        seen = self.seen(self.encoder(self.encoder.prepare(observation)))[:, None]
        return self.out(self.decoder(self.queries.expand(len(seen), -1, -1), seen))

    def sample(self, observation: Observation, num_samples: int, noise: Tensor | None = None) -> Tensor:
        """The decoded chunk and noise around it."""
        decoded = self._decoded(observation)[:, None].expand(-1, num_samples, -1, -1)
        noise = torch.randn(decoded.shape) if noise is None else noise
        actions = self.action_normalizer.inverse(decoded + self.config.jitter * noise.to(decoded.device))
        return actions.clamp(self.action_low, self.action_high)

    def imitation_loss(
        self,
        observation: Observation,
        actions: Tensor,
        action_mask: Tensor,
        condition: Sequence[str] | None = None,
    ) -> ImitationLoss:
        """The mean distance over real steps."""
        target = self.action_normalizer.normalize(actions)
        return ImitationLoss(masked_mean((self._decoded(observation) - target).abs(), action_mask))


class ToyFamily(SmallFamily):
    """--policy.kind act."""

    name = "toy"
    kinds = ("act",)
    settings = ToyConfig
    reads_of: Mapping[str, tuple[str, ...]] = {}  # its settings are of its own class

    def policy(self, parts: NetworkFactory) -> ToyPolicy:
        """See the module."""
        assert isinstance(parts.policy_config, ToyConfig)
        return ToyPolicy(parts, parts.policy_config)
