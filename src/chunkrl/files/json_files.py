"""JSON from files: the one reader of a whole file, and the one of a file with a record a line.

What they give is safe to look at: UTF-8 without a byte-order mark, keys that occur once, numbers that are finite and
of a size that computers calculate with, text that can be written again, and no nesting beyond any use. Whoever asked
checks the types of what is inside (`chunkrl.config.load_config` does for a dataclass).
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from chunkrl.errors import ChunkRLError
from chunkrl.files.regular_files import open_regular

MAX_BYTES = 1 << 30  # of a file, or of a line
MAX_DEPTH = 64
_MAX_DIGITS = 40  # of an integer: states of random generators have 128 bits
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's begin or end with these

_Kind = TypeVar("_Kind", dict[str, Any], list[Any])


def read_json(
    path: Path, kind: type[_Kind], error: type[ChunkRLError], cure: str, nan: bool = False
) -> _Kind:
    """What a JSON file holds.

    kind: dict or list, which it must be. cure: the end of each message: what the user does. nan: NaN and Infinity are
    numbers there.

    Raises:
        error: the file is missing, no regular file, or damaged: names it and what is wrong.
    """
    with open_regular(path, error, cure) as file:
        data = _read(file, path, error, cure)
    return parse_json(data, kind, str(path), error, cure, nan)


def json_lines(
    path: Path, error: type[ChunkRLError], cure: str, cut_end: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where it stands, and the record, of every line that is not empty.

    cut_end: a last line without a line break that begins as a record does is what a kill left, and is left out.

    Raises:
        error: as `read_json`; names the line.
    """
    with open_regular(path, error, cure) as file:
        for number, line in enumerate(_lines(file, path, error, cure), start=1):
            if line.strip() and not (cut_end and _is_cut(line)):
                where = f"{path}, line {number}"
                yield where, parse_json(line, dict, where, error, cure)


def _is_cut(line: bytes) -> bool:
    return (
        line.startswith(b"{") and not line.endswith(b"\n") and line.decode("utf-8", "replace").isprintable()
    )


def parse_json(
    data: bytes, kind: type[_Kind], where: str, error: type[ChunkRLError], cure: str, nan: bool = False
) -> _Kind:
    """Does as `read_json`, of bytes that stood at `where`."""
    try:
        value = _parse(data, nan)
    except (ValueError, RecursionError, MemoryError) as reason:
        raise error(f"{where} is damaged ({reason}): {cure}") from reason
    if type(value) is not kind:
        wanted, found = (_NAMES.get(t, t.__name__) for t in (kind, type(value)))
        raise error(f"{where} holds {found}, expected {wanted}: {cure}")
    return value


def first_object(content: bytes) -> dict[str, Any] | None:
    """The JSON object that `content` begins with, whatever follows; None where there is none."""
    text = content.decode("utf-8", "replace").lstrip()
    if not text.startswith("{"):
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return found


_NAMES = {dict: "an object {...}", list: "a list [...]", type(None): "null", str: "a text", bool: "a boolean"}


def numbers(value: Any, where: str, error: type[ChunkRLError], cure: str) -> list[float]:
    """`value`, which stood at `where`, as a flat list of numbers. Raises `error` where it is none."""
    if isinstance(value, list) and all(type(item) in (int, float) for item in value):
        return [float(item) for item in value]
    raise error(f"{where} is {value!r:.60}, expected a list of numbers: {cure}")


def as_json(value: Any, default: Callable[[Any], Any] | None = None) -> Any:
    """`value` as it is read back from JSON: tuples are lists. default: as `json.dumps`."""
    return json.loads(json.dumps(value, default=default))


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _read(file: BinaryIO, path: Path, error: type[ChunkRLError], cure: str) -> bytes:
    try:
        data = file.read(MAX_BYTES + 1)
    except OSError as reason:
        raise error(f"{path} cannot be read ({reason.strerror or reason}): {cure}") from reason
    if len(data) > MAX_BYTES:
        raise error(f"{path} is damaged (longer than {MAX_BYTES / 1e9:.1f} GB): {cure}")
    return data


def _lines(file: BinaryIO, path: Path, error: type[ChunkRLError], cure: str) -> Iterator[bytes]:
    number = 0
    try:
        while line := file.readline(MAX_BYTES + 1):
            number += 1
            if len(line) > MAX_BYTES:
                raise error(
                    f"{path}, line {number} is damaged (longer than {MAX_BYTES / 1e9:.1f} GB): {cure}"
                )
            yield line
    except OSError as reason:
        raise error(f"{path} cannot be read ({reason.strerror or reason}): {cure}") from reason


def _parse(data: bytes, nan: bool) -> Any:
    if data.startswith(codecs.BOM_UTF8):
        raise ValueError("it begins with a byte-order mark, which JSON has not: save it as UTF-8 without BOM")
    if data.startswith(_OTHER_MARKS):
        raise ValueError("it is written in UTF-16: save it as UTF-8 without BOM")
    text = data.decode("utf-8")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=None if nan else _finite,
            parse_constant=None if nan else _refuse_constant,
        )
    except json.JSONDecodeError as reason:
        raise ValueError(f"not valid JSON: {reason}") from reason
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value)
    if "\\ud" in text or "\\uD" in text:  # half a surrogate pair can be read, but never written
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice!r} occurs twice in one object")
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} where a number belongs")


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _children(item: Any) -> Iterable[Any]:
    children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return (child for child in children if isinstance(child, dict | list))
