"""What an actor is doing, as one line of a terminal that rewrites itself."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class ActorStatus:
    """episode: counted from 1, over all starts. step: of the episode, from 0. phase: who acts, or what is waited for.
    rate_hz: control steps a second, 0 where no clock is kept. policy_version: of the weights that act.
    num_interventions: in this episode. queue_length: actions that are ready. hint: keys that do something now.
    num_done, num_success: episodes kept since this start."""

    episode: int
    step: int
    phase: str
    rate_hz: float
    policy_version: int
    num_interventions: int
    queue_length: int
    hint: str = ""
    num_done: int = 0
    num_success: int = 0

    @property
    def success_rate(self) -> str:
        """Of the episodes kept since this start, for people."""
        return f"{self.num_success}/{self.num_done} = {self.num_success / max(self.num_done, 1):.0%}"

    def __str__(self) -> str:
        rate = f"{self.rate_hz:.1f} Hz | " if self.rate_hz else ""
        done = f"{self.success_rate} | " if self.num_done else ""
        hint = f" | {self.hint}" if self.hint else ""
        return (
            f"episode {self.episode} step {self.step} | {self.phase} | {done}{rate}policy v{self.policy_version} | "
            f"{self.num_interventions} interventions | queue {self.queue_length}{hint}"
        )


Note = Callable[[], Sequence[tuple[str, str]]]
"""More to show: name and text. What is named WARNING stands out in a panel; a line leaves it out, as warnings are
logged."""
WARNING = "warning"


class StatusLine:
    """Shows statuses: on a terminal as one line, at most 5 times a second; elsewhere a line when the episode or the
    phase changes.

    note: more to show, asked for with every line, e.g. how far the learner is behind.
    """

    def __init__(self, stream: TextIO | None = None, note: Note | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._note = note
        self._interactive = self._stream.isatty()
        self._shown_at = float("-inf")
        self._shown: tuple[int, str] | None = None

    def __call__(self, status: ActorStatus) -> None:
        """Shows `status`, if it is time."""
        now, key = time.monotonic(), (status.episode, status.phase)
        if key == self._shown and (not self._interactive or now - self._shown_at < 0.2):
            return
        self._shown, self._shown_at = key, now
        text = str(status)
        if self._note is not None:
            shown = (f"{name} {value}" for name, value in self._note() if name != WARNING)
            text = " | ".join([text, *shown])
        if self._interactive:  # a line that wraps cannot be rewritten
            text = f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K"
        else:
            text += "\n"
        self._stream.write(text)
        self._stream.flush()

    def close(self) -> None:
        """Leaves the last line where it is."""
        if self._interactive and self._shown is not None:
            self._stream.write("\n")
            self._stream.flush()


def silent(status: ActorStatus) -> None:
    """Shows nothing."""
