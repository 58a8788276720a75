"""A native folder read again as stock LeRobot reads it, and compared with the policy that was written.

Stock LeRobot says nothing where a normaliser has no statistics, a tensor is missing, or the whole file does not load:
it acts all the same. So what was written is looked at from its side, by its files alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chunkrl.errors import CheckpointError
from chunkrl.models.pi import lerobot_format, norm_stats
from chunkrl.models.pi.config import PiRecipe
from chunkrl.models.pi.lerobot_pipelines import TOKENIZER_NAME, read_pipelines
from chunkrl.models.pi.norm_stats import NormStats, is_constant, normalize, unnormalize
from chunkrl.models.pi.prompt import build_prompt
from chunkrl.models.plugin_files import CONFIG_FILE

_BINS = 256
_TOLERANCE = 1e-5  # of an action's range
_ROUNDING = 1e-6  # of its size: LeRobot computes in float32


def check_export(folder: Path, recipe: PiRecipe, stats: NormStats) -> list[str]:
    """What stock LeRobot would do otherwise with these statistics, in words: what `lerobot_format.differences` says
    holds for any.

    Settings, statistics, prompts of states all over their range, and a chunk of actions are compared; the weights are
    those of the manifest.

    Raises:
        CheckpointError: the folder's files do not say what was written.
    """
    if recipe.settings.state_dim == 0 or not recipe.settings.cameras:
        return []  # stock LeRobot refuses these
    pads = recipe.settings.prompt_format == "pi05_padded_state"
    found = lerobot_format.read_recipe(folder / CONFIG_FILE, "pi05_state" if pads else None, recipe.config)
    expected = lerobot_format.as_lerobot(recipe)
    if found != expected:
        raise CheckpointError(f"{folder}: LeRobot would read {_told(found, expected)}: please report it")
    _check_pipelines(folder, recipe)
    read = norm_stats.find_lerobot(folder)
    assert read is not None
    return _different_states(expected, recipe, stats, read) + _different_actions(
        expected, recipe, stats, read
    )


def _told(found: PiRecipe, expected: PiRecipe) -> str:
    for part in ("config", "settings"):
        one, other = vars(getattr(found, part)), vars(getattr(expected, part))
        for name, value in one.items():
            if value != other[name]:
                return f"{name} {value!r} where {other[name]!r} was written"
    return "what was written"


def _check_pipelines(folder: Path, recipe: PiRecipe) -> None:
    pipelines = read_pipelines(folder, recipe.settings.action_dim)
    if pipelines is None or len(pipelines.state_files) != 2 or not all(pipelines.state_files):
        raise CheckpointError(
            f"{folder}: a normaliser without statistics, which LeRobot passes over in silence"
        )
    if pipelines.tokenizer != (TOKENIZER_NAME, recipe.config.max_prompt_tokens):
        raise CheckpointError(f"{folder}: LeRobot would tokenize with {pipelines.tokenizer}")


def _different_states(lerobot: PiRecipe, recipe: PiRecipe, stats: NormStats, read: NormStats) -> list[str]:
    """Dimensions of the state that come out otherwise, in the prompt's bins (pi0.5) or as numbers (pi0)."""
    settings = recipe.settings
    mode, width = settings.normalization, settings.state_dim
    centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * 2 / _BINS - 1
    states = unnormalize(
        centres[:, None].expand(-1, width), stats.state, mode, settings.normalization_epsilon
    ).float()
    constant = is_constant(stats.state, mode, width)
    if bool(constant.any()):
        value = stats.state["mean" if mode == "mean_std" else "q01"][:width].float()
        states = torch.where(constant, value, states)
    ours = normalize(states, stats.state, mode, settings.normalization_epsilon)
    theirs = normalize(states, read.state, mode, lerobot.settings.normalization_epsilon)
    if recipe.config.kind == "pi0":
        differ = ((ours - theirs).abs() > _TOLERANCE * (1 + ours.abs())).any(dim=0)
        what = "normalises the state"
    else:
        differ = torch.stack([_bins(ours[:, i]) != _bins(theirs[:, i]) for i in range(width)]).any(dim=1)
        what = "writes the state into the prompt"
    return _in_words(what, differ, "its float32 statistics do not tell them apart")


def _bins(values: Tensor) -> Tensor:
    """The prompt's numbers for each of these values."""
    prompt: Any = build_prompt("pi05_state", "x", values)
    return torch.tensor([int(word) for word in prompt.tail.split(";")[0].split()[2:]])


def _different_actions(lerobot: PiRecipe, recipe: PiRecipe, stats: NormStats, read: NormStats) -> list[str]:
    """Dimensions of a chunk that comes out otherwise."""
    settings = recipe.settings
    mode, width = settings.normalization, settings.action_dim
    chunk = torch.linspace(-1, 1, recipe.config.horizon + 1, dtype=torch.float64)[:, None].expand(-1, width)
    ours = unnormalize(chunk, stats.action, mode, settings.normalization_epsilon)
    theirs = unnormalize(chunk, read.action, mode, lerobot.settings.normalization_epsilon).float()
    scale = _TOLERANCE * (ours.amax(dim=0) - ours.amin(dim=0)) + _ROUNDING * (1 + ours.abs().amax(dim=0))
    differ = ((ours - theirs).abs() > scale).any(dim=0)
    return _in_words("gives actions", differ, "its statistics are float32")


def _in_words(what: str, differ: Tensor, why: str) -> list[str]:
    if not bool(differ.any()):
        return []
    numbers = ", ".join(str(i) for i in differ.nonzero().flatten().tolist())
    return [f"{what} otherwise in dimensions {numbers}: {why}"]
