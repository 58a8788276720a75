"""Damage to which files there are, and to their bytes."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from .damage import KINDS, Kind, files_of, kind, pick

Done = tuple[Path, str] | None


def _on_a_file(name: str, function: Callable[[Path, random.Random], str]) -> None:
    def apply(root: Path, rng: random.Random) -> Done:
        path = pick(root, rng)
        return None if path is None else (path, function(path, rng))

    KINDS[f"structure/{name}"] = apply


def _missing(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "missing"


def _folder(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def _fifo(path: Path, rng: random.Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a FIFO in its place"


def _socket(path: Path, rng: random.Random) -> str:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)  # paths of sockets are short
        bound.bind(path.name)
        os.chdir(here)
    return "a socket in its place"


def _link(target: Callable[[Path], str | Path], what: str) -> Callable[[Path, random.Random], str]:
    def apply(path: Path, rng: random.Random) -> str:
        path.unlink()
        path.symlink_to(target(path))
        return what

    return apply


def _moved_behind_a_link(path: Path, rng: random.Random) -> str:
    """As the Hub's cache has it: right."""
    blob = path.with_name(f".blob-{path.name}")
    path.rename(blob)
    path.symlink_to(blob.name)
    return "a link to its content"


def _renamed(path: Path, rng: random.Random) -> str:
    path.rename(path.with_name(path.name.upper() if rng.random() < 0.5 else f"{path.stem}-1{path.suffix}"))
    return "renamed"


def _copied_beside(path: Path, rng: random.Random) -> str:
    found = re.search(r"\d+", path.stem)
    name = f"{path.stem}-copy"
    if found:
        name = f"{path.stem[: found.start()]}{int(found[0]) + 7:0{len(found[0])}d}{path.stem[found.end() :]}"
    shutil.copy(path, path.with_name(name + path.suffix))
    return f"copied to {name}{path.suffix}"


for _name, _function in {
    "missing": _missing,
    "folder": _folder,
    "fifo": _fifo,
    "socket": _socket,
    "link loop": _link(lambda path: path.name, "a link to itself"),
    "dangling link": _link(lambda path: "nowhere", "a link to nothing"),
    "link to /dev/zero": _link(lambda path: "/dev/zero", "a link to /dev/zero"),
    "link to its folder": _link(lambda path: path.parent, "a link to its folder"),
    "link to its content": _moved_behind_a_link,
    "renamed": _renamed,
    "copied beside": _copied_beside,
}.items():
    _on_a_file(_name, _function)


def _pair(root: Path, rng: random.Random) -> tuple[Path, Path] | None:
    """Two files of one suffix."""
    files = files_of(root)
    first = rng.choice(files)
    others = [path for path in files if path.suffix == first.suffix and path != first]
    return (first, rng.choice(others)) if others else None


@kind("structure/swapped")
def _swapped(root: Path, rng: random.Random) -> Done:
    pair = _pair(root, rng)
    if pair is None:
        return None
    first, second = pair
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    return first, f"swapped with {second.relative_to(root)}"


@kind("structure/another's content")
def _copied_over(root: Path, rng: random.Random) -> Done:
    pair = _pair(root, rng)
    if pair is None:
        return None
    pair[0].write_bytes(pair[1].read_bytes())
    return pair[0], f"the content of {pair[1].relative_to(root)}"


@kind("structure/folder gone")
def _folder_gone(root: Path, rng: random.Random) -> Done:
    folders = sorted(path for path in root.rglob("*") if path.is_dir() and path.name != "tensorboard")
    if not folders:
        return None
    folder = rng.choice(folders)
    shutil.rmtree(folder)
    if rng.random() < 0.5:
        folder.write_text("a file\n")
        return folder, "a file in place of a folder"
    return folder, "a folder is gone"


def _on_bytes(name: str, function: Callable[[bytearray, random.Random], bytes | bytearray]) -> Kind:
    def apply(root: Path, rng: random.Random) -> Done:
        path = pick(root, rng)
        if path is None:
            return None
        path.write_bytes(function(bytearray(path.read_bytes()), rng))
        return path, name

    KINDS[f"bytes/{name}"] = apply
    return apply


def _at(data: bytearray, rng: random.Random) -> int:
    return rng.randrange(max(1, len(data)))


def _flip(data: bytearray, rng: random.Random, count: int) -> bytearray:
    for _ in range(count if data else 0):
        data[_at(data, rng)] ^= 1 << rng.randrange(8)
    return data


def _overwritten(data: bytearray, rng: random.Random, zero: bool) -> bytearray:
    begin = _at(data, rng)
    end = min(len(data), begin + rng.choice([4, 64, 512, 4096]))
    data[begin:end] = bytes(end - begin) if zero else rng.randbytes(end - begin)
    return data


def _cut_out(data: bytearray, rng: random.Random) -> bytearray:
    begin = _at(data, rng)
    del data[begin : begin + rng.choice([1, 16, 512])]
    return data


def _inserted(data: bytearray, rng: random.Random) -> bytearray:
    begin = _at(data, rng)
    data[begin:begin] = rng.randbytes(rng.choice([1, 16, 512]))
    return data


for _title, _change in {
    "one bit flipped": lambda data, rng: _flip(data, rng, 1),
    "eight bits flipped": lambda data, rng: _flip(data, rng, 8),
    "zeroed": lambda data, rng: _overwritten(data, rng, True),
    "overwritten": lambda data, rng: _overwritten(data, rng, False),
    "truncated": lambda data, rng: data[: _at(data, rng)],
    "last bytes gone": lambda data, rng: data[: -rng.randrange(1, 16)],
    "empty": lambda data, rng: b"",
    "cut out": _cut_out,
    "inserted": _inserted,
    "appended": lambda data, rng: data + rng.randbytes(rng.randrange(1, 64)),
    "twice": lambda data, rng: data + data,
    "only zeros": lambda data, rng: bytes(len(data)),
}.items():
    _on_bytes(_title, _change)
