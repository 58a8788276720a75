"""A pretrained pi policy made ready to train on data: settings, statistics, what trains, and a check of prompts."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from chunkrl.algorithms.conditioning import check_prompts, conditions, guidance_from
from chunkrl.algorithms.config import ConditioningConfig
from chunkrl.data.collection import ChunkData
from chunkrl.data.normalize import Statistics
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.integration.chunk_cache import fingerprint
from chunkrl.integration.config import PiChunkConfig, PiTrainingConfig
from chunkrl.integration.pi_chunks import check_fits, find_pi_recipe
from chunkrl.integration.pi_presets import pi_patterns
from chunkrl.models.condition import condition_text
from chunkrl.models.config import LoRAConfig
from chunkrl.models.lora import apply_lora
from chunkrl.models.pi.checkpoint import load_pretrained
from chunkrl.models.pi.config import PiRecipe
from chunkrl.models.pi.factory import PiNetworks
from chunkrl.models.pi.norm_stats import NormStats
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.progress import Progress, silent
from chunkrl.training.optim import frozen_dtype, prepare_precision
from chunkrl.training.trainable import count_trainable, select_trainable

_LOG = logging.getLogger(__name__)

FROZEN = ("-*",)
"""`PiTrainingConfig.trainable` of a run that trains nothing of the policy: values alone."""


def pi_networks(
    data: ChunkData,
    checkpoint: Path,
    source: PiChunkConfig,
    config: PiTrainingConfig,
    conditioning: ConditioningConfig | None,
    device: torch.device,
    progress: Progress = silent,
) -> PiNetworks:
    """The checkpoint's policy with the data's cameras and horizon, its trained parameters chosen.

    Args:
        source: which recipe, cameras and tokenizer the checkpoint goes with.
        conditioning: how the advantage stands in the prompt; None: it does not.

    Raises:
        CheckpointError: no whole checkpoint, or none of its parts fit the data.
        ChunkRLError: settings that contradict each other, or prompts that the advantage does not change.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"no pi checkpoint at {checkpoint}: chunkrl download {checkpoint.name} fetches it if it is published; "
            "else say where it is with --pi0-checkpoints-dir and --pi0-config"
        )
    recipe = find_pi_recipe(data, checkpoint, source, data.cameras)
    recipe = _for_data(data, recipe, source, config, conditioning)
    warn_of_stock_lerobot(recipe)
    policy = load_pretrained(
        checkpoint,
        recipe=recipe,
        stats=_data_stats(data, recipe) if config.norm_stats == "data" else None,
        asset_id=source.asset_id,
        tokenizer=source.tokenizer,
    )
    if policy.norm_stats is None and recipe.settings.normalization != "identity":
        raise CheckpointError(  # a policy must not start on numbers of another scale
            f"{checkpoint} has no statistics to normalise states and actions with: use --pi.norm-stats data (those "
            "of the training data), or name them with --pi0.asset-id"
        )
    # made ready on the CPU: as it is stored, and with copies, it may be twice what trains on the device
    choose_trained(policy, config, device)
    policy.to(device)
    if conditioning is not None:
        check_conditioning(policy, data, conditioning)
    digest = fingerprint((checkpoint,), progress)
    return PiNetworks(policy, config.critic, config.num_noise, config.state_noise, digest)


def _for_data(
    data: ChunkData,
    recipe: PiRecipe,
    source: PiChunkConfig,
    config: PiTrainingConfig,
    conditioning: ConditioningConfig | None,
) -> PiRecipe:
    """The recipe with the data's names of cameras, its horizon, and what the policy will be asked for."""
    # nothing in the model has the horizon's size, so training may choose it
    recipe = replace(recipe, config=replace(recipe.config, horizon=data.action_horizon))
    cameras = tuple(theirs for _, theirs in check_fits(data, recipe, source.cameras, data.cameras))
    # what an earlier training made the policy ask for is not what this one trains it to hear
    settings = replace(
        recipe.settings,
        cameras=cameras,
        condition_place=config.condition_place,
        condition="",
        conditions=(),
        guidance=1.0,
        guidance_from="",
        data_resize=data.resize,
        fps=float(data.fps),
    )
    if conditioning is not None:
        heard = conditions(conditioning)
        asked = {"guidance": conditioning.guidance, "guidance_from": guidance_from(conditioning)}
        settings = replace(settings, condition=heard[-1], conditions=heard, **asked)
    return replace(recipe, settings=settings)


