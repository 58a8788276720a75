"""Listing and reading trees of files at any fsspec location: Google Cloud Storage, the Hub, a folder.

Libraries considered: google-cloud-storage (40 MB, 21 packages, 1.6 s to import, buckets alone) and gcsfs, which is
used (80 MB, extra `gcs`) since any fsspec location is then a mirror; both leave checking a whole tree and going on
after a kill to the caller.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.utils import get_protocol

from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError

RANGE_BYTES = 1 << 24
# Ranges asked for at once: one stream does not fill a fast line.
_NUM_RANGES = 4


class DownloadError(ChunkRLError):
    """A download that cannot be done or completed; what has arrived stays and the next attempt goes on from it."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a remote tree.

    path: on its file system. name: relative to the tree, with `/`. size: bytes.
    checksum: "md5:...", "crc32c:..." or "sha256:..." in hexadecimal, or "" where the server gives none.
    version: what changes when the server's file does, or "".
    """

    path: str
    name: str
    size: int
    checksum: str
    version: str


@dataclass(frozen=True)
class RemoteTree:
    """A remote location with all its files, listed but not read."""

    url: str
    filesystem: Any
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def _checksum(info: Mapping[str, Any]) -> str:
    """The strongest checksum among what Google Cloud Storage and the Hub put into a file's description."""
    lfs = info.get("lfs")
    if lfs:
        return f"sha256:{lfs['sha256'] if isinstance(lfs, Mapping) else lfs.sha256}"
    for kind, key in (("md5", "md5Hash"), ("crc32c", "crc32c")):  # composite objects have the second only
        if info.get(key):
            return f"{kind}:{base64.b64decode(info[key]).hex()}"
    return ""


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path on it; Google Cloud Storage without credentials.

    Raises:
        MissingExtraError: the protocol needs a package that is not installed.
        DownloadError: no such protocol.
    """
    if get_protocol(url) in ("gs", "gcs"):
        try:
            # Not through fsspec's registry: newer releases register a class that first asks another service about
            # the bucket, which anonymous users may not, and wait minutes for it where there is no network.
            from gcsfs.core import GCSFileSystem  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtraError("reading from Google Cloud Storage", "gcsfs", "gcs") from error
        # Given explicitly: gcsfs otherwise looks for credentials, and fails where it finds the wrong ones.
        filesystem = GCSFileSystem(token="anon")
        # It logs the traceback of an error that it also raises, and that is shown as one message here.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        return filesystem, str(filesystem._strip_protocol(url))
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DownloadError(f"{url}: {error}; install that package") from error
    except ValueError as error:
        raise DownloadError(f"{url}: {error}; give a gs://, hf://, file:// or other fsspec URL") from error


def list_tree(url: str) -> RemoteTree:
    """The files under a URL (or the one file that it names), with sizes and checksums.

    Raises:
        DownloadError: nothing is there, the server cannot be reached, or it names files outside the tree.
        MissingExtraError: see `open_filesystem`.
    """
    filesystem, root = open_filesystem(url)
    try:
        if filesystem.isfile(root):
            found = {root: filesystem.info(root)}
            root = root.rpartition("/")[0]
        else:
            found = filesystem.find(root, detail=True)
    except Exception as error:  # each file system raises its own network library's types
        raise DownloadError(
            f"{url} cannot be listed ({type(error).__name__}: {error}); check the network and the name"
        ) from error
    root = root.rstrip("/") + "/"
    files = []
    for path, info in sorted(found.items()):
        name = path.removeprefix(root)
        if info["type"] != "file" or not name:
            continue
        if path == name or ".." in PurePosixPath(name).parts:
            raise DownloadError(f"{url}: the server names '{path}', which is not inside; nothing is fetched")
        version = str(info.get("generation") or info.get("blob_id") or info.get("mtime") or "")
        files.append(RemoteFile(path, name, int(info["size"]), _checksum(info), version))
    if not files:
        raise DownloadError(f"there is nothing at {url}; check the name")
    return RemoteTree(url, filesystem, tuple(files))


def read_ranges(tree: RemoteTree, file: RemoteFile, start: int) -> Sequence[bytes]:
    """The next bytes of a file from `start`, as several consecutive blocks.

    Raises:
        DownloadError: the connection fails, or the server sends less than it said.
    """
    starts = list(range(start, min(start + _NUM_RANGES * RANGE_BYTES, file.size), RANGE_BYTES))
    ends = [min(first + RANGE_BYTES, file.size) for first in starts]
    try:
        blocks = tree.filesystem.cat_ranges([file.path] * len(starts), starts, ends, on_error="raise")
        for block in blocks:
            if isinstance(block, Exception):  # asynchronous file systems return them whatever was asked
                raise block
    except Exception as error:  # each file system raises its own network library's types
        raise DownloadError(
            f"{file.path} cannot be read ({type(error).__name__}: {error}); run the same command again: it goes on "
            "from what has arrived"
        ) from error
    for block, first, last in zip(blocks, starts, ends, strict=True):
        if len(block) != last - first:
            raise DownloadError(
                f"{file.path}: the server sent {len(block)} of {last - first} bytes; run the same command again"
            )
    return blocks
