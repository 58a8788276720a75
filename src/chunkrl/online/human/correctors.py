"""Who corrects the policy: a person by keyboard or leader arm, or a script in their place.

A person who corrects by keyboard: keys are motions while the human acts, on a terminal without a display too.

A stand-in for a person on MetaWorld: the scripted expert, with a budget of interventions.

The rule, on one number, the task's distance d = |hand - object| + |object - goal| in metres (the hand's way to the
object, and the object's to the goal). An intervention begins where, since the last one or the episode's start,
- the policy stalls: the smallest d has not fallen by `progress_m` within `stall_steps` steps; or
- the policy deviates: d has grown by `deviation_m` above its smallest value;
and it lasts `correction_steps` steps. No intervention begins once the budget is spent. Its first `let_go_steps` lift
the open gripper: MetaWorld's experts never open one that the policy closed, and stall above an object themselves.

A leader arm: it mirrors the follower while the policy acts and leads during interventions, without jumps.

Positions are absolute joint targets in the units of the follower's state, any number of joints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from chunkrl.envs.family import Correction
from chunkrl.envs.metaworld import FULL_STATE, GOAL
from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.online.human.keys import KeySource
from chunkrl.online.link.config import CorrectionRule

# action entry and sign; no key of `chunkrl.online.human.intervention.Command` among them
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


_HAND = slice(FULL_STATE.index("hand_x"), FULL_STATE.index("hand_z") + 1)
_LET_GO = np.array([0.0, 0.0, 1.0, -1.0], np.float32)  # up, gripper open
_OBJECT = slice(FULL_STATE.index("object_x"), FULL_STATE.index("object_z") + 1)


def task_distance(full_state: np.ndarray) -> float:
    """d of the module's docstring. full_state: float [39]."""
    hand, thing, goal = full_state[_HAND], full_state[_OBJECT], full_state[GOAL]
    return float(np.linalg.norm(hand - thing) + np.linalg.norm(thing - goal))


class ScriptedCorrector:
    """`Corrector` by rule.

    Attributes:
        num_left: interventions left of the budget.
    """

    def __init__(
        self,
        expert: Callable[[np.ndarray], np.ndarray],
        full_state: Callable[[], np.ndarray],
        rule: CorrectionRule,
    ) -> None:
        """
        Args:
            expert: full state [39] -> action [4].
            full_state: the full state now, whatever the policy sees of it.
        """
        self._expert, self._full_state, self._rule = expert, full_state, rule
        self.num_left = rule.budget
        self._best, self._num_stalled, self._num_acted = np.inf, 0, 0

    @classmethod
    def of(cls, correction: Correction, rule: CorrectionRule) -> ScriptedCorrector:
        """The simulator's own scripted expert of the task."""
        return cls(correction.expert, correction.full_state, rule)

    def begin_episode(self, step: EnvStep) -> None:
        """Judges again."""
        self._judge_anew()

    def _judge_anew(self) -> None:
        self._best, self._num_stalled = task_distance(self._full_state()), 0

    def wants_control(self, step: EnvStep, human: bool) -> bool:
        """The module's rule."""
        if human:
            return self._num_acted < self._rule.correction_steps
        distance = task_distance(self._full_state())
        if distance <= self._best - self._rule.progress_m:
            self._best, self._num_stalled = distance, 0
        else:
            self._num_stalled += 1
        wrong = self._num_stalled >= self._rule.stall_steps or distance >= self._best + self._rule.deviation_m
        return wrong and self.num_left > 0

    def follow(self, step: EnvStep) -> None:
        """A script has no arm to move."""

    def take(self, step: EnvStep) -> None:
        """One intervention of the budget."""
        self.num_left -= 1
        self._num_acted = 0

    def act(self, step: EnvStep) -> np.ndarray:
        """Letting go, then the expert's action, clipped to [-1, 1] as MetaWorld does."""
        self._num_acted += 1
        if self._num_acted <= self._rule.let_go_steps:
            return _LET_GO.copy()
        return np.clip(self._expert(self._full_state()), -1.0, 1.0).astype(np.float32)

    def release(self, step: EnvStep) -> None:
        """Judges again."""
        self._judge_anew()

    def close(self) -> None:
        """Nothing to give back."""


