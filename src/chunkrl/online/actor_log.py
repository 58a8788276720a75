"""An actor's metrics: one record an episode, written beside the control loop, over the steps recorded so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chunkrl.errors import ChunkRLError
from chunkrl.files.regular_files import is_there
from chunkrl.online.kept import Kept
from chunkrl.online.recorder import StepSink
from chunkrl.online.records import EpisodeSummary, Item, StepRecord
from chunkrl.training.metrics import METRICS_FILE, MetricWriter, Record, read_records

_RECENT = 20
_STEPS, _EPISODES = "actor/steps", "actor/episodes"


class ActorLog:
    """A sink that passes records on to another and counts them; `metrics.jsonl` and TensorBoard in `run_dir`.

    A record's `update` is the number of steps in kept episodes so far, over all starts in `run_dir`: curves have
    environment steps on their axis.

    Attributes:
        num_steps, num_episodes: of kept episodes, over all starts in `run_dir` or with the same spool.
        num_success, num_human: of kept episodes since this start; num_human: steps.
    """

    def __init__(
        self,
        sink: StepSink,
        run_dir: Path,
        facts: Callable[[], dict[str, float]] | None = None,
        kept: Kept = Kept(),
    ) -> None:
        """facts: more numbers for an episode's record. kept: of the spool before; a kill may have kept the last
        episode from the metrics. Raises ChunkRLError where the metrics there are damaged.
        """
        path = run_dir / METRICS_FILE
        past = read_records(path) if is_there(path, ChunkRLError, "move it away") else []
        self._sink, self._facts = sink, facts
        last = past[-1].scalars if past else {}
        self.num_steps = max(int(last.get(_STEPS, 0)), kept.num_steps)
        self.num_episodes = max(int(last.get(_EPISODES, 0)), kept.num_episodes)
        self.num_success = self.num_human = 0
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._human = self._held = 0
        self._writer = MetricWriter(run_dir, past=past)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="actor-log")

    def append(self, item: Item) -> object:
        """See `StepSink`."""
        result = self._sink.append(item)
        if isinstance(item, StepRecord):
            self._human += item.human
            self._held += item.held
            return result
        human, held, self._human, self._held = self._human, self._held, 0, 0
        if item.outcome != "discarded":
            self._kept(item, human, held)
        return result

    def _kept(self, summary: EpisodeSummary, human: int, held: int) -> None:
        success = summary.outcome == "success"
        self.num_steps += summary.num_steps
        self.num_episodes += 1
        self.num_success += success
        self.num_human += human
        self._recent.append(success)
        scalars = {
            _STEPS: self.num_steps,
            _EPISODES: self.num_episodes,
            "episode/success": float(success),
            "episode/failure": float(summary.outcome == "failure"),
            "episode/steps": summary.num_steps,
            "episode/reward": summary.total_reward,
            "episode/interventions": summary.num_interventions,
            "episode/human_fraction": human / summary.num_steps,
            "episode/held_fraction": held / summary.num_steps,
            f"actor/success_of_last_{_RECENT}": sum(self._recent) / len(self._recent),
            **(self._facts() if self._facts else {}),
        }
        record = Record(self.num_steps, "actor", time.time(), {k: float(v) for k, v in scalars.items()})
        self._worker.submit(self._writer.write, record)

    def close(self) -> None:
        """Everything is written when this returns."""
        self._worker.shutdown(wait=True)
        self._writer.close()
