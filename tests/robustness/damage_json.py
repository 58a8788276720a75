"""Damage to JSON files and to lines of JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .damage import KINDS, kind, pick

Done = tuple[Path, str] | None
HUGE = 10**400
_PATHS = ("../../../../etc/hostname", "/etc/hostname", "data/../../x.parquet", "\0", "a" * 5000)
_TEMPLATES = (
    *(
        "{episode_chunk:200000000d}",
        "{episode_index.__class__.__mro__}",
        "{0}",
        "{",
        "{video_key!r:>99999999}",
    ),
    *("data/{chunk_index:099999d}.parquet", "{episode_index:{episode_index}}", "{file_index.real}"),
)


def _load(path: Path, rng: random.Random) -> tuple[Any, Callable[[str], None]] | None:
    """A value of the file, and what puts another text in its place."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text), lambda new: _write(path, new + "\n")
    lines = text.splitlines()
    if not lines:
        return None
    number = rng.randrange(len(lines))

    def put(new: str) -> None:
        _write(path, "\n".join([*lines[:number], new, *lines[number + 1 :]]) + "\n")

    return json.loads(lines[number]), put


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def _place(value: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """A container and a key in it, at any depth."""
    found = None
    while isinstance(value, (dict, list)) and value and (found is None or rng.random() < 0.75):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        found, value = (value, key), value[key]
    return found


def _all_places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_all_places(value[key]))]


def _shuffled(places: list[tuple[Any, Any]], rng: random.Random) -> list[tuple[Any, Any]]:
    return rng.sample(places, len(places))


def _on_value(name: str, other: Callable[[Any, random.Random], Any]) -> None:
    """Puts `other(value)` in the place of a value in a JSON file; a ValueError of it says that there is none."""

    def apply(root: Path, rng: random.Random) -> Done:
        path = pick(root, rng, ".json", ".jsonl")
        loaded = None if path is None else _load(path, rng)
        if path is None or loaded is None:
            return None
        value, put = loaded
        near = [place for place in (_place(value, rng) for _ in range(20)) if place is not None]
        for holder, key in [*near, *_shuffled(_all_places(value), rng)]:
            try:
                new = other(holder[key], rng)
            except ValueError:
                continue
            told = f"{key!r}: {str(holder[key])[:60]} became {str(new)[:60] if new is not HUGE else 'huge'}"
            holder[key] = new
            put(json.dumps(value))
            return path, told
        return None

    KINDS[f"json/{name}"] = apply


def _another_type(value: Any, rng: random.Random) -> Any:
    others = [None, "text", True, 7, 0.5, [], {}, [1, "a"], {"a": 1}]
    return rng.choice([other for other in others if type(other) is not type(value)])


def _number_as_text(value: Any, rng: random.Random) -> Any:
    return str(_number(value))


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _other_number(value: Any, rng: random.Random) -> int | float:
    number = _number(value)
    return (
        number + rng.choice([-1, 1, 2]) if isinstance(number, int) else number * rng.choice([0.9, 1.01, 1.5])
    )


def _out_of_range(value: Any, rng: random.Random) -> int | float:
    number = _number(value)
    big = [-1, 0, 2**31, 2**63, -(2**63), 10**9] if isinstance(number, int) else [-1e300, 1e300, 0.0, -1.0]
    return rng.choice([x for x in big if x != number])


for _name, _other in {
    "another type": _another_type,
    "a number as text": _number_as_text,
    "another number": _other_number,
    "a number out of range": _out_of_range,
    "a huge integer": lambda value, rng: (_number(value), HUGE)[1],
    "an integer as a float": lambda value, rng: float(_integer(value)),
    "a boolean for a number": lambda value, rng: (_number(value), rng.random() < 0.5)[1],
    "not a number": lambda value, rng: (_number(value), rng.choice([float("nan"), float("inf")]))[1],
    "another text": lambda value, rng: _text(value) + rng.choice(["x", " ", "é", "\n"]),
    "an empty text": lambda value, rng: (_text(value), "")[1],
    "a path": lambda value, rng: (_text(value), rng.choice(_PATHS))[1],
    "a template": lambda value, rng: (_text(value), rng.choice(_TEMPLATES))[1],
    "a list for a value": lambda value, rng: [value],
    "a value for a list": lambda value, rng: value[0] if isinstance(value, list) and value else _text(1),
    "a flag turned": lambda value, rng: not value if isinstance(value, bool) else _text(1),
    "deep nesting": lambda value, rng: [[[[[[[[[[value]]]]]]]]]],
}.items():
    _on_value(_name, _other)


def _on_text(name: str, change: Callable[[bytes, random.Random], bytes]) -> None:
    """Changes the bytes of a JSON file."""

    def apply(root: Path, rng: random.Random) -> Done:
        path = pick(root, rng, ".json", ".jsonl")
        if path is None:
            return None
        path.write_bytes(change(path.read_bytes(), rng))
        return path, name

    KINDS[f"json/{name}"] = apply


