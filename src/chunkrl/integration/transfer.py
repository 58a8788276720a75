"""Copying a remote tree into a folder: resumed after a kill, checked, and never half there.

`fetch_tree(tree, target)` fills a hidden folder beside `target` and renames it when every file in it is whole:
under its own name a folder is complete. Only one process works on a target, others wait for it and find it done. A
repository of the Hub is the library's to fetch (`hub`); of any other tree a file being fetched is `NAME.part`, which
loses the suffix after its checksum agreed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from chunkrl.files.json_files import read_json
from chunkrl.install import MissingExtraError
from chunkrl.integration.hub import HubTree, fill_from_hub
from chunkrl.integration.remote import RANGE_BYTES, DownloadError, RemoteFile, RemoteTree, read_ranges
from chunkrl.progress import Progress

_LOG = logging.getLogger(__name__)

Tree = RemoteTree | HubTree

MANIFEST = "chunkrl_download.json"
_MEGABYTE = 10**6
_PART = ".part"


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...

    def digest(self) -> bytes: ...


def _hash(kind: str) -> _Hash:
    if kind != "crc32c":
        return hashlib.new(kind, usedforsecurity=False)
    try:
        import google_crc32c  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("checking a file of Google Cloud Storage", "google-crc32c", "gcs") from error
    return google_crc32c.Checksum()


def is_complete(target: Path, tree: Tree) -> bool:
    """Whether `target` is this tree, fetched whole; sizes are compared, contents were when it was fetched."""
    if not target.is_dir() or not _recorded(target, tree.url):
        return False
    recorded = _recorded(target, tree.url)
    return all(recorded.get(f.name) == _record(f) and _size(target / f.name) == f.size for f in tree.files)


def missing_bytes(target: Path, tree: Tree) -> int:
    """What is still to come for `target`, counting what an interrupted attempt left."""
    if is_complete(target, tree):
        return 0
    partial = _partial_folder(target)
    there = (max(_size(partial / f.name), _size(partial / (f.name + _PART))) for f in tree.files)
    return tree.size - sum(max(size, 0) for size in there)


def check_free_space(folder: Path, needed: int, what: str) -> None:
    """Raise DownloadError unless `folder`'s disk has `needed` bytes."""
    existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DownloadError(
            f"{what} needs {needed / 1e9:.1f} GB more and {existing} has {free / 1e9:.1f} GB free; free some "
            "space or give --download-dir on another disk"
        )


def is_recorded_whole(target: Path, url: str) -> bool:
    """Whether `target` was filled from `url` and every file has the size that it had there; nobody is asked."""
    if not target.is_dir():
        return False
    recorded = _recorded(target, url)
    return bool(recorded) and all(_size(target / name) == file["size"] for name, file in recorded.items())


def origin(folder: Path) -> str | None:
    """The URL that `folder` was filled from; None where it was not."""
    file = folder / MANIFEST
    if not file.exists():
        return None
    url = read_json(file, dict, DownloadError, f"delete {folder} and download again").get("url")
    return url if isinstance(url, str) else None


def fetch_tree(tree: Tree, target: Path, progress: Progress, extra: Mapping[str, str] | None = None) -> bool:
    """Make `target` a copy of the tree; False where it was there already.

    Args:
        tree: what to fetch (`list_tree`, `list_repository`).
        target: the folder; it must not exist, be empty, or be this tree.
        progress: called with megabytes.
        extra: name -> text of files that are put beside the tree's.

    Raises:
        DownloadError: `target` is something else, the disk is full, the connection fails, or a checksum differs.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("%s: another process is fetching it; waiting for that", target)
        lock.acquire()
    try:
        if is_complete(target, tree):
            return False
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise DownloadError(
                f"{target} is there and is not a whole copy of {tree.url} (or the server's files have changed); "
                "move it away or give another --download-dir"
            )
        check_free_space(target.parent, missing_bytes(target, tree), str(target))
        _fill(tree, _partial_folder(target), progress, f"{target.name} (MB)")
        for name, text in (extra or {}).items():
            (_partial_folder(target) / name).write_text(text, encoding="utf-8")
        _partial_folder(target).replace(target)
        return True
    except OSError as error:
        raise DownloadError(
            f"{target} cannot be written: {error.strerror or error}; free some space or use a writable folder, "
            "then run the same command again: it goes on from there"
        ) from error
    finally:
        lock.release()


def _partial_folder(target: Path) -> Path:
    return target.parent / f".{target.name}.partial"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _record(file: RemoteFile) -> dict[str, Any]:
    return {key: value for key, value in asdict(file).items() if key in ("size", "checksum", "version")}


def _recorded(folder: Path, url: str) -> dict[str, Any]:
    """name -> record of the listing that filled `folder`; empty without one of this URL."""
    file = folder / MANIFEST
    if not file.exists():
        return {}
    cure = f"delete {folder} and download again"
    data = read_json(file, dict, DownloadError, cure)
    if not isinstance(data.get("files"), dict) or not isinstance(data.get("url"), str):
        raise DownloadError(f"{file} is damaged ('url' and 'files' are not a text and an object): {cure}")
    return data["files"] if data["url"] == url else {}


def _fill(tree: Tree, folder: Path, progress: Progress, stage: str) -> None:
    folder.mkdir(exist_ok=True)
    recorded = _recorded(folder, tree.url)
    for file in tree.files:
        local = folder / file.name
        if recorded.get(file.name) != _record(file):  # of an older listing, or of another place
            for stale in (local, local.with_name(local.name + _PART)):
                stale.unlink(missing_ok=True)
    manifest = {"url": tree.url, "files": {file.name: _record(file) for file in tree.files}}
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    temporary.replace(folder / MANIFEST)
    if isinstance(tree, HubTree):
        fill_from_hub(tree, folder, progress, stage)
    else:
        _fill_by_ranges(tree, folder, progress, stage)


def _fill_by_ranges(tree: RemoteTree, folder: Path, progress: Progress, stage: str) -> None:
    total = -(-tree.size // _MEGABYTE)
    before = 0
    for file in tree.files:
        if _size(folder / file.name) != file.size:
            _fetch_file(tree, file, folder / file.name, _Meter(progress, stage, before, total))
        before += file.size
        progress(stage, before // _MEGABYTE, total)
    progress(stage, total, total)


@dataclass(frozen=True)
class _Meter:
    """Progress of one file within the tree."""

    progress: Progress
    stage: str
    before: int
    total: int

    def show(self, done: int) -> None:
        self.progress(self.stage, min((self.before + done) // _MEGABYTE, max(self.total - 1, 0)), self.total)


def _fetch_file(tree: RemoteTree, file: RemoteFile, local: Path, meter: _Meter) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    part = local.with_name(local.name + _PART)
    kind, _, expected = file.checksum.partition(":")
    digest = _hash(kind) if expected else None
    with part.open("a+b") as stream:
        if stream.seek(0, os.SEEK_END) > file.size:
            stream.truncate(0)
        stream.seek(0)
        while block := stream.read(RANGE_BYTES):
            if digest is not None:
                digest.update(block)
        done = stream.tell()
        while done < file.size:
            for block in read_ranges(tree, file, done):
                stream.write(block)
                stream.flush()
                if digest is not None:
                    digest.update(block)
                done += len(block)
            meter.show(done)
        os.fsync(stream.fileno())
    if digest is not None and digest.digest().hex() != expected:
        part.unlink()
        raise DownloadError(
            f"{file.path} arrived damaged ({kind} {digest.digest().hex()}, the server says {expected}); the copy is "
            "deleted: run the same command again"
        )
    part.replace(local)
