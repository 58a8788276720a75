"""Small networks over action chunks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chunkrl.models.critic import Critic
    from chunkrl.models.policy import PolicyNetwork
    from chunkrl.models.value import ValueNetwork

__all__ = ["Critic", "PolicyNetwork", "ValueNetwork"]
_MODULES = {"Critic": "critic", "PolicyNetwork": "policy", "ValueNetwork": "value"}


def __getattr__(name: str) -> Any:
    # Late, because torch takes seconds to import: settings of networks need none of it.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
