"""What a loaded policy is asked for: condition, guidance and steps of a pi policy; one place for every command."""

from __future__ import annotations

from typing import Any, Protocol

from chunkrl.algorithms.conditioning import conditions_beside
from chunkrl.errors import ChunkRLError
from chunkrl.models.pi.actor import NO_Q, PiActor
from chunkrl.models.pi.config import DEFAULT_NUM_STEPS
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
    settings = policy.policy.recipe.settings
    policy.condition = settings.condition if asked.condition is None else asked.condition
    policy.guidance = settings.guidance if asked.guidance is None else asked.guidance
    policy.num_steps = DEFAULT_NUM_STEPS if asked.num_steps is None else asked.num_steps
    known = conditions_beside(settings.condition)
    if policy.condition not in known:
        trained = "without any" if known == ("",) else f"with {', '.join(repr(c) for c in known if c)}"
        raise ChunkRLError(
            f"--condition {policy.condition!r} is not what {asked.policy} was trained with ({trained}): give one "
            'of these, or "" to ask for nothing'
        )
    if asked.guidance is not None and not policy.condition:
        raise ChunkRLError(
            "--guidance leads towards a condition, and the policy is asked for none: leave it out, or take a "
            "policy of --objective advantage_conditioned"
        )
    if policy.guidance < 0:
        raise ChunkRLError(f"guidance is {policy.guidance}; it must not be negative")
    return {name: getattr(policy, name) for name in _FLAGS}
