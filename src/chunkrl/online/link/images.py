"""Images on the wire: packed without loss by the sender, bounded and checked when they are unpacked.

The spool holds raw pixels, so that a control step never waits for compression. Each value is stored as its difference
to that of the pixel left of it, which makes what cameras see compress, and the differences as a zlib stream by isal:
of the lossless ways that were tried (PNG, zlib, isal without differences) as small as the smallest, and the fastest.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from isal import isal_zlib

from chunkrl.errors import RecordError
from chunkrl.install import MissingExtraError

try:
    from google.protobuf.message import DecodeError

    from chunkrl.online.proto import online_pb2 as pb
except ImportError as error:
    raise MissingExtraError("Online training", "protobuf", "online") from error

FEATURE = "packed_pictures"
MAX_UNPACKED_BYTES = 64 * 2**20
"""The size of all images of a step together: no more than a message of raw ones can hold."""
_INFLATE_ERROR = cast(type[Exception], isal_zlib.error)  # its stub says that it is an exception, not a class
_LEVEL = 1


def pack(picture: np.ndarray) -> bytes:
    """image: uint8 [height, width, 3]."""
    differences = picture.copy()
    differences[:, 1:] -= picture[:, :-1]
    return isal_zlib.compress(differences.tobytes(), _LEVEL)


def unpack(data: bytes, height: int, width: int) -> np.ndarray:
    """The image, uint8 [height, width, 3]. Never makes more than its size of memory out of `data`.

    Raises:
        RecordError: not exactly such an image.
    """
    size = height * width * 3
    stream = isal_zlib.decompressobj()
    try:
        values = stream.decompress(data, size + 1) if size else b""
    except _INFLATE_ERROR as error:
        raise RecordError(f"a packed image of {len(data)} bytes is damaged: {error}") from error
    if len(values) != size or size == 0 or not stream.eof or stream.unused_data:
        raise RecordError(f"a packed image is not of {height} x {width} pixels: damaged, refused")
    return np.cumsum(np.frombuffer(values, np.uint8).reshape(height, width, 3), axis=1, dtype=np.uint8)


def pack_item(data: bytes) -> bytes:
    """A spool's entry with its images packed, where that makes them smaller."""
    item = pb.Item()
    try:
        item.ParseFromString(data)
    except DecodeError:  # the learner says what is wrong with it
        return data
    if item.WhichOneof("item") != "step":
        return data
    for camera in item.step.cameras:
        raw = camera.picture
        if raw.dtype != pb.UINT8 or len(raw.shape) != 3:
            continue
        height, width, _ = raw.shape
        packed = pack(np.frombuffer(raw.data, np.uint8).reshape(raw.shape))
        if len(packed) < len(raw.data):
            camera.packed.codec = pb.DEFLATED_DIFFERENCES
            camera.packed.height, camera.packed.width, camera.packed.data = height, width, packed
            camera.ClearField("picture")
    return item.SerializeToString()


def check_packed(cameras) -> None:
    """Raises RecordError where packed images of a step have a codec that is not known here, or are too large."""
    total = 0
    for camera in cameras:
        if not camera.HasField("packed"):
            continue
        packed = camera.packed
        if camera.HasField("picture") or packed.codec != pb.DEFLATED_DIFFERENCES:
            raise RecordError(
                f"camera {camera.name!r}: an image in no way that is known here; is the peer newer?"
            )
        total += packed.height * packed.width * 3
    if total > MAX_UNPACKED_BYTES:
        raise RecordError(f"packed images of {total} bytes per step, more than {MAX_UNPACKED_BYTES}: refused")
