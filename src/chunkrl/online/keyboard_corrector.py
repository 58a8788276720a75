"""A person who corrects by keyboard: keys are motions while the human acts, on a terminal without a display too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.online.keys import KeySource

# action entry and sign; no key of `chunkrl.online.intervention.Command` among them
MOTIONS: Mapping[str, tuple[int, float]] = {
    **{"w": (0, 1.0), "s": (0, -1.0), "a": (1, 1.0), "d": (1, -1.0), "e": (2, 1.0), "c": (2, -1.0)},
    **{"p": (3, 1.0), "o": (3, -1.0)},
}
MOTIONS_HELP = "w/s, a/d, e/c move, p/o close and open"


class KeyboardCorrector:
    """`Corrector` with the keys of `source`, which the actor gets from `keys` without the motions.

    A terminal tells of no key's release, so a key acts for `hold_steps` steps; a held key repeats. Several keys add
    up, opposite ones cancel.
    """

    def __init__(self, source: KeySource, action_dim: int, hold_steps: int = 1) -> None:
        """source: is used and closed from here. hold_steps: at least 1."""
        if hold_steps < 1:
            raise ChunkRLError(f"hold_steps is {hold_steps}; a key acts for at least 1 step")
        if action_dim <= max(entry for entry, _ in MOTIONS.values()):
            raise ChunkRLError(f"keys give motions of 4 values, the action has {action_dim}")
        self._source, self._action_dim, self._hold_steps = source, action_dim, hold_steps
        self._left: dict[str, int] = {}
        self.keys: KeySource = _Others(self)

    def poll(self) -> str:
        """Takes the motions out of the keys pressed and returns the others."""
        others = ""
        for key in self._source.poll():
            if key.lower() in MOTIONS:
                self._left[key.lower()] = self._hold_steps
            else:
                others += key
        return others

    def close_source(self) -> None:
        """Gives the keys back."""
        self._source.close()

    def begin_episode(self, step: EnvStep) -> None:
        """No key is down."""
        self._left.clear()

    def wants_control(self, step: EnvStep, human: bool) -> bool | None:
        """Keys decide."""
        return None

    def follow(self, step: EnvStep) -> None:
        """Motions pressed while the policy acts mean nothing."""
        self._left.clear()

    def take(self, step: EnvStep) -> None:
        """The human acts from here."""
        self._left.clear()

    def act(self, step: EnvStep) -> np.ndarray:
        """The sum of the motions whose keys are down, float32 [A]."""
        action = np.zeros(self._action_dim, dtype=np.float32)
        for key in list(self._left):
            entry, sign = MOTIONS[key]
            action[entry] += sign
            self._left[key] -= 1
            if not self._left[key]:
                del self._left[key]
        return action

    def release(self, step: EnvStep) -> None:
        """The policy acts from here."""
        self._left.clear()

    def close(self) -> None:
        """The actor closes `keys`."""


class _Others:
    """The keys of a corrector's source that are no motions."""

    def __init__(self, corrector: KeyboardCorrector) -> None:
        self._corrector = corrector

    def poll(self) -> str:
        """See `KeySource`."""
        return self._corrector.poll()

    def close(self) -> None:
        """See `KeySource`."""
        self._corrector.close_source()
