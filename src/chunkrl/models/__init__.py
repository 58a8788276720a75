"""Small networks over action chunks."""

from chunkrl.models.critic import Critic
from chunkrl.models.policy import PolicyNetwork
from chunkrl.models.value import ValueNetwork

__all__ = ["Critic", "PolicyNetwork", "ValueNetwork"]
