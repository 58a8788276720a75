"""pi(A | x): Gaussian and flow-matching policies over whole action chunks.

Both work on normalised actions; log-likelihoods and flow losses are in those units, so that they mean the
same for every robot. Samples are clipped to the range that the data's actions have.

Flow matching as in pi0 (arXiv 2410.24164): x_t = t * noise + (1 - t) * A, target velocity noise - A,
t = 1 is noise; sampling integrates from 1 to 0 in Euler steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chunkrl.data.normalize import Normalizer
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.models.encoders import MOST_VALUES, ObservationEncoder, Prepared, mlp
from chunkrl.models.overlap import Guide, Overlap
from chunkrl.types import Observation

LOG_STD_MIN, LOG_STD_MAX = (
    -4.0,
    0.5,
)  # normalised action units; bounds keep one pixel-perfect frame from ruling


@dataclass(frozen=True)
class ChunkShape:
    """horizon: H, the policy's actions per chunk. action_dim: A."""

    horizon: int
    action_dim: int

    def __post_init__(self) -> None:
        if not 1 <= self.horizon <= MOST_VALUES or not 1 <= self.action_dim <= MOST_VALUES:
            raise ChunkRLError(
                f"a chunk of {self.horizon} actions of {self.action_dim} values: give 1 to {MOST_VALUES} of each"
            )


@dataclass(frozen=True)
class ImitationLoss:
    """What a policy loses on given chunks.

    per_chunk: float32 [B], a mean over real steps and dimensions. parts: name -> (sum, count), scalars for logs.
    """

    per_chunk: Tensor
    parts: Mapping[str, tuple[float, int]] = field(default_factory=dict)


class PolicyModel(nn.Module, ABC):
    """What trainers and algorithms ask of a policy, of whichever family.

    Shapes: observations batched [B]; actions [B, H, A] in the data's units; action_mask bool [B, H].
    """

    has_log_prob = False
    """Whether log pi(A | x) is cheap, so that `prepare` and `log_prob` are there."""

    @property
    def acting(self) -> nn.Module:
        """The networks by the names that the saved policy has: `ActingPolicy.policy`."""
        return self

    @property
    def trains_features(self) -> bool:
        """Whether its training changes what critics read."""
        return False

    def with_vision(self, observation: Observation) -> Observation:
        """The observation with what the policy and the critics on its features share of it."""
        return observation

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, int]:
        """The shape of the noise of one sample."""

    @abstractmethod
    def sample(self, observation: Observation, num_samples: int, noise: Tensor | None = None) -> Tensor:
        """Chunks [B, N, H, A] in the data's units, from standard normal noise [B, N, *noise_shape]; as it trains,
        without a condition. None draws the noise (torch's global generator)."""

    @abstractmethod
    def imitation_loss(
        self,
        observation: Observation,
        actions: Tensor,
        action_mask: Tensor,
        condition: Sequence[str] | None = None,
    ) -> ImitationLoss:
        """condition: a text for every row; None: none. Raises ChunkRLError where it reads none and there is one."""

    def most_likely(self, observation: Observation) -> Tensor:
        """The chunk [B, H, A] of acting without noise: by default, the sample of zero noise."""
        noise = torch.zeros(observation.batch_size, 1, *self.noise_shape)
        return self.sample(observation, 1, noise)[:, 0]

    def forward(self, observation: Observation) -> Tensor:
        """See `most_likely`."""
        return self.most_likely(observation)

    def prepare(self, observation: Observation) -> Any:
        """The observation as `log_prob` takes it."""
        raise NotImplementedError(f"{type(self).__name__} has no log-likelihood")

    def log_prob(self, prepared: Any, actions: Tensor, action_mask: Tensor) -> Tensor:
        """log pi(A | x) summed over real steps and dimensions, normalised units: [B]."""
        raise NotImplementedError(f"{type(self).__name__} has no log-likelihood")


NO_PROMPT = "a small policy has no prompt to write an advantage into: use --policy.kind pi"


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """values: [B, H, A], mask: bool [B, H]; mean over real steps and dimensions -> [B]."""
    weights = mask.to(values.dtype)
    return (values.mean(-1) * weights).sum(-1) / weights.sum(-1).clamp(min=1.0)


