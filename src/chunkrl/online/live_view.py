"""What an actor is doing, as a panel on a terminal; `chunkrl.online.status.StatusLine` is the same as lines."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from chunkrl.online.status import WARNING, ActorStatus, Note

_REFRESHES_HZ = 4
_STYLES = {
    "policy": "bold cyan",
    "human": "bold magenta",
    "ended: success": "bold green",
    "ended: failure": "bold red",
}


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
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, Text(value, style=_STYLES.get(value, "")))
        if warning:
            table.add_row(WARNING, Text(warning, style="bold yellow"))
        return Panel(
            table, title=self._title, title_align="left", border_style="yellow" if warning else "blue"
        )

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
            ("phase", status.phase),
            ("human", f"{status.num_interventions} interventions in this episode"),
            ("policy", f"version {status.policy_version}, {queue}"),
            *([("keys", status.hint)] if status.hint else []),
        ]
