"""What an actor, a learner or a policy server says of itself while it runs: lines, panels, log files.

Library considered: rich, which draws the panels; curses-like views (textual) would take the terminal that a
person's keys come from.

An actor's status is a panel (`LiveView`), or a line of a terminal that rewrites itself (`StatusLine`); a learner's
and a server's is a panel, or a line now and then (`RowsView`). A session's messages all go to a file in its run
folder, and warnings to its view too.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from chunkrl.errors import ChunkRLError


@dataclass(frozen=True)
class ActorStatus:
    """episode: counted from 1, over all starts. step: of the episode, from 0. phase: who acts, or what is waited for.
    rate_hz: control steps per second, 0 where no clock is kept. policy_version: of the weights that act.
    num_interventions: in this episode. queue_length: actions that are ready. hint: keys that do something now.
    num_done, num_success: episodes kept since this start. last: how the episode before ended, "" before there is one:
    where nobody confirms it, its end is on the screen for milliseconds."""

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
    last: str = ""

    @property
    def success_rate(self) -> str:
        """The success rate of the episodes kept since this start, for people."""
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
    """Shows statuses: on a terminal as one line, at most 5 times per second; elsewhere a line when the episode or the
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


_REFRESHES_HZ = 4
_STYLES = {
    "policy": "bold cyan",
    "human": "bold magenta",
    "ended: success": "bold green",
    "ended: failure": "bold red",
}


def _panel(
    title: str, rows: Sequence[tuple[str, str]], styles: Mapping[str, str] | None = None
) -> RenderableType:
    """Names and texts, one below the other; warnings stand out. styles: of other texts."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        style = "bold yellow" if name == WARNING else (styles or {}).get(value, "")
        table.add_row(name, Text(value, style=style))
    is_warned = any(name == WARNING for name, _ in rows)
    return Panel(table, title=title, title_align="left", border_style="yellow" if is_warned else "blue")


class LiveView:
    """A panel that a thread of its own redraws, so that the control loop only leaves its newest status here."""

    def __init__(self, title: str, note: Note, console: Console | None = None) -> None:
        """note: more rows, asked for at every redraw; see `chunkrl.online.status.Note`."""
        self._title, self._note = title, note
        self._console = Console(stderr=True) if console is None else console
        self._status: ActorStatus | None = None
        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=_REFRESHES_HZ,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def __call__(self, status: ActorStatus) -> None:
        """The newest status."""
        self._status = status

    def close(self) -> None:
        """Leaves the last panel where it is."""
        self._live.stop()

    def render(self) -> RenderableType:
        """The panel now."""
        rows, warning = self._rows(), ""
        for name, value in self._note():
            if name == WARNING:
                warning = value
            else:
                rows.append((name, value))
        return _panel(self._title, [*rows, (WARNING, warning)] if warning else rows, _STYLES)

    def _rows(self) -> list[tuple[str, str]]:
        status = self._status
        if status is None:
            return [("phase", "starting")]
        rate = f", success {status.success_rate}" if status.num_done else ""
        queue = f"{status.queue_length} actions ready"
        return [
            (
                "episode",
                f"{status.episode}, step {status.step}; {status.num_done} done since the start{rate}",
            ),
            *([("last episode", status.last)] if status.last else []),
            ("phase", status.phase),
            ("human", f"{status.num_interventions} interventions in this episode"),
            ("policy", f"version {status.policy_version}, {queue}"),
            *([("keys", status.hint)] if status.hint else []),
        ]


_ROWS_REFRESHES_HZ = 2
_LINE_S = 10.0


class RowsView:
    """Shows `rows`, which a thread of its own asks for.

    rows: see `Note`.
    live: a panel, where the stream is a terminal.
    """

    def __init__(self, title: str, rows: Note, live: bool, stream: TextIO | None = None) -> None:
        self._title, self._rows = title, rows
        self._stream = sys.stderr if stream is None else stream
        self._closing = threading.Event()
        self._said = ""
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        if live and self._stream.isatty():
            console = Console(file=self._stream)
            self._live = Live(
                console=console,
                get_renderable=self.render,
                refresh_per_second=_ROWS_REFRESHES_HZ,
                redirect_stdout=False,
            )
            self._live.start()
            return
        self._thread = threading.Thread(target=self._print, daemon=True, name="rows-view")
        self._thread.start()

    @property
    def is_live(self) -> bool:
        """Whether it is a panel."""
        return self._live is not None

    def render(self) -> RenderableType:
        """The panel now."""
        return _panel(self._title, self._rows())

    def close(self) -> None:
        """Leaves the last state where it is."""
        self._closing.set()
        if self._live is not None:
            self._live.stop()
        if self._thread is not None:
            self._thread.join()
            self._line()

    def _print(self) -> None:
        while not self._closing.wait(_LINE_S):
            self._line()

    def _line(self) -> None:
        # warnings are logged, each in a line of its own
        text = " | ".join(f"{name} {value}" for name, value in self._rows() if name != WARNING)
        if text != self._said:  # days in which nothing happens fill no log
            self._stream.write(text + "\n")
            self._stream.flush()
            self._said = text


_SHOWN_S = 30.0


class LastWarning(logging.Handler):
    """Keeps the newest warning for the view; prints it where there is no panel to show it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._text, self._at = "", float("-inf")
        self._quiet = False

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self._text, self._at = record.getMessage(), time.monotonic()
        if not self._quiet:
            print(f"{record.levelname.lower()}: {self._text}", file=sys.stderr)

    def recent(self) -> str:
        """The newest warning of the last `_SHOWN_S` seconds, or ""."""
        return self._text if time.monotonic() - self._at < _SHOWN_S else ""

    @contextlib.contextmanager
    def quiet(self, quiet: bool) -> Iterator[None]:
        """A panel shows the newest one meanwhile: nothing is printed."""
        self._quiet = quiet
        try:
            yield
        finally:
            self._quiet = False


@contextlib.contextmanager
def session_log(run_dir: Path, name: str) -> Iterator[LastWarning]:
    """chunkrl's messages go to `run_dir`/`name`, warnings to the view too. Raises ChunkRLError where it cannot be
    written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(run_dir / name, encoding="utf-8")
    except OSError as error:
        raise ChunkRLError(
            f"cannot write to {run_dir} ({error.strerror}): choose another --output-dir"
        ) from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger, warnings = logging.getLogger("chunkrl"), LastWarning()
    before = logger.level
    logger.setLevel(logging.INFO)
    for handler in (file, warnings):
        logger.addHandler(handler)
    try:
        yield warnings
    finally:
        for handler in (file, warnings):
            logger.removeHandler(handler)
        logger.setLevel(before)
        file.close()
