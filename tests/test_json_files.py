"""One reader of JSON from files, and one of lines: whatever lies there, a record or one clear error."""

from __future__ import annotations

import ast
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.files import json_files
from chunkrl.files.json_files import json_lines, numbers, read_json
from chunkrl.files.regular_files import check_regular, inside, is_there, open_regular

SOURCE = Path(json_files.__file__).parents[1]
CURE = "fetch it again"

DAMAGED = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "after the end": b'{"a": 1} x',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "byte-order mark": b'\xef\xbb\xbf{"a": 1}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-32": '{"a": 1}'.encode("utf-32"),
    "NUL": b'{"a": 1}\0',
    "lists in lists": b'{"a": ' + b"[" * 100_000,
    "objects in objects": b'{"a":' * 100_000,
    "a depth that Python would read": b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}",
    "many digits": b'{"a": ' + b"1" * 5000 + b"}",
    "an integer of no use": b'{"a": ' + b"1" * 100 + b"}",
    "NaN": b'{"a": NaN}',
    "-Infinity": b'{"a": [-Infinity]}',
    "a float that is infinite": b'{"a": 1e999}',
    "a key twice": b'{"a": 1, "a": 2}',
    "a key twice below": b'{"a": [{"b": 1, "b": 1}]}',
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "a list": b"[1]",
    "a text": b'"a"',
    "a number": b"1",
    "null": b"null",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_one_error_with_file_and_cure(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"x\.json (is damaged|holds) .*: {CURE}$") as caught:
        read_json(file, dict, DatasetError, CURE)
    assert len(str(caught.value)) < 400
    if b"\n" not in content and content.strip():
        file.write_bytes(b'{"ok": 1}\n\n' + content + b"\n")
        with pytest.raises(DatasetError, match=rf"x\.json, line 3 (is damaged|holds) .*: {CURE}$"):
            list(json_lines(file, DatasetError, CURE))


def test_what_is_right_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    value = {"a": [1, 2.5, None, True, {"é\n\u2028": {}}], "b": 2**127, "c": "\U0001f600"}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1).replace("\n", "\r\n")):
        file.write_bytes(text.encode())
        assert read_json(file, dict, DatasetError, CURE) == value
    file.write_text("[" * 60 + "]" * 60)
    assert len(read_json(file, list, DatasetError, CURE)) == 1
    file.write_text('{"a": NaN, "b": -Infinity}')
    assert read_json(file, dict, DatasetError, CURE, nan=True)["b"] == -float("inf")


def test_lines_and_an_end_that_a_kill_left(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a": 1}\n\r\n{"a": "\\u2028 \xe2\x80\xa8"}\n{"a":')
    with pytest.raises(ChunkRLError, match="line 4 is damaged"):
        list(json_lines(file, ChunkRLError, CURE))
    lines = list(json_lines(file, ChunkRLError, CURE, cut_end=True))
    for end in (b"\0" * 8, b"end", b'{"a":\0'):
        (tmp_path / "y.jsonl").write_bytes(b'{"a": 1}\n' + end)
        with pytest.raises(ChunkRLError, match="line 2 is damaged"):
            list(json_lines(tmp_path / "y.jsonl", ChunkRLError, CURE, cut_end=True))
    assert lines == [(f"{file}, line 1", {"a": 1}), (f"{file}, line 3", {"a": "\u2028 \u2028"})]


@given(st.binary(max_size=64))
def test_any_bytes_are_a_record_or_our_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(data)
    try:
        assert isinstance(read_json(file, dict, DatasetError, CURE), dict)
    except DatasetError as error:
        assert str(error).endswith(CURE)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8")),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**120), 2**120)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(codec="utf-8")),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=2),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_what_json_writes_comes_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "back.json"
    file.write_text(json.dumps(value))
    assert read_json(file, dict, DatasetError, CURE) == value


def not_files(folder: Path) -> list[tuple[Path, str]]:
    """Paths that are no files, and what they are."""
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(folder / "pipe")
    (folder / "nowhere").symlink_to(folder / "gone")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "s"))
    server.close()
    return [
        (folder / "sub", "is a folder"),
        (folder / "pipe", r"is a pipe \(FIFO\)"),
        (folder / "link", r"is a pipe \(FIFO\)"),
        (folder / "nowhere", "is missing"),
        (folder / "none", "is missing"),
        (folder / "sub" / "x" / "none", "is missing"),
        (Path("/dev/zero"), "is a device"),
        (folder / "s", "(is a socket|cannot be read)"),
        (folder / ("n" * 300), "cannot be read"),
        (folder / "a\0b", "cannot be read"),
    ]


def test_what_is_no_file_is_not_opened(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    for path, what in not_files(tmp_path):
        with pytest.raises(DatasetError, match=rf"{what}.*: {CURE}$"):
            read_json(path, dict, DatasetError, CURE)
        with pytest.raises(DatasetError, match=rf"{what}.*: {CURE}$"):
            list(json_lines(path, DatasetError, CURE))
        with pytest.raises(DatasetError, match=rf"{what}.*: {CURE}$"):
            check_regular(path, DatasetError, CURE)
        if os.path.lexists(path):
            with pytest.raises(DatasetError, match=rf"{what}.*: {CURE}$"):
                is_there(path, DatasetError, CURE)
        else:
            assert not is_there(path, DatasetError, CURE)
    (tmp_path / "x").write_bytes(b"abc")
    assert is_there(tmp_path / "x", DatasetError, CURE)
    (tmp_path / "l").symlink_to(tmp_path / "x")  # as in the Hub's cache
    check_regular(tmp_path / "l", DatasetError, CURE)
    with open_regular(tmp_path / "l", DatasetError, CURE) as file:
        assert file.read() == b"abc"


def test_names_from_elsewhere_stay_inside(tmp_path: Path) -> None:
    for name in ("a", "a/b.c", "a..b", "...", " "):
        assert inside(tmp_path, name, "x.json: 'file'", ChunkRLError) == tmp_path / name
    for name in ("", ".", "..", "../a", "a/../../b", "/etc/passwd", "a\0", "a/..", None, 3, ["a"], True):
        with pytest.raises(ChunkRLError, match=r"^x\.json: 'file' is .*correct it"):
            inside(tmp_path, name, "x.json: 'file'", ChunkRLError)


def test_lists_of_numbers() -> None:
    assert numbers([1, 2.5], "x", ChunkRLError, CURE) == [1.0, 2.5]
    for wrong in (None, 1, "12", [True], ["1"], [[1]], [None], {"a": 1}):
        with pytest.raises(ChunkRLError, match=rf"x is .*expected a list of numbers: {CURE}"):
            numbers(wrong, "x", ChunkRLError, CURE)


READERS = {"load", "loads", "JSONDecoder"}


def test_no_other_module_reads_json() -> None:
    """`json.load` and `json.loads` stand in the reader alone: what a file holds is checked in one place."""
    calls = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(value=ast.Name(id="json" | "orjson" | "ujson"), attr=name) if (
                    name in READERS
                ):
                    calls.append(file.name)
                case ast.ImportFrom(module="json", names=names) if READERS & {alias.name for alias in names}:
                    calls.append(file.name)
    assert set(calls) == {"json_files.py"}
