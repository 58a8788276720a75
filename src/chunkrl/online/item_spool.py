"""The actor's spool as its loop sees it: records in, nothing out that the learner would refuse."""

from __future__ import annotations

import logging
from dataclasses import replace

from chunkrl.errors import RecordError, SpoolError
from chunkrl.online.kept import note_kept, read_kept
from chunkrl.online.records import EpisodeSummary, Item, StepRecord, StreamSpec
from chunkrl.online.spool import Spool
from chunkrl.online.wire import encode_item

_LOG = logging.getLogger(__name__)


class ItemSpool:
    """Appends one actor's records to `spool`; every step must look as `spec` says.

    Attributes:
        kept: how much of it counts, ever; on the disk after each episode.
    """

    def __init__(self, spool: Spool, actor_id: str, spec: StreamSpec) -> None:
        """Raises SpoolError where what is noted of the spool is damaged."""
        self._spool, self._actor_id, self._spec = spool, actor_id, spec
        self.kept = read_kept(spool)

    def learn(self, num_steps: int) -> None:
        """At least `num_steps` were kept: the learner has them. A spool of before had not noted them."""
        if num_steps > self.kept.num_steps:
            self.kept = replace(self.kept, num_steps=num_steps)

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
        number = self._spool.append(encode_item(item))
        if isinstance(item, EpisodeSummary):
            self.kept = self.kept.after(item, number + 1)
            try:
                note_kept(self._spool, self.kept)
            except SpoolError as error:  # the record itself is written: who appends must not do so again
                _LOG.warning("the count of kept episodes is noted after the next one: %s", error)
        return number
