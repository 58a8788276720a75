"""Where the trainer's data come from: a fixed data set, or one that grows while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from chunkrl.data.collection import ChunkData


class DataSource(Protocol):
    """What the trainer asks for before and after every update, in its own thread."""

    @property
    def data(self) -> ChunkData:
        """What training draws from now: what `take` gave last, at first what a run begins with."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether training ends before its last update, with a checkpoint."""
        ...

    def is_due(self, done: int, last_phase: bool) -> bool:
        """Whether the next update may be made at once on the data as they are; else `take` comes first.

        done: updates of this phase so far. last_phase: it is the algorithm's last one.
        """
        ...

    def take(self, done: int, last_phase: bool) -> ChunkData | None:
        """Waits until another update is due, or training is stopped. Newer data, or None: they are as they were."""
        ...

    def updated(self, update: int) -> None:
        """Update number `update` (from 1) was made: weights may be handed on. Must not wait for anything."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """What to record with the next interval, measured and not a function of the seed."""
        ...

    def digest(self) -> str:
        """The digest of the data that must be equal where a run is resumed."""
        ...


class FixedData:
    """A data set that stays as it is."""

    def __init__(self, data: ChunkData) -> None:
        self.data = data

    @property
    def stopped(self) -> bool:
        """Never."""
        return False

    def is_due(self, done: int, last_phase: bool) -> bool:
        """Always."""
        return True

    def take(self, done: int, last_phase: bool) -> ChunkData | None:
        """Nothing newer."""
        return None

    def updated(self, update: int) -> None:
        """Nothing to do."""

    def metrics(self) -> Mapping[str, float]:
        """None."""
        return {}

    def digest(self) -> str:
        """The digest of episodes, actions and labels."""
        return self.data.digest()
