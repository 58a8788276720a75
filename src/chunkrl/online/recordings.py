"""An actor's own spool as a data set, where no learner takes its records: `chunkrl actor --offline`, then this."""

from __future__ import annotations

from pathlib import Path

from chunkrl.online.config import ReplayConfig
from chunkrl.online.intake import EpisodeIntake
from chunkrl.online.replay import Replay
from chunkrl.online.spool import Spool
from chunkrl.online.streams import STREAM_FILE, read_actor_stream

_ONE_SHARD = ReplayConfig(shard_episodes=2**31)


class _OwnStream:
    """One actor's spool (`chunkrl.online.intake.Streams`)."""

    def __init__(self, actor_id: str, spool: Spool) -> None:
        self.actors: tuple[str, ...] = (actor_id,)
        self._spool = spool

    def spool(self, actor_id: str) -> Spool:
        """It."""
        return self._spool


def store_recordings(spool: Path, root: Path) -> int:
    """Moves finished episodes from an actor's spool to the one data set under `root`, `shard-000000`; returns how
    many are there now. An episode that was cut off stays in the spool; one that is damaged is set aside in `root`.

    A kill loses nothing and stores nothing twice: episodes are known by their ids.

    Raises SpoolError, DatasetError: the spool is in use or damaged, the data set cannot be written.
    """
    stream = spool / STREAM_FILE
    if not stream.is_file():  # no session began
        return 0
    actor_id, spec = read_actor_stream(stream)
    with Spool(spool) as opened:
        replay = Replay(root, spec, _ONE_SHARD)
        try:
            EpisodeIntake(_OwnStream(actor_id, opened), replay, root / "set_aside").poll()
            return replay.totals[0]
        finally:
            replay.close()
