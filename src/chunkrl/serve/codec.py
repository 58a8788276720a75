"""openpi's messages: msgpack, in which an array is a map of dtype, shape and bytes.

What comes from the network is bounded before it is built: containers by number and length, arrays by the bytes that
are there. Nothing but texts, numbers, arrays, lists and maps is made of it.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from chunkrl.errors import RecordError
from chunkrl.install import MissingExtraError

try:
    import msgpack
except ImportError as error:
    raise MissingExtraError("Serving a policy", "msgpack", "serve") from error

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_DATA, _DTYPE, _SHAPE = b"data", b"dtype", b"shape"
_KIND = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_LONGEST, _MOST_CONTAINERS, _MOST_DIMS = 1024, 256, 8
_SIDE = 2**31


def encode(message: Any) -> bytes:
    """The message as msgpack; arrays and numpy's numbers of kinds b, i, u and f are kept as such.

    Raises:
        RecordError: something else in it.
    """
    try:
        return msgpack.packb(message, default=_packed)  # type: ignore[return-value]
    except (TypeError, ValueError, OverflowError) as reason:
        raise RecordError(f"a message cannot be written: {reason}") from reason


def decode(frame: bytes) -> Any:
    """The message in a frame; arrays are views of it, read-only.

    Raises:
        RecordError: it is no msgpack, nested or long beyond bounds, or holds an array whose bytes are not those of
            its shape and dtype.
    """
    found = _Bounds()
    try:
        return msgpack.unpackb(
            frame,
            object_hook=found.map,
            list_hook=found.list,
            ext_hook=_no_extension,
            max_array_len=_LONGEST,
            max_map_len=_LONGEST,
        )
    except RecordError:
        raise
    except UnicodeDecodeError as reason:
        raise RecordError(f"the message holds a text that is not UTF-8 ({reason.reason})") from reason
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as reason:
        told = str(reason) or type(reason).__name__
        raise RecordError(
            f"the message is no msgpack that openpi's clients send ({told:.200}): send one map an observation, "
            "as openpi_client.msgpack_numpy packs it"
        ) from reason


class _Bounds:
    """Makes what msgpack finds into values, and ends when it is too much."""

    def __init__(self) -> None:
        self._count = 0

    def list(self, value: list[Any]) -> list[Any]:
        self._count += 1
        if self._count > _MOST_CONTAINERS:
            raise RecordError(f"the message holds more than {_MOST_CONTAINERS} lists and maps")
        return value

    def map(self, value: dict[Any, Any]) -> Any:
        self.list([])
        if _ARRAY in value:
            return _array(value)
        return _scalar(value) if _SCALAR in value else value


def _no_extension(code: int, _: bytes) -> Any:
    raise RecordError(f"the message holds an extension of msgpack ({code}): send texts, numbers and arrays")


def _dtype(text: Any) -> np.dtype[Any]:
    if not isinstance(text, str) or not _KIND.fullmatch(text):
        raise RecordError(f"an array has the dtype {text!r:.40}: send booleans, integers or floats")
    return np.dtype(text)


def _array(value: dict[Any, Any]) -> np.ndarray:
    dtype, shape, data = _dtype(value.get(_DTYPE)), value.get(_SHAPE), value.get(_DATA)
    if not isinstance(shape, list) or len(shape) > _MOST_DIMS or any(type(n) is not int for n in shape):
        raise RecordError(f"an array has the shape {shape!r:.60}: send at most {_MOST_DIMS} integers")
    if any(not 0 <= side < _SIDE for side in shape) or not isinstance(data, bytes):
        raise RecordError(f"an array of the shape {shape} holds {type(data).__name__}: send its bytes")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise RecordError(
            f"an array of {dtype} {shape} holds {len(data)} bytes, expected {expected}: the message is cut or damaged"
        )
    try:
        return np.ndarray(tuple(shape), dtype, data)
    except ValueError as reason:  # no elements, of sides too long
        raise RecordError(f"an array has the shape {shape}: {reason}") from reason


def _scalar(value: dict[Any, Any]) -> np.generic:
    dtype, data = _dtype(value.get(_DTYPE)), value.get(_DATA)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    if limits is not None:
        is_right = type(data) is int and limits.min <= data <= limits.max
    else:
        is_right = type(data) is bool if dtype.kind == "b" else isinstance(data, float)
    if not is_right:
        raise RecordError(f"a number of {dtype} is {data!r:.40}: send it as numpy's item()")
    with np.errstate(over="ignore"):  # infinite, which no policy takes
        return dtype.type(data)


def _packed(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "biuf":
        kind = value.dtype if isinstance(value, np.ndarray | np.generic) else type(value).__name__
        raise TypeError(f"{kind} is neither text nor number nor an array of numbers")
    if isinstance(value, np.generic):
        return {_SCALAR: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: value.shape}
