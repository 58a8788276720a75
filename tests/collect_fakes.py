"""Collection whose simulator process stops in the middle of an episode; simulator processes import it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from chunkrl.collect.config import CollectPlan
from chunkrl.collect.episode import CollectedEpisode, EpisodeMaker

STEP = 5  # of the episode: neither its beginning nor its end


class StoppedMaker(EpisodeMaker):
    """Sends its own process `sent` at step `STEP` of episode `number`, unless the file `marker` says that it did.

    marker: None: every time.
    """

    def __init__(self, plan: CollectPlan, sent: signal.Signals, number: int, marker: Path | None) -> None:
        super().__init__(plan)
        self._sent, self._number, self._marker = sent, number, marker
        self._making = self._step = -1

    def make(self, number: int) -> CollectedEpisode:
        self._making, self._step = number, 0
        return super().make(number)

    def _make_stage(self, name: str) -> Any:
        stage = super()._make_stage(name)
        step = stage.env.step

        def counted(action: Any) -> Any:
            self._step += 1
            if self._making == self._number and self._step == STEP:
                self._stop()
            return step(action)

        stage.env.step = counted
        return stage

    def _stop(self) -> None:
        if self._marker is not None:
            if self._marker.exists():
                return
            self._marker.touch()
        os.kill(os.getpid(), self._sent)
