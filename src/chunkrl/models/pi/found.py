"""What is there of pi0 and pi0.5 on this machine, for `chunkrl doctor`: the tokenizer and checkpoints."""

from __future__ import annotations

from pathlib import Path

from chunkrl.errors import CheckpointError
from chunkrl.models.pi.checkpoint import find_layout, find_recipe
from chunkrl.models.pi.recipes import RECIPES
from chunkrl.models.pi.tokenizer import find_tokenizer


def tokenizer() -> str:
    """Where it is, or how to get it."""
    try:
        return str(find_tokenizer(None, None))
    except CheckpointError as error:
        return f"MISSING: {error}"


def _checkpoint(folder: Path) -> str:
    """What a folder of weights is, or why it cannot be loaded; no weight is read."""
    try:
        layout = find_layout(folder)
    except CheckpointError as error:
        return f"NOT A CHECKPOINT: {error}"
    try:
        recipe = RECIPES[folder.name]() if folder.name in RECIPES else find_recipe(folder)
    except CheckpointError as error:
        return f"{layout}; {error}"
    config, settings = recipe.config, recipe.settings
    return f"{layout}, {config.kind}, horizon {config.horizon}, prompt format {settings.prompt_format}"


def checkpoints(root: Path) -> list[str]:
    """One line a checkpoint in `root`, unfinished downloads included."""
    if not root.is_dir():
        return [f"none: no folder {root} (chunkrl download pi05_libero makes it)"]
    lines = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name.endswith(".partial"):
            name = folder.name.removeprefix(".").removesuffix(".partial")
            lines.append(f"{root / name}: NOT WHOLE: its download did not end; the same command goes on")
        elif not folder.name.startswith("."):
            lines.append(f"{folder}: {_checkpoint(folder)}")
    return lines or [f"none in {root} (chunkrl download pi05_libero)"]
