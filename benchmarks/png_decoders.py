"""Milliseconds that one thread takes to decode an image of `benchmarks.data_loading`, by every decoder installed.

    python -m benchmarks.png_decoders

chunkrl's own decoder is `decode_image`; the others are for the choice: Pillow with and without its check of sums,
and, where installed, OpenCV, imagecodecs (libpng) and pyspng (libspng). CPU time, median of 7 turns. `damaged` says
what a decoder makes of a file with one bit changed.
"""

from __future__ import annotations

import importlib
import io
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from PIL import Image

from benchmarks.loading_data import CAMERAS, SIZE, episode
from chunkrl.data.image_decoding import decode_image

Decoder = Callable[[bytes], np.ndarray]
NUM_PICTURES, TURNS = 40, 7


def pillow(data: bytes) -> np.ndarray:
    """Without check sums."""
    return np.asarray(Image.open(io.BytesIO(data)))


def checked_pillow(data: bytes) -> np.ndarray:
    """With check sums, for which Pillow reads the file once more."""
    Image.open(io.BytesIO(data)).verify()
    return pillow(data)


def decoders() -> dict[str, Decoder]:
    """Those that are installed."""
    found: dict[str, Decoder] = {
        "chunkrl": lambda data: decode_image(data, (SIZE, SIZE)),
        "Pillow": pillow,
        "Pillow, checked": checked_pillow,
    }
    if find_spec("cv2"):
        cv2 = importlib.import_module("cv2")
        cv2.setNumThreads(1)
        found["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if find_spec("imagecodecs"):
        found["imagecodecs"] = importlib.import_module("imagecodecs").png_decode
    if find_spec("pyspng"):
        found["pyspng"] = importlib.import_module("pyspng").load
    return found


def of_damaged(decode: Decoder, data: bytes, picture: np.ndarray) -> str:
    """error, right pixels or wrong pixels."""
    damaged = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
    try:
        found = decode(damaged)
    except Exception:  # each library has its own
        return "error"
    return "error" if found is None else "right" if np.array_equal(found, picture) else "wrong pixels"


def main() -> None:
    """Measures all in turn and prints Markdown."""
    pictures = episode(0, NUM_PICTURES)[CAMERAS[0]]
    files = []
    for picture in pictures:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG", compress_level=1)
        files.append(stream.getvalue())
    times: dict[str, list[float]] = {name: [] for name in decoders()}
    for _ in range(TURNS):
        for name, decode in decoders().items():
            begin = time.thread_time()
            for data in files:
                decode(data)
            times[name].append((time.thread_time() - begin) / NUM_PICTURES * 1e3)
    print("| decoder | ms per image | pixels | damaged |\n|---|---:|---|---|")
    for name, decode in decoders().items():
        same = all(np.array_equal(decode(data), p) for data, p in zip(files, pictures, strict=True))
        pixels = "right" if same else "wrong"
        damaged = of_damaged(decode, files[0], pictures[0])
        print(f"| {name} | {statistics.median(times[name]):.2f} | {pixels} | {damaged} |")


if __name__ == "__main__":
    main()
