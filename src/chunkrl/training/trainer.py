"""The one training loop: phases, batches, metrics, checkpoints, resume. It does not know which algorithm it runs."""

from __future__ import annotations

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from chunkrl import ranks
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection, ChunkData
from chunkrl.data.loader import ChunkLoader
from chunkrl.data.prefetch import Prefetcher
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.files.atomic import write_text
from chunkrl.progress import Progress, describe, silent
from chunkrl.training.algorithm import Algorithm, Histogram, Phase
from chunkrl.training.checkpoint import BackgroundSaver, load_state
from chunkrl.training.checkpoint_checks import check_like, read_progress
from chunkrl.training.config import TrackingConfig
from chunkrl.training.data_source import DataSource, FixedData
from chunkrl.training.live_note import LiveNote
from chunkrl.training.metrics import MEASURED, MetricWriter, Record, SpeedMeter, thinned
from chunkrl.training.save_clock import SaveClock
from chunkrl.training.saved_batch import save_batch
from chunkrl.training.shards import shard_tree_like
from chunkrl.types import ChunkTransition

MAX_RECORDS = 20_000
"""What a checkpoint and the memory hold of a run's metrics; metrics.jsonl has all until the run is resumed."""


class NonFiniteLossError(ChunkRLError):
    """A loss or gradient became NaN or infinite; the batch was saved."""


@dataclass(frozen=True)
class TrainerConfig:
    """batch_size: B. seed: of the batches. save_interval: updates between checkpoints (0: only at a phase's end).
    save_minutes: between checkpoints that are due by time (`SaveClock`), of which the newest is kept; 0: none.
    keep_checkpoints: newest ones that are kept, 0 all. log_interval: updates between metric records (each is the mean
    over the interval). tracking: where they go."""

    batch_size: int = 32
    seed: int = 0
    save_interval: int = 0
    log_interval: int = 100
    tracking: TrackingConfig = TrackingConfig()
    keep_checkpoints: int = 0
    save_minutes: float = 0.0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.log_interval < 1 or self.save_interval < 0:
            raise ChunkRLError("batch_size and log_interval must be at least 1, save_interval at least 0")


