"""How much an actor recorded, ever: noted beside its spool, so that it holds over restarts, kills and run folders."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from chunkrl.config import record_of
from chunkrl.errors import DatasetError, SpoolError, SpoolWriteError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.online.records import EpisodeSummary, Item
from chunkrl.online.spool import Spool
from chunkrl.online.wire import decode_item

KEPT_FILE = "kept.json"
_READ_BYTES = 16 * 2**20
_CURE = "delete it: episodes that were sent are then counted no more"


@dataclass(frozen=True)
class Kept:
    """num_episodes, num_steps: of the kept episodes among the spool's entries below next_sequence."""

    next_sequence: int = 0
    num_episodes: int = 0
    num_steps: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise SpoolError(f"{name} is {value}, below 0")

    def after(self, item: Item, next_sequence: int) -> Kept:
        """With `item`, behind which the spool goes on with `next_sequence`."""
        counted = replace(self, next_sequence=next_sequence)
        if not isinstance(item, EpisodeSummary) or item.outcome == "discarded":
            return counted
        return replace(counted, num_episodes=self.num_episodes + 1, num_steps=self.num_steps + item.num_steps)


def read_kept(spool: Spool) -> Kept:
    """What is noted, and what the spool has beyond it: a kill came before it was noted, or it is a spool of before.

    Raises:
        SpoolError: the note is damaged, or is not of this spool.
    """
    path = spool.root / KEPT_FILE
    kept = Kept()
    if path.exists():
        kept = record_of(Kept, read_json(path, dict, SpoolError, _CURE), str(path), SpoolError, _CURE)
    if kept.next_sequence > spool.next_sequence:
        raise SpoolError(
            f"{path} counts {kept.next_sequence} entries, and the spool has {spool.next_sequence}: {_CURE}"
        )
    position = max(kept.next_sequence, spool.acknowledged)
    while payloads := spool.read(position, _READ_BYTES):
        for payload in payloads:
            position += 1
            kept = kept.after(decode_item(payload), position)
    return kept


def note_kept(spool: Spool, kept: Kept) -> None:
    """On the disk when this returns, and what it counts before it. Raises SpoolError where that fails."""
    spool.sync()
    try:
        write_text(Path(spool.root) / KEPT_FILE, json.dumps(asdict(kept)) + "\n")
    except DatasetError as error:
        raise SpoolWriteError(str(error)) from error
