"""A stand-in for a person on MetaWorld: the scripted expert, with a budget of interventions.

The rule, on one number, the task's distance d = |hand - object| + |object - goal| in metres (the hand's way to the
object, and the object's to the goal). An intervention begins where, since the last one or the episode's start,
- the policy stalls: the smallest d has not fallen by `progress_m` within `stall_steps` steps; or
- the policy deviates: d has grown by `deviation_m` above its smallest value;
and it lasts `correction_steps` steps. No intervention begins once the budget is spent. Its first `let_go_steps` lift
the open gripper: MetaWorld's experts never open one that the policy closed, and stall above an object themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from chunkrl.envs.family import Correction
from chunkrl.envs.metaworld import FULL_STATE, GOAL
from chunkrl.envs.protocol import EnvStep
from chunkrl.online.config import CorrectionRule

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
        """Judges anew."""
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
        """Judges anew."""
        self._judge_anew()

    def close(self) -> None:
        """Nothing to give back."""
