"""Files sent to a repository of the Hub: one commit, so that a reader finds all of them or none.

Library considered: huggingface_hub, which sends. `create_commit` and not `upload_folder`, which makes several commits
of a large folder: a policy would stand there in parts. Added here: who may see the repository and what stands in it
is looked at first, and what has arrived is compared with what was sent. A large file that a killed push had sent
whole is on the Hub already, and the library does not send it again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    HFValidationError,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from chunkrl.errors import ChunkRLError
from chunkrl.integration.hub import MEGABYTE, RepositoryKind, file_digest, hub_url
from chunkrl.progress import Progress

_MOST_FILES = 25_000  # the Hub's limit of a commit
_BATCH_BYTES, _BATCH_FILES = 1 << 28, 100  # sent at once: progress is shown after each
CARD = "README.md"
_GIT = ".gitattributes"  # the Hub's own
_AGAIN = "run the same command again: large files that have arrived whole are not sent again"
_CURES = {
    401: "it does not take the token: log in again with one that may write (hf auth login, or HF_TOKEN)",
    403: "the token may not write there: use one with write access to that account (hf auth login, or HF_TOKEN)",
    404: "check the name, and that the token may see it",
    409: "somebody else has changed it meanwhile, or it exists and the token may not see it: look at its page, then "
    "run the same command again",
    412: "somebody else has changed it meanwhile: run the same command again",
    413: "it takes no file or commit of this size: see huggingface.co/docs/hub/storage-limits",
    429: "it asks for a pause: run the same command again in an hour",
    507: "the account has no room for it: free some, or push to another account; then run the same command again",
}


class UploadError(ChunkRLError):
    """What is pushed did not get to the Hub, or must not; what had been there is still there."""


@dataclass(frozen=True)
class Upload:
    """One file. name: in the repository, with `/`. source: a file, or what it holds."""

    name: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def digest(self, kind: str) -> str:
        """In hexadecimal. kind: sha256, or git's sha1 of a blob."""
        if not isinstance(self.source, bytes):
            return file_digest(self.source, kind)
        if kind == "sha256":
            return hashlib.sha256(self.source).hexdigest()
        head = b"blob %d\0" % len(self.source)
        return hashlib.sha1(head + self.source, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Destination:
    """A repository. branch: None: main. public: everybody may see it."""

    repo_id: str
    kind: RepositoryKind
    branch: str | None = None
    public: bool = False

    @property
    def url(self) -> str:
        """For messages."""
        return hub_url(self.repo_id, self.branch)


@dataclass(frozen=True)
class Standing:
    """What stands where files are to be sent.

    exists: the repository. has_branch: the branch. commit: what the branch stands at. same, other: names of the
    files to be sent that are there, equal and not. foreign: names of what is not among them.
    """

    exists: bool
    has_branch: bool = False
    commit: str | None = None
    same: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


def check_name(repo_id: str) -> None:
    """Raises UploadError unless it is a repository's name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UploadError(f"--repo-id is {repo_id!r}: {str(error).splitlines()[0]}") from error
    if repo_id.count("/") != 1:
        raise UploadError(f"--repo-id is {repo_id!r}; a repository is account/name")


def check_access(repo_id: str) -> None:
    """Raises UploadError unless the Hub may be asked, and a token is there; nobody is asked."""
    if constants.HF_HUB_OFFLINE:
        raise UploadError(
            f"HF_HUB_OFFLINE is set, and {hub_url(repo_id, None)} is on the Hub: unset it to push"
        )
    if get_token() is None:
        raise UploadError(
            "there is no token of the Hub: log in with one that may write (hf auth login), or set HF_TOKEN"
        )


def look(to: Destination, files: Sequence[Upload]) -> Standing:
    """What stands there; nothing is changed.

    Raises:
        UploadError: the Hub cannot be asked, or others may see the repository than `to` says.
    """
    api = HfApi()
    with _telling(to.url):
        try:
            info = api.repo_info(to.repo_id, repo_type=to.kind)
        except RepositoryNotFoundError:
            return Standing(False)
        if bool(info.private) == to.public:
            raise UploadError(
                f"{to.url} is private, and --public does not change that: do it on its page, or leave --public out"
                if to.public
                else f"{to.url} is public, so that everybody would see what is pushed: give --public if that is "
                "meant, else another --repo-id"
            )
        try:
            info = api.repo_info(to.repo_id, repo_type=to.kind, revision=to.branch)
            entries = list(
                api.list_repo_tree(to.repo_id, repo_type=to.kind, recursive=True, revision=info.sha)
            )
        except RevisionNotFoundError:
            return Standing(True)
    there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    wanted = {file.name: file for file in files}
    same = tuple(name for name in wanted if name in there and _is_same(wanted[name], there[name]))
    other = tuple(name for name in wanted if name in there and name not in same)
    foreign = tuple(sorted(there.keys() - wanted.keys() - {_GIT}))
    return Standing(True, True, info.sha, same, other, foreign)


def send(to: Destination, files: Sequence[Upload], found: Standing, message: str, progress: Progress) -> str:
    """Makes the repository or branch where there is none, and one commit after which it holds `files` and no others.

    found: of `look`; where somebody has changed it since, nothing is. Returns the commit.

    Raises:
        UploadError: the Hub refuses, the connection fails, or something else arrived.
    """
    api = HfApi()
    if len(files) > _MOST_FILES:
        raise UploadError(
            f"{len(files)} files, and a commit of the Hub has {_MOST_FILES} at most: merge them (chunkrl label "
            "--export and LeRobot's v3.0 keep many episodes in a file)"
        )
    with _telling(to.url), _no_bars():
        if not found.exists:
            api.create_repo(to.repo_id, repo_type=to.kind, private=not to.public)
        if to.branch is not None and not found.has_branch:
            api.create_branch(to.repo_id, repo_type=to.kind, branch=to.branch)
            found = look(to, files)  # it begins as main
        operations = [CommitOperationAdd(file.name, _source(file)) for file in files]
        _send_content(api, to, operations, progress)
        commit = api.create_commit(
            to.repo_id,
            [*operations, *(CommitOperationDelete(name, is_folder=False) for name in found.foreign)],
            commit_message=message,
            repo_type=to.kind,
            revision=to.branch,
            parent_commit=found.commit,
        )
    arrived = look(to, files)
    if wrong := sorted({file.name for file in files} - set(arrived.same)):
        raise UploadError(
            f"{to.url}: {', '.join(wrong[:5])} did not arrive as sent (does a .gitignore there leave it out?)"
        )
    return commit.oid


def tag(to: Destination, name: str, commit: str) -> None:
    """Gives the commit a tag, which another commit may have had. Raises UploadError as `send`."""
    api = HfApi()
    with _telling(to.url):
        with suppress(RevisionNotFoundError):  # nothing has it
            api.delete_tag(to.repo_id, repo_type=to.kind, tag=name)
        api.create_tag(to.repo_id, repo_type=to.kind, tag=name, revision=commit)


def _source(file: Upload) -> str | bytes:
    return file.source if isinstance(file.source, bytes) else str(file.source)


def _is_same(file: Upload, there: RepoFile) -> bool:
    if file.size != there.size:
        return False
    if there.lfs is not None:
        return file.digest("sha256") == there.lfs.sha256
    return file.digest("git's sha1") == there.blob_id


def _send_content(
    api: HfApi, to: Destination, operations: Sequence[CommitOperationAdd], progress: Progress
) -> None:
    """Sends large files ahead of the commit, some at once."""
    total = sum(operation.upload_info.size for operation in operations)
    done, stage = 0, f"{to.repo_id} (MB)"
    for batch in _batches(operations):
        progress(stage, done // MEGABYTE, -(-total // MEGABYTE))
        api.preupload_lfs_files(to.repo_id, batch, repo_type=to.kind, revision=to.branch, free_memory=False)
        done += sum(operation.upload_info.size for operation in batch)
    progress(stage, -(-total // MEGABYTE), -(-total // MEGABYTE))


def _batches(operations: Sequence[CommitOperationAdd]) -> Iterator[list[CommitOperationAdd]]:
    batch: list[CommitOperationAdd] = []
    size = 0
    for operation in operations:
        batch.append(operation)
        size += operation.upload_info.size
        if size >= _BATCH_BYTES or len(batch) == _BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _no_bars() -> Iterator[None]:
    """The library's bars are not shown: the command has its own."""
    shown = not are_progress_bars_disabled() and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


@contextmanager
def _telling(url: str) -> Iterator[None]:
    """Says of what the library raises what it means, and the cure."""
    try:
        yield
    except ChunkRLError:
        raise
    except Exception as error:  # no connection, no such server, no permission: dozens of kinds
        raise UploadError(_told(url, error)) from error


def _told(url: str, error: BaseException) -> str:
    lines = [line for line in str(error).strip().split("\n") if line]
    if lines and isinstance(error, ValueError) and CARD in lines[0]:
        return (
            f"{url}: no commit was made, for the Hub does not take what the head of {CARD} says: "
            f"{' '.join(lines[1:])} (licences: huggingface.co/docs/hub/repositories-licenses)"
        )
    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__  # the library says of a large file only that it failed
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    cure = _CURES.get(status, f"check the network; {_AGAIN}")
    lines = [line for line in str(error).strip().split("\n") if line]
    reason = " ".join(dict.fromkeys((*lines[:1], *lines[-1:])))
    return f"{url}: the push has ended ({type(error).__name__}: {reason}); {cure}"
