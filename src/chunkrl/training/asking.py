"""What a loaded policy is asked for: condition, guidance and steps of a pi policy; one place for every command."""

from __future__ import annotations

from typing import Any, Protocol

from chunkrl.errors import ChunkRLError
from chunkrl.models.pi.actor import NO_Q, PiActor
from chunkrl.training.config import ActionMode
from chunkrl.training.policy_io import ChunkPolicy

_FLAGS = ("condition", "guidance", "num_steps")


class Asked(Protocol):
    """Settings of a command that makes a policy act; None: what the policy was saved with."""

    @property
    def policy(self) -> str:
        """Its folder, for messages."""
        ...

    @property
    def mode(self) -> ActionMode:
        """How it acts."""
        ...

    @property
    def condition(self) -> str | None:
        """Of the prompt."""
        ...

    @property
    def guidance(self) -> float | None:
        """Towards the condition."""
        ...

    @property
    def num_steps(self) -> int | None:
        """Euler steps."""
        ...


def ask_for(policy: ChunkPolicy | PiActor, asked: Asked) -> dict[str, Any]:
    """Sets what a pi policy is asked for, and returns it: condition, guidance, num_steps (None each for a small one).

    Raises:
        ChunkRLError: a small policy is asked for such things, or a pi policy for what it was not trained with.
    """
    if not isinstance(policy, PiActor):
        given = [f"--{name.replace('_', '-')}" for name in _FLAGS if getattr(asked, name) is not None]
        if given:
            raise ChunkRLError(
                f"{' and '.join(given)} are for pi policies, and {asked.policy} is a small one: leave them out"
            )
        return dict.fromkeys(_FLAGS)
    if asked.mode == "best_of_n" and policy.q is None:
        raise ChunkRLError(NO_Q)
    policy.ask(asked.condition, asked.guidance, asked.num_steps)
    return {name: getattr(policy, name) for name in _FLAGS}
