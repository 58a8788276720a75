"""The families of policies, by the kind of a run's policy and by a saved policy's folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.models.config import PolicySettings
from chunkrl.policies.family import PolicyFamily
from chunkrl.policies.pi import PiFamily
from chunkrl.policies.small import SmallFamily
from chunkrl.suggest import did_you_mean

FAMILIES: list[PolicyFamily] = [SmallFamily(), PiFamily()]


def kinds() -> tuple[str, ...]:
    """What --policy.kind can be."""
    return tuple(kind for family in FAMILIES for kind in family.kinds)


def family_of(kind: str) -> PolicyFamily:
    """The family of a kind. Raises ChunkRLError where there is none (says the nearest)."""
    found = next((family for family in FAMILIES if kind in family.kinds), None)
    if found is None:
        near = did_you_mean(str(kind), kinds())
        raise ChunkRLError(f"policy.kind is {kind!r}; use one of {', '.join(kinds())}{near}")
    return found


def settings_of(kind: str) -> type[PolicySettings]:
    """The class of `policy` in the settings of a run. Raises as `family_of`."""
    return family_of(kind).settings


def family_in(folder: Path) -> PolicyFamily:
    """The family of a saved policy.

    Raises:
        CheckpointError: the folder holds none (says what to give).
    """
    found = next((family for family in FAMILIES if family.matches(folder, kinds())), None)
    if found is None:
        if (folder / "policy").is_dir():
            raise CheckpointError(f"{folder} is a run, not a policy: give its policy, {folder / 'policy'}")
        raise CheckpointError(
            f"{folder} holds no policy: give a run's `policy` folder, or a pi checkpoint's (docs/pi0.md)"
        )
    return found


def critic_settings() -> tuple[str, ...]:
    """Settings of V and Q that a family has for itself."""
    return tuple(path for family in FAMILIES for path in family.critic_settings)


def kinds_that_read(paths: Collection[str]) -> list[str]:
    """The kinds whose family reads all these settings for them."""
    return [
        kind
        for family in FAMILIES
        for kind in family.kinds
        if all(family.reads_setting(path, kind) for path in paths)
    ]


def unread(kind: str, changed: Sequence[str]) -> list[str]:
    """The settings, of those that differ from their defaults, that other kinds read and this one does not."""
    return [path for path in changed if (able := kinds_that_read([path])) and kind not in able]
