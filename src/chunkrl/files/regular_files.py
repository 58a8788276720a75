"""Files as they come from elsewhere: opened only where they are files, and named only inside their folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from chunkrl.errors import ChunkRLError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path, error: type[ChunkRLError], cure: str) -> None:
    """Before a library opens `path`, which would wait for ever at a pipe and never end at a device.

    Raises:
        error: it is missing, cannot be looked at, or is no regular file (links to one serve).
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the name
        raise _unreadable(path, reason, error, cure) from reason
    _check_mode(path, mode, error, cure)


def is_there(path: Path, error: type[ChunkRLError], cure: str) -> bool:
    """Whether a file that need not be there is. Raises `error` as `check_regular` where something else is in its
    place, such as a link to nothing."""
    if not os.path.lexists(path):
        return False
    check_regular(path, error, cure)
    return True


def open_regular(path: Path, error: type[ChunkRLError], cure: str) -> BinaryIO:
    """The file, open for reading. Raises `error` as `check_regular`, or where it may not be read."""
    try:
        # without O_NONBLOCK, opening a pipe waits until somebody writes to it
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as reason:
        raise _unreadable(path, reason, error, cure) from reason
    try:
        _check_mode(path, os.fstat(descriptor).st_mode, error, cure)
    except ChunkRLError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def inside(folder: Path, name: object, where: str, error: type[ChunkRLError]) -> Path:
    """`folder` / `name`, a name that a file from elsewhere gives; links are followed, for the Hub's cache is made of
    them.

    where: the file and the entry that give the name, for the message.

    Raises:
        error: it is no text, or leaves the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise error(f"{where} is {name!r}, expected the name of a file: correct it, or copy the folder again")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath("."):
        raise error(
            f"{where} is {name!r}, which is not inside {folder}: correct it, or copy the folder again"
        )
    return folder / path


def _check_mode(path: Path, mode: int, error: type[ChunkRLError], cure: str) -> None:
    if not stat.S_ISREG(mode):
        raise error(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file: {cure}")


def _unreadable(path: Path, reason: Exception, error: type[ChunkRLError], cure: str) -> ChunkRLError:
    if isinstance(reason, FileNotFoundError):
        return error(f"{path} is missing: {cure}")
    return error(f"{path} cannot be read ({getattr(reason, 'strerror', None) or reason}): {cure}")
