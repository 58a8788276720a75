"""V(x): the value of an observation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chunkrl.models.config import NetworkConfig
from chunkrl.models.encoders import ObservationEncoder, Prepared, mlp
from chunkrl.models.value_head import ValueHead
from chunkrl.types import Observation


class ValueNetwork(nn.Module):
    """V(x) as `value_head` reads it from the network's outputs.

    state_noise: deviation of the noise that training adds to the normalised state.
    """

    def __init__(
        self,
        encoder: ObservationEncoder,
        config: NetworkConfig,
        value_head: ValueHead,
        state_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.value_head, self.state_noise = encoder, value_head, state_noise
        self.head = mlp(encoder.out_dim, value_head.num_outputs, config, config.layer_norm, config.dropout)

    def prepare(self, observation: Observation) -> Prepared:
        """What the networks of one kind share: see `ObservationEncoder.prepare`; noisy while training."""
        return with_noise(self.encoder.prepare(observation), self.state_noise if self.training else 0.0)

    def outputs(self, prepared: Prepared) -> Tensor:
        """[B, O], for the head's loss."""
        return self.head(self.encoder(prepared))

    def forward_prepared(self, prepared: Prepared) -> Tensor:
        """prepared: from `prepare`; returns V [B]."""
        return self.value_head.value(self.outputs(prepared))

    def forward(self, observation: Observation) -> Tensor:
        """A batched observation -> [B]."""
        return self.forward_prepared(self.prepare(observation))


def with_noise(prepared: Prepared, deviation: float) -> Prepared:
    """Noise of that deviation on the normalised state (from torch's global generator)."""
    if "state" not in prepared or deviation == 0:
        return prepared
    state = prepared["state"]
    return prepared | {"state": state + deviation * torch.randn_like(state)}
