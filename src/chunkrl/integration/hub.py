"""Repositories of the Hub, fetched by `huggingface_hub.snapshot_download`, and what it leaves to its caller.

Library considered: huggingface_hub, which fetches.

The library logs in, retries, and moves large files in parallel parts (Xet). Added here: the folder has its own name
only when it is whole (`transfer`), every file is compared with the Hub's checksum (the library compares sizes), space
is looked for first, and what is missing is an error also where the library returns a folder that it could not ask
about. A killed transfer keeps the files that have arrived whole; the library begins the others again.
"""

from __future__ import annotations

import glob
import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import tqdm

from chunkrl.integration.remote import DownloadError, RemoteFile
from chunkrl.progress import Progress

RepositoryKind = Literal["model", "dataset"]
_CACHE = ".cache/huggingface"  # what the library keeps in a folder that it fills
_BLOCK = 1 << 24
_LOOK_S = 1.0  # how often the folder is measured for the progress
MEGABYTE = 10**6


@dataclass(frozen=True)
class HubTree:
    """A repository at one commit with the files of it that are wanted, listed but not read."""

    url: str
    repo_id: str
    commit: str
    files: tuple[RemoteFile, ...]
    kind: RepositoryKind = "model"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def hub_url(repo_id: str, revision: str | None) -> str:
    """The name of a repository at a revision, in records and messages."""
    return f"hf://{repo_id}" + ("" if revision is None else f"@{revision}")


def list_repository(
    repo_id: str, revision: str | None, include: tuple[str, ...] = (), kind: RepositoryKind = "model"
) -> HubTree:
    """The files of a repository, with sizes and checksums.

    revision: branch, tag or commit; None: main. include: glob patterns of the files that are wanted; (): all.

    Raises:
        DownloadError: no such repository, revision or file, no permission, offline, or names outside the folder.
    """
    url = hub_url(repo_id, revision)
    api = HfApi()
    try:
        commit = api.repo_info(repo_id, revision=revision, repo_type=kind).sha
        if commit is None:
            raise DownloadError(f"{url}: the Hub names no commit; check the name")
        entries = list(api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=kind))
    except Exception as error:  # no connection, no such server, no permission: dozens of kinds
        raise _told(url, error) from error
    files = []
    for entry in sorted((e for e in entries if isinstance(e, RepoFile)), key=lambda e: e.path):
        if PurePosixPath(entry.path).is_absolute() or ".." in PurePosixPath(entry.path).parts:
            raise DownloadError(
                f"{url}: the server names '{entry.path}', which is not inside; nothing is fetched"
            )
        if not include or any(fnmatchcase(entry.path, pattern) for pattern in include):
            checksum = "" if entry.lfs is None else f"sha256:{entry.lfs.sha256}"
            files.append(RemoteFile(entry.path, entry.path, entry.size, checksum, entry.blob_id))
    if not files:
        wanted = f" that {', '.join(include)} names" if include else ""
        raise DownloadError(f"there is nothing at {url}{wanted}; check the name")
    return HubTree(url, repo_id, commit, tuple(files), kind)


def fill_from_hub(tree: HubTree, folder: Path, progress: Progress, stage: str) -> None:
    """Fetches what `folder` lacks of the tree, and compares every file with the Hub's checksum.

    Raises:
        DownloadError: the connection fails, or a file is missing or damaged; it is deleted, the others stay.
        OSError: the disk.
    """
    for stale in (folder / _CACHE).rglob(
        "*.incomplete"
    ):  # of a killed process: the library does not resume it
        stale.unlink()
    try:
        with _measured(tree, folder, progress, stage):
            snapshot_download(
                tree.repo_id,
                repo_type=tree.kind,
                revision=tree.commit,
                local_dir=folder,
                allow_patterns=[glob.escape(file.name) for file in tree.files],
                tqdm_class=_Silent,
            )
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, HfHubHTTPError):
            raise  # the disk
        raise _told(tree.url, error) from error
    for file in tree.files:
        _check(tree, file, folder)
    if (folder / _CACHE).is_dir():
        shutil.rmtree(folder / _CACHE)
        if not any((folder / _CACHE).parent.iterdir()):
            (folder / _CACHE).parent.rmdir()
    progress(stage, -(-tree.size // MEGABYTE), -(-tree.size // MEGABYTE))


class _Silent(tqdm):
    """The library's bars are not shown: the command has its own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "disable": True})


def _check(tree: HubTree, file: RemoteFile, folder: Path) -> None:
    """Raises DownloadError unless the file is whole; a damaged one is deleted."""
    local = folder / file.name
    again = "run the same command again: it goes on from what has arrived"
    if not local.is_file():
        raise DownloadError(f"{tree.url}: {file.name} did not arrive (was the connection lost?); {again}")
    kind, _, expected = file.checksum.partition(":")
    if not expected:
        kind, expected = "git's sha1", file.version
    found = file_digest(local, kind)
    if local.stat().st_size != file.size or found != expected:
        local.unlink()
        raise DownloadError(
            f"{tree.url}: {file.name} arrived damaged ({kind} {found}, the Hub says {expected}); the copy is "
            "deleted: run the same command again"
        )


def file_digest(file: Path, kind: str) -> str:
    """The digest of a file, in hexadecimal. kind: sha256, or git's sha1 of a blob, which begins with its size."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind != "sha256":
        digest.update(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _measured(tree: HubTree, folder: Path, progress: Progress, stage: str) -> Iterator[None]:
    """Shows what has arrived, in megabytes, until the block ends."""
    done, total = threading.Event(), -(-tree.size // MEGABYTE)

    def look() -> None:
        while not done.wait(_LOOK_S):
            progress(stage, min(_arrived(folder) // MEGABYTE, max(total - 1, 0)), total)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _arrived(folder: Path) -> int:
    """Bytes of the files in `folder`; files come and go while it is read."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue  # the library has renamed it
    return total


def _told(url: str, error: Exception) -> DownloadError:
    """What a fault of the library means, and the cure."""
    if isinstance(error, DownloadError):
        return error
    cure = "check the network and the name; run the same command again: it goes on from what has arrived"
    if isinstance(error, OfflineModeIsEnabled):
        cure = "unset HF_HUB_OFFLINE to fetch it"
    elif isinstance(error, GatedRepoError):
        cure = "ask for access on its page, then log in: hf auth login"
    elif isinstance(error, RepositoryNotFoundError):
        cure = "check the name; a private repository needs a login: hf auth login"
    elif isinstance(error, RevisionNotFoundError):
        cure = "check --revision: a branch, tag or commit of it"
    reason = str(error).strip().split("\n")[0]
    return DownloadError(f"{url} cannot be fetched ({type(error).__name__}: {reason}); {cure}")
