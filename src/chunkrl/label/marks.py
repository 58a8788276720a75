"""What a person says of one episode, and the edits that change it. Steps count from the episode's first frame, 0."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from chunkrl.errors import LabelError

EditKind = Literal["success", "failure", "subgoal", "human", "exclude"]
Span = tuple[int, int]


@dataclass(frozen=True)
class EpisodeMarks:
    """All that is said of an episode.

    success: whether it succeeded; None: nobody says. success_step: whose action succeeded, of a success.
    subgoals: steps whose action reached a sub-goal, in order. human: stretches (first, last step) in which a human
        acted, in order and apart from each other. excluded: nobody trains on it.
    by_hand: a person said the outcome, or that the recorded one is right.
    """

    success: bool | None = None
    success_step: int | None = None
    subgoals: tuple[int, ...] = ()
    human: tuple[Span, ...] = ()
    excluded: bool = False
    by_hand: bool = False

    @property
    def is_used(self) -> bool:
        """Whether the episode is among those that are trained on."""
        return self.success is not None and not self.excluded

    def told(self) -> str:
        """In words."""
        outcome = {None: "no label", False: "failure", True: f"success at step {self.success_step}"}
        words = [
            outcome[self.success],
            f"{len(self.subgoals)} sub-goals",
            f"{_steps(self.human)} steps human",
        ]
        return ", ".join([*words, *(["excluded"] if self.excluded else [])])


def _steps(spans: tuple[Span, ...]) -> int:
    return sum(last - first + 1 for first, last in spans)


@dataclass(frozen=True)
class Edit:
    """One key or button.

    kind: success (at `step`; None: where it is already, else at the last one), failure, subgoal (at `step`), human
        (from `step` to `last`), exclude. on: whether a sub-goal, a human's stretch or the exclusion is set, or taken
        away.
    """

    kind: EditKind
    step: int | None = None
    last: int | None = None
    on: bool = True

    def told(self) -> str:
        """In words."""
        place = f"at step {self.step}"
        return {
            "success": "success" if self.step is None else f"success {place}",
            "failure": "failure",
            "subgoal": f"sub-goal {place}" if self.on else f"no sub-goal {place}",
            "human": f"{'human' if self.on else 'no human'} from step {self.step} to {self.last}",
            "exclude": "excluded" if self.on else "included",
        }[self.kind]


def apply(marks: EpisodeMarks, edit: Edit, length: int, goal: Literal["success", "end", ""]) -> EpisodeMarks:
    """The marks after the edit.

    length: steps of the episode. goal: which sub-goal comes with a success by the rule: that of the succeeding
        action, of the episode's last one, or none.

    Raises:
        LabelError: a step that the episode has not, or is missing.
    """
    if edit.kind == "exclude":
        return replace(marks, excluded=edit.on)
    if edit.kind == "failure":
        return _with_outcome(marks, None, length, goal)
    if edit.kind == "success":
        step = marks.success_step if edit.step is None else _checked(edit.step, length)
        step = length - 1 if step is None else step
        return _with_outcome(marks, step, length, goal)
    step = _checked(edit.step, length)
    if edit.kind == "subgoal":
        others = set(marks.subgoals) - {step}
        return replace(marks, subgoals=tuple(sorted(others | ({step} if edit.on else set()))))
    first, last = sorted((step, _checked(edit.last, length)))
    inside = {t for span in marks.human for t in range(span[0], span[1] + 1)}
    span = set(range(first, last + 1))
    return replace(marks, human=spans_of(sorted(inside | span if edit.on else inside - span)))


def spans_of(steps: list[int]) -> tuple[Span, ...]:
    """Stretches of steps in order, each number once."""
    spans: list[Span] = []
    for step in steps:
        if spans and step == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], step)
        else:
            spans.append((step, step))
    return tuple(spans)


def _with_outcome(
    marks: EpisodeMarks, step: int | None, length: int, goal: Literal["success", "end", ""]
) -> EpisodeMarks:
    """With a success at `step`, or a failure (None); the sub-goal that comes with a success goes along."""

    def goal_of(success_step: int | None) -> set[int]:
        if success_step is None or not goal:
            return set()
        return {success_step if goal == "success" else length - 1}

    subgoals = (set(marks.subgoals) - goal_of(marks.success_step)) | goal_of(step)
    return replace(
        marks,
        success=step is not None,
        success_step=step,
        subgoals=tuple(sorted(subgoals)),
        by_hand=True,
    )


def _checked(step: int | None, length: int) -> int:
    if step is None or not 0 <= step < length:
        raise LabelError(f"step {step}: the episode has steps 0 to {length - 1}")
    return step
