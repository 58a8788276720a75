"""LeRobot's policy folder around the weights: config.json read and written, and what stock LeRobot cannot do.

`config.json` (its `type` names the policy) lies beside the two pipelines of `lerobot_pipelines`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from chunkrl.data.resize import Resize
from chunkrl.errors import CheckpointError
from chunkrl.files.json_files import read_json
from chunkrl.models.pi.config import (
    ModelKind,
    NormalizationMode,
    PiConfig,
    PiRecipe,
    PiSettings,
    PromptFormat,
)
from chunkrl.models.pi.lerobot_pipelines import read_pipelines, relative_mask, write_pipelines
from chunkrl.models.pi.norm_stats import LEROBOT_EPSILON, NormStats
from chunkrl.models.plugin_files import CONFIG_FILE, feature_key

_IMAGES, _STATE, _ACTION = "observation.images.", "observation.state", "action"
_EMPTY_CAMERA = _IMAGES + "empty_camera_"
# (width, MLP width) of the variants that LeRobot can build; all have 18 layers.
_VARIANTS = {"gemma_2b": (2048, 16384), "gemma_300m": (1024, 4096)}
_MODES: dict[str, NormalizationMode] = {
    "MEAN_STD": "mean_std",
    "QUANTILES": "quantiles",
    "IDENTITY": "identity",
}
_PROMPTS: dict[ModelKind, PromptFormat] = {"pi0": "pi0", "pi05": "pi05_state"}
"""The prompts of LeRobot 0.5.0 and later, the releases that build these models from what PyPI has."""
# Keys that LeRobot 0.5.0 and before do not write.
_NEWER_KEYS = ("use_relative_actions", "relative_exclude_joints", "pretrained_revision")


def read_config(file: Path) -> dict[str, Any]:
    """config.json as a dict (openpi's PyTorch folders have one too, without `type`).

    Raises:
        CheckpointError: it is not JSON.
    """
    return read_json(file, dict, CheckpointError, "download it again", nan=True)


def read_recipe(
    file: Path, prompt_format: PromptFormat | None = None, sizes: PiConfig | None = None
) -> PiRecipe:
    """The recipe that LeRobot's config.json and the pipelines beside it describe, run as LeRobot runs it.

    Args:
        prompt_format: where the folder does not say it (pi0.5 of LeRobot 0.5.0 and before).
        sizes: of the model, where the variants that config.json names are not LeRobot's.

    Raises:
        CheckpointError: another policy type, a setting that the pi models do not have, or a prompt format that the
            folder does not tell; names file and key.
    """
    data = read_config(file)
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in _PROMPTS:
        raise CheckpointError(f"{file} is of type '{kind}'; this loads pi0 and pi05")
    try:
        recipe = _recipe(data, kind, sizes)
        settings = _of_the_release(recipe, data, file.parent, prompt_format)
        return replace(recipe, settings=settings)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _of_the_release(
    recipe: PiRecipe, data: dict[str, Any], folder: Path, prompt_format: PromptFormat | None
) -> PiSettings:
    """The settings with what LeRobot's releases do differently: relative actions, and padding in the prompt."""
    settings = recipe.settings
    pipelines = read_pipelines(folder, settings.action_dim)
    relative = None if pipelines is None else pipelines.relative
    if pipelines is None and "use_relative_actions" in data:
        names = data.get("action_feature_names")
        relative = relative_mask(
            data["use_relative_actions"], names, data.get("relative_exclude_joints"), settings.action_dim
        )
    if relative and any(relative):
        settings = replace(settings, delta_actions=_trimmed(relative))
    is_newer = relative is not None or any(key in data for key in _NEWER_KEYS)
    if prompt_format is not None:
        return replace(settings, prompt_format=prompt_format)
    if recipe.config.kind == "pi05" and not is_newer and settings.state_dim < recipe.config.action_dim:
        raise CheckpointError(
            f"does not say whether prompts hold the state of {settings.state_dim} values alone (LeRobot 0.5.0, and "
            f"openpi's weights) or padded to {recipe.config.action_dim} (LeRobot 0.4): with the other prompt than it "
            "was trained with a policy fails without an error. Say which: chunkrl convert FOLDER NEW_FOLDER "
            "--prompt-format pi05_state (or pi05_padded_state), and use the new folder"
        )
    return settings


def _trimmed(mask: tuple[bool, ...]) -> tuple[bool, ...]:
    """Without what is False at the end: the same mask, in one way of writing it."""
    return mask[: len(mask) - next((i for i, relative in enumerate(reversed(mask)) if relative), len(mask))]


def _recipe(data: dict[str, Any], kind: ModelKind, sizes: PiConfig | None) -> PiRecipe:
    try:
        base = sizes or _built(data)
        inputs, outputs = data["input_features"], data["output_features"]
        cameras = tuple(
            name
            for name, feature in inputs.items()
            if feature["type"] == "VISUAL" and not name.startswith(_EMPTY_CAMERA)
        )
        state_dim = inputs[_STATE]["shape"][0] if _STATE in inputs else 0
        action_dim = outputs[_ACTION]["shape"][0]
        modes: set[NormalizationMode] = {
            _MODES[data["normalization_mapping"][key]] for key in ("STATE", "ACTION")
        }
        height, width = data.get("image_resolution", (224, 224))
        max_dims = {data.get("max_state_dim", 32), data.get("max_action_dim", 32)}
        horizon = data.get("chunk_size", 50)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{error!r} is missing or not known; give the recipe yourself") from error
    if len(modes) != 1 or len(max_dims) != 1 or height != width:
        raise CheckpointError(
            "state and action differ in normalisation or padded width, or images are not square; "
            "the pi models have one of each"
        )
    if data.get("time_sampling_beta_beta", 1.0) != 1.0:
        raise CheckpointError("time_sampling_beta_beta must be 1.0; flow times are Beta(alpha, 1)")
    mode = modes.pop()
    config = replace(
        base,
        kind=kind,
        vision=replace(base.vision, image_size=height),
        action_dim=max_dims.pop(),
        horizon=horizon,
        max_prompt_tokens=data.get("tokenizer_max_length", 48 if kind == "pi0" else 200),
        time_min_period=data.get("min_period", 4e-3),
        time_max_period=data.get("max_period", 4.0),
        time_beta_alpha=data.get("time_sampling_beta_alpha", 1.5),
        time_scale=data.get("time_sampling_scale", 0.999),
        time_offset=data.get("time_sampling_offset", 0.001),
    )
    settings = PiSettings(
        _PROMPTS[kind],
        cameras,
        state_dim,
        action_dim,
        mode,
        normalization_epsilon=LEROBOT_EPSILON[mode],
        resize="bilinear",
    )
    return PiRecipe(config, settings)


def _built(data: dict[str, Any]) -> PiConfig:
    """The sizes that LeRobot builds. Raises KeyError for a variant that it does not know."""
    prefix = _VARIANTS[data.get("paligemma_variant", "gemma_2b")]
    expert = _VARIANTS[data.get("action_expert_variant", "gemma_300m")]
    return PiConfig(
        prefix_width=prefix[0],
        prefix_mlp_width=prefix[1],
        expert_width=expert[0],
        expert_mlp_width=expert[1],
    )


def _variant(width: int, mlp_width: int, config: PiConfig) -> str:
    """LeRobot's name of these sizes. One that it does not know is refused by it; of sizes that only look like its own
    it would build its own, fail to load the weights, and act with random ones."""
    published, any_size = PiConfig(), {"image_size": 0}
    same = ("vocab_size", "depth", "num_heads", "num_kv_heads", "head_dim")
    is_built = all(getattr(config, name) == getattr(published, name) for name in same)
    if is_built and vars(config.vision) | any_size == vars(published.vision) | any_size:
        for name, sizes in _VARIANTS.items():
            if sizes == (width, mlp_width):
                return name
    return f"chunkrl_{width}x{mlp_width}x{config.depth}"


def _features(recipe: PiRecipe) -> tuple[dict[str, Any], dict[str, Any]]:
    settings, size = recipe.settings, recipe.config.vision.image_size
    inputs: dict[str, Any] = {
        feature_key(camera): {"type": "VISUAL", "shape": [3, size, size]} for camera in settings.cameras
    }
    if settings.state_dim:
        inputs[_STATE] = {"type": "STATE", "shape": [settings.state_dim]}
    return inputs, {_ACTION: {"type": "ACTION", "shape": [settings.action_dim]}}


def _norm_map(recipe: PiRecipe) -> dict[str, str]:
    mode = recipe.settings.normalization.upper()
    return {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}


def write_config(folder: Path, recipe: PiRecipe, dtype: str) -> None:
    """config.json for LeRobot."""
    config = recipe.config
    inputs, outputs = _features(recipe)
    data: dict[str, Any] = {
        "type": config.kind,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": _norm_map(recipe),
        "device": "cpu",
        "paligemma_variant": _variant(config.prefix_width, config.prefix_mlp_width, config),
        "action_expert_variant": _variant(config.expert_width, config.expert_mlp_width, config),
        "dtype": dtype,
        "chunk_size": config.horizon,
        "n_action_steps": config.horizon,
        "max_state_dim": config.action_dim,
        "max_action_dim": config.action_dim,
        "time_sampling_beta_alpha": config.time_beta_alpha,
        "time_sampling_beta_beta": 1.0,
        "time_sampling_scale": config.time_scale,
        "time_sampling_offset": config.time_offset,
        "min_period": config.time_min_period,
        "max_period": config.time_max_period,
        "image_resolution": [config.vision.image_size] * 2,
        "tokenizer_max_length": config.max_prompt_tokens,
    }
    if any(recipe.settings.delta_actions):
        data["use_relative_actions"] = True  # LeRobot before 0.5.1 cannot, and refuses the key
    (folder / CONFIG_FILE).write_text(json.dumps(data, indent=2), encoding="utf-8")


def as_lerobot(recipe: PiRecipe) -> PiRecipe:
    """The recipe as stock LeRobot (0.5.1 and later) runs what `write_config` and `write_processors` say of it."""
    settings, kind = recipe.settings, recipe.config.kind
    with_state = settings.prompt_format != "pi05_no_state" or settings.state_dim > 0
    return replace(
        recipe,
        settings=replace(
            settings,
            cameras=tuple(feature_key(camera) for camera in settings.cameras),
            prompt_format=_PROMPTS[kind] if with_state else settings.prompt_format,
            normalization_epsilon=LEROBOT_EPSILON[settings.normalization],
            resize="bilinear",
            delta_actions=_trimmed(settings.delta_actions),
            overlong_prompt="error",
            condition="",
            condition_place="end",
            guidance=1.0,
            guidance_from="",
            conditions=(),
            data_resize=None,
            fps=None,
        ),
    )


def differences(recipe: PiRecipe) -> list[str]:
    """What stock LeRobot would do otherwise than the recipe says, in words; empty where it runs it as it is."""
    settings, kind, size = recipe.settings, recipe.config.kind, recipe.config.vision.image_size
    found = []
    if not settings.cameras:
        found.append("takes no policy without a camera")
    if len({feature_key(camera) for camera in settings.cameras}) < len(settings.cameras):
        found.append(f"cannot tell the cameras {', '.join(settings.cameras)} apart")
    pads = settings.prompt_format == "pi05_padded_state"
    if pads and settings.state_dim < recipe.config.action_dim:
        found.append("writes the state without padding into the prompt (0.5.0 and later)")
    elif not pads and settings.prompt_format != _PROMPTS[kind]:
        found.append(f"writes '{_PROMPTS[kind]}' prompts and not '{settings.prompt_format}'")
    bilinear = Resize(size, size, antialias=False)
    if settings.resize == "lerobot_0.4":
        found.append("fills up images that are not square with black, and not as LeRobot 0.4")
    if (resize := settings.data_resize) is not None and resize != bilinear:
        found.append(f"does not resize images to {resize.name} first, as they were in training")
    elif settings.resize == "antialias" and resize is None:
        found.append(f"resizes images without antialiasing, unless they come as {size} x {size} pixels")
    if any(settings.delta_actions):
        found.append(
            "adds to each relative action the newest state and not that of the chunk's start, but in RTC or with "
            "n_action_steps 1"
        )
        if settings.state_dim < settings.action_dim:
            found.append(
                f"cannot add a state of {settings.state_dim} values to {settings.action_dim} actions"
            )
    if settings.condition and (settings.condition_place == "task" or kind == "pi0"):
        found.append(f"asks for no condition unless the task string ends with ', {settings.condition}'")
    elif settings.condition:
        found.append(f"cannot write ', {settings.condition}' after the state")
    if settings.condition and settings.guidance != 1:
        found.append("has no classifier-free guidance")
    return found


def write_processors(folder: Path, recipe: PiRecipe, stats: NormStats) -> None:
    """The two pipelines of LeRobot with the statistics."""
    inputs, outputs = _features(recipe)
    write_pipelines(folder, recipe, stats, inputs, outputs, _norm_map(recipe))
