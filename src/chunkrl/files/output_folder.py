"""Where commands write, by one rule: what an earlier run left is never written over.

A folder that holds a run is refused. With `--resume` the command resumes a run of its own kind; with
`--overwrite` a run of its own kind makes place: its folder is renamed to `NAME.replaced-001` and kept, whatever
becomes of the new run. chunkrl deletes none. Files that are none of chunkrl's (a log, notes) do not count. Where
nobody names a folder, a numbered one is new: `runs/<data>-<objective>-001`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from chunkrl.errors import ChunkRLError, OutputFolderError

_LOG = logging.getLogger(__name__)
RUNS = Path("runs")
LOCK = ".lock"
WRITER_LOCK = ".writer.lock"
"""The lock of a data set that is being written."""


@dataclass(frozen=True)
class Kind:
    """What a command leaves. told: in words. marks: patterns of names, any of which says that it is there."""

    told: str
    marks: tuple[str, ...]

    def found(self, folder: Path) -> list[str]:
        """The marks that are there, sorted."""
        return sorted({str(p.relative_to(folder)) for mark in self.marks for p in folder.glob(mark)})


KINDS: dict[str, Kind] = {
    # a command's folder may hold the marks of a later one: an iteration has results, a learner checkpoints
    "improve": Kind("a run of chunkrl improve", ("improve.json",)),
    "iterate": Kind("a run of chunkrl iterate", ("iterate.json",)),
    "learner": Kind("a run of chunkrl learner", ("learner.json",)),
    "actor": Kind("a run of chunkrl actor", ("actor.log",)),
    "trial": Kind("a trial", ("trial.json",)),
    "demo": Kind("a run of chunkrl demo", ("demo.json", "results.json")),
    "train": Kind(
        "a training run",
        ("checkpoints/[0-9]*", "policy", "values.parquet", "values-[0-9]*.parquet", "non_finite_batch*"),
    ),
    "evaluate": Kind("an evaluation", ("settings.json", "result.json")),
    "compare": Kind("a comparison", ("comparison.json",)),
    "collect": Kind("a data set", ("meta/info.json",)),
    "policy": Kind("a saved policy", ("chunkrl_manifest.json", "model*.safetensors", "state.safetensors")),
}
"""Kinds of run by the command that writes them. A training run in which nothing was saved yet is none: nothing would
be lost."""


def kind_of(folder: Path) -> str | None:
    """The command whose results `folder` holds; None where it holds nothing of chunkrl's."""
    return next((name for name, kind in KINDS.items() if folder.is_dir() and kind.found(folder)), None)


def check_folder(folder: Path, command: str, *, resumes: bool = False, overwrite: bool = False) -> None:
    """Whether `command` may write into `folder`: the rule of this module, which changes nothing here.

    resumes: it resumes what a command of its kind left there.

    Raises:
        OutputFolderError: the folder holds a run that this command does not resume, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputFolderError(f"output_dir {folder} is a file; name a folder")
    kind = kind_of(folder)
    if kind is None or (kind == command and (resumes or overwrite)):
        return
    there = f"{folder} holds {KINDS[kind].told} ({', '.join(KINDS[kind].found(folder)[:3])})"
    if kind != command:
        raise OutputFolderError(
            f"{there}, and chunkrl {command} would mix its own files into it: use another --output-dir"
        )
    raise OutputFolderError(
        f"{there}, which is never written over: {_CURES.get(command, _CURE).format(folder=folder)}"
    )


_CURE = (
    "use another --output-dir, or put the new one in its place with --overwrite (the old folder is kept as "
    "{folder}.replaced-001)"
)
_CURES = {
    "demo": "resume it with --resume, " + _CURE,
    **dict.fromkeys(("train", "learner", "iterate"), "resume it with --resume {folder}, " + _CURE),
}


def begin_folder(folder: Path, command: str, *, resumes: bool = False, overwrite: bool = False) -> Path:
    """Makes `folder` ready to be written into, as `check_folder` allows; what is replaced is renamed. Returns it.

    Raises OutputFolderError: as `check_folder`, or it cannot be made.
    """
    check_folder(folder, command, resumes=resumes, overwrite=overwrite)
    if overwrite and not resumes and kind_of(folder) is not None:
        for name in (LOCK, WRITER_LOCK):
            if (folder / name).exists():
                hold(folder, command, name).release()  # nobody works there
        set_aside(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFolderError(
            f"cannot make {folder}: {error.strerror}; name a folder that is yours with --output-dir"
        ) from error
    return folder


@contextmanager
def held(folder: Path, command: str, name: str = LOCK) -> Iterator[None]:
    """The folder is this process's for the length of the block. name: of the file that says so.

    Raises:
        OutputFolderError: another process works there.
    """
    lock = hold(folder, command, name)
    try:
        yield
    finally:
        (folder / name).unlink(missing_ok=True)
        lock.release()


def hold(folder: Path, command: str, name: str = LOCK) -> FileLock:
    """Holds as `held` does, until the lock that it returns is released."""
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputFolderError(
            f"{folder} is in use by another chunkrl {command}: wait for it, or use another --output-dir"
        ) from error
    except OSError as error:
        raise OutputFolderError(
            f"cannot write into {folder}: {error.strerror}; name a folder that is yours with --output-dir"
        ) from error
    return lock


def set_aside(path: Path) -> Path:
    """Renames a folder or file to the first free `NAME.replaced-001`, ..., says so, and returns the new path.

    Raises OutputFolderError for a path without a name of its own (`.`).
    """
    if path.name in ("", ".."):  # renamed, it would still be what the path means
        raise OutputFolderError(
            f"{path} is the folder that you are in, or one above it, and cannot be renamed from there: name it by a "
            "path from elsewhere"
        )
    number = 1
    while (kept := path.with_name(f"{path.name}.replaced-{number:03d}")).exists():
        number += 1
    path.rename(kept)
    _LOG.warning("what was at %s is kept as %s: delete it when nobody needs it", path, kept)
    return kept


def check_file(path: Path, overwrite: bool, is_same: Callable[[Path], bool] = lambda _: False) -> None:
    """The rule for a command that writes one file.

    is_same: whether an older file is of just what is written now, so that nothing is lost.

    Raises:
        OutputFolderError: there is another file already.
    """
    if path.exists() and not overwrite and not is_same(path):
        raise OutputFolderError(
            f"{path} is there already and is never written over: name another file, or replace it with --overwrite"
        )


def numbered(stem: str, parent: Path = RUNS) -> Path:
    """The next free `parent/stem-001`, ...: one above the highest number that was ever taken and still lies there."""
    names = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    taken = [int(m[1]) for name in names if (m := re.match(rf"{re.escape(stem)}-(\d{{3,}})(?!\d)", name))]
    return parent / f"{stem}-{max(taken, default=0) + 1:03d}"


def begin_numbered(stem: str, parent: Path = RUNS) -> Path:
    """Makes the folder `numbered` names: of two that begin at once, each gets its own."""
    while True:
        folder = numbered(stem, parent)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ChunkRLError(
                f"cannot make {folder}: {error.strerror}; start in a folder that is yours, or give --output-dir"
            ) from error
        return folder


def stem_of(dataset: str, what: str) -> str:
    """The default folder's name without its number: `<data>-<what>`. dataset: a folder or Hub id; "" for none."""
    name = Path(dataset).expanduser().resolve().name if dataset in (".", "..") else Path(dataset).name
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return f"{name}-{what}" if name else what
