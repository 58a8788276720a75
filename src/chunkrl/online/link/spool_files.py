"""A spool's folder: its segments, its state, and the thread that syncs it.

The files of a spool: each a magic number, then frames of length, CRC-32, number and payload.

What a spool's folder says of itself besides its entries: which one it is, and how far it is done with.

Something done again and again in a thread of its own, such as a spool's sync beside the robot's control loop.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from chunkrl.errors import RecordError, SpoolError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.files.regular_files import check_regular, open_regular
from chunkrl.online.link.records import check_id, new_id

MAGIC = b"CRLSPL\x00\x01"  # the last byte is the format's version
_HEADER = struct.Struct("<IIQ")  # payload length, CRC-32 of number and payload, number
MAX_PAYLOAD_BYTES = 60 * 2**20  # fits into one message (`chunkrl.online.link.wire.MAX_MESSAGE_BYTES`)
_SUFFIX = ".segment"
_MOVE_AWAY = "restore it, or move the spool folder away and start a new one"


def segment_path(root: Path, first: int) -> Path:
    """The file whose first frame has the number `first`."""
    return root / f"{first:020d}{_SUFFIX}"


def list_segments(root: Path) -> list[int]:
    """First numbers of all segments under `root`, ascending."""
    return sorted(int(path.name.removesuffix(_SUFFIX)) for path in root.glob(f"{'[0-9]' * 20}{_SUFFIX}"))


def encode_frame(sequence: int, payload: bytes) -> bytes:
    """The frame's bytes."""
    return _HEADER.pack(len(payload), _crc(sequence, payload), sequence) + payload


def write_all(descriptor: int, data: bytes) -> None:
    """os.write until everything is written (a full disk may take a part)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class SegmentReader:
    """Reads one segment's frames in order, up to a limit that its writer knows to be whole."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.first = self.sequence = first  # of the next frame
        self.offset = len(MAGIC)
        check_regular(path, SpoolError, _MOVE_AWAY)
        # no buffer: it might hold a part of a frame that a full disk then takes back
        self._file = path.open("rb", buffering=0)
        if self._file.read(len(MAGIC)) != MAGIC:
            self.close()
            raise SpoolError(
                f"{path} is no spool segment of this version: use the version that wrote it, or move the folder"
            )

    def skip_to(self, sequence: int) -> None:
        """Moves before the frame `sequence` (at or after the present one) without reading payloads."""
        while self.sequence < sequence:
            self._file.seek(self.offset)
            length, _, number = self._unpack(self._file.read(_HEADER.size))
            if number != self.sequence or length > MAX_PAYLOAD_BYTES:
                raise self._damaged()
            self._advance(length)

    def next(self) -> bytes:
        """The next frame's payload; raises SpoolError where it is damaged."""
        self._file.seek(self.offset)
        payload = read_frame(self._file, self.sequence)
        if payload is None:
            raise self._damaged()
        self._advance(len(payload))
        return payload

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _advance(self, length: int) -> None:
        self.offset += _HEADER.size + length
        self.sequence += 1

    def _unpack(self, header: bytes) -> tuple[int, int, int]:
        if len(header) < _HEADER.size:
            raise self._damaged()
        return _HEADER.unpack(header)

    def _damaged(self) -> SpoolError:
        return SpoolError(
            f"{self.path}: entry {self.sequence} at byte {self.offset} is damaged (disk error, or the file was "
            "changed): restore the file from a copy, or move the spool folder away and start a new one"
        )


class EntryReader:
    """Entries of all segments under `root`, which stays at its place between two calls; for one thread at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._segment: SegmentReader | None = None

    def read(self, segments: Sequence[int], first: int, last: int, max_bytes: int) -> list[bytes]:
        """Payloads of the entries `first` to `last` - 1: together at most `max_bytes`, but one if there is one.

        segments: first numbers of the files, ascending.
        """
        result: list[bytes] = []
        size = 0
        for sequence in range(first, last):
            payload = self._seek(segments, sequence).next()
            size += len(payload)
            if result and size > max_bytes:
                break
            result.append(payload)
        return result

    def delete(self, first: int) -> None:
        """Deletes the segment whose first number is `first`."""
        if self._segment is not None and self._segment.first == first:
            self.close()
        segment_path(self._root, first).unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file that is open; the next call opens it again."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _seek(self, segments: Sequence[int], sequence: int) -> SegmentReader:
        """The segment's reader, before entry `sequence`."""
        first = segments[bisect_right(segments, sequence) - 1]
        if self._segment is None or self._segment.first != first or self._segment.sequence > sequence:
            self.close()
            self._segment = SegmentReader(segment_path(self._root, first), first)
        self._segment.skip_to(sequence)
        return self._segment