def _in_a_string(text: bytes, rng: random.Random, part: bytes) -> bytes:
    quotes = [i for i, byte in enumerate(text) if byte == ord('"')]
    if not quotes:
        return text
    place = rng.choice(quotes) + 1
    return text[:place] + part + text[place:]


for _name, _change in {
    "a byte order mark": lambda text, rng: b"\xef\xbb\xbf" + text,
    "line ends of Windows": lambda text, rng: text.replace(b"\n", b"\r\n"),
    "UTF-16": lambda text, rng: text.decode().encode("utf-16"),
    "bad UTF-8": lambda text, rng: _in_a_string(text, rng, rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80"])),
    "half a surrogate pair": lambda text, rng: _in_a_string(text, rng, b"\\ud800"),
    "a NUL": lambda text, rng: _in_a_string(text, rng, rng.choice([b"\\u0000", b"\0"])),
    "a list of it": lambda text, rng: b"[" + text + b"]",
    "nothing but a list": lambda text, rng: rng.choice([b"[]", b"[1]", b"null", b"3", b'"text"', b"true"]),
    "an empty object": lambda text, rng: b"{}",
    "two of it": lambda text, rng: text + text,
    "nested without end": lambda text, rng: rng.choice([b"[", b'{"a":']) * 100_000,
    "a comment": lambda text, rng: b"// a comment\n" + text,
    "an integer of 5000 digits": lambda text, rng: b'{"a": ' + b"9" * 5000 + b"}",
}.items():
    _on_text(_name, _change)


def _on_object(name: str, change: Callable[[dict, str, random.Random], str]) -> None:
    """Changes which keys an object has; `change` returns the text of the whole object's JSON or edits it."""

    def apply(root: Path, rng: random.Random) -> Done:
        path = pick(root, rng, ".json", ".jsonl")
        loaded = None if path is None else _load(path, rng)
        if path is None or loaded is None:
            return None
        value, put = loaded
        place = _place(value, rng)
        holder, key = (value, None) if place is None else place
        if not isinstance(holder, dict) or key is None:
            return None
        told = change(holder, key, rng)
        put(json.dumps(value))
        return path, told

    KINDS[f"json/{name}"] = apply


def _key_gone(holder: dict, key: str, rng: random.Random) -> str:
    del holder[key]
    return f"{key!r} is gone"


def _key_renamed(holder: dict, key: str, rng: random.Random) -> str:
    holder[key + "_"] = holder.pop(key)
    return f"{key!r} has another name"


def _key_added(holder: dict, key: str, rng: random.Random) -> str:
    holder["added"] = rng.choice([1, "text", None, [1], {"a": 1}])
    return "a key added"


def _keys_swapped(holder: dict, key: str, rng: random.Random) -> str:
    other = rng.choice(list(holder))
    holder[key], holder[other] = holder[other], holder[key]
    return f"the values of {key!r} and {other!r} swapped"


for _name, _edit in {
    "a key gone": _key_gone,
    "a key renamed": _key_renamed,
    "a key added": _key_added,
    "values swapped": _keys_swapped,
}.items():
    _on_object(_name, _edit)


def _on_lines(name: str, change: Callable[[list[bytes], random.Random], list[bytes]]) -> None:
    def apply(root: Path, rng: random.Random) -> Done:
        path = pick(root, rng, ".jsonl")
        if path is None:
            return None
        lines = change(path.read_bytes().splitlines(keepends=True), rng)
        path.write_bytes(b"".join(lines))
        return path, name

    KINDS[f"lines/{name}"] = apply


def _line_moved(lines: list[bytes], rng: random.Random) -> list[bytes]:
    lines.insert(rng.randrange(len(lines)), lines.pop(rng.randrange(len(lines))))
    return lines


def _line(lines: list[bytes], rng: random.Random, count: int) -> list[bytes]:
    """One of them `count` times."""
    place = rng.randrange(len(lines))
    return [*lines[:place], *[lines[place]] * count, *lines[place + 1 :]]


for _name, _lines in {
    "one gone": lambda lines, rng: _line(lines, rng, 0),
    "one twice": lambda lines, rng: _line(lines, rng, 2),
    "one elsewhere": _line_moved,
    "empty ones": lambda lines, rng: [part for line in lines for part in (line, b"\n")],
    "the last cut": lambda lines, rng: [*lines[:-1], lines[-1][: rng.randrange(1, len(lines[-1]) - 1)]],
    "the last end gone": lambda lines, rng: [*lines[:-1], lines[-1].rstrip(b"\n")],
    "two on one line": lambda lines, rng: [lines[0].rstrip(b"\n"), *lines[1:]],
}.items():
    _on_lines(_name, _lines)


@kind("json/a key twice")
def _key_twice(root: Path, rng: random.Random) -> Done:
    path = pick(root, rng, ".json", ".jsonl")
    loaded = None if path is None else _load(path, rng)
    if path is None or loaded is None or not isinstance(loaded[0], dict) or not loaded[0]:
        return None
    value, put = loaded
    key = rng.choice(list(value))
    other = _another_type(value[key], rng)
    put(json.dumps(value)[:-1] + f", {json.dumps(key)}: {json.dumps(other)}}}")
    return path, f"{key!r} twice"
