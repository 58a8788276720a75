"""pi0 and pi0.5 in plain PyTorch, open to every published checkpoint layout."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chunkrl.models.pi.checkpoint import (
        find_recipe,
        inspect_pretrained,
        load_pretrained,
        save_pretrained,
    )
    from chunkrl.models.pi.config import PiConfig, PiRecipe, PiSettings, VisionConfig
    from chunkrl.models.pi.flow import PiModel
    from chunkrl.models.pi.policy import PiPolicy

__all__ = [
    "PiConfig",
    "PiModel",
    "PiPolicy",
    "PiRecipe",
    "PiSettings",
    "VisionConfig",
    "find_recipe",
    "inspect_pretrained",
    "load_pretrained",
    "save_pretrained",
]
_MODULES = {
    **dict.fromkeys(
        ("find_recipe", "inspect_pretrained", "load_pretrained", "save_pretrained"), "checkpoint"
    ),
    **dict.fromkeys(("PiConfig", "PiRecipe", "PiSettings", "VisionConfig"), "config"),
    **{"PiModel": "flow", "PiPolicy": "policy"},
}


def __getattr__(name: str) -> Any:
    # Late, because torch takes seconds to import: settings of a policy need none of it.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
