"""pi0 and pi0.5: flow matching over action chunks on a vision-language prefix.

pi0: Black et al. 2024, arXiv 2410.24164. pi0.5: Physical Intelligence 2025, arXiv 2504.16054. t = 1 is noise,
x_t = t noise + (1 - t) actions, the target velocity is noise - actions, and sampling integrates from t = 1
to 0 with Euler steps. What differs from openpi's joint forward pass:

1. Nothing in the prefix sees the suffix, so the prefix runs alone, in training too: one pass serves any number
   of noise samples in the loss and any number of sampled chunks.
2. The last prefix layer computes keys and values only; the rest of it feeds nothing.
3. pi0.5's modulations depend on the time alone: sampling computes them once per step, for all layers at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chunkrl.errors import ChunkRLError
from chunkrl.models.layers import Linear
from chunkrl.models.overlap import Guide
from chunkrl.models.pi.config import PiConfig
from chunkrl.models.pi.language import ActionExpert, KeyValues, Modulations, PrefixLayer, PrefixLM
from chunkrl.models.pi.vision import SigLIP
from chunkrl.ranks import draw_rows
from chunkrl.types import TensorRecord


@dataclass(frozen=True)
class PrefixInputs(TensorRecord):
    """What the model reads before any action; made by `chunkrl.models.pi.policy`.

    images: camera -> float32 [B, 3, S, S] in [-1, 1], in the model's order.
    image_masks: camera -> bool [B]; a False camera has no effect.
    tokens: int64 [B, L]; token_mask: bool [B, L], padding False.
    state: float32 [B, action_dim], normalised and padded (pi0), or None (pi0.5).
    dense: no camera is masked and no token is padding: attention needs no mask in the prefix.
    vision: [B, C, T, W], the images' tokens where they are computed already, in place of `images`; camera order is
        that of `image_masks`.
    """

    images: Mapping[str, Tensor] = field(default_factory=dict)
    image_masks: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    token_mask: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.bool))
    state: Tensor | None = None
    dense: bool = False
    vision: Tensor | None = None


@dataclass(frozen=True)
class Prefix:
    """The prefix after its one pass: all that the action expert needs.

    cache: per layer, keys and values [B, P, kv_heads, D]; valid: bool [B, P]; state as in `PrefixInputs`.
    """

    cache: tuple[KeyValues, ...]
    valid: Tensor
    state: Tensor | None
    dense: bool


@dataclass(frozen=True)
class TimeCondition:
    """Flow times embedded: embedding float32 [T, W], and pi0.5's modulations at the T times."""

    embedding: Tensor
    modulations: Modulations | None

    def row(self, index: int) -> TimeCondition:
        """One time only; it broadcasts over all samples."""
        modulations = None if self.modulations is None else self.modulations.row(index)
        return TimeCondition(self.embedding[index : index + 1], modulations)


@dataclass(frozen=True)
class _Suffix:
    """The prefix repeated for every sample, with the suffix's positions and visibility; R = B * N rows."""

    cache: tuple[KeyValues, ...]
    positions: Tensor
    mask: Tensor | None
    state: Tensor | None


def time_embedding(time: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """[sin, cos] of 2 pi t / period, periods geometric: time [T] -> float32 [T, width].

    Computed in float64: the angles reach 2 pi / min_period, where float32 has lost four digits.
    """
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=time.device)
    period = min_period * (max_period / min_period) ** fraction
    angles = 2 * math.pi * time.double()[:, None] / period
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float()


def attention_mask(valid: Tensor, opens_block: Tensor, first_query: int = 0) -> Tensor:
    """Who sees whom: a key is visible when its block is not after the query's and both are valid.

    Args:
        valid: bool [B, S].
        opens_block: bool [S], True where a token starts a new block (earlier tokens do not see it).
        first_query: queries before this position are left out.

    Returns:
        bool [B, S - first_query, S].
    """
    block = opens_block.to(torch.int32).cumsum(0)
    causal = block[None, :] <= block[first_query:, None]
    return causal & valid[:, first_query:, None] & valid[:, None, :]


