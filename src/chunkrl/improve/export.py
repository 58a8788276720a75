"""The chosen policy's folder, copied whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from chunkrl.errors import ChunkRLError
from chunkrl.files.output_folder import set_aside
from chunkrl.integration.chunk_cache import fingerprint
from chunkrl.progress import Progress


def copy_policy(source: Path, target: Path, progress: Progress) -> None:
    """`target` is a copy of the policy in `source`, written under another name and renamed whole. Another one
    there is kept under a new name; nothing happens where it is the same already.

    Raises ChunkRLError where it cannot be written, or is not what was read.
    """
    wanted = fingerprint((source,), progress)
    if target.exists():
        if fingerprint((target,), progress) == wanted:
            return
        set_aside(target)
    temporary = target.with_name(f".{target.name}.copying-{os.getpid()}")
    try:
        shutil.copytree(source, temporary)
        for file in (file for file in temporary.rglob("*") if file.is_file()):
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        if fingerprint((temporary,), progress) != wanted:
            raise ChunkRLError(f"{source} changed while it was copied to {target}: call the same again")
        temporary.rename(target)
    except (OSError, shutil.Error) as error:
        raise ChunkRLError(
            f"cannot copy {source} to {target}: {error}; free some space or use a writable folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
