"""LeRobot's two processor pipelines around a pi model: `policy_preprocessor.json` and `policy_postprocessor.json`.

Releases of LeRobot do different things, and no file names the release: 0.4 pads the state in pi0.5's prompt with
zeros, 0.5.0 and later do not. From 0.5.1 on a pair of steps makes actions relative to the state, and it is there in
folders whose actions are absolute too, so that it tells these folders from those of 0.4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from chunkrl.errors import CheckpointError
from chunkrl.files.regular_files import is_there
from chunkrl.models.pi.config import PiRecipe
from chunkrl.models.pi.norm_stats import (
    LEROBOT_EPSILON,
    LEROBOT_NORMALIZER_STEP,
    NormStats,
    read_steps,
)
from chunkrl.models.plugin_files import POSTPROCESSOR, PREPROCESSOR

TOKENIZER_NAME = "google/paligemma-3b-pt-224"
_RELATIVE, _ABSOLUTE, _TOKENIZER = (
    "relative_actions_processor",
    "absolute_actions_processor",
    "tokenizer_processor",
)
_UNNORMALIZER_STEP = "unnormalizer_processor"
_ABSOLUTE_NAME = "absolute"  # in the names of action dimensions that are not relative to the state
_CURE = "copy the folder again"


@dataclass(frozen=True)
class Pipelines:
    """What a folder's pipelines do.

    relative: per action dimension, whether the model's action is relative to the state; None: the folder is of a
    release that cannot (0.5.0 and before). tokenizer: what the file says of its name and of the longest prompt.
    state_files: whether each normaliser step has its statistics; without them LeRobot passes values unnormalised, and
    says nothing.
    """

    relative: tuple[bool, ...] | None
    tokenizer: tuple[Any, Any] | None
    state_files: tuple[bool, ...]


def relative_mask(enabled: Any, names: Any, excluded: Any, action_dim: int) -> tuple[bool, ...]:
    """Which dimensions LeRobot makes relative: all but those whose name holds an excluded word, in any case; () where
    it makes none so.

    Raises:
        CheckpointError: what a file says is no bool, or no list of names.
    """
    lists = [value for value in (names, excluded) if value is not None]
    if not isinstance(enabled, bool) or not all(
        isinstance(value, list) and all(isinstance(name, str) for name in value) for value in lists
    ):
        raise CheckpointError(
            f"relative actions are {enabled!r}, of the names {names!r} without {excluded!r}: {_CURE}"
        )
    words = [word.lower() for word in excluded or () if word]
    if not enabled:
        return ()
    if not words or names is None:
        return (True,) * action_dim
    mask = [not any(word in name.lower() for word in words) for name in names[:action_dim]]
    return tuple(mask) + (True,) * (action_dim - len(mask))


def read_pipelines(folder: Path, action_dim: int) -> Pipelines | None:
    """The folder's pipelines; None where it has none.

    Raises:
        CheckpointError: a file cannot be read, or only one of the pair makes actions relative.
    """
    if not is_there(folder / PREPROCESSOR, CheckpointError, _CURE):
        return None
    before = read_steps(folder / PREPROCESSOR)
    after_file = folder / POSTPROCESSOR
    after = read_steps(after_file) if is_there(after_file, CheckpointError, _CURE) else []
    relative, absolute = _first(before, _RELATIVE), _first(after, _ABSOLUTE)
    mask = None
    if relative is not None:
        names, excluded = relative.get("action_names"), relative.get("exclude_joints")
        mask = relative_mask(relative.get("enabled", False), names, excluded, action_dim)
    if bool(mask) != bool(absolute and absolute.get("enabled")):
        raise CheckpointError(
            f"{folder}: one of {PREPROCESSOR} and {POSTPROCESSOR} takes actions for relative to the "
            f"state and the other does not: {_CURE}, both of them"
        )
    tokenizer = _first(before, _TOKENIZER)
    return Pipelines(
        mask,
        None if tokenizer is None else (tokenizer.get("tokenizer_name"), tokenizer.get("max_length")),
        tuple(
            "state_file" in step
            for step in (*before, *after)
            if step.get("registry_name") in (LEROBOT_NORMALIZER_STEP, _UNNORMALIZER_STEP)
        ),
    )


def _first(steps: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """The configuration of the first step of this name."""
    for step in steps:
        if step.get("registry_name") == name:
            config = step.get("config")
            return config if isinstance(config, Mapping) else {}
    return None


def lerobot_stats(recipe: PiRecipe, stats: NormStats) -> NormStats:
    """The statistics with which LeRobot's arithmetic, whose epsilon is fixed, is the recipe's."""
    settings = recipe.settings
    more = settings.normalization_epsilon - LEROBOT_EPSILON[settings.normalization]
    widened = {"mean_std": "std", "quantiles": "q99"}.get(settings.normalization)

    def adapted(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value + more if key == widened else value for key, value in values.items()}

    return NormStats(adapted(stats.state), adapted(stats.action))


def write_pipelines(
    folder: Path,
    recipe: PiRecipe,
    stats: NormStats,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    norm_map: Mapping[str, str],
) -> None:
    """Both files and their statistics, for LeRobot. inputs, outputs: features as in its config.json."""
    settings, adapted = recipe.settings, lerobot_stats(recipe, stats)
    tensors = {
        f"{feature}.{key}": value.cpu().contiguous()
        for feature, values in (("observation.state", adapted.state), ("action", adapted.action))
        for key, value in values.items()
    }
    norm = {"eps": 1e-8, "norm_map": dict(norm_map)}
    rename = _step("rename_observations_processor", rename_map={})
    batch = _step("to_batch_processor")
    device = _step("device_processor", device="cpu", float_dtype=None)
    tokenizer = _step(
        _TOKENIZER,
        max_length=recipe.config.max_prompt_tokens,
        task_key="task",
        padding_side="right",
        padding="max_length",
        truncation=True,
        tokenizer_name=TOKENIZER_NAME,
    )
    normalizer = _step(LEROBOT_NORMALIZER_STEP, **norm, features={**inputs, **outputs})
    relative, absolute = _relative_steps(settings.delta_actions, settings.action_dim)
    if recipe.config.kind == "pi0":
        to_relative = [relative] if any(settings.delta_actions) else []
        newline = _step("pi0_new_line_processor")
        before = [rename, batch, newline, tokenizer, device, *to_relative, normalizer]
    else:
        # the pair of steps says that the folder is of LeRobot 0.5.1 or later; 0.4 has no such step
        to_relative = [] if settings.prompt_format == "pi05_padded_state" else [relative]
        state = _step("pi05_prepare_state_tokenizer_processor_step")
        before = [rename, batch, *to_relative, normalizer, state, tokenizer, device]
    after = [
        _step(_UNNORMALIZER_STEP, **norm, features=dict(outputs)),
        *([absolute] if to_relative else []),
        device,
    ]
    _write_pipeline(folder, PREPROCESSOR, before, tensors)
    _write_pipeline(folder, POSTPROCESSOR, after, tensors)


def _step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}


def _relative_steps(delta: Sequence[bool], action_dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pair: LeRobot names dimensions, and leaves out those whose names hold an excluded word."""
    enabled = any(delta)
    mask = (*delta, *[False] * (action_dim - len(delta)))
    names = [f"{'relative' if is_relative else _ABSOLUTE_NAME}_{i}" for i, is_relative in enumerate(mask)]
    relative = _step(
        _RELATIVE,
        enabled=enabled,
        exclude_joints=[_ABSOLUTE_NAME] if enabled and not all(mask) else [],
        action_names=names if enabled else None,
    )
    return relative, _step(_ABSOLUTE, enabled=enabled)


def _write_pipeline(
    folder: Path, file: str, steps: Sequence[dict[str, Any]], tensors: Mapping[str, Tensor]
) -> None:
    name = file.removesuffix(".json")
    written = []
    for index, step in enumerate(steps):
        registry_name = step["registry_name"]
        has_state = bool(tensors) and registry_name in (LEROBOT_NORMALIZER_STEP, _UNNORMALIZER_STEP)
        state_file = f"{name}_step_{index}_{registry_name}.safetensors"
        if has_state:
            save_file({key: value.to(torch.float64) for key, value in tensors.items()}, folder / state_file)
        written.append({**step, "state_file": state_file} if has_state else step)
    (folder / file).write_text(json.dumps({"name": name, "steps": written}, indent=2), encoding="utf-8")
