"""Where a person's keys come from: a terminal without a display, pynput where there is one, or a script."""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib.util
import os
import queue
import re
import select
import sys
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol, get_args

from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError

# what arrows and the like send; it may hold digits, which nobody pressed
_ESCAPE_SEQUENCE = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]?|O.)?")
KeySourceName = Literal["terminal", "pynput", "none"]


class KeySource(Protocol):
    """Keys pressed, as characters."""

    def poll(self) -> str:
        """Keys since the last poll in their order, without waiting; often empty."""
        ...

    def close(self) -> None:
        """Gives back what the source took; may be called again."""
        ...


class NoKeys:
    """Nobody presses anything."""

    def poll(self) -> str:
        """Nothing."""
        return ""

    def close(self) -> None:
        """Nothing to give back."""


class ScriptedKeys:
    """One entry of `polls` a poll, then nothing: for tests."""

    def __init__(self, polls: Iterable[str]) -> None:
        self._polls = iter(polls)

    def poll(self) -> str:
        """The next entry."""
        return next(self._polls, "")

    def close(self) -> None:
        """Nothing to give back."""


@contextlib.contextmanager
def _unless_gone(kind: type[Exception]) -> Iterator[None]:
    """A terminal that is gone, as where an ssh connection drops, has no keys, and nothing to be restored."""
    try:
        yield
    except kind as error:
        if error.args[0] != errno.EIO:
            raise


class TerminalKeys:
    """Keys of a terminal, over SSH too: delivered at once and not echoed.

    Control-C still interrupts and output is shown as usual (cbreak mode). The terminal is restored by `close`,
    and when the interpreter exits for whatever reason.
    """

    def __init__(self, file_descriptor: int | None = None) -> None:
        """file_descriptor: of a terminal; None: standard input. Raises ChunkRLError where it is no terminal."""
        import termios  # not on Windows
        import tty

        descriptor = sys.stdin.fileno() if file_descriptor is None else file_descriptor
        if not os.isatty(descriptor):
            raise ChunkRLError(
                "keys come from a terminal, and the input is none: run in a terminal (`ssh -t`), or give --keys none"
            )
        self._descriptor = descriptor
        self._before = termios.tcgetattr(descriptor)
        atexit.register(self.close)
        tty.setcbreak(descriptor)
        self._open = True

    def poll(self) -> str:
        """Keys since the last poll; keys that are no ASCII (arrows and the like) are left out."""
        keys = b""
        while self._open and select.select([self._descriptor], [], [], 0)[0]:
            read = b""
            with _unless_gone(OSError):
                read = os.read(self._descriptor, 1024)
            if not read:  # the terminal is gone
                break
            keys += read
        return _ESCAPE_SEQUENCE.sub(b"", keys).decode("ascii", errors="ignore")

    def close(self) -> None:
        """Restores the terminal."""
        if not self._open:
            return
        import termios

        self._open = False
        atexit.unregister(self.close)
        with _unless_gone(termios.error):
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def __enter__(self) -> TerminalKeys:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PynputKeys:
    """Keys pressed anywhere on the desktop, whichever window has them; needs a display (extra `keyboard`)."""

    def __init__(self) -> None:
        """Raises MissingExtraError without pynput, ChunkRLError without a display that it can use."""
        if importlib.util.find_spec("pynput") is None:
            raise MissingExtraError("Reading keys from the desktop", "pynput", "keyboard")
        try:
            from pynput import keyboard
        except ImportError as error:  # what pynput raises where there is no display
            raise ChunkRLError(
                f"pynput finds no display ({str(error).strip()}): choose keys terminal, which needs none"
            ) from error
        self._keys: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = keyboard.Listener(on_press=self._pressed)
        self._listener.start()

    def _pressed(self, key: object) -> None:
        """Is called in pynput's thread; keys that are no characters have no `char`."""
        character = getattr(key, "char", None)
        if character:
            self._keys.put(character)

    def poll(self) -> str:
        """Keys since the last poll."""
        keys = ""
        while not self._keys.empty():  # one reader
            keys += self._keys.get()
        return keys

    def close(self) -> None:
        """Stops listening."""
        self._listener.stop()


def key_source(name: KeySourceName) -> KeySource:
    """The source of that name. Raises ChunkRLError for another name or where it cannot be had."""
    if name not in get_args(KeySourceName):
        raise ChunkRLError(f"keys is {name!r}; it must be one of {get_args(KeySourceName)}")
    return {"terminal": TerminalKeys, "pynput": PynputKeys, "none": NoKeys}[name]()
