"""LeRobot's policy folder around the weights: config.json and the two processor pipelines, read and written.

LeRobot 0.4 and later: `config.json` (its `type` names the policy), `policy_preprocessor.json` and
`policy_postprocessor.json`, whose normaliser steps keep their statistics in a safetensors file each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

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
    VisionConfig,
)
from chunkrl.models.pi.norm_stats import LEROBOT_PREPROCESSOR, NormStats

CONFIG_FILE = "config.json"
_POSTPROCESSOR = "policy_postprocessor.json"
_IMAGES, _STATE, _ACTION = "observation.images.", "observation.state", "action"
_EMPTY_CAMERA = _IMAGES + "empty_camera_"
_TOKENIZER_NAME = "google/paligemma-3b-pt-224"
# (width, MLP width) of the variants that LeRobot can build; all have 18 layers.
_VARIANTS = {"gemma_2b": (2048, 16384), "gemma_300m": (1024, 4096)}
_MODES: dict[str, NormalizationMode] = {
    "MEAN_STD": "mean_std",
    "QUANTILES": "quantiles",
    "IDENTITY": "identity",
}
_PROMPTS: dict[ModelKind, PromptFormat] = {"pi0": "pi0", "pi05": "pi05_padded_state"}


def read_config(file: Path) -> dict[str, Any]:
    """config.json as a dict (openpi's PyTorch folders have one too, without `type`).

    Raises:
        CheckpointError: it is not JSON.
    """
    return read_json(file, dict, CheckpointError, "download it again", nan=True)


def read_recipe(file: Path) -> PiRecipe:
    """The recipe that LeRobot's config.json describes, run as LeRobot runs it.

    Raises:
        CheckpointError: another policy type, or a setting that the pi models do not have; names file and key.
    """
    data = read_config(file)
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in _PROMPTS:
        raise CheckpointError(f"{file} is of type '{kind}'; this loads pi0 and pi05")
    try:
        return _recipe(data, kind)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _recipe(data: dict[str, Any], kind: ModelKind) -> PiRecipe:
    try:
        prefix = _VARIANTS[data.get("paligemma_variant", "gemma_2b")]
        expert = _VARIANTS[data.get("action_expert_variant", "gemma_300m")]
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
    config = PiConfig(
        kind=kind,
        vision=VisionConfig(image_size=height),
        prefix_width=prefix[0],
        prefix_mlp_width=prefix[1],
        expert_width=expert[0],
        expert_mlp_width=expert[1],
        action_dim=max_dims.pop(),
        horizon=horizon,
        max_prompt_tokens=data.get("tokenizer_max_length", 48 if kind == "pi0" else 200),
        time_min_period=data.get("min_period", 4e-3),
        time_max_period=data.get("max_period", 4.0),
        time_beta_alpha=data.get("time_sampling_beta_alpha", 1.5),
        time_scale=data.get("time_sampling_scale", 0.999),
        time_offset=data.get("time_sampling_offset", 0.001),
    )
    epsilon = 1e-8 if mode == "mean_std" else 0.0
    settings = PiSettings(
        _PROMPTS[kind], cameras, state_dim, action_dim, mode, normalization_epsilon=epsilon, resize="bilinear"
    )
    return PiRecipe(config, settings)


def _variant(width: int, mlp_width: int, config: PiConfig) -> str:
    for name, sizes in _VARIANTS.items():
        if sizes == (width, mlp_width) and config.depth == 18:
            return name
    # LeRobot refuses a variant it does not know, which is right: it cannot build these sizes.
    return f"chunkrl_{width}x{mlp_width}x{config.depth}"


def _feature_key(camera: str) -> str:
    return camera if camera.startswith(_IMAGES) else _IMAGES + camera


def _features(recipe: PiRecipe) -> tuple[dict[str, Any], dict[str, Any]]:
    settings, size = recipe.settings, recipe.config.vision.image_size
    inputs: dict[str, Any] = {
        _feature_key(camera): {"type": "VISUAL", "shape": [3, size, size]} for camera in settings.cameras
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
    data = {
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
    (folder / CONFIG_FILE).write_text(json.dumps(data, indent=2))


def _own_resize(recipe: PiRecipe) -> str:
    """The name of the `Resize` that does what the model does to a picture of any size."""
    size = recipe.config.vision.image_size
    return Resize(size, size, antialias=recipe.settings.resize == "antialias").name


def differences(recipe: PiRecipe) -> list[str]:
    """What stock LeRobot would do otherwise than the recipe says, in words; empty where it runs it as it is."""
    settings, kind = recipe.settings, recipe.config.kind
    found = []
    if not settings.cameras:
        found.append("takes no policy without a camera")
    if settings.prompt_format != _PROMPTS[kind]:
        found.append(f"writes '{_PROMPTS[kind]}' prompts and not '{settings.prompt_format}'")
    if (resize := settings.data_resize) is not None and resize.name != _own_resize(recipe):
        found.append(f"does not resize pictures to {resize.name} first, as they were in training")
    if any(settings.delta_actions):
        found.append("takes the actions for absolute ones, but they are relative to the state")
    if settings.condition and (settings.condition_place == "task" or kind == "pi0"):
        found.append(f"asks for no condition unless the task string ends with ', {settings.condition}'")
    elif settings.condition:
        found.append(f"cannot write ', {settings.condition}' behind the state")
    if settings.condition and settings.guidance != 1:
        found.append("has no classifier-free guidance")
    return found


def write_processors(folder: Path, recipe: PiRecipe, stats: NormStats | None) -> None:
    """The two pipelines of LeRobot with the statistics in float64 (LeRobot casts, we keep every bit)."""
    inputs, outputs = _features(recipe)
    tensors: dict[str, Tensor] = {}
    if stats is not None:
        for feature, values in ((_STATE, stats.state), (_ACTION, stats.action)):
            tensors.update({f"{feature}.{key}": value.cpu().contiguous() for key, value in values.items()})
    norm = {"eps": 1e-8, "norm_map": _norm_map(recipe)}
    rename = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
    batch = {"registry_name": "to_batch_processor", "config": {}}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    tokenizer = {
        "registry_name": "tokenizer_processor",
        "config": {
            "max_length": recipe.config.max_prompt_tokens,
            "task_key": "task",
            "padding_side": "right",
            "padding": "max_length",
            "truncation": True,
            "tokenizer_name": _TOKENIZER_NAME,
        },
    }
    normalizer = {
        "registry_name": "normalizer_processor",
        "config": {**norm, "features": {**inputs, **outputs}},
    }
    if recipe.config.kind == "pi0":
        newline = {"registry_name": "pi0_new_line_processor", "config": {}}
        before = [rename, batch, newline, tokenizer, device, normalizer]
    else:
        state = {"registry_name": "pi05_prepare_state_tokenizer_processor_step", "config": {}}
        before = [rename, batch, normalizer, state, tokenizer, device]
    unnormalizer = {"registry_name": "unnormalizer_processor", "config": {**norm, "features": outputs}}
    _write_pipeline(folder, LEROBOT_PREPROCESSOR, before, tensors)
    _write_pipeline(folder, _POSTPROCESSOR, [unnormalizer, device], tensors)


def _write_pipeline(
    folder: Path, file: str, steps: list[dict[str, Any]], tensors: Mapping[str, Tensor]
) -> None:
    name = file.removesuffix(".json")
    written = []
    for index, step in enumerate(steps):
        registry_name = step["registry_name"]
        has_state = bool(tensors) and registry_name.endswith("normalizer_processor")
        state_file = f"{name}_step_{index}_{registry_name}.safetensors"
        if has_state:
            save_file(dict(tensors), folder / state_file)
        written.append({**step, "state_file": state_file} if has_state else step)
    (folder / file).write_text(json.dumps({"name": name, "steps": written}, indent=2))
