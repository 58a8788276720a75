"""A data set's fingerprint: of its contents, so that a copy of the data set has the same, wherever and when made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from chunkrl.data.metadata import Episode, Info, metadata_files
from chunkrl.data.problems import Report
from chunkrl.errors import DatasetError
from chunkrl.files.regular_files import check_regular

BLOCK = 4096
ENDS = 65536
INNER_BLOCKS = 8
_LAYOUT = b"chunkrl cache 3"  # part of every fingerprint: a new cache layout starts new folders


def dataset_fingerprint(
    root: Path, info: Info, episodes: Sequence[Episode], cameras: Sequence[str], report: Report
) -> str:
    """Digest of every file's name, size and content; every file needed must exist.

    Metadata are read whole; of data and video files longer than 160 kB, the first and last 64 kB (a parquet file's
    directory, an mp4's index) and 8 blocks of 4 kB evenly spaced between. A file that is written again changes there;
    a few bytes overwritten in place between the blocks, in a file of the same length, go unseen.

    report: is told which files are missing or cannot be read.
    """
    digest = hashlib.sha256(_LAYOUT)
    metadata = set(metadata_files(root, info.version))
    needed: dict[Path, list[int]] = {file: [] for file in metadata_files(root, info.version)}
    users: dict[Path, str] = {}
    for episode in episodes:
        needed.setdefault(episode.data_file, []).append(episode.index)
        users.setdefault(episode.data_file, f"episode {episode.index}")
        for key, span in episode.videos.items():
            # Videos of unused cameras count where they exist: the cache serves any column mapping.
            if key in cameras or span.file.is_file():
                needed.setdefault(span.file, []).append(episode.index)
                users.setdefault(span.file, f"episode {episode.index}, camera '{key}'")
    for file, indices in needed.items():
        name = file.relative_to(root).as_posix()
        try:
            if file.exists():
                check_regular(file, DatasetError, "fetch the data set again")
            content = _content_digest(file, whole=file in metadata)
        except DatasetError as error:
            report(error, indices)
            content = b"no file"
        except OSError as error:
            user = users.get(file, "metadata")
            problem = DatasetError(f"{file} cannot be read ({user}: {error.strerror}): make it readable")
            if isinstance(error, FileNotFoundError):
                problem = DatasetError(f"{file} is missing ({user}): fetch the data set again")
            problem.__cause__ = error
            report(problem, indices)
            content = b"missing"
        digest.update(f"\0{name}\0".encode() + content)
    return digest.hexdigest()[:32]


def _content_digest(file: Path, whole: bool) -> bytes:
    """The digest of a file's size and content, or of blocks of it; see `dataset_fingerprint`."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        digest.update(size.to_bytes(8, "little"))
        inner = size - 2 * ENDS
        if whole or inner <= INNER_BLOCKS * BLOCK:
            while data := stream.read(1 << 20):
                digest.update(data)
            return digest.digest()
        spans = [(0, ENDS), (size - ENDS, ENDS)]
        spans += [(ENDS + (inner - BLOCK) * i // (INNER_BLOCKS - 1), BLOCK) for i in range(INNER_BLOCKS)]
        for start, length in spans:
            stream.seek(start)
            digest.update(stream.read(length))
    return digest.digest()
