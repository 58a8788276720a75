"""The folder where what was read from data sets is kept: `$CHUNKRL_CACHE` or `~/.cache/chunkrl`.

Each data set has a folder named by its fingerprint. Whatever stands in it under its final name is whole: it
was built beside, under a lock, and renamed. Any of it may be deleted while no process uses it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

import numpy as np
from filelock import FileLock

from chunkrl.errors import ChunkRLError
from chunkrl.files.regular_files import check_regular

BUILDING = ".building"
"""After the name of a folder that is not whole yet."""
_COPIED_ROWS = 32
_LONGEST_NAME = 150


def cache_folder(fingerprint: str, cache_dir: Path | None) -> Path:
    """The folder of the data set with this fingerprint; it need not exist."""
    chosen = cache_dir or os.environ.get("CHUNKRL_CACHE") or Path.home() / ".cache" / "chunkrl"
    return Path(chosen).expanduser().resolve() / fingerprint


def file_name(column: str) -> str:
    """A file name for a column, whose own name may hold a slash, or be longer than those of files."""
    name = quote(column, safe="")
    return name if len(name) <= _LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()


def ensure(target: Path, build: Callable[[Path], None], resume: bool = False) -> None:
    """Makes sure that the folder `target` exists and is whole; one process builds, others wait for it.

    Args:
        target: the folder.
        build: fills the folder it is given, which becomes `target` when it returns.
        resume: `build` is given what a killed build left, rather than an empty folder.

    Raises:
        ChunkRLError: the cache cannot be written.
    """
    if target.is_dir():
        return
    building = target.with_name(target.name + BUILDING)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if target.is_dir():
                return
            if building.exists() and not resume:
                shutil.rmtree(building)
            building.mkdir(exist_ok=True)
            build(building)
            building.replace(target)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """What the operating system refuses inside, as a ChunkRLError that names the folder of the cache."""
    try:
        yield
    except OSError as error:
        raise ChunkRLError(
            f"{target}: cannot be written ({error}): set CHUNKRL_CACHE to another folder"
        ) from error


def create_array(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped .npy file whose blocks are reserved: writing to it later cannot meet a full disk.

    Raises:
        ChunkRLError: the disk has not enough space.
    """
    check_free(math.prod(shape) * dtype.itemsize, file.parent)
    array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    with file.open("r+b") as stream:
        reserve(stream, file.stat().st_size, file.parent)
    return array


def reserve(stream: IO[bytes], size: int, folder: Path) -> None:
    """Reserves the blocks of an open file in `folder`, `size` bytes from its start.

    Raises:
        ChunkRLError: the disk has not enough space.
    """
    allocated = os.fstat(stream.fileno()).st_blocks * 512
    check_free(size - allocated, folder)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            # A file system that cannot reserve is not full: the check above is all there is.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise _full(size, folder) from error


def check_free(needed: int, folder: Path) -> None:
    """Raises ChunkRLError where the disk of `folder` has not `needed` bytes free."""
    if needed > shutil.disk_usage(folder).free:
        raise _full(needed, folder)


def _full(needed: int, folder: Path) -> ChunkRLError:
    free = shutil.disk_usage(folder).free
    return ChunkRLError(
        f"{folder}: the cache needs {needed / 1e9:.3f} GB more, {free / 1e9:.3f} GB are free: "
        "free some, or set CHUNKRL_CACHE to a folder on a larger disk"
    )


def grow_array(source: Path, file: Path, num_rows: int) -> np.memmap:
    """`source`, an array of `create_array` [n, ...], as `file` [num_rows, ...] with its first n rows, to be written.

    The two names are of one file, so that nothing is copied: who opens `source` from now finds `num_rows` rows too.
    Where the file system has no hard links, `file` is a copy.

    Raises:
        ChunkRLError: the disk has not enough space, or `source` is missing or damaged.
    """
    before = load_array(source)
    shape = (num_rows, *before.shape[1:])
    try:
        os.link(source, file)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK):
            raise
        copied = create_array(file, before.dtype, shape)
        for begin in range(0, len(before), _COPIED_ROWS):
            part = before[begin : begin + _COPIED_ROWS]
            copied[begin : begin + len(part)] = part
        return copied
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(before.dtype), "fortran_order": False, "shape": shape}
    )
    assert len(header.getvalue()) == before.offset, (
        "numpy leaves room in the header for the first axis to grow"
    )
    with file.open("r+b") as stream:
        reserve(stream, before.offset + math.prod(shape) * before.dtype.itemsize, file.parent)
        stream.write(header.getvalue())
    return load_array(file, writable=True)


def sync_array(array: np.memmap) -> None:
    """Waits until a mapped file of the cache is on the disk. Other threads run meanwhile, which `memmap.flush` stops:
    CPython keeps its interpreter lock during msync."""
    descriptor = os.open(str(array.filename), os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_array(file: Path, writable: bool = False) -> np.memmap:
    """Maps a .npy file of the cache into memory.

    Raises:
        ChunkRLError: the file is missing or damaged.
    """
    check_regular(file, ChunkRLError, f"damaged cache, delete the folder {file.parent}")
    try:
        return np.lib.format.open_memmap(file, mode="r+" if writable else "r")
    except (OSError, ValueError) as error:
        raise ChunkRLError(f"{file}: damaged cache ({error}): delete the folder {file.parent}") from error
