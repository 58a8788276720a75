"""The manifest of a folder that this project wrote: sizes and sha256 sums of its files, verified when it is loaded.

`chunkrl_manifest.json` is written last, so a folder that has one was whole, and what was lost or changed since is
named. A folder inside that has a manifest of its own is listed by that manifest alone: a sum of sums. What is not
listed (a README.md that somebody added) is nobody's concern, unless a loader would read it.

A file of the folder also says (`MARK`) that there is a manifest: where it is lost, the folder is not taken for one of
before manifests were written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from chunkrl.config import load_config
from chunkrl.errors import CheckpointError
from chunkrl.files.atomic import write_text
from chunkrl.files.regular_files import inside, open_regular

MANIFEST_FILE = "chunkrl_manifest.json"
MARK = "manifest"
BLOCK_BYTES = 1 << 26  # summed alone, so that all cores sum one large file
_READ_BYTES = 1 << 20
_FORMAT = 1
_MOST_THREADS = 8
_COPY_AGAIN = "copy the folder again"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileSums:
    """size: bytes. sha256: of each `BLOCK_BYTES` of the file, in order; of an empty file, none."""

    size: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """files: name, with `/` -> sums. format: of this record."""

    files: Mapping[str, FileSums]
    format: int = _FORMAT


def file_sums(path: Path) -> FileSums:
    """The sums of one file, read once in small pieces. Raises CheckpointError where it cannot be read."""
    size = _size(path)
    return FileSums(size, tuple(_sum_blocks([(path, number) for number in range(_num_blocks(size))])))


def write_manifest(
    folder: Path, names: Iterable[str] | None = None, known: Mapping[str, FileSums] | None = None
) -> None:
    """Writes the manifest; it is on the disk when this returns.

    names: files to list; None: all in the folder, of folders with a manifest of their own that one.
    known: sums that need no reading, by name.
    """
    known = known or {}
    names = _names(folder) if names is None else sorted(names)
    files = {name: known[name] if name in known else file_sums(folder / name) for name in names}
    write_text(folder / MANIFEST_FILE, json.dumps(asdict(Manifest(files)), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None where it has none. Raises CheckpointError where it is damaged."""
    path = folder / MANIFEST_FILE
    if not os.path.lexists(path):
        return None
    manifest = load_config(Manifest, path, CheckpointError, _COPY_AGAIN)
    if manifest.format != _FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest.format}, this release reads {_FORMAT}: use a newer chunkrl"
        )
    for name, sums in manifest.files.items():
        inside(folder, name, f"{path}: a file's name", CheckpointError)
        if sums.size < 0 or len(sums.sha256) != _num_blocks(sums.size):
            raise CheckpointError(
                f"{path}: {len(sums.sha256)} sums of {name}, of {sums.size} bytes: {_COPY_AGAIN}"
            )
    return manifest


def verify(
    folder: Path,
    marked: bool,
    *,
    only: Collection[str] | None = None,
    used: Iterable[str] = (),
    share: tuple[int, int] = (0, 1),
) -> None:
    """Reads the listed files once and compares their sums: all cores at it, a megabyte each in memory.

    marked: a file of the folder says that there is a manifest; where there is none, the folder is of before
    manifests, and a warning says so.
    only: the files to verify; None: all that are listed. used: what a loader reads where it is there: it must be
    listed. share: (this process, number of processes), each of which sums its share of the blocks.

    Raises:
        CheckpointError: a file is missing, changed, or not listed (names it), or the manifest is missing or damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        _check_unmarked(folder, marked)
        return
    listed = {name: sums for name, sums in manifest.files.items() if only is None or name in only}
    _check_listed(folder, manifest, (*(only or ()), *used))
    blocks = [
        (folder / name, number, digest)
        for name, sums in listed.items()
        if _check_size(folder, name, sums.size)
        for number, digest in enumerate(sums.sha256)
    ]
    own = list(islice(blocks, share[0], None, share[1]))
    found = _sum_blocks([(path, number) for path, number, _ in own])
    for (path, _, expected), digest in zip(own, found, strict=True):
        if digest != expected:
            raise CheckpointError(_changed(folder, path, f"its sha256 is not the one in {MANIFEST_FILE}"))


def whole_files(folder: Path) -> list[str]:
    """Verifies a folder and those in it that have manifests of their own; the names of all their files.

    Raises:
        CheckpointError: as `verify`, or a folder has no manifest.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise CheckpointError(
            f"{folder} has no {MANIFEST_FILE}, so that nothing tells whether it is whole: "
            f"`chunkrl manifest {folder}` looks it through and writes one"
        )
    verify(folder, marked=True)
    names = [MANIFEST_FILE]
    for name in manifest.files:
        inner, _, last = name.rpartition("/")
        found = whole_files(folder / inner) if inner and last == MANIFEST_FILE else None
        names += [name] if found is None else [f"{inner}/{below}" for below in found]
    return sorted(names)


