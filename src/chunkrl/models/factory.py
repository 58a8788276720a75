"""Builds the networks of one run: same inputs, sizes and normalisation for critics, values and policy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from chunkrl.data.normalize import Normalizer
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import NetworkConfig, PolicyConfig, PolicySettings
from chunkrl.models.critic import Critic
from chunkrl.models.encoders import ActionEncoder, ObservationEncoder, ObservationSpec
from chunkrl.models.policy import ChunkShape, PolicyModel, PolicyNetwork
from chunkrl.models.value import ValueNetwork
from chunkrl.models.value_head import ValueHead


def policy_network(parts: NetworkFactory) -> PolicyNetwork:
    """pi(A | x) with statistics and an encoder of its own."""
    config = parts.policy_config
    if not isinstance(config, PolicyConfig) or config.kind not in ("gaussian", "flow"):
        raise ChunkRLError(f"{config.kind} is another family of policies: load it with load_policy")
    return PolicyNetwork(
        parts.encoder(parts.network),
        parts.shape,
        copy.deepcopy(parts.action_normalizer),
        parts.action_range,
        config,
        parts.network,
    )


@dataclass(frozen=True)
class NetworkFactory:
    """Each call makes a freshly initialised network (from torch's global generator).

    action_range: lowest and highest action of the data, float [A] each; samples are clipped to it.
    network: the policy's sizes. critic_network: the values' and critics'. state_noise: on the normalised state
        while values and critics train. make_policy: the network that the policy is.
    """

    spec: ObservationSpec
    shape: ChunkShape
    state_normalizer: Normalizer
    action_normalizer: Normalizer
    action_range: tuple[torch.Tensor, torch.Tensor]
    network: NetworkConfig = NetworkConfig()
    policy_config: PolicySettings = field(default_factory=PolicyConfig)
    critic_network: NetworkConfig = NetworkConfig()
    state_noise: float = 0.0
    make_policy: Callable[[NetworkFactory], PolicyModel] = policy_network

    def encoder(self, network: NetworkConfig) -> ObservationEncoder:
        """An observation encoder with its own copy of the statistics."""
        return ObservationEncoder(self.spec, network, copy.deepcopy(self.state_normalizer))

    def value(self, head: ValueHead) -> ValueNetwork:
        """V(x)."""
        return ValueNetwork(self.encoder(self.critic_network), self.critic_network, head, self.state_noise)

    def critic(self, num_critics: int, head: ValueHead) -> Critic:
        """Q(x, A) with `num_critics` heads."""
        network = self.critic_network
        actions = ActionEncoder(
            self.shape.horizon, self.shape.action_dim, copy.deepcopy(self.action_normalizer)
        )
        encoders = [self.encoder(network) for _ in range(num_critics)]
        return Critic(encoders, actions, network, head, self.state_noise)

    def policy(self) -> PolicyModel:
        """pi(A | x)."""
        return self.make_policy(self)
