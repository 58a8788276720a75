"""Settings that had another name in earlier releases: their files still load, and their flags say the new name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

# by the record's class, or one that it inherits from: {the name of before: the name now}
RENAMED: Mapping[str, Mapping[str, str]] = {
    "ActorCommand": {"num_steps": "flow_steps", "n_action_steps": "exec_steps"},  # 2026-11
    "CollectConfig": {"policy_mode": "mode"},  # 2026-11
    "EvaluateConfig": {"num_steps": "flow_steps"},  # 2026-11
    "EvaluationSettings": {"num_steps": "flow_steps"},  # 2026-11
    "PiChunkConfig": {"num_steps": "flow_steps"},  # 2026-11
    "TrainConfig": {"critic_updates": "value_updates_per_update"},  # 2026-11
    "ValueFit": {"num_steps": "n_step"},  # 2026-11
}


def current_names(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON values of a record, those of its parts too, by the names that its fields have now.

    A value under both names keeps the old one, which is then an unknown key.
    """
    names = _names(cls)
    taken = {
        name if names.get(name, name) in values else names.get(name, name): value
        for name, value in values.items()
    }
    if not any(isinstance(value, dict) for value in taken.values()):
        return taken
    kinds = get_type_hints(cls)
    for field in fields(cls):
        value = taken.get(field.name)
        part = next((k for k in (kinds[field.name], *get_args(kinds[field.name])) if _is_record(k)), None)
        if isinstance(value, dict) and part is not None:
            taken[field.name] = current_names(part, value)
    return taken


def name_now(cls: type[Any], old: str) -> str | None:
    """What a record's field that was called `old` is called now; None where none was."""
    return _names(cls).get(old)


def _names(cls: type[Any]) -> dict[str, str]:
    """All of a record's table: those of the classes that it inherits from, too."""
    return {old: new for base in cls.__mro__ for old, new in RENAMED.get(base.__name__, {}).items()}


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)
