"""V(x): the value of an observation."""

from __future__ import annotations

from torch import Tensor, nn

from chunkrl.models.encoders import NetworkConfig, ObservationEncoder, Prepared, mlp
from chunkrl.types import Observation


class ValueNetwork(nn.Module):
    """V(x) as one real number (a logit where the value loss is a cross-entropy)."""

    def __init__(self, encoder: ObservationEncoder, config: NetworkConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = mlp(encoder.out_dim, 1, config, config.layer_norm, config.dropout)

    def forward_prepared(self, prepared: Prepared) -> Tensor:
        """prepared: from `encoder.prepare`; returns [B]."""
        return self.head(self.encoder(prepared)).squeeze(-1)

    def forward(self, observation: Observation) -> Tensor:
        """A batched observation -> [B]."""
        return self.forward_prepared(self.encoder.prepare(observation))
