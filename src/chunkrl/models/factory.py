"""Builds the networks of one run: same inputs, sizes and normalisation for critics, values and policy."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from chunkrl.data.normalize import Normalizer
from chunkrl.models.critic import Critic
from chunkrl.models.encoders import ActionEncoder, NetworkConfig, ObservationEncoder, ObservationSpec
from chunkrl.models.policy import ChunkShape, PolicyConfig, PolicyNetwork
from chunkrl.models.value import ValueNetwork


@dataclass(frozen=True)
class NetworkFactory:
    """Each call makes a freshly initialised network (from torch's global generator).

    action_range: lowest and highest action of the data, float [A] each; samples are clipped to it.
    """

    spec: ObservationSpec
    shape: ChunkShape
    state_normalizer: Normalizer
    action_normalizer: Normalizer
    action_range: tuple[torch.Tensor, torch.Tensor]
    network: NetworkConfig = NetworkConfig()

    def encoder(self, network: NetworkConfig) -> ObservationEncoder:
        """An observation encoder with its own copy of the statistics."""
        return ObservationEncoder(self.spec, network, copy.deepcopy(self.state_normalizer))

    def value(self, network: NetworkConfig | None = None) -> ValueNetwork:
        """V(x)."""
        network = network or self.network
        return ValueNetwork(self.encoder(network), network)

    def critic(self, num_critics: int, network: NetworkConfig | None = None) -> Critic:
        """Q(x, A) with `num_critics` heads."""
        network = network or self.network
        actions = ActionEncoder(
            self.shape.horizon, self.shape.action_dim, copy.deepcopy(self.action_normalizer)
        )
        return Critic([self.encoder(network) for _ in range(num_critics)], actions, network)

    def policy(self, config: PolicyConfig) -> PolicyNetwork:
        """pi(A | x)."""
        return PolicyNetwork(
            self.encoder(self.network),
            self.shape,
            copy.deepcopy(self.action_normalizer),
            self.action_range,
            config,
            self.network,
        )