def check_listed(folder: Path, names: Iterable[str]) -> None:
    """Raises CheckpointError where the folder has a manifest and one of these files, which it does not list."""
    if manifest := read_manifest(folder):
        _check_listed(folder, manifest, names)


def _check_listed(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    for name in names:
        if name not in manifest.files and os.path.lexists(folder / name):
            raise CheckpointError(
                f"{folder / name} is not among the files of {MANIFEST_FILE}: it was added later; move it away, or, "
                f"where you mean it, accept the folder as it is: {_renew(folder)}"
            )


def _check_unmarked(folder: Path, marked: bool) -> None:
    if marked:
        raise CheckpointError(
            f"{folder / MANIFEST_FILE} is missing, and the folder was written with one: {_COPY_AGAIN}, whole; or, "
            f"where you trust what is there, write one: {_renew(folder)}"
        )
    _LOG.warning(
        "%s has no %s: it was written before there were any, so nothing tells whether it is still what was saved; "
        "`chunkrl manifest %s` looks it through and writes one",
        folder,
        MANIFEST_FILE,
        folder,
    )


def _renew(folder: Path) -> str:
    return f"chunkrl manifest {folder} --renew"


def _changed(folder: Path, path: Path, how: str) -> str:
    return (
        f"{path} has changed since it was written ({how}): {_COPY_AGAIN}; or, where you changed it yourself, accept "
        f"it: {_renew(folder)}"
    )


def _check_size(folder: Path, name: str, size: int) -> bool:
    found = _size(folder / name)
    if found != size:
        raise CheckpointError(_changed(folder, folder / name, f"{found} bytes, {size} when it was written"))
    return True


def _size(path: Path) -> int:
    with open_regular(path, CheckpointError, _COPY_AGAIN) as file:
        return os.fstat(file.fileno()).st_size


def _num_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def _sum_blocks(blocks: list[tuple[Path, int]]) -> list[str]:
    """The sums of (file, number of the block) each."""
    threads = min(len(blocks), os.cpu_count() or 1, _MOST_THREADS)
    if threads <= 1:
        return [_sum_block(*block) for block in blocks]
    with ThreadPoolExecutor(
        threads, thread_name_prefix="sha256"
    ) as pool:  # hashlib lets others run meanwhile
        return list(pool.map(_sum_block, *zip(*blocks, strict=True)))


def _sum_block(path: Path, number: int) -> str:
    digest, piece = hashlib.sha256(), memoryview(bytearray(_READ_BYTES))
    with open_regular(path, CheckpointError, _COPY_AGAIN) as file:
        try:
            os.lseek(file.fileno(), number * BLOCK_BYTES, os.SEEK_SET)
            left = BLOCK_BYTES
            while left and (length := os.readv(file.fileno(), [piece[:left]])):
                digest.update(piece[:length])
                left -= length
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}): {_COPY_AGAIN}") from error
    return digest.hexdigest()


def _names(folder: Path, prefix: str = "") -> list[str]:
    """Files below the folder, without its own manifest; see `write_manifest`."""
    found: list[str] = []
    for path in sorted(folder.iterdir()):
        name = prefix + path.name
        if path.is_dir():
            inner = path / MANIFEST_FILE
            found += [f"{name}/{MANIFEST_FILE}"] if inner.is_file() else _names(path, f"{name}/")
        elif name != MANIFEST_FILE:
            found.append(name)
    return found
