"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chunkrl.errors import DatasetError

_TEMPORARY = ".partial-"


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; it takes the name `path` when the block ends without an exception.

    The bytes are on the disk before the rename, so after a power cut `path` is the old file or the new one.
    The temporary name ends in neither `.parquet` nor `.mp4`: readers that list a folder never see it.

    Raises:
        DatasetError: the folder is read-only, the disk is full, ... (names `path`).
    """
    # Not with_name: a name near the file system's limit must not be cut, and two processes must not collide.
    temporary = path.parent / f".{path.name}{_TEMPORARY}{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise DatasetError(
            f"cannot write {path}: {reason}; free some space or use a writable folder"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file through `replace_file`."""
    with replace_file(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_temporaries(root: Path) -> None:
    """Delete what killed writers left under `root` (call it while holding the writer's lock)."""
    for path in root.rglob(f".*{_TEMPORARY}*"):
        path.unlink(missing_ok=True)
