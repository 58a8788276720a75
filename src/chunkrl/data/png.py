"""Plain PNG pictures by FFmpeg, in two thirds of Pillow's time; what it would pass over is checked before.

FFmpeg alone takes a file without its end. So all chunks and their check sums are checked first; at damage within them
FFmpeg raises. (Pixels that end early under right check sums, a broken encoder's work, it takes, as Pillow does.)
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OVERHEAD = 12  # bytes of a chunk beside its content: length, kind, check sum


@dataclass(frozen=True)
class PngHeader:
    """size: (height, width). is_plain: RGB of 8 bits without transparency, which is what data sets hold."""

    size: tuple[int, int]
    is_plain: bool


def check_png(data: bytes) -> PngHeader:
    """What a PNG file holds, of which every chunk is whole.

    Raises:
        ValueError: it is cut off, or a check sum is wrong.
    """
    kinds: list[bytes] = []
    view, at = memoryview(data), len(SIGNATURE)
    while not kinds or kinds[-1] != b"IEND":
        if at + _OVERHEAD > len(data):
            raise ValueError("cut off")
        end = at + _OVERHEAD + struct.unpack_from(">I", data, at)[0]
        if end > len(data):
            raise ValueError("cut off")
        if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ValueError("wrong check sum")
        kinds.append(data[at + 4 : at + 8])
        at = end
    if kinds[0] != b"IHDR" or struct.unpack_from(">I", data, len(SIGNATURE))[0] != 13:
        raise ValueError("no header")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, len(SIGNATURE) + 8)
    return PngHeader((height, width), (depth, colour) == (8, 2) and b"tRNS" not in kinds)


def decode_plain(data: bytes) -> np.ndarray:
    """A PNG file that `check_png` calls plain, uint8 RGB [height, width, 3].

    Raises:
        FFmpegError, ValueError: it is damaged.
    """
    decoder = VideoCodecContext.create("png", "r")
    decoder.thread_count = 1
    decoder.options = {"err_detect": "explode"}
    frames = decoder.decode(Packet(data)) or decoder.decode(None)
    if len(frames) != 1 or frames[0].is_corrupt or frames[0].format.name != "rgb24":
        raise ValueError("no whole picture")
    return frames[0].to_ndarray()
