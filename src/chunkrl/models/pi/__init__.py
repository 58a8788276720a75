"""pi0 and pi0.5 in plain PyTorch, open to every published checkpoint layout."""

from chunkrl.models.pi.checkpoint import find_recipe, inspect_pretrained, load_pretrained, save_pretrained
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