def warn_of_stock_lerobot(recipe: PiRecipe) -> None:
    """Says before training what no export of the policy can mend."""
    settings = recipe.settings
    if settings.condition and settings.condition_place == "end" and settings.prompt_format != "pi0":
        _LOG.warning(
            "the advantage stands after the state in the prompt, where stock LeRobot cannot write it: there this "
            "policy will need the plug-in lerobot_policy_chunkrl. With --pi.condition-place task stock LeRobot can, "
            "its task string ending with ', %s'",
            settings.condition,
        )


def _data_stats(data: ChunkData, recipe: PiRecipe) -> NormStats:
    if any(recipe.settings.delta_actions):
        raise ChunkRLError(
            "--pi.norm-stats data: the policy's actions are relative to the state, whose statistics are not these "
            "data's; use the checkpoint's"
        )

    def tensors(statistics: Statistics) -> dict[str, torch.Tensor]:
        names = ("mean", "std", "min", "max", "q01", "q99")
        return {name: torch.from_numpy(np.asarray(getattr(statistics, name), np.float64)) for name in names}

    state = tensors(data.state_statistics()) if data.state_dim else {}
    return NormStats(state=state, action=tensors(data.action_statistics()))


def choose_trained(policy: PiPolicy, config: PiTrainingConfig, device: torch.device) -> None:
    """Freezes what does not train, with LoRA where asked; trained parameters become float32 masters.

    Raises:
        ChunkRLError: a pattern that names nothing, or a choice that trains nothing.
    """
    model = policy.model
    if not policy.recipe.settings.cameras:
        model.vision.requires_grad_(False)
        model.projector.requires_grad_(False)
    if config.trainable == FROZEN:
        model.requires_grad_(False)
        prepare_precision(model, frozen_dtype(device))
        return
    if config.uses_lora:
        apply_lora(model, _lora_config(config))
    patterns = config.trainable or pi_patterns(config.train, model.config.depth)
    report = select_trainable(model, patterns)
    if report.warning:
        _LOG.warning("%s", report.warning)
    prepare_precision(model, frozen_dtype(device))
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    _LOG.info("trained parameters:\n%s", count_trainable(model))


def _lora_config(config: PiTrainingConfig) -> LoRAConfig:
    """With `lora_and_expert` the expert trains whole, and LoRA is for the language model alone."""
    if config.train != "lora_and_expert" or config.lora.targets != LoRAConfig().targets:
        return config.lora
    language = tuple(target for target in config.lora.targets if target.startswith("language."))
    return replace(config.lora, targets=language)


def check_conditioning(policy: PiPolicy, data: ChunkData, config: ConditioningConfig) -> None:
    """Raises ChunkRLError unless the advantage changes the prompt of every task of the data, after any cut."""
    texts = ["", *(condition_text(label, config.num_bins) for label in range(config.num_bins))]
    observation = data.batch(np.array([0]), next_observation=False).observation
    if observation.state is not None and policy.recipe.settings.state_dim:
        # the longest text that a state can have: every bin above 99
        high = torch.ones(1, policy.recipe.settings.state_dim, dtype=torch.float64)
        observation = replace(observation, state=policy.state_from_model(high))
    for task in data.tasks:
        prompts = []
        for condition in texts:
            one = replace(observation, task=(task,))
            inputs = policy.prepare(one, condition)
            prompts.append(inputs.tokens[0][inputs.token_mask[0]].tolist())
        check_prompts(prompts, texts, task)
