"""The human in the loop: phases of an episode, the keys that change them, and who corrects the policy.

| key | while the robot acts | after the episode |
|-----|----------------------|-------------------|
| `5` | the human takes over, or gives back | |
| `1` | the episode ends as a success | it was a success |
| `0` | the episode ends as a failure | it was a failure |
| `2` | | what was recorded counts, and the next episode starts; after `r` the same one starts again |
| `r` | the episode ends and is recorded again | it is recorded again |
| `q` | the episode ends without a verdict, and the session too | the session ends; after `r` without the episode |

While the world is reset, or the learner waited for, `q` alone means something.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import numpy as np

from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.online.link.records import Outcome


class Phase(Enum):
    """waiting: for a person to start. held: an episode is asked for, and the learner waited for. resetting: it is
    about to begin. policy, human: who acts. ended: the episode is over and its outcome may still be changed."""

    WAITING = "waiting"
    HELD = "held"
    RESETTING = "resetting"
    POLICY = "policy"
    HUMAN = "human"
    ENDED = "ended"


class Command(Enum):
    """What a person may ask for."""

    INTERVENE = "5"
    SUCCESS = "1"
    FAILURE = "0"
    NEXT = "2"
    RERECORD = "r"
    QUIT = "q"


_OUTCOMES: dict[Command, Outcome] = {
    Command.SUCCESS: "success",
    Command.FAILURE: "failure",
    Command.RERECORD: "discarded",
}


class EpisodePhases:
    """The state machine over commands. What makes no sense in a phase is ignored: keys get pressed twice.

    Attributes:
        phase: the current one.
        outcome: of the episode that ended; None while one runs.
        num_interventions: how often the human took over in this episode.
        quit: the session is to end.
    """

    def __init__(self, can_intervene: bool) -> None:
        """can_intervene: there is somebody to take over; otherwise `5` is ignored."""
        self.phase = Phase.WAITING
        self.outcome: Outcome | None = None
        self.num_interventions = 0
        self.quit = False
        self._can_intervene = can_intervene

    @property
    def running(self) -> bool:
        """An episode is under way."""
        return self.phase in (Phase.POLICY, Phase.HUMAN)

    @property
    def hint(self) -> str:
        """The keys that mean something now, and what."""
        if self.running:
            take = "5 take over, " if self.phase is Phase.POLICY else "5 give back, "
            return (take if self._can_intervene else "") + "1 success, 0 failure, r again, q quit"
        if self.phase is Phase.ENDED:
            if self.outcome == "discarded":
                return "2 record again, 1 keep as success, 0 keep as failure, q quit without it"
            return "2 keep and next, 1 success, 0 failure, r again, q keep and quit"
        return "2 start, q quit" if self.phase is Phase.WAITING else "q quit"

    def hold(self) -> None:
        """An episode is asked for, and cannot begin yet."""
        self.phase = Phase.HELD

    def prepare(self) -> None:
        """The world is made ready for an episode."""
        assert not self.running, "the episode before is still under way"
        self.phase, self.outcome, self.num_interventions = Phase.RESETTING, None, 0

    def begin(self) -> None:
        """An episode starts, with the policy."""
        assert not self.running, "the episode before is still under way"
        self.phase, self.outcome, self.num_interventions = Phase.POLICY, None, 0

    def end(self, outcome: Outcome) -> None:
        """The running episode ends by itself: the environment or a time limit says so."""
        assert self.running, "no episode is under way"
        self.phase, self.outcome = Phase.ENDED, outcome

    def intervene(self, human: bool) -> None:
        """Who acts from here in the running episode."""
        assert self.running, "no episode is under way"
        if human and not self._can_intervene:
            raise ChunkRLError(
                "nobody is there to intervene: give the actor a leader arm or a scripted corrector"
            )
        if human and self.phase is Phase.POLICY:
            self.num_interventions += 1
        self.phase = Phase.HUMAN if human else Phase.POLICY

    def confirm(self) -> None:
        """What ended counts; the next episode may begin."""
        self.phase = Phase.WAITING

    def apply(self, keys: str) -> bool:
        """Obeys keys in their order, up to one that quits or asks for the next episode; True for the latter."""
        for key in keys:
            try:
                command = Command(key.lower())
            except ValueError:  # a key without a meaning
                continue
            if command is Command.QUIT:
                self.quit = True
                if self.running:
                    self.end("timeout")
                return False
            if command is Command.NEXT:
                if not self.running:
                    return True
            elif command is Command.INTERVENE:
                if self.running and self._can_intervene:
                    self.intervene(self.phase is Phase.POLICY)
            elif self.running:
                self.end(_OUTCOMES[command])
            elif self.phase is Phase.ENDED:
                self.outcome = _OUTCOMES[command]
        return False


class Corrector(Protocol):
    """Who acts during interventions: a leader arm, or a script.

    The actor calls `begin_episode`, then once every step `wants_control` and either `follow` (the policy acts) or
    `act`, and `take` and `release` where the one changes to the other.
    """

    def begin_episode(self, step: EnvStep) -> None:
        """An episode starts with the world as in `step`."""
        ...

    def wants_control(self, step: EnvStep, human: bool) -> bool | None:
        """Whether it should act now, `human` saying whether it does; None: keys decide."""
        ...

    def follow(self, step: EnvStep) -> None:
        """The policy acts."""
        ...

    def take(self, step: EnvStep) -> None:
        """It acts from here."""
        ...

    def act(self, step: EnvStep) -> np.ndarray:
        """Its action [A]."""
        ...

    def release(self, step: EnvStep) -> None:
        """The policy acts from here."""
        ...

    def close(self) -> None:
        """Gives back what it took."""
        ...