class PolicyNetwork(PolicyModel):
    """pi(A | x), Gaussian or flow matching by `config.kind`.

    Shapes: observation batched [B]; actions [B, H, A] in the data's units; action_mask bool [B, H].
    """

    def __init__(
        self,
        encoder: ObservationEncoder,
        shape: ChunkShape,
        action_normalizer: Normalizer,
        action_range: tuple[Tensor, Tensor],
        config: PolicyConfig,
        network: NetworkConfig,
    ) -> None:
        super().__init__()
        assert config.kind in ("gaussian", "flow"), "another family builds its policies"
        self.encoder, self.shape, self.config = encoder, shape, config
        self.has_log_prob = config.kind == "gaussian"
        self.action_normalizer = action_normalizer
        self.action_low: Tensor
        self.action_high: Tensor
        self.register_buffer("action_low", action_range[0].float().clone())
        self.register_buffer("action_high", action_range[1].float().clone())
        num_values = shape.horizon * shape.action_dim
        if config.kind == "gaussian":
            num_outputs = num_values * (2 if config.spread == "state" else 1)
            self.head = mlp(encoder.out_dim, num_outputs, network)
        else:
            self.head = mlp(encoder.out_dim + num_values + TIME_FEATURES, num_values, network)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(H, A)."""
        return self.shape.horizon, self.shape.action_dim

    def prepare(self, observation: Observation) -> Prepared:
        """See `ObservationEncoder.prepare`."""
        return self.encoder.prepare(observation)

    def most_likely(self, observation: Observation) -> Tensor:
        """The Gaussian's mean; the flow started from zero noise."""
        prepared = self.encoder.prepare(observation)
        if self.config.kind == "gaussian":
            mean, _ = self.gaussian(prepared)
            return self._to_data(mean)
        features = self.encoder(prepared)
        zero = features.new_zeros(len(features), self.shape.horizon, self.shape.action_dim)
        return self._to_data(self._integrate(features, zero))

    @property
    def takes_overlap(self) -> bool:
        """Whether `sample` takes an overlap: a flow, which can be guided."""
        return self.config.kind == "flow"

    def sample(
        self,
        observation: Observation,
        num_samples: int,
        noise: Tensor | None = None,
        overlap: Overlap | None = None,
    ) -> Tensor:
        """`num_samples` chunks for each observation: [B, N, H, A]; the observation is encoded once.

        noise: standard normal [B, N, H, A], for reproducible samples; None draws it. overlap: what a flow's chunks go
        on from.
        """
        prepared = self.encoder.prepare(observation)
        shape = (observation.batch_size, num_samples, self.shape.horizon, self.shape.action_dim)
        if noise is None:
            noise = torch.randn(shape, device=self.action_low.device)
        noise = noise.to(self.action_low.device)
        if self.config.kind == "gaussian":
            mean, log_std = self.gaussian(prepared)
            return self._to_data(mean[:, None] + log_std.exp()[:, None] * noise)
        features = self.encoder(prepared).repeat_interleave(num_samples, dim=0)
        guide = None if overlap is None else self._guide(overlap).repeated(num_samples)
        return self._to_data(self._integrate(features, noise.flatten(0, 1), guide)).view(shape)

    def _guide(self, overlap: Overlap) -> Guide:
        left = overlap.padded(self.shape.horizon).to(self.action_low.device)
        return Guide.of(overlap, self.action_normalizer.normalize(left), self.shape.action_dim)

    def gaussian(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, normalised units, each [B, H, A]."""
        output = self.head(self.encoder(prepared))
        mean, raw = output.chunk(2, dim=-1) if self.config.spread == "state" else (output, None)
        mean = mean.unflatten(-1, (self.shape.horizon, self.shape.action_dim))
        if raw is None:
            return mean, torch.full_like(mean, math.log(self.config.fixed_std))
        log_std = LOG_STD_MIN + (LOG_STD_MAX - LOG_STD_MIN) * torch.sigmoid(raw)
        return mean, log_std.unflatten(-1, (self.shape.horizon, self.shape.action_dim))

    def log_prob(self, prepared: Prepared, actions: Tensor, action_mask: Tensor) -> Tensor:
        """log pi(A | x) summed over real steps and dimensions (Gaussian only), normalised units: [B]."""
        if self.config.kind != "gaussian":
            raise ValueError("a flow policy has no cheap log-likelihood; use its flow loss")
        mean, log_std = self.gaussian(prepared)
        z = (self.action_normalizer.normalize(actions) - mean) / log_std.exp()
        per_value = -0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)
        return (per_value.sum(-1) * action_mask).sum(-1)

    def imitation_loss(
        self,
        observation: Observation,
        actions: Tensor,
        action_mask: Tensor,
        condition: Sequence[str] | None = None,
    ) -> ImitationLoss:
        """See `PolicyModel`; small policies read no condition. Raises ChunkRLError when there is one."""
        if condition is not None:
            raise ChunkRLError(NO_PROMPT)
        prepared = self.prepare(observation)
        return ImitationLoss(self.negative_log_likelihood(prepared, actions, action_mask))

    def negative_log_likelihood(self, prepared: Prepared, actions: Tensor, action_mask: Tensor) -> Tensor:
        """Per-sample imitation loss [B], a mean over real steps and dimensions: -log pi for a Gaussian,
        the flow-matching loss (one noise sample, t uniform) for a flow."""
        if self.config.kind == "gaussian":
            num_values = action_mask.sum(-1).clamp(min=1) * self.shape.action_dim
            return -self.log_prob(prepared, actions, action_mask) / num_values
        target = self.action_normalizer.normalize(actions)
        # what stands in the padding must not reach the real steps' loss through the network's input
        target = target * action_mask[..., None]
        noise = torch.randn_like(target)
        time = torch.rand(len(target), device=target.device)
        mixed = time[:, None, None] * noise + (1 - time[:, None, None]) * target
        velocity = self._velocity(self.encoder(prepared), mixed, time)
        return masked_mean((velocity - (noise - target)).square(), action_mask)

    def _velocity(self, features: Tensor, mixed: Tensor, time: Tensor) -> Tensor:
        inputs = torch.cat([features, mixed.flatten(1), time_features(time)], dim=-1)
        return self.head(inputs).view_as(mixed)

    def _integrate(self, features: Tensor, noise: Tensor, guide: Guide | None = None) -> Tensor:
        chunk, flow_steps = noise, self.config.flow_steps
        for step in range(flow_steps):
            time = torch.full((len(noise),), 1 - step / flow_steps, device=noise.device)
            plain = partial(self._velocity, features, time=time)
            velocity = plain(chunk) if guide is None else guide.velocity(plain, chunk, 1 - step / flow_steps)
            chunk = chunk - velocity / flow_steps
        return chunk

    def _to_data(self, normalized: Tensor) -> Tensor:
        actions = self.action_normalizer.inverse(normalized)
        return actions.clamp(self.action_low, self.action_high)


TIME_FEATURES = 16


def time_features(time: Tensor) -> Tensor:
    """Sine and cosine features of the flow time: [B] -> [B, 16]."""
    frequencies = 2.0 ** torch.arange(TIME_FEATURES // 2, device=time.device) * math.pi / 2
    angles = time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
