"""Where a session's messages go: all to a file in its run folder, warnings to its view too."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from chunkrl.errors import ChunkRLError

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
