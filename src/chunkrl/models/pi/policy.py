"""A pi policy on observations: preparing inputs, sampling chunks, the flow loss, in the data's units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chunkrl.errors import ChunkRLError
from chunkrl.models import lora  # as a module: it imports layers of this package
from chunkrl.models.acting import check_cameras
from chunkrl.models.overlap import Guide, Overlap
from chunkrl.models.pi.config import DEFAULT_FLOW_STEPS, PiRecipe
from chunkrl.models.pi.flow import PiModel, Prefix, PrefixInputs, euler_times
from chunkrl.models.pi.images import prepare_images
from chunkrl.models.pi.norm_stats import NormStats, is_constant, normalize, unnormalize
from chunkrl.models.pi.prompt import build_prompt, encode_prompt, pad_tokens
from chunkrl.models.pi.tokenizer import Tokenizer
from chunkrl.ranks import draw_rows
from chunkrl.types import Observation


class PiPolicy(nn.Module):
    """pi0 or pi0.5 with everything it was trained with.

    model: the network. recipe: sizes and settings. norm_stats: statistics of the data it was trained on, or
    None. tokenizer: or None. A policy without one of these can be converted and saved, but not run.
    unused_tensors: tensors of the published layout that nothing reads, kept so that saving gives them back.
    source: where it was loaded from, for messages.
    """

    def __init__(
        self,
        model: PiModel,
        recipe: PiRecipe,
        norm_stats: NormStats | None = None,
        tokenizer: Tokenizer | None = None,
        unused_tensors: dict[str, Tensor] | None = None,
        source: str = "the policy",
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.norm_stats = norm_stats
        self.tokenizer = tokenizer
        self.unused_tensors = unused_tensors or {}
        self.source = source
        self._sample_chunks: Callable[..., Tensor] = self._eager_sample
        self._pad_to: int | None = None
        if norm_stats is not None:
            norm_stats.check(recipe.settings, "norm stats")

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.action_in_proj.weight.device

    # ---- inputs

    def with_state(self, state: Mapping[str, Tensor]) -> PiPolicy:
        """The same policy on other tensors of its model's `state_dict`, wherever they are; they are not copied."""
        with torch.device("meta"):
            model = PiModel(self.model.config)
            lora.copy_lora_layers(self.model, model)
        model.load_state_dict(state, assign=True)
        return PiPolicy(model, self.recipe, self.norm_stats, self.tokenizer, self.unused_tensors, self.source)

    def stats(self) -> NormStats:
        """The norm stats. Raises ChunkRLError where the settings need them and there are none."""
        if self.norm_stats is None:
            if self.recipe.settings.normalization == "identity":
                return NormStats()
            raise ChunkRLError(
                f"{self.source} has no norm stats (LeRobot's policy_preprocessor.json, openpi's assets/): copy it "
                "again, whole, or give them when loading (stats=...)"
            )
        return self.norm_stats

    def normalize_state(self, observation: Observation) -> Tensor | None:
        """The observation's state [B, S] normalised, float64, or None for a policy without state."""
        settings = self.recipe.settings
        if settings.state_dim == 0:
            return None
        state = observation.state
        if state is None or state.ndim != 2 or state.shape[1] != settings.state_dim:
            found = "no state" if state is None else f"a state of shape {list(state.shape)}"
            raise ChunkRLError(f"the observation has {found}; the policy takes [B, {settings.state_dim}]")
        if not bool(torch.isfinite(state).all()):
            raise ChunkRLError("the observation's state holds NaN or infinity")
        return normalize(state, self.stats().state, settings.normalization, settings.normalization_epsilon)

    def with_state_noise(self, observation: Observation, deviation: float) -> Observation:
        """The observation with noise on its state (torch's global generator), a regulariser of small data sets.

        deviation: 1 is about the data's own: half the range that quantiles are normalised to, or one deviation.
        """
        settings, state = self.recipe.settings, observation.state
        normed = self.normalize_state(observation)
        if normed is None or state is None or deviation == 0:
            return observation
        scale = deviation * (0.5 if settings.normalization == "quantiles" else 1.0)
        noise = draw_rows(torch.randn, tuple(normed.shape), dtype=normed.dtype)
        stats = self.stats().state
        moved = self.state_from_model(normed + scale * noise.to(normed.device))
        # a dimension that never changes has no scale: noise there would be all that it says
        constant = is_constant(stats, settings.normalization, settings.state_dim).to(state.device)
        return replace(observation, state=torch.where(constant, state, moved.to(state.dtype)))

    def state_from_model(self, normed: Tensor) -> Tensor:
        """The inverse of `normalize_state`: float64 [B, S] in the data's units."""
        settings = self.recipe.settings
        return unnormalize(normed, self.stats().state, settings.normalization, settings.normalization_epsilon)

    def prepare(
        self,
        observation: Observation,
        condition: str | Sequence[str] | None = None,
        pad_to: int | None = None,
    ) -> PrefixInputs:
        """A batched observation to model inputs on the model's device.

        Args:
            observation: batched; exactly the cameras of the settings.
            condition: text the policy is conditioned on, for all rows or one per row (see `prompt`); empty
                for none, None for the settings'.
            pad_to: pad prompts to this length (fixed shapes for compiled graphs); None: to the longest.

        Raises:
            ChunkRLError: a camera is missing or unknown, an image, state or task is not as the policy takes it.
        """
        settings, config = self.recipe.settings, self.recipe.config
        self._check_cameras(observation)
        state = self.normalize_state(observation)
        tokens, token_mask = self._tokenize(observation, state, condition, pad_to)
        images = self._prepare_images(observation) if observation.vision is None else {}
        model_state = None
        if config.kind == "pi0" and state is not None:
            model_state = F.pad(state, (0, config.action_dim - state.shape[1])).to(self.device, torch.float32)
        masks = {
            camera: torch.ones(observation.batch_size, dtype=torch.bool, device=self.device)
            for camera in settings.cameras
        }
        return PrefixInputs(
            images=images,
            image_masks=masks,
            tokens=tokens.to(self.device),
            token_mask=token_mask.to(self.device),
            state=model_state,
            # Known here on the CPU; asking the GPU would wait for it.
            dense=bool(token_mask.all()),
            vision=None if observation.vision is None else observation.vision.to(self.device),
        )

    def _check_cameras(self, observation: Observation) -> None:
        cure = "rename them in the data or set 'cameras' in the recipe"
        check_cameras(observation.images, self.recipe.settings.cameras, cure)

    def _prepare_images(self, observation: Observation) -> dict[str, Tensor]:
        """Camera -> float32 [B, 3, S, S] on the model's device, in the settings' order."""
        settings, size = self.recipe.settings, self.recipe.config.vision.image_size
        return {
            camera: prepare_images(observation.images[camera].to(self.device), size, settings.resize, camera)
            for camera in settings.cameras
        }

    def with_vision(self, observation: Observation) -> Observation:
        """The batched observation with its vision tokens, for all that reads it next: one pass of the vision tower
        serves the policy's loss or its samples, and critics, which detach them.

        Gradients flow into the vision tower where it trains and they are enabled.
        """
        if observation.vision is not None or not self.recipe.settings.cameras:
            return observation
        self._check_cameras(observation)
        images = self._prepare_images(observation)
        tokens = self.model.embed_images(torch.cat(list(images.values())))
        return replace(observation, vision=tokens.unflatten(0, (len(images), -1)).transpose(0, 1))

    def with_condition(
        self,
        inputs: PrefixInputs,
        observation: Observation,
        condition: str | Sequence[str],
        pad_to: int | None = None,
    ) -> PrefixInputs:
        """`inputs`, made by `prepare` of the same observation, with the prompt of another condition."""
        state = self.normalize_state(observation)
        tokens, token_mask = self._tokenize(observation, state, condition, pad_to)
        return replace(
            inputs,
            tokens=tokens.to(self.device),
            token_mask=token_mask.to(self.device),
            dense=bool(token_mask.all()),
        )

    def _tokenize(
        self,
        observation: Observation,
        state: Tensor | None,
        condition: str | Sequence[str] | None,
        pad_to: int | None,
    ) -> tuple[Tensor, Tensor]:
        settings, config = self.recipe.settings, self.recipe.config
        if self.tokenizer is None:
            raise ChunkRLError(f"{self.source} has no tokenizer; give its path when loading (tokenizer=...)")
        batch = observation.batch_size
        tasks = (observation.task,) * batch if isinstance(observation.task, str) else observation.task
        if condition is None:
            condition = settings.condition
        conditions = [condition] * batch if isinstance(condition, str) else list(condition)
        if len(tasks) != batch or len(conditions) != batch:
            raise ChunkRLError(
                f"a batch of {batch} has {len(tasks)} task texts and {len(conditions)} conditions; give one per row"
            )
        rows = []
        states = [None] * batch if state is None else list(state.cpu())
        for task, row_state, row_condition in zip(tasks, states, conditions, strict=True):
            prompt = build_prompt(
                settings.prompt_format,
                task,
                row_state,
                config.action_dim,
                row_condition,
                settings.condition_place,
            )
            cut = settings.overlong_prompt == "cut_task"
            rows.append(encode_prompt(prompt, self.tokenizer, config.max_prompt_tokens, cut))
        return pad_tokens(rows, pad_to)

    def encode(self, observation: Observation, condition: str | Sequence[str] | None = None) -> Prefix:
        """The prefix pass over observations and prompts, shared by every loss and sample on them."""
        return self.model.encode_prefix(self.prepare(observation, condition))

    # ---- actions

    def _delta_offset(self, observation: Observation) -> Tensor | None:
        """[B, 1, action_dim], the state where the model's actions are relative to it, or None."""
        settings = self.recipe.settings
        if not any(settings.delta_actions):
            return None
        assert observation.state is not None
        width = len(settings.delta_actions)
        relative = torch.tensor(settings.delta_actions, device=observation.state.device)
        offset = torch.where(relative, observation.state[:, :width], 0.0)
        return F.pad(offset, (0, settings.action_dim - width))[:, None].to(self.device)

    def actions_to_model(self, actions: Tensor, observation: Observation) -> Tensor:
        """Actions [B, H, action_dim] in the data's units -> normalised and zero-padded float32 [B, H, A].

        Raises:
            ChunkRLError: another horizon or width than the policy's.
        """
        settings, config = self.recipe.settings, self.recipe.config
        if actions.ndim != 3 or actions.shape[1:] != (config.horizon, settings.action_dim):
            raise ChunkRLError(
                f"actions have shape {list(actions.shape)}; the policy takes [B, {config.horizon}, "
                f"{settings.action_dim}] (its horizon is {config.horizon})"
            )
        offset = self._delta_offset(observation)
        actions = actions.to(self.device)
        actions = actions if offset is None else actions - offset
        stats = self.stats().action
        normed = normalize(actions, stats, settings.normalization, settings.normalization_epsilon)
        return F.pad(normed, (0, config.action_dim - settings.action_dim)).float()

    def actions_from_model(self, actions: Tensor, observation: Observation) -> Tensor:
        """Model actions [B, N, H, A] -> float32 [B, N, H, action_dim] in the data's units."""
        settings = self.recipe.settings
        stats = self.stats().action
        real = actions[..., : settings.action_dim]
        real = unnormalize(real, stats, settings.normalization, settings.normalization_epsilon)
        offset = self._delta_offset(observation)
        return (real if offset is None else real + offset[:, None]).float()

    def _checked_mask(self, action_mask: Tensor, batch: int) -> Tensor:
        shape = (batch, self.recipe.config.horizon)
        if action_mask.dtype != torch.bool or tuple(action_mask.shape) != shape:
            raise ChunkRLError(
                f"action_mask is {action_mask.dtype} {list(action_mask.shape)}; the policy takes bool {list(shape)}"
            )
        if not bool(action_mask.any(dim=1).all()):
            raise ChunkRLError("a chunk has no real step: its loss is not defined; leave such chunks out")
        return action_mask.to(self.device)

    # ---- the policy's two uses

    def compile_sampling(self, **options: Any) -> None:
        """Let `sample` run as one compiled graph; the first call of each batch shape takes minutes at full size.

        Prompts are padded to the longest that the model takes, so that every task runs in the same graph.

        Args:
            options: of `torch.compile`; on a GPU `mode="reduce-overhead"` replays CUDA graphs.
        """
        self._pad_to = self.recipe.config.max_prompt_tokens
        self._sample_chunks = torch.compile(self._eager_sample, fullgraph=True, **options)

    def _eager_sample(
        self,
        inputs: PrefixInputs,
        noise: Tensor,
        times: Tensor,
        free: PrefixInputs | None = None,
        guidance: float = 1.0,
        guide: Guide | None = None,
    ) -> Tensor:
        vision = self.model.embed_cameras(inputs)
        unconditioned = None if free is None else self.model.encode_prefix(free, vision)
        prefix = self.model.encode_prefix(inputs, vision)
        return self.model.sample(prefix, noise, times, unconditioned, guidance, guide)

    @torch.no_grad()
    def sample(
        self,
        observation: Observation,
        num_samples: int = 1,
        flow_steps: int = DEFAULT_FLOW_STEPS,
        condition: str | Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        guidance: float | None = None,
        overlap: Overlap | None = None,
        guidance_from: str | None = None,
    ) -> Tensor:
        """Action chunks for a batched observation; the prefix is computed once for all samples and steps.

        Args:
            observation: batched, with the settings' cameras.
            num_samples: N chunks per observation.
            flow_steps: Euler steps.
            condition: text the policy is conditioned on; empty for none, None for the settings'.
            generator: on the CPU, so that the same seed gives the same noise on every device.
            noise: standard normal float32 [B, N, H, A] of the model's width, in place of drawing it.
            guidance: of classifier-free guidance towards the condition; None for the settings'. Other
                values than 1 cost a second prefix pass and twice the denoising.
            overlap: what is left of the last chunk, which the new ones go on from; not compiled.
            guidance_from: the condition that guidance leads away from; empty for none, None for the settings'.

        Returns:
            float32 [B, N, H, action_dim] in the data's units.
        """
        if num_samples < 1:
            raise ChunkRLError(f"num_samples is {num_samples}; ask for at least one chunk")
        config = self.recipe.config
        times = euler_times(flow_steps, self.device)
        inputs = self.prepare(observation, condition, self._pad_to)
        guidance = self.recipe.settings.guidance if guidance is None else guidance
        free = None
        if guidance != 1:
            free = self.with_condition(
                inputs, observation, self._away(condition, guidance_from), self._pad_to
            )
        shape = (inputs.tokens.shape[0], num_samples, config.horizon, config.action_dim)
        if noise is None:
            noise = torch.randn(shape, generator=generator)
        elif tuple(noise.shape) != shape:
            raise ChunkRLError(f"noise has shape {list(noise.shape)}; the policy takes {list(shape)}")
        if overlap is None:
            chunks = self._sample_chunks(inputs, noise.to(self.device), times, free, guidance)
        else:
            left = self.actions_to_model(overlap.padded(config.horizon), observation)
            guide = Guide.of(overlap, left, self.recipe.settings.action_dim)
            chunks = self._eager_sample(inputs, noise.to(self.device), times, free, guidance, guide)
        return self.actions_from_model(chunks, observation)

    def guidance_from(self, condition: str, away: str | None = None) -> str:
        """What guidance towards `condition` leads away from: `away`, None for the settings' condition; where that is
        what is asked for, no condition."""
        away = self.recipe.settings.guidance_from if away is None else away
        return "" if away == condition else away

    def _away(self, condition: str | Sequence[str] | None, away: str | None) -> str | list[str]:
        condition = self.recipe.settings.condition if condition is None else condition
        if isinstance(condition, str):
            return self.guidance_from(condition, away)
        return [self.guidance_from(asked, away) for asked in condition]

    def flow_loss(
        self,
        observation: Observation,
        actions: Tensor,
        action_mask: Tensor | None = None,
        num_noise: int = 1,
        condition: str | Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        padded_dims: bool = False,
        time: Tensor | None = None,
    ) -> Tensor:
        """Flow-matching loss of each observation and noise sample; one prefix pass serves all of them.

        Args:
            observation: batched.
            actions: [B, H, action_dim] in the data's units.
            action_mask: bool [B, H], True on real steps; None: all are. Every row needs one.
            num_noise: N (noise, time) draws per observation.
            condition: text the policy is conditioned on.
            generator: on the CPU; noise first, then times.
            padded_dims: average over all dimensions of the model (openpi) and not over the real ones (LeRobot).
            time: flow times float32 [B, N], in place of drawing them.

        Returns:
            float32 [B, N]: mean squared velocity error over real steps and dimensions.

        Raises:
            ChunkRLError: inputs that do not fit the policy, or a chunk without a real step.
        """
        model_actions = self.actions_to_model(actions, observation)
        shape = (len(actions), num_noise, *model_actions.shape[1:])
        noise = draw_rows(torch.randn, shape, generator=generator).to(self.device)
        time = (self.model.draw_times(shape[:2], generator) if time is None else time).to(self.device)
        if action_mask is not None:
            action_mask = self._checked_mask(action_mask, len(actions))
        prefix = self.encode(observation, condition)
        error = self.model.flow_loss(prefix, model_actions, noise, time, action_mask)
        width = error.shape[-1] if padded_dims else self.recipe.settings.action_dim
        per_step = error[..., :width].mean(dim=-1)
        if action_mask is None:
            return per_step.mean(dim=-1)
        # where, not a product: an infinite error in the padding must not become NaN.
        kept = torch.where(action_mask[:, None], per_step, 0.0)
        return kept.sum(dim=-1) / action_mask.sum(dim=-1, keepdim=True)
