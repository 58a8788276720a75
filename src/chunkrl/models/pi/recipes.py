"""Recipes by name or from a file: what a folder of openpi's weights does not say of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chunkrl.errors import CheckpointError
from chunkrl.models.pi import config
from chunkrl.models.pi.config import PiRecipe

# Checkpoints whose name alone determines the recipe.
RECIPES: dict[str, Callable[[], PiRecipe]] = {
    "pi0_libero": config.pi0_libero,
    "pi05_libero": config.pi05_libero,
}
# These serve any robot, so the robot must be named too.
_BASES: dict[str, Callable[[tuple[str, ...], int, int], PiRecipe]] = {
    "pi0_base": config.pi0_base,
    "pi05_base": config.pi05_base,
}


def choose_recipe(
    name: str, cameras: tuple[str, ...] = (), state_dim: int = 0, action_dim: int = 0
) -> PiRecipe:
    """A recipe by its name, or from a JSON file like the `chunkrl_pi.json` that `save_pretrained` writes.

    Args:
        name: pi0_libero, pi05_libero, pi0_base, pi05_base or a file.
        cameras, state_dim, action_dim: of the robot, for the base models.

    Raises:
        CheckpointError: no such recipe or file, or a base model without its robot.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if name in _BASES:
        if not cameras or action_dim < 1 or state_dim < 1:
            raise CheckpointError(
                f"{name} serves any robot: give --cameras, --state-dim and --action-dim of yours "
                f"(now {list(cameras)}, {state_dim}, {action_dim})"
            )
        return _BASES[name](cameras, state_dim, action_dim)
    file = Path(name)
    if not file.is_file():
        known = ", ".join((*RECIPES, *_BASES))
        raise CheckpointError(f"recipe '{name}' is neither a file nor one of {known}")
    return PiRecipe.read(file)
