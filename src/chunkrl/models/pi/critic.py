"""V(x) and Q(x, A) on a pi policy's own features, as the advantage-conditioned pi0.5 document has them.

A critic reads the policy's image tokens and text embeddings (shared by all critics, no gradient into the policy),
runs them through its own copy of the first blocks of the policy's prefix language model, and reads them out with
learned value queries. Its text is task and state, never the advantage: attention in the prefix is bidirectional,
so advantage text would reach every feature and V would read its own label.

It differs from the document's:
1. the prefix does not see the queries: one prefix pass serves V, and Q of any number of chunks;
2. what the prompt does not say of the state (pi0, pi05_no_state) comes as one more token;
3. Q reads the chunk through action tokens of its own (the document has V only). It sees the padded chunk and never
   the mask: terminal chunks are always padded and candidate chunks never are, so a mask would tell Q the answer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chunkrl.errors import ChunkRLError
from chunkrl.models.layers import Linear, RMSNorm
from chunkrl.models.lora import merge_lora
from chunkrl.models.pi.config import PiCriticConfig
from chunkrl.models.pi.flow import attention_mask, token_positions
from chunkrl.models.pi.language import KeyValues, PrefixLayer, rotary_angles
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.value_head import ValueHead
from chunkrl.types import Observation, TensorRecord

NO_CONDITION = ""


@dataclass(frozen=True)
class CriticInputs(TensorRecord):
    """The policy's features that every critic shares; no gradient flows into them.

    embeddings: [B, P, W], image tokens and text embeddings; valid: bool [B, P];
    state: float32 [B, S] normalised, where the prompt does not say it, else None;
    observation: what they were made of: chunks are normalised relative to it.
    """

    embeddings: Tensor
    valid: Tensor
    observation: Observation
    state: Tensor | None = None


class PiFeatures:
    """Makes `CriticInputs` with a policy, which it does not own: no critic trains or saves the policy."""

    def __init__(self, policy: PiPolicy, state_noise: float = 0.0) -> None:
        self.policy, self.state_noise = policy, state_noise

    def __deepcopy__(self, memo: dict) -> PiFeatures:
        """Copies of a critic (target networks) share the policy."""
        return self

    @torch.no_grad()
    def __call__(self, observation: Observation, training: bool = False) -> CriticInputs:
        """training: with noise on the state (from torch's global generator)."""
        policy = self.policy
        if training and self.state_noise > 0:
            observation = policy.with_state_noise(observation, self.state_noise)
        inputs = policy.prepare(observation, NO_CONDITION)
        # the policy's masters may be float32: its features are computed as its training computes them
        on_gpu = policy.device.type == "cuda"
        with torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=on_gpu):
            embeddings, valid = policy.model.embed_prefix(inputs)
        state = None
        if policy.recipe.settings.prompt_format in ("pi0", "pi05_no_state"):
            normed = policy.normalize_state(observation)
            state = None if normed is None else normed.to(policy.device, torch.float32)
        return CriticInputs(embeddings, valid, observation, state)

    def chunks(self, inputs: CriticInputs, actions: Tensor) -> Tensor:
        """actions [B, N, H, action_dim] in the data's units -> the model's, float32 [B, N, H, A]."""
        to_model, observation = self.policy.actions_to_model, inputs.observation
        return torch.stack([to_model(chunk, observation) for chunk in actions.unbind(1)], dim=1)


