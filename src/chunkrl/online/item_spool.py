"""The actor's spool as its loop sees it: records in, nothing out that the learner would refuse."""

from __future__ import annotations

from chunkrl.errors import RecordError
from chunkrl.online.records import Item, StepRecord, StreamSpec
from chunkrl.online.spool import Spool
from chunkrl.online.wire import encode_item


class ItemSpool:
    """Appends one actor's records to `spool`; every step must look as `spec` says."""

    def __init__(self, spool: Spool, actor_id: str, spec: StreamSpec) -> None:
        self._spool, self._actor_id, self._spec = spool, actor_id, spec

    def append(self, item: Item) -> int:
        """Writes the record (see `Spool` for when it is on the disk) and returns its number.

        Raises:
            RecordError: of another actor, or of another shape than `spec`; nothing was written.
            SpoolError: the disk is full or read-only; nothing was written, a later call may succeed.
        """
        if item.actor_id != self._actor_id:
            raise RecordError(f"item of actor {item.actor_id} for the spool of {self._actor_id}")
        if isinstance(item, StepRecord):
            self._spec.check(item)
        return self._spool.append(encode_item(item))
