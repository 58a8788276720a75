"""Damage to videos and images that leaves readable files, and to the spans of episodes in videos."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot_folder import write_video
from PIL import Image

from .damage import KINDS, kind, pick

Done = tuple[Path, str] | None


def _frames(path: Path) -> tuple[np.ndarray, float]:
    """uint8 RGB [n, height, width, 3] and frames per second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 10)
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)]), rate


def _on_video(
    name: str, change: Callable[[np.ndarray, float, random.Random], tuple[np.ndarray, float]]
) -> None:
    """Writes the video again with other frames or another rate."""

    def apply(root: Path, rng: random.Random) -> Done:
        path = pick(root, rng, ".mp4")
        if path is None:
            return None
        frames, rate = change(*_frames(path), rng)
        path.unlink()
        write_video(path, frames, Fraction(rate).limit_denominator(1000))  # type: ignore[arg-type]
        return path, name

    KINDS[f"video/{name}"] = apply


def _without(frames: np.ndarray, place: int) -> np.ndarray:
    return np.delete(frames, place, axis=0)


def _inner(frames: np.ndarray, rng: random.Random) -> int:
    return rng.randrange(1, len(frames) - 1)


for _name, _change in {
    "first frame missing": lambda f, rate, rng: (f[1:], rate),
    "last frame missing": lambda f, rate, rng: (f[:-1], rate),
    "a frame missing": lambda f, rate, rng: (_without(f, _inner(f, rng)), rate),
    "half missing": lambda f, rate, rng: (f[: len(f) // 2], rate),
    "a frame too many": lambda f, rate, rng: (np.insert(f, _inner(f, rng), 7, axis=0), rate),
    "frames beyond the end": lambda f, rate, rng: (np.concatenate([f, f[: rng.choice([1, 8])]]), rate),
    "half the rate": lambda f, rate, rng: (f, rate / 2),
    "twice the rate": lambda f, rate, rng: (f, rate * 2),
    "a rate a little higher": lambda f, rate, rng: (f, rate * 1.1),
    "another size": lambda f, rate, rng: (f[:, :16, :16], rate),
    "turned": lambda f, rate, rng: (f.transpose(0, 2, 1, 3)[:, :, :30], rate),
    "other images": lambda f, rate, rng: (255 - f, rate),
}.items():
    _on_video(_name, _change)


@kind("video/without an image stream")
def _sound(root: Path, rng: random.Random) -> Done:
    path = pick(root, rng, ".mp4")
    if path is None:
        return None
    path.unlink()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode()])
    return path, "sound alone"


@kind("video/another codec")
def _codec(root: Path, rng: random.Random) -> Done:
    """Lossy: other pixels, and no reader could know."""
    path = pick(root, rng, ".mp4")
    if path is None:
        return None
    frames, rate = _frames(path)
    path.unlink()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path, "MPEG-4"


@kind("video/another span")
def _span(root: Path, rng: random.Random) -> Done:
    """Where the metadata of v3.0 says that an episode lies in its video."""
    files = sorted(root.glob("meta/episodes/*/*.parquet"))
    names = [n for n in pq.read_schema(files[0]).names if n.endswith("_timestamp")] if files else []
    if not names:
        return None
    path, table = files[0], pq.read_table(files[0])
    camera = rng.choice(names).rsplit("/", 1)[0]
    begin, end = (np.array(table[f"{camera}/{side}_timestamp"]).copy() for side in ("from", "to"))
    row = rng.randrange(len(begin))
    shift = rng.choice([0.1, 0.3, -0.1, 1.0])
    what = rng.choice(
        ["all the same", "shifted", "begins elsewhere", "ends elsewhere", "swapped", "all shifted", "nan"]
    )
    if what == "all the same":
        begin[:], end[:] = begin[0], end[0]
    elif what == "shifted":
        begin[row], end[row] = begin[row] + shift, end[row] + shift
    elif what == "begins elsewhere":
        begin[row] += shift
    elif what == "ends elsewhere":
        end[row] += shift
    elif what == "swapped" and row:
        begin[row], begin[row - 1] = begin[row - 1], begin[row]
        end[row], end[row - 1] = end[row - 1], end[row]
    elif what == "all shifted":
        begin, end = begin + shift, end + shift
    else:
        begin[row] = np.nan
    for side, values in (("from", begin), ("to", end)):
        name = f"{camera}/{side}_timestamp"
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, path)
    return path, f"{camera}, row {row}: {what}"


def _encoded(picture: Image.Image, how: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, how)
    return stream.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _bomb(data: bytes) -> bytes:
    """A PNG that declares 50,000 x 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return data[:8] + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _on_picture(name: str, change: Callable[[bytes, random.Random], bytes | None]) -> None:
    """Another file in the place of one image, or of all images of a camera."""

    def apply(root: Path, rng: random.Random) -> Done:
        path = pick(root, rng, ".parquet")
        table = None if path is None else pq.read_table(path)
        if path is None or table is None:
            return None
        columns = [f.name for f in table.schema if pa.types.is_struct(f.type)]
        if not columns or not len(table):
            return None
        column = rng.choice(columns)
        cells, rows = table[column].to_pylist(), [rng.randrange(len(table))]
        if rng.random() < 0.3:
            rows = list(range(len(table)))
        for row in rows:
            cells[row] = {**cells[row], "bytes": change(cells[row]["bytes"], rng)}
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, pa.array(cells, table.schema.field(column).type))
        pq.write_table(table, path)
        return path, f"'{column}': {len(rows)} images {name}"

    KINDS[f"picture/{name}"] = apply


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def _broken_checksum(data: bytes, rng: random.Random) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


for _name, _other in {
    "without bytes": lambda data, rng: None,
    "of no bytes": lambda data, rng: b"",
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "of another size": lambda data, rng: _encoded(_open(data).resize((16, 48))),
    "grey": lambda data, rng: _encoded(_open(data).convert("L")),
    "with transparency": lambda data, rng: _encoded(_open(data).convert("RGBA")),
    "with a palette": lambda data, rng: _encoded(_open(data).quantize()),
    "of 16 bits": lambda data, rng: _encoded(_open(data).convert("I;16")),
    "as JPEG": lambda data, rng: _encoded(_open(data), "JPEG"),
    "as CMYK": lambda data, rng: _encoded(_open(data).convert("CMYK"), "JPEG"),
    "as GIF": lambda data, rng: _encoded(_open(data), "GIF"),
    "as BMP": lambda data, rng: _encoded(_open(data), "BMP"),
    "as WebP": lambda data, rng: _encoded(_open(data), "WEBP"),
    "as raw bytes": lambda data, rng: np.asarray(_open(data)).tobytes(),
    "inverted": lambda data, rng: _encoded(Image.fromarray(255 - np.asarray(_open(data).convert("RGB")))),
    "with a wrong checksum": _broken_checksum,
    "of huge declared size": lambda data, rng: _bomb(data),
    "with more behind": lambda data, rng: data + rng.randbytes(20),
    "of text": lambda data, rng: b"<svg></svg>",
}.items():
    _on_picture(_name, _other)