class Teleoperator(Protocol):
    """A leader arm's hardware."""

    joint_names: tuple[str, ...]

    def positions(self) -> np.ndarray:
        """float32 [N], where it is."""
        ...

    def set_torque(self, on: bool) -> None:
        """Off: a hand may move it. On: it goes where `drive` says."""
        ...

    def drive(self, positions: np.ndarray) -> None:
        """float32 [N], where to go (torque on)."""
        ...

    def close(self) -> None:
        """Disconnects, without torque."""
        ...


class Handover:
    """Keeps targets together when who gives them changes.

    From `begin` on a target moves by at most `max_step` per step towards what is wanted, until both agree within
    `tolerance` in every joint; from there what is wanted passes unchanged. As tolerance <= max_step, the handover
    itself moves no joint by more than `max_step` in a step, and it takes ceil((gap - tolerance) / max_step) steps
    where what is wanted stands still.
    """

    def __init__(self, max_step: float | Sequence[float], tolerance: float | Sequence[float]) -> None:
        """Both are in the units of the targets, one value for all joints or one for each."""
        self._max_step, self._tolerance = np.asarray(max_step), np.asarray(tolerance)
        if (
            not (self._max_step > 0).all()
            or not ((self._tolerance >= 0) & (self._tolerance <= self._max_step)).all()
        ):
            raise ChunkRLError(
                f"handover max_step {max_step} and tolerance {tolerance}: 0 <= tolerance <= max_step > 0"
            )
        self._current: np.ndarray | None = None

    @property
    def agreed(self) -> bool:
        """No handover is under way."""
        return self._current is None

    def begin(self, current: np.ndarray) -> None:
        """current: [N], the target so far."""
        self._current = np.array(current, dtype=np.float32)

    def limit(self, wanted: np.ndarray) -> np.ndarray:
        """wanted: [N], what the new source asks for; returns the target [N] of this step."""
        if self._current is None or not np.isfinite(wanted).all():  # NaN is the action guard's to refuse
            return wanted
        gap = wanted - self._current
        if (np.abs(gap) <= self._tolerance).all():
            self._current = None
            return wanted
        # in float64: a tolerance below float32's resolution would never be reached
        self._current = self._current + np.clip(gap, -self._max_step, self._max_step)
        return self._current.astype(np.float32)


class LeaderArm:
    """`Corrector` with a leader arm in a person's hand; keys say when.

    Attributes:
        num_early: interventions that began while leader and follower did not agree yet; the follower then comes
            to the leader slowly (the actor's own `Handover`).
    """

    def __init__(
        self,
        teleoperator: Teleoperator,
        joints: Sequence[int],
        max_step: float | Sequence[float],
        tolerance: float | Sequence[float],
    ) -> None:
        """
        Args:
            joints: places of the follower's positions in the state, in the order of the leader's joints.
            max_step, tolerance: of the mirroring leader's own motion, as in `Handover`: it comes slowly where it is
                far from the follower.
        """
        if len(joints) != len(teleoperator.joint_names):
            raise ChunkRLError(
                f"the leader has {len(teleoperator.joint_names)} joints {teleoperator.joint_names}, the follower "
                f"{len(joints)}: use a leader of the follower's kind"
            )
        self._teleoperator, self._joints = teleoperator, list(joints)
        self._mirror = Handover(max_step, tolerance)
        self.num_early = 0
        self._mirroring = False

    def begin_episode(self, step: EnvStep) -> None:
        """The leader begins to mirror, slowly: the follower may have gone home."""
        self._mirroring = False
        self.release(step)

    def wants_control(self, step: EnvStep, human: bool) -> bool | None:
        """Keys decide."""
        return None

    def follow(self, step: EnvStep) -> None:
        """The leader goes where the follower is."""
        self._teleoperator.drive(self._mirror.limit(step.state[self._joints]))

    def take(self, step: EnvStep) -> None:
        """The leader is let go."""
        self.num_early += not self._mirror.agreed
        self._mirroring = False
        self._teleoperator.set_torque(False)

    def act(self, step: EnvStep) -> np.ndarray:
        """Where the leader is."""
        return np.asarray(self._teleoperator.positions(), dtype=np.float32)

    def release(self, step: EnvStep) -> None:
        """The leader mirrors again, from where the hand left it."""
        if self._mirroring:
            return
        here = np.asarray(self._teleoperator.positions(), dtype=np.float32)
        self._mirror.begin(here)
        self._teleoperator.drive(here)  # before torque: it must not jump to an old target
        self._teleoperator.set_torque(True)
        self._mirroring = True

    def close(self) -> None:
        """Disconnects the leader."""
        self._teleoperator.close()
