"""What a learner is doing: a panel on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from chunkrl.online.status import WARNING

Rows = Callable[[], Sequence[tuple[str, str]]]
_REFRESHES_HZ = 2
_LINE_S = 10.0


class LearnerView:
    """Shows `rows`, which a thread of its own asks for.

    rows: name and text; what is named `status.WARNING` stands out in a panel, and a line leaves it out.
    live: a panel, where the stream is a terminal.
    """

    def __init__(self, title: str, rows: Rows, live: bool, stream: TextIO | None = None) -> None:
        self._title, self._rows = title, rows
        self._stream = sys.stderr if stream is None else stream
        self._closing = threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        if live and self._stream.isatty():
            console = Console(file=self._stream)
            self._live = Live(
                console=console,
                get_renderable=self.render,
                refresh_per_second=_REFRESHES_HZ,
                redirect_stdout=False,
            )
            self._live.start()
            return
        self._thread = threading.Thread(target=self._print, daemon=True, name="learner-view")
        self._thread.start()

    @property
    def is_live(self) -> bool:
        """Whether it is a panel."""
        return self._live is not None

    def render(self) -> RenderableType:
        """The panel now."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        style = "blue"
        for name, value in self._rows():
            if name == WARNING:
                style = "yellow"
            table.add_row(name, Text(value, style="bold yellow" if name == WARNING else ""))
        return Panel(table, title=self._title, title_align="left", border_style=style)

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
        self._stream.write(text + "\n")
        self._stream.flush()