def read_frame(file: BinaryIO, sequence: int) -> bytes | None:
    """The payload of the frame `sequence` that begins here; None where there is no such whole frame."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    length, crc, number = _HEADER.unpack(header)
    if number != sequence or length > MAX_PAYLOAD_BYTES:
        return None
    payload = file.read(length)
    return payload if len(payload) == length and _crc(sequence, payload) == crc else None


def recover_tail(path: Path, first: int) -> tuple[int, int, int]:
    """Finds the end of the newest segment after a crash.

    Returns: the next free number, the offset after the last whole frame, and how many bytes lie beyond it: a
        frame that was being written.

    Raises:
        SpoolError: whole frames lie after a damaged one, so this is no torn tail.
    """
    sequence, end = first, len(MAGIC)
    with open_regular(path, SpoolError, _MOVE_AWAY) as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(len(MAGIC))
        if len(magic) < len(MAGIC) and MAGIC.startswith(magic):  # killed while it was created
            return first, 0, size
        if magic != MAGIC:
            SegmentReader(path, first)  # raises
        while (payload := read_frame(file, sequence)) is not None:
            sequence, end = sequence + 1, end + _HEADER.size + len(payload)
        for offset in _frames_beyond(file, end, size, sequence):
            raise SpoolError(
                f"{path}: entry {sequence} at byte {end} is damaged, and whole entries follow at byte {offset} (disk "
                "error, or the file was changed): restore it from a copy, or move the spool folder away"
            )
    return sequence, end, size - end


def _frames_beyond(file: BinaryIO, end: int, size: int, sequence: int) -> Iterator[int]:
    """Offset of the frame after the damaged one at `end`, where it is whole and the damaged length is right."""
    file.seek(end)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return
    offset = end + _HEADER.size + _HEADER.unpack(header)[0]
    if offset < size:
        file.seek(offset)
        if read_frame(file, sequence + 1) is not None:
            yield offset


def _crc(sequence: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<Q", sequence)))


_IDENTITY = "spool.json"
_WATERMARK = "acknowledged.json"


def identify(root: Path, wanted: str | None) -> str:
    """The UUID of the spool in `root`, which a folder without entries gets now; wanted: which it must be, or become.

    Raises:
        SpoolError: it is another one, or the file is missing or damaged.
    """
    path = root / _IDENTITY
    if not path.exists():
        if list_segments(root):
            raise SpoolError(f"{path} is missing: restore it, or move the folder away and start a new one")
        identity = wanted or new_id()
        write_text(path, json.dumps({"format": 1, "spool_id": identity}))
        return identity
    found = _read_json(path, {"format": int, "spool_id": str})
    try:
        check_id("spool_id", found["spool_id"])
    except RecordError as error:
        raise SpoolError(f"{path}: {error}") from error
    if found["format"] != 1:
        raise SpoolError(f"{path}: format {found['format']}: finish with the version that wrote it")
    if wanted not in (None, found["spool_id"]):
        raise SpoolError(f"{root} is spool {found['spool_id']}, not {wanted}: use another folder")
    return found["spool_id"]


def read_watermark(root: Path) -> int:
    """All entries below this number are done with. Raises SpoolError where the file is damaged."""
    path = root / _WATERMARK
    return _read_json(path, {"next_sequence": int})["next_sequence"] if path.exists() else 0


def write_watermark(root: Path, next_sequence: int) -> None:
    """It is on the disk when this returns; raises DatasetError where it is not."""
    write_text(root / _WATERMARK, json.dumps({"next_sequence": next_sequence}))


def _read_json(path: Path, fields: dict[str, type]) -> dict:
    found = read_json(path, dict, SpoolError, "restore it")
    right = all(type(found.get(name)) is kind for name, kind in fields.items())
    if not right or any(not 0 <= value < 2**62 for value in found.values() if type(value) is int):
        raise SpoolError(f"{path}: {found!r}, expected {sorted(fields)}: restore it")
    return found


class Periodic:
    """Calls `action` every `interval_s` seconds (later where it takes longer) until it is closed.

    Attributes:
        failure: what the newest call raised, None where it ended well; it is called again all the same.
    """

    def __init__(self, action: Callable[[], None], interval_s: float, name: str) -> None:
        self.failure: Exception | None = None
        self._action, self._interval = action, interval_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, after the call that is running."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic() + self._interval
        while not self._closing.wait(max(0.0, min(due - time.monotonic(), threading.TIMEOUT_MAX))):
            due = time.monotonic() + self._interval
            try:
                self._action()
                self.failure = None
            except Exception as error:  # kept for who owns this
                self.failure = error
