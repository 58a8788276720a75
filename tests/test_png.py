"""PNG images: the pixels of Pillow's decoder, and an error for whatever is damaged."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chunkrl.data import image_decoding
from chunkrl.data.image_decoding import decode_image
from chunkrl.data.png import check_png
from chunkrl.errors import DatasetError

SIZE = (12, 17)
PIXELS = (np.random.default_rng(0).integers(0, 40, (*SIZE, 3)) + np.arange(17)[:, None]).astype(np.uint8)


def png(pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("level", [0, 1, 9])
def test_pixels_are_those_that_were_written(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = np.indices((40, 60)).sum(axis=0)[..., None] * np.array(
        [1, 2, 3]
    )  # makes Pillow use every filter
    monkeypatch.setattr(image_decoding.Image, "open", None)
    for pixels in (PIXELS, smooth.astype(np.uint8), np.zeros((1, 1, 3), np.uint8)):
        found = decode_image(png(pixels, compress_level=level), pixels.shape[:2])
        np.testing.assert_array_equal(found, pixels)


def test_metadata_and_other_kinds_of_rgb_are_read() -> None:
    variants: tuple[dict[str, Any], ...] = (
        {"dpi": (90, 90)},
        {"gamma": 2.2},
        {"transparency": (0, 0, 0)},
        {"icc_profile": b"x" * 50},
    )
    for options in variants:
        np.testing.assert_array_equal(decode_image(png(**options), SIZE), PIXELS)
    assert not check_png(png(transparency=(0, 0, 0))).is_plain


def test_every_cut_is_an_error() -> None:
    data = png()
    for length in range(len(data)):
        with pytest.raises(DatasetError):
            decode_image(data[:length], SIZE)


def test_every_changed_byte_is_an_error() -> None:
    data = png()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(DatasetError):
            decode_image(bytes(damaged), SIZE)


@pytest.mark.parametrize(
    ("pixels", "match"),
    [
        (PIXELS[:5], "5 x 17 RGB"),
        (PIXELS[..., 0], "12 x 17 L"),
        (np.dstack([PIXELS, PIXELS[..., 0]]), "12 x 17 RGBA"),
    ],
)
def test_what_is_not_declared_is_an_error(pixels: np.ndarray, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        decode_image(png(pixels), SIZE)


@pytest.mark.parametrize("damage", ["early end", "late end", "wrong sum", "wrong filter"])
def test_pixels_that_are_wrong_under_right_check_sums_are_an_error(damage: str) -> None:
    data = png()
    rows = bytearray(zlib.decompress(check_png(data).pixels))
    if damage == "early end":
        rows = rows[:100]
    elif damage == "late end":
        rows += bytes(20)
    elif damage == "wrong filter":
        rows[0] = 9
    pixels = zlib.compress(rows)
    if damage == "wrong sum":
        pixels = pixels[:-4] + bytes(4)
    kind = b"IDAT" + pixels
    chunk = struct.pack(">I", len(pixels)) + kind + struct.pack(">I", zlib.crc32(kind))
    with pytest.raises(DatasetError, match="damaged"):
        decode_image(data[:33] + chunk + data[-12:], SIZE)