class PiValue(nn.Module):
    """V(x); see the module's text. With `takes_actions` its outputs are of an observation and a chunk (`PiCritic`).

    policy: gives the blocks to copy and the features. Outputs are read by `value_head`.
    """

    sharded_methods = ("outputs",)

    def __init__(
        self, policy: PiPolicy, config: PiCriticConfig, head: ValueHead, takes_actions: bool = False
    ) -> None:
        super().__init__()
        model = policy.model.config
        if config.depth > model.depth:
            raise ChunkRLError(
                f"the critic copies {config.depth} blocks and the policy has {model.depth}: give --pi.critic.depth "
                f"{model.depth} or less"
            )
        if takes_actions and config.depth == 0:
            raise ChunkRLError("Q needs blocks to read the chunk with: give the critic a depth of at least 1")
        self.config, self.value_head = config, head
        self.features = PiFeatures(policy, config.state_noise)
        self._head_dim = model.head_dim
        width = model.prefix_width
        # fp32 masters: small steps of a critic are lost below one bf16 unit in the last place
        copied = nn.ModuleList(copy.deepcopy(policy.model.language.layers[: config.depth])).float()
        merge_lora(copied)
        self.layers = copied.requires_grad_(True)
        self.norm = RMSNorm(width)
        self.queries = nn.Parameter(torch.randn(config.num_queries, width))
        self.state_proj = self._state_proj(policy, width)
        self.action_proj: Linear | None = None
        if takes_actions:
            self.action_proj = Linear(model.action_dim, width)
            self.action_positions = nn.Parameter(0.02 * torch.randn(model.horizon, width))
        self.readout = nn.Linear(config.num_queries * width, 2 * config.head_width)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.head_width, head.num_outputs)

    def shard_units(self) -> list[nn.Module]:
        """See `chunkrl.training.distributed.ShardRoot`."""
        return list(self.layers)

    @staticmethod
    def _state_proj(policy: PiPolicy, width: int) -> Linear | None:
        settings = policy.recipe.settings
        said = settings.prompt_format not in ("pi0", "pi05_no_state")
        return None if said or settings.state_dim == 0 else Linear(settings.state_dim, width)

    def prepare(self, observation: Observation) -> CriticInputs:
        """The policy's features of B observations; all critics of one policy share them."""
        return self.features(observation, self.training)

    def forward_prepared(self, inputs: CriticInputs) -> Tensor:
        """V [B]."""
        return self.value_head.value(self.outputs(inputs))

    def outputs(self, inputs: CriticInputs, chunks: Tensor | None = None) -> Tensor:
        """What `value_head` reads: [B, O], or [B, N, O] for chunks [B, N, H, A] in the model's units."""
        batch = len(inputs.embeddings)
        x, valid = inputs.embeddings.float(), inputs.valid
        if self.state_proj is not None:
            assert inputs.state is not None
            x = torch.cat((x, self.state_proj(inputs.state)[:, None]), dim=1)
            valid = torch.cat((valid, valid.new_ones(batch, 1)), dim=1)
        suffix = self._suffix(batch, chunks)
        queries = self._run(x, valid, suffix, len(suffix) // batch)[:, -self.config.num_queries :]
        gate, up = self.readout(self.norm(queries).flatten(1)).chunk(2, dim=-1)
        out = self.out(self.dropout(F.silu(gate) * up))
        return out if chunks is None else out.unflatten(0, (batch, -1))

    def _suffix(self, batch: int, actions: Tensor | None) -> Tensor:
        """Action tokens (Q) and queries: [B * N, S, W]."""
        queries = self.queries.expand(batch, -1, -1)
        if self.action_proj is None:
            assert actions is None, "V reads no chunk"
            return queries
        assert actions is not None, "Q reads a chunk: see prepare_actions"
        rows = actions.flatten(0, 1)
        tokens = self.action_proj(rows) + self.action_positions
        return torch.cat((tokens, self.queries.expand(len(rows), -1, -1)), dim=1)

    def _run(self, x: Tensor, valid: Tensor, suffix: Tensor, num_chunks: int) -> Tensor:
        """Prefix x [B, P, W] and suffix [B * num_chunks, S, W] through the blocks -> the suffix [.., S, W]."""
        num_prefix, size = x.shape[1], suffix.shape[1]
        everything = torch.cat((valid, valid.new_ones(len(valid), size)), dim=1)
        opens = torch.zeros(num_prefix + size, dtype=torch.bool, device=x.device)
        opens[num_prefix] = True
        mask = attention_mask(everything, opens)
        mask = mask | ~mask.any(dim=-1, keepdim=True)  # rows of padding see anything; nobody reads them
        cosine, sine = rotary_angles(token_positions(everything), self._head_dim)
        before = (cosine[:, :num_prefix], sine[:, :num_prefix])
        behind = tuple(part[:, num_prefix:].repeat_interleave(num_chunks, dim=0) for part in (cosine, sine))
        own_mask = mask[:, :num_prefix, :num_prefix]
        suffix_mask = mask[:, num_prefix:].repeat_interleave(num_chunks, dim=0)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, PrefixLayer)
            if number + 1 < len(self.layers):
                x, keys, values = self._block(layer, x, before, own_mask)
                cache = KeyValues(keys, values)
            else:
                cache = layer.keys_values(x, before)  # the prefix's last block feeds the queries alone
            suffix, _, _ = self._block(layer, suffix, behind, suffix_mask, cache.repeated(num_chunks))
        if not self.layers:
            return self._pooled(x, valid, suffix, num_chunks)
        return suffix

    def _block(self, layer: PrefixLayer, *inputs) -> tuple[Tensor, Tensor, Tensor]:
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return layer(*inputs)

    @staticmethod
    def _pooled(x: Tensor, valid: Tensor, suffix: Tensor, num_chunks: int) -> Tensor:
        """The baseline without blocks: the mean of the frozen features stands after every query."""
        weight = valid[..., None].to(x.dtype)
        mean = (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        return suffix + mean.repeat_interleave(num_chunks, dim=0)


class PiCritic(nn.Module):
    """Q(x, A): `num_critics` networks of one kind, with the interface of `chunkrl.models.critic.Critic`."""

    def __init__(
        self, policy: PiPolicy, config: PiCriticConfig, head: ValueHead, num_critics: int = 1
    ) -> None:
        super().__init__()
        networks = [PiValue(policy, config, head, takes_actions=True) for _ in range(num_critics)]
        self.features, self.value_head = networks[0].features, head
        self.networks = nn.ModuleList(networks)

    def prepare(self, observation: Observation) -> CriticInputs:
        """See `PiValue.prepare`."""
        return self.features(observation, self.training)

    def outputs(self, inputs: CriticInputs, actions: Tensor) -> Tensor:
        """What `value_head` reads, of what `forward_prepared` takes: [num_critics, B, O] or [.., B, N, O]."""
        single = actions.dim() == 3
        chunks = self.features.chunks(inputs, actions[:, None] if single else actions)
        outputs = torch.stack([q.outputs(inputs, chunks) for q in self.networks])  # type: ignore[operator]
        return outputs[:, :, 0] if single else outputs

    def forward_prepared(self, inputs: CriticInputs, actions: Tensor) -> Tensor:
        """actions: [B, H, action_dim], or N candidates each [B, N, H, action_dim], in the data's units.

        Returns [num_critics, B] or [num_critics, B, N]; the prefix is run once for all candidates.
        """
        return self.value_head.value(self.outputs(inputs, actions))
