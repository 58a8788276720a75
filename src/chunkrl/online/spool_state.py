"""What a spool's folder says of itself besides its entries: which one it is, and how far it is done with."""

from __future__ import annotations

import json
from pathlib import Path

from chunkrl.errors import RecordError, SpoolError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.online import segment_file as sf
from chunkrl.online.records import check_id, new_id

_IDENTITY = "spool.json"
_WATERMARK = "acknowledged.json"


def identify(root: Path, wanted: str | None) -> str:
    """The UUID of the spool in `root`, which a folder without entries gets now; wanted: which it must be, or become.

    Raises:
        SpoolError: it is another one, or the file is missing or damaged.
    """
    path = root / _IDENTITY
    if not path.exists():
        if sf.list_segments(root):
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
