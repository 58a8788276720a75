"""openpi's messages: what is written reads back, and what is malformed is one clear error."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("msgpack", reason="needs chunkrl[serve]")

import msgpack

from chunkrl.errors import RecordError
from chunkrl.serve.codec import decode, encode

DTYPES = st.sampled_from(["?", "u1", "i1", "<u2", ">u2", "<i4", ">i8", "<u8", "<f2", ">f4", "<f8"]).map(
    np.dtype
)
ARRAYS = arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
SCALARS = DTYPES.flatmap(lambda dtype: arrays.from_dtype(dtype, allow_nan=False)).map(
    lambda value: np.asarray(value)[()]
)
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
MESSAGES = st.recursive(
    ARRAYS | SCALARS | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if type(b) is np.float64:  # Python's own float too, and goes as that
        b = float(b)
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(MESSAGES)
def test_what_is_written_reads_back(message: Any) -> None:
    assert same(decode(encode(message)), message)


@given(MESSAGES, st.data())
def test_a_cut_or_damaged_frame_is_an_error_or_another_message(message: Any, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    place = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(RecordError):
        decode(bytes(frame[:place]))
    frame[place] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(frame))
    except RecordError as error:
        assert len(str(error)) < 400


@given(st.binary(max_size=200))
def test_garbage_is_an_error_or_a_message(frame: bytes) -> None:
    try:
        decode(frame)
    except RecordError as error:
        assert len(str(error)) < 400


def test_the_wire_is_openpis() -> None:
    """The bytes of an array and of a number as the reference describes them."""
    array = np.arange(6, dtype="<i2").reshape(2, 3)
    assert msgpack.unpackb(encode({"a": array})) == {
        "a": {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<i2", b"shape": [2, 3]}
    }
    assert msgpack.unpackb(encode(np.float32(0.5))) == {
        b"__npgeneric__": True,
        b"data": 0.5,
        b"dtype": "<f4",
    }
    found = decode(encode(array))
    assert not found.flags.writeable  # a view of the frame


def array(**changes: Any) -> dict[bytes, Any]:
    fields = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2]}
    return {name.encode(): value for name, value in (fields | changes).items()}


def number(**changes: Any) -> dict[bytes, Any]:
    fields = {"__npgeneric__": True, "data": 1, "dtype": "|u1"}
    return {name.encode(): value for name, value in (fields | changes).items()}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (array(data=b"\0" * 7), r"float32 \[2\] holds 7 bytes, expected 8"),
        (array(shape=[2**30, 2**30]), "holds 8 bytes, expected 4611686018427387904"),
        (array(shape=[2**40]), "shape"),
        (array(shape=[-2]), "shape"),
        (array(shape=[True]), "shape"),
        (array(shape=[1] * 9), "at most 8 integers"),
        (array(shape=[0] + [2**31 - 1] * 7, data=b""), "shape"),
        (array(shape=None), "shape None"),
        (array(data="text"), "holds str: send its bytes"),
        (array(dtype="O"), "dtype 'O': send booleans, integers or floats"),
        (array(dtype="V8"), "dtype 'V8'"),
        (array(dtype="<c8"), "dtype '<c8'"),
        (array(dtype="<f16"), "dtype '<f16'"),
        (array(dtype="S8"), "dtype 'S8'"),
        (array(dtype=["<f4"]), "dtype"),
        ({b"__ndarray__": True}, "dtype None"),
        (number(data=300), "number of uint8 is 300"),
        (number(data=1.5), "number of uint8 is 1.5"),
        (number(data=b"1"), "number of uint8"),
        (number(dtype="|b1"), "number of bool is 1"),
        (number(dtype="<M8[s]"), "dtype"),
        (msgpack.ExtType(5, b"x"), "extension of msgpack"),
        ([[]] * 300, "more than 256 lists"),
        ([0] * 2000, "no msgpack that openpi's clients send"),
        ({str(i): 0 for i in range(2000)}, "no msgpack"),
    ],
)
def test_what_is_refused(message: Any, told: str) -> None:
    with pytest.raises(RecordError, match=told):
        decode(msgpack.packb(message) or b"")


def test_frames_that_are_no_message() -> None:
    for frame in (
        b"",
        b"\xc1",
        b"\x93\x01",
        b"\x01\x02",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\x81\x01\x01",
    ):
        with pytest.raises(RecordError, match="no msgpack"):
            decode(frame)
    with pytest.raises(RecordError, match="not UTF-8"):
        decode(b"\xa1\xff")


@pytest.mark.parametrize(
    "value", [np.array(["a"]), np.array([1j]), np.array([None]), object(), 2**70, {1, 2}]
)
def test_what_cannot_be_written(value: Any) -> None:
    with pytest.raises(RecordError, match="cannot be written"):
        encode({"a": value})
