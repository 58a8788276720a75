"""A pi policy as training sees it: the flow loss of a batch, several noise samples a prefix pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chunkrl.errors import CheckpointError
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.policy import ImitationLoss, PolicyModel
from chunkrl.types import Observation

_NUM_LEVELS = 4  # quarters of the flow time in which the loss is logged


class PiLearner(PolicyModel):
    """See `PolicyModel`.

    num_noise: (noise, time) draws of each chunk; they share the prefix pass, which is nearly all of the work.
    state_noise: deviation of the noise on the state while training, see `PiPolicy.with_state_noise`.
    pretrained: fingerprint of the checkpoint; the frozen parameters, which a run's checkpoints leave out, are its.
    """

    def __init__(
        self, policy: PiPolicy, num_noise: int = 4, state_noise: float = 0.0, pretrained: str = ""
    ) -> None:
        super().__init__()
        self.policy, self.num_noise, self.state_noise = policy, num_noise, state_noise
        self.pretrained = pretrained

    @property
    def acting(self) -> PiPolicy:
        """The policy."""
        return self.policy

    @property
    def trains_features(self) -> bool:
        """Whether vision tokens or text embeddings train, which critics read (`critic.PiFeatures`)."""
        model = self.policy.model
        parts = [model.projector, model.language.embed_tokens]
        parts += [model.vision] if self.policy.recipe.settings.cameras else []
        return any(p.requires_grad for part in parts for p in part.parameters())

    def get_extra_state(self) -> Tensor:
        """The fingerprint, as bytes: it goes with the parameters into a run's checkpoints."""
        return torch.tensor(list(self.pretrained.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises CheckpointError when the parameters belong to another pretrained checkpoint."""
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise CheckpointError(
                "the run was started from other weights than the pi checkpoint holds now: resume with the checkpoint "
                "that it was started from (--pi0-checkpoints-dir, --pi0-config)"
            )

    def with_vision(self, observation: Observation) -> Observation:
        """See `PolicyModel` and `PiPolicy.with_vision`."""
        return self.policy.with_vision(observation)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(H, A), A the model's width."""
        config = self.policy.recipe.config
        return config.horizon, config.action_dim

    def sample(self, observation: Observation, num_samples: int, noise: Tensor | None = None) -> Tensor:
        """See `PolicyModel`."""
        return self.policy.sample(observation, num_samples, condition="", noise=noise, guidance=1.0)

    def imitation_loss(
        self,
        observation: Observation,
        actions: Tensor,
        action_mask: Tensor,
        condition: Sequence[str] | None = None,
    ) -> ImitationLoss:
        """Flow-matching loss, a mean over real steps, real dimensions and noise samples; see `PolicyModel`.

        condition: None trains without any, whatever the policy's settings say.
        """
        if self.training and self.state_noise > 0:
            observation = self.policy.with_state_noise(observation, self.state_noise)
        time = self.policy.model.draw_times((len(actions), self.num_noise))
        loss = self.policy.flow_loss(
            observation,
            actions,
            action_mask,
            self.num_noise,
            condition=[""] * len(actions) if condition is None else condition,
            time=time,
        )
        return ImitationLoss(loss.mean(dim=1), _by_level(loss.detach(), time))


def _by_level(loss: Tensor, time: Tensor) -> dict[str, tuple[float, int]]:
    """Sum and count of the loss [B, N] in each quarter of the flow time [B, N]; 1 is noise."""
    level = (time * _NUM_LEVELS).long().clamp(max=_NUM_LEVELS - 1).flatten()
    sums = torch.zeros(_NUM_LEVELS).index_add(0, level, loss.float().cpu().flatten())
    counts = torch.bincount(level, minlength=_NUM_LEVELS)
    return {
        f"flow_loss/time_{index / _NUM_LEVELS:.2f}": (float(sums[index]), int(counts[index]))
        for index in range(_NUM_LEVELS)
    }