def token_positions(valid: Tensor) -> Tensor:
    """Rotary positions: valid bool [B, S] -> int64 [B, S]; invalid tokens take no position."""
    return valid.to(torch.int64).cumsum(1) - 1


def euler_times(flow_steps: int, device: torch.device | str = "cpu") -> Tensor:
    """Times at which the velocity is evaluated, float32 [flow_steps]: 1, 1 - 1/N, ..., 1/N."""
    if flow_steps < 1:
        raise ChunkRLError(f"flow_steps is {flow_steps}; sampling needs at least one step")
    steps = torch.arange(flow_steps, dtype=torch.float64, device=device)
    return (1.0 - steps / flow_steps).float()


def _visible_somewhere(mask: Tensor) -> Tensor:
    """Let queries that see nothing see everything: softmax over no key is NaN, and nobody reads those rows."""
    return mask | ~mask.any(dim=-1, keepdim=True)


class PiModel(nn.Module):
    """pi0 or pi0.5 on model inputs; `chunkrl.models.pi.policy.PiPolicy` takes observations."""

    sharded_methods = ("embed_images", "embed_prefix", "encode_prefix", "flow_loss", "sample")

    def __init__(self, config: PiConfig) -> None:
        super().__init__()
        self.config = config
        width = config.expert_width
        self.vision = SigLIP(config.vision)
        self.projector = Linear(config.vision.width, config.prefix_width)
        self.language = PrefixLM(config)
        self.expert = ActionExpert(config)
        self.action_in_proj = Linear(config.action_dim, width)
        self.action_out_proj = Linear(width, config.action_dim)
        if config.kind == "pi05":
            self.time_mlp_in = Linear(width, width)
            self.time_mlp_out = Linear(width, width)
        else:
            self.state_proj = Linear(config.action_dim, width)
            self.action_time_mlp_in = Linear(2 * width, width)
            self.action_time_mlp_out = Linear(width, width)
        self.freeze_unused()

    def shard_units(self) -> list[nn.Module]:
        """See `chunkrl.training.distributed.ShardRoot`."""
        language = self.language
        return [*self.vision.layers(), language.embed_tokens, *language.layers, *self.expert.layers]

    def freeze_unused(self) -> None:
        """Parameters that reach no output take no gradient: optimisers and DDP may skip them.

        They are published with the checkpoints and saved again: in the last prefix layer all but what makes
        keys and values, and the prefix's final norm.
        """
        last = self.language.layers[-1]
        assert isinstance(last, PrefixLayer)
        for module in (last.self_attn.q_proj, last.self_attn.o_proj, last.mlp, self.language.norm):
            module.requires_grad_(False)
        last.post_attention_layernorm.requires_grad_(False)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute layers in the backward pass instead of keeping their activations."""
        self.language.gradient_checkpointing = enabled
        self.expert.gradient_checkpointing = enabled

    # ---- prefix

    def embed_images(self, images: Tensor) -> Tensor:
        """Images float [B, 3, S, S] in [-1, 1] -> tokens [B, T, prefix_width] (not scaled)."""
        if self.language.gradient_checkpointing and torch.is_grad_enabled():
            x = self.vision.embed(images)
            for layer in self.vision.layers():
                x = checkpoint(layer, x, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
            return self.projector(self.vision.post_layernorm(x))
        return self.projector(self.vision(images))

    def embed_cameras(self, inputs: PrefixInputs) -> Tensor:
        """All cameras' image tokens [C * B, T, W]: the part of the prefix that no text changes."""
        if inputs.vision is not None:
            return inputs.vision.transpose(0, 1).flatten(0, 1)
        if not inputs.images:
            return self.projector.weight.new_zeros(0, self.config.vision.num_tokens, self.config.prefix_width)
        # One vision pass for all cameras: the kernels are larger and there are fewer of them.
        return self.embed_images(torch.cat(list(inputs.images.values())))

    def embed_prefix(self, inputs: PrefixInputs, vision: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All cameras' tokens, then the prompt's: (embeddings [B, P, W], valid bool [B, P]).

        vision: the result of `embed_cameras`, where it is there already.
        """
        cameras = list(inputs.image_masks)
        stacked = self.embed_cameras(inputs) if vision is None else vision
        parts = list(stacked.chunk(len(cameras))) if cameras else []
        masks = [
            inputs.image_masks[camera][:, None].expand(part.shape[:2])
            for camera, part in zip(cameras, parts, strict=True)
        ]
        text = self.language.embed(inputs.tokens).to(stacked.dtype)
        return torch.cat((*parts, text), dim=1), torch.cat((*masks, inputs.token_mask), dim=1)

    def encode_prefix(self, inputs: PrefixInputs, vision: Tensor | None = None) -> Prefix:
        """One pass over images and prompt; its result serves every sample and every flow time."""
        embeddings, valid = self.embed_prefix(inputs, vision)
        mask = None
        if not inputs.dense:
            opens_block = torch.zeros(valid.shape[1], dtype=torch.bool, device=valid.device)
            mask = _visible_somewhere(attention_mask(valid, opens_block))
        cache = self.language(embeddings, token_positions(valid), mask)
        return Prefix(cache, valid, inputs.state, inputs.dense)

    # ---- suffix

    def suffix_opens_block(self, device: torch.device | str = "cpu") -> Tensor:
        """bool [S]: the state token (pi0) and the first action open a block."""
        num_state_tokens = int(self.config.kind == "pi0")
        opens = torch.zeros(num_state_tokens + self.config.horizon, dtype=torch.bool, device=device)
        opens[: num_state_tokens + 1] = True
        return opens

    def condition_on_time(self, time: Tensor) -> TimeCondition:
        """Embed flow times [T]; for pi0.5 also compute all modulations."""
        config = self.config
        embedding = time_embedding(time, config.expert_width, config.time_min_period, config.time_max_period)
        if config.kind == "pi0":
            return TimeCondition(embedding, None)
        return TimeCondition(embedding, self.expert.modulations(self.adaptive_condition(embedding)))

    def adaptive_condition(self, embedding: Tensor) -> Tensor:
        """pi0.5: embedded times [T, W] -> the condition of the adaptive norms [T, W]."""
        return F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(embedding))))

    def embed_suffix(self, x_t: Tensor, state: Tensor | None, time: TimeCondition) -> Tensor:
        """x_t [R, H, A], state [R, A] (pi0), time of R or 1 rows -> suffix embeddings [R, S, W]."""
        actions = self.action_in_proj(x_t)
        if self.config.kind == "pi05":
            return actions
        if state is None:
            raise ChunkRLError(
                "pi0 reads the state as a token, but there is no state: give PrefixInputs.state"
            )
        embedding = time.embedding[:, None].to(actions.dtype).expand(actions.shape)
        actions = self.action_time_mlp_in(torch.cat((actions, embedding), dim=-1))
        actions = self.action_time_mlp_out(F.silu(actions))
        return torch.cat((self.state_proj(state)[:, None].to(actions.dtype), actions), dim=1)

    def _suffix(self, prefix: Prefix, num_samples: int, action_mask: Tensor | None) -> _Suffix:
        """Repeat the prefix for every sample and lay the suffix out after it (action_mask bool [B, H])."""
        batch, device = prefix.valid.shape[0], prefix.valid.device
        opens = self.suffix_opens_block(device)
        suffix_valid = torch.ones(batch, len(opens), dtype=torch.bool, device=device)
        positions = token_positions(torch.cat((prefix.valid, suffix_valid), dim=1))[
            :, prefix.valid.shape[1] :
        ]
        if action_mask is not None:
            suffix_valid = torch.cat((suffix_valid[:, : -self.config.horizon], action_mask), dim=1)
        mask = None
        if not prefix.dense or action_mask is not None or self.config.kind == "pi0":
            num_prefix = prefix.valid.shape[1]
            opens = torch.cat((torch.zeros(num_prefix, dtype=torch.bool, device=device), opens))
            valid = torch.cat((prefix.valid, suffix_valid), dim=1)
            mask = _visible_somewhere(attention_mask(valid, opens, first_query=num_prefix))

        def repeat(x: Tensor) -> Tensor:
            return x if num_samples == 1 else x.repeat_interleave(num_samples, dim=0)

        return _Suffix(
            cache=tuple(layer.repeated(num_samples) for layer in prefix.cache),
            positions=repeat(positions),
            mask=None if mask is None else repeat(mask),
            state=None if prefix.state is None else repeat(prefix.state),
        )

    def _velocity(self, suffix: _Suffix, x_t: Tensor, time: TimeCondition) -> Tensor:
        """x_t [R, H, A] -> velocity float32 [R, H, A]."""
        x = self.embed_suffix(x_t, suffix.state, time)
        x = self.expert(x, suffix.positions, suffix.mask, suffix.cache, time.modulations)
        return self.action_out_proj(x[:, -self.config.horizon :]).float()

    def velocity(
        self, prefix: Prefix, x_t: Tensor, time: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """The flow's velocity at given points.

        Args:
            prefix: of B observations.
            x_t: float32 [B, N, H, A], N points per observation.
            time: float32 [B, N] in [0, 1].
            action_mask: bool [B, H]; padded actions (False) are seen by no other action.

        Returns:
            float32 [B, N, H, A].
        """
        batch, num_samples = x_t.shape[:2]
        suffix = self._suffix(prefix, num_samples, action_mask)
        out = self._velocity(suffix, x_t.flatten(0, 1), self.condition_on_time(time.flatten()))
        return out.unflatten(0, (batch, num_samples))

    # ---- loss and sampling

    def draw_times(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Flow times for training, float32 on the CPU: Beta(alpha, 1) * scale + offset.

        Beta(alpha, 1) has the distribution function x^alpha, so its inverse needs no rejection sampling.
        """
        uniform = draw_rows(torch.rand, shape, generator=generator)
        config = self.config
        return uniform ** (1 / config.time_beta_alpha) * config.time_scale + config.time_offset

    def flow_loss(
        self, prefix: Prefix, actions: Tensor, noise: Tensor, time: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """Squared error of the velocity, per element; nothing is averaged.

        Args:
            prefix: of B observations.
            actions: float32 [B, H, A], normalised and padded to the model's width.
            noise: float32 [B, N, H, A]; time: float32 [B, N].
            action_mask: bool [B, H], False on padded steps: their own loss is returned and must not be used.

        Returns:
            float32 [B, N, H, A].
        """
        t = time[..., None, None]
        actions = actions[:, None]
        velocity = self.velocity(prefix, t * noise + (1 - t) * actions, time, action_mask)
        return (velocity - (noise - actions)).square()

    @torch.no_grad()
    def sample(
        self,
        prefix: Prefix,
        noise: Tensor,
        times: Tensor,
        unconditioned: Prefix | None = None,
        guidance: float = 1.0,
        guide: Guide | None = None,
    ) -> Tensor:
        """Euler steps of -1 / len(times) from noise to actions.

        Args:
            prefix: of B observations.
            noise: float32 [B, N, H, A], N chunks per observation.
            times: float32 [flow_steps], see `euler_times`.
            unconditioned: the same observations without the condition's text, or with another one's, for
                classifier-free guidance: v = v_unconditioned + guidance (v - v_unconditioned) (arXiv 2207.12598;
                2505.23458 for policies).
            guidance: 1 is plain conditioning.
            guide: what is left of the last chunk, [B, H, A], which all N go on from.

        Returns:
            float32 [B, N, H, A], normalised and padded.
        """
        batch, num_samples = noise.shape[:2]
        suffix = self._suffix(prefix, num_samples, None)
        free = None if unconditioned is None else self._suffix(unconditioned, num_samples, None)
        condition = self.condition_on_time(times)
        x = noise.flatten(0, 1).float()
        guide = None if guide is None else guide.repeated(num_samples)
        for step in range(len(times)):

            def plain(point: Tensor, time: TimeCondition = condition.row(step)) -> Tensor:
                velocity = self._velocity(suffix, point, time)
                if free is None:
                    return velocity
                base = self._velocity(free, point, time)
                return base + guidance * (velocity - base)

            velocity = plain(x) if guide is None else guide.velocity(plain, x, 1 - step / len(times))
            x = x - velocity / len(times)
        return x.unflatten(0, (batch, num_samples))
