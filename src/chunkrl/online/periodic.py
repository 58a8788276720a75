"""Something done again and again in a thread of its own, such as a spool's sync beside the robot's control loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Periodic:
    """Calls `action` every `interval_s` seconds (later where it takes longer) until it is closed.

    Attributes:
        failure: what the newest call raised, None where it ended well; it is called again all the same.
    """

    def __init__(self, action: Callable[[], None], interval_s: float, name: str) -> None:
        self.failure: Exception | None = None
        self._action, self._interval = action, interval_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, after the call that is running."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic() + self._interval
        while not self._closing.wait(max(0.0, min(due - time.monotonic(), threading.TIMEOUT_MAX))):
            due = time.monotonic() + self._interval
            try:
                self._action()
                self.failure = None
            except Exception as error:  # kept for who owns this
                self.failure = error