class Trainer:
    """Runs an algorithm's phases over a data set.

    Args:
        dataset: what is trained on, or where it comes from while it grows.
        run_dir: gets `checkpoints/<update>/`, `metrics.jsonl`, `tensorboard/`; None writes nothing.
        after_save: called with a checkpoint's folder when its state is copied, while it is written; its time is
            the training loop's. Not of those that are due by time.
        is_asked_to_stop: whether training ends after the current update, with a checkpoint.
    Attributes:
        stopped: whether it did.
        records: everything recorded, in order; of more than MAX_RECORDS the older ones more sparsely (`thinned`).
        history: the algorithm's scalars of `records`, metric name -> list of (update, value).
    """

    def __init__(
        self,
        algorithm: Algorithm,
        dataset: ChunkData | DataSource,
        config: TrainerConfig,
        run_dir: Path | None = None,
        progress: Progress = silent,
        after_save: Callable[[Path], None] | None = None,
        is_asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.algorithm, self.config = algorithm, config
        fixed = isinstance(dataset, ChunkDataset | ChunkCollection)
        self.source: DataSource = FixedData(dataset) if fixed else dataset
        self.run_dir, self.progress, self._after_save = run_dir, progress, after_save
        self.update, self.stopped, self._is_asked_to_stop = 0, False, is_asked_to_stop
        self._clock = SaveClock(config.save_minutes)
        self._by_time: Path | None = None  # the newest checkpoint that was due by time
        self._saved_at = -1
        self._note: LiveNote | None = None
        self.records: list[Record] = []
        self.history: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._writer: MetricWriter | None = None
        self._meter = SpeedMeter()
        self._saver = BackgroundSaver()
        self._sums: dict[str, float] = defaultdict(float)
        self._num_summed: dict[str, int] = defaultdict(int)

    @property
    def dataset(self) -> ChunkData:
        """What is trained on now."""
        return self.source.data

    @property
    def num_updates(self) -> int:
        """Updates of all phases together."""
        return sum(phase.num_updates for phase in self.algorithm.phases())

    def run(self) -> None:
        """Trains to the end of the last phase, from wherever `update` stands.

        Raises NonFiniteLossError when a metric is not finite; the batch is in `run_dir`/non_finite_batch.
        """
        if self.run_dir and ranks.is_main():
            self._writer = MetricWriter(self.run_dir, self.config.tracking, self.records)
        self._clock = SaveClock(self.config.save_minutes)
        self._note = LiveNote(self.algorithm.held_out_rank_correlation)
        try:
            with self._saver:
                self._run_phases()
                if self.run_dir and not (self.stopped and self._saved_at == self.update):
                    self.save()
        finally:
            if self._writer:
                self._writer.close()
                self._writer = None

    def _run_phases(self) -> None:
        first, phases = 0, self.algorithm.phases()
        for number, phase in enumerate(phases):
            last = first + phase.num_updates
            if self.update < last or phase.num_updates == 0:
                self._run_phase(number, first)
                if self._ends:
                    return
                if self.run_dir and number + 1 < len(phases):
                    self.save()  # what the phase learned, before the next one labels the data with it
            first = last

    @property
    def _ends(self) -> bool:
        return self.stopped or self.source.stopped

    def _run_phase(self, number: int, first: int) -> None:
        """Phase `number`, whose first update is the run's `first`, from wherever `update` stands."""
        phases, source = self.algorithm.phases(), self.source
        phase, is_last = phases[number], number + 1 == len(phases)
        if self.update == first:
            self._record(phase.name, self.algorithm.start_phase(phase.name, self.progress))
            phase = self.algorithm.phases()[number]  # what is drawn may follow from the labels
        while self.update < first + phase.num_updates and not self._ends:
            done = self.update - first
            if source.is_due(done, is_last):
                self._run_updates(phase, number, first, is_last)
            elif (newer := source.take(done, is_last)) is not None:
                self._accumulate(_split(self.algorithm.grow(newer))[0])
                phase = self.algorithm.phases()[number]

    def _run_updates(self, phase: Phase, number: int, first: int, is_last: bool) -> None:
        """Updates on the data as they are, while they are due."""
        config, source = self.config, self.source
        loader = ChunkLoader(
            self.dataset,
            config.batch_size,
            config.seed + number,
            subset=phase.subset,
            next_observation=phase.next_observation,
            rank=ranks.rank(),
            world_size=ranks.world_size(),
            batches_per_update=phase.batch_multiple,
        )
        numbers = range(self.update - first, phase.num_updates)
        a_pass = max(1, phase.num_updates // phase.num_passes)
        with Prefetcher(lambda number: loader.load(number % a_pass), numbers) as batches:
            for done in range(numbers.start + 1, phase.num_updates + 1):
                with self._meter.waiting():
                    batch = loader.labelled(batches.next())
                self._train_on(batch, phase.name)
                source.updated(self.update)
                if self.update % config.log_interval == 0 or done == phase.num_updates:
                    self._flush(phase.name)
                self._show(phase.name, number, done, phase.num_updates)
                self.stopped, by_time = self._agreed()
                is_due = bool(config.save_interval) and self.update % config.save_interval == 0
                if self.run_dir and done < phase.num_updates:  # the end of a phase is always saved
                    if is_due:
                        self.save()
                    elif by_time and not self.stopped:
                        self.save(by_time=True)
                if self._ends or not source.is_due(done, is_last):
                    return

    def _show(self, phase: str, number: int, done: int, num_updates: int) -> None:
        timed = [i for i, other in enumerate(self.algorithm.phases()) if other.num_updates]
        assert self._note is not None
        note = self._note.text(phase, self._sums, self._num_summed, self.history)
        describe(self.progress, phase, f"phase {timed.index(number) + 1} of {len(timed)}", note)
        self.progress(phase, done, num_updates)

    def _agreed(self) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether a checkpoint is due by the main one's clock."""
        wishes = (self._is_asked_to_stop(), ranks.is_main() and self._clock.is_due)
        if ranks.world_size() == 1:
            return wishes
        stop, save = ranks.sum_over_ranks(torch.tensor(wishes, dtype=torch.int64)).tolist()
        return stop > 0, save > 0

    def _train_on(self, batch: ChunkTransition, phase: str) -> None:
        """One update; raises NonFiniteLossError where its metrics are not finite."""
        with self._meter.computing(len(batch.actions) * ranks.world_size()):
            metrics = self.algorithm.update(phase, batch)
        self.update += 1
        scalars, histograms = _split(metrics)
        if not all(math.isfinite(value) for value in scalars.values()):
            self._stop_on_non_finite(scalars, batch, phase)
        self._accumulate(scalars)
        if histograms:
            self._record(phase, histograms)

    def _accumulate(self, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._sums[name] += value
            self._num_summed[name] += 1

    def _flush(self, phase: str) -> None:
        means = {name: total / self._num_summed[name] for name, total in self._sums.items()}
        self._record(phase, means | self._meter.flush() | dict(self.source.metrics()))
        self._sums.clear()
        self._num_summed.clear()

    def _record(self, phase: str, metrics: Mapping[str, float | Histogram]) -> None:
        if not metrics:
            return
        record = Record(self.update, phase, time.time(), *_split(metrics))
        self._remember(record)
        if self._writer:
            self._writer.write(record)

    def _remember(self, record: Record) -> None:
        self.records.append(record)
        _add_to(self.history, record)
        if len(self.records) > MAX_RECORDS:
            records, history = thinned(self.records), defaultdict(list)
            for kept in records:
                _add_to(history, kept)
            self.records, self.history = records, history  # at once: others read them while training goes on

    def _stop_on_non_finite(self, metrics: Mapping[str, float], batch: ChunkTransition, phase: str) -> None:
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        where = "nowhere (no run folder)"
        if self.run_dir:
            # each process has its rows of the batch
            name = f"non_finite_batch-rank{ranks.rank()}" if ranks.rank() else "non_finite_batch"
            facts = {
                "update": self.update,
                "phase": phase,
                "metrics": {k: repr(v) for k, v in metrics.items()},
            }
            save_batch(self.run_dir / name, batch, facts)
            where = str(self.run_dir / name)
        raise NonFiniteLossError(
            f"update {self.update}: {', '.join(bad)} not finite; the batch is saved in {where}. Lower --lr or "
            "--beta, or use the default objective, whose values are bounded"
        )

    def save(self, by_time: bool = False) -> Path:
        """Copies the state, and writes it alongside training: `checkpoints/<update>`, to which `checkpoints/last`
        points once it is whole. Returns the folder; `wait_for_save` waits for it.

        by_time: it goes when a newer one is whole.

        Raises what went wrong with the checkpoint before, which is waited for.
        """
        assert self.run_dir is not None
        began = time.monotonic()
        folder = self.run_dir / "checkpoints" / f"{self.update:07d}"
        rng: dict[str, torch.Tensor] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state()
        self._saver.save(
            folder,
            {
                "update": self.update,
                "algorithm": self.algorithm.state_dict(),
                "rng": rng,
                "sums": dict(self._sums),
                "num_summed": dict(self._num_summed),
                "data": self.source.digest(),
                "records": [record.to_json() for record in self.records],
                "by_time": by_time,
            },
            partial(self._put_last, folder, self._by_time),
        )
        self._by_time, self._saved_at = folder if by_time else None, self.update
        if ranks.is_main() and self._after_save is not None and not by_time:
            self._after_save(folder)
        self._clock.saved(began)
        return folder

    def wait_for_save(self) -> None:
        """Returns when the last checkpoint is whole; raises what went wrong with it."""
        self._saver.wait()

    def _put_last(self, newest: Path, by_time: Path | None) -> None:
        """Points to `newest`, which is whole, and deletes the one before that was due by time, and all but the newest
        `keep_checkpoints`."""
        if not ranks.is_main():
            return
        write_text(newest.with_name("last"), newest.name + "\n")
        if by_time is not None and by_time != newest:
            shutil.rmtree(by_time, ignore_errors=True)
        if self.config.keep_checkpoints == 0:
            return
        older = sorted(f for f in newest.parent.iterdir() if f.name.isdecimal() and f.name <= newest.name)
        for folder in older[: -self.config.keep_checkpoints]:
            shutil.rmtree(folder)

    def load(self, folder: Path) -> None:
        """Continues from a checkpoint folder, to the same numbers as a run that was never interrupted.

        Raises CheckpointError when it was made on other data, is damaged, or stands beyond this run's end.
        """
        state = load_state(folder)
        progress = read_progress(folder, state, self.num_updates)
        if state["data"] != self.source.digest():
            raise CheckpointError(
                f"{folder} was made on other data, or other labels of it, than {self.dataset.name}"
            )
        algorithm, template = state["algorithm"], self.algorithm.state_dict()
        check_like(folder, algorithm, template)
        if ranks.world_size() > 1:
            algorithm = shard_tree_like(algorithm, template)
        self.algorithm.load_state_dict(algorithm)
        self.update = progress.update
        own = None if self.run_dir is None else self.run_dir / "checkpoints" / folder.name
        if state.get("by_time") and own is not None and own.resolve() == folder.resolve():
            self._by_time = own
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng"]["cuda"])
        self._sums = defaultdict(float, progress.sums)
        self._num_summed = defaultdict(int, progress.num_summed)
        for record in progress.records:
            self._remember(record)


def _add_to(history: dict[str, list[tuple[int, float]]], record: Record) -> None:
    for name, value in record.scalars.items():
        if not name.startswith(MEASURED):
            history[name].append((record.update, value))


def _split(metrics: Mapping[str, float | Histogram]) -> tuple[dict[str, float], dict[str, Histogram]]:
    """Scalars and histograms."""
    return (
        {name: value for name, value in metrics.items() if not isinstance(value, Histogram)},
        {name: value for name, value in metrics.items() if isinstance(value, Histogram)},
    )
