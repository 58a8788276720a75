"""Q(x, A): the value of executing the chunk A from the observation x."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chunkrl.models.config import NetworkConfig
from chunkrl.models.encoders import ActionEncoder, ObservationEncoder, Prepared, mlp
from chunkrl.models.value import with_noise
from chunkrl.models.value_head import ValueHead
from chunkrl.types import Observation


class Critic(nn.Module):
    """`num_critics` independent heads on one encoder each (twin Q by default): [num_critics, B].

    value_head: how their outputs stand for a value. state_noise: deviation of the noise that training adds to the
    normalised state.
    """

    def __init__(
        self,
        encoders: list[ObservationEncoder],
        action_encoder: ActionEncoder,
        config: NetworkConfig,
        value_head: ValueHead,
        state_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.value_head, self.state_noise = value_head, state_noise
        self.encoders = nn.ModuleList(encoders)
        self.action_encoder = action_encoder
        in_dim = encoders[0].out_dim + action_encoder.out_dim
        self.heads = nn.ModuleList(
            mlp(in_dim, value_head.num_outputs, config, config.layer_norm, config.dropout) for _ in encoders
        )

    def prepare(self, observation: Observation) -> Prepared:
        """See `ValueNetwork.prepare`."""
        prepared = self.encoders[0].prepare(observation)  # type: ignore[operator]
        return with_noise(prepared, self.state_noise if self.training else 0.0)

    def outputs(self, prepared: Prepared, actions: Tensor) -> Tensor:
        """What `value_head` reads, of what `forward_prepared` takes: [num_critics, B, O] or [.., B, N, O]."""
        chunk = self.action_encoder(actions)
        values = []
        for encoder, head in zip(self.encoders, self.heads, strict=True):
            features = encoder(prepared)
            if chunk.dim() == 3:
                features = features[:, None].expand(-1, chunk.shape[1], -1)
            values.append(head(torch.cat([features, chunk], dim=-1)))
        return torch.stack(values)

    def forward_prepared(self, prepared: Prepared, actions: Tensor) -> Tensor:
        """prepared: of B observations; actions: [B, H, A] or N candidates each [B, N, H, A].

        Returns [num_critics, B] or [num_critics, B, N]; observations are encoded once for all candidates.
        """
        return self.value_head.value(self.outputs(prepared, actions))

    def forward(self, observation: Observation, actions: Tensor) -> Tensor:
        """A batched observation and chunks [B, H, A] (or [B, N, H, A]) -> [num_critics, B(, N)]."""
        return self.forward_prepared(self.prepare(observation), actions)
