"""Builds a run's networks on a pretrained pi policy: what `chunkrl.models.factory` does for small ones."""

from __future__ import annotations

from dataclasses import dataclass

from chunkrl.models.pi.config import PiCriticConfig
from chunkrl.models.pi.critic import PiCritic, PiValue
from chunkrl.models.pi.learner import PiLearner
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.value_head import ValueHead


@dataclass(frozen=True)
class PiNetworks:
    """The interface of `chunkrl.algorithms.base.Networks`.

    pretrained: trains as it is (its `requires_grad` says what), and gives critics their blocks and features.
    num_noise: noise samples a prefix pass. state_noise: on the state while the policy trains.
    fingerprint: of the checkpoint.
    """

    pretrained: PiPolicy
    critic_config: PiCriticConfig = PiCriticConfig()
    num_noise: int = 4
    state_noise: float = 0.0
    fingerprint: str = ""

    def policy(self) -> PiLearner:
        """The pretrained policy itself: there is one in memory."""
        return PiLearner(self.pretrained, self.num_noise, self.state_noise, self.fingerprint)

    def value(self, head: ValueHead) -> PiValue:
        """V(x)."""
        return PiValue(self.pretrained, self.critic_config, head)

    def critic(self, num_critics: int, head: ValueHead) -> PiCritic:
        """Q(x, A) with `num_critics` networks."""
        return PiCritic(self.pretrained, self.critic_config, head, num_critics)
