"""The one training loop: phases, batches, metrics, checkpoints, resume. It does not know which algorithm it runs."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard.writer import SummaryWriter

from chunkrl.algorithms.base import Algorithm, Metrics, Phase
from chunkrl.data.atomic import write_text
from chunkrl.data.collection import ChunkData
from chunkrl.data.loader import ChunkLoader
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.progress import Progress, silent
from chunkrl.training.checkpoint import load_state, save_state


class NonFiniteLossError(ChunkRLError):
    """A loss or gradient became NaN or infinite; the batch was saved."""


@dataclass(frozen=True)
class TrainerConfig:
    """batch_size: B. seed: of the batches. save_interval: updates between checkpoints (0: only at the end).
    log_interval: updates between metric records (each is the mean over the interval)."""

    batch_size: int = 32
    seed: int = 0
    save_interval: int = 0
    log_interval: int = 100

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.log_interval < 1 or self.save_interval < 0:
            raise ChunkRLError("batch_size and log_interval must be at least 1, save_interval at least 0")


class Trainer:
    """Runs an algorithm's phases over a data set.

    Args:
        run_dir: gets `checkpoints/<update>/`, `tensorboard/`; None writes nothing.
    Attributes:
        history: metric name -> list of (update, value), as logged.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        dataset: ChunkData,
        config: TrainerConfig,
        run_dir: Path | None = None,
        progress: Progress = silent,
    ) -> None:
        self.algorithm, self.dataset, self.config = algorithm, dataset, config
        self.run_dir, self.progress = run_dir, progress
        self.update = 0
        self.history: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._writer = SummaryWriter(str(run_dir / "tensorboard")) if run_dir else None
        self._sums: dict[str, float] = defaultdict(float)
        self._num_summed = 0

    @property
    def num_updates(self) -> int:
        """Updates of all phases together."""
        return sum(phase.num_updates for phase in self.algorithm.phases())

    def run(self) -> None:
        """Trains to the end of the last phase, from wherever `update` stands.

        Raises NonFiniteLossError when a metric is not finite; the batch is in `run_dir`/non_finite_batch.
        """
        first = 0
        for number, phase in enumerate(self.algorithm.phases()):
            last = first + phase.num_updates
            if self.update < last or phase.num_updates == 0:
                self._run_phase(phase, number, first)
            first = last
        if self.run_dir:
            self.save()
        if self._writer:
            self._writer.flush()

    def _run_phase(self, phase: Phase, number: int, first: int) -> None:
        config = self.config
        loader = ChunkLoader(
            self.dataset,
            config.batch_size * phase.batch_multiple,
            config.seed + number,
            subset=phase.subset,
            next_observation=phase.next_observation,
        )
        if self.update == first:
            self._record(self.algorithm.start_phase(phase.name, self.progress))
        last = first + phase.num_updates
        while self.update < last:
            batch = loader.batch(self.update - first)
            metrics = self.algorithm.update(phase.name, batch)
            self.update += 1
            if not all(math.isfinite(value) for value in metrics.values()):
                self._stop_on_non_finite(metrics, batch)
            self._accumulate(metrics)
            if self.update % config.log_interval == 0 or self.update == last:
                self._flush()
            self.progress(phase.name, self.update - first, phase.num_updates)
            if self.run_dir and config.save_interval and self.update % config.save_interval == 0:
                self.save()

    def _accumulate(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._sums[name] += value
        self._num_summed += 1

    def _flush(self) -> None:
        self._record({name: total / self._num_summed for name, total in self._sums.items()})
        self._sums.clear()
        self._num_summed = 0

    def _record(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self.history[name].append((self.update, value))
            if self._writer:
                self._writer.add_scalar(name, value, self.update)

    def _stop_on_non_finite(self, metrics: Metrics, batch: Any) -> None:
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        where = "nowhere (no run folder)"
        if self.run_dir:
            folder = self.run_dir / "non_finite_batch"
            save_state(
                folder,
                {
                    "update": self.update,
                    "metrics": {name: repr(value) for name, value in metrics.items()},
                    "state": {} if batch.observation.state is None else {"x": batch.observation.state},
                    "actions": batch.actions,
                    "reward": batch.reward,
                    "index": batch.index,
                },
            )
            where = str(folder)
        raise NonFiniteLossError(
            f"update {self.update}: {', '.join(bad)} not finite; the batch is saved in {where}. Lower --lr or "
            "--beta, or use the default objective, whose values are bounded"
        )

    def save(self) -> Path:
        """Writes `checkpoints/<update>` and points `checkpoints/last` to it; returns the folder."""
        assert self.run_dir is not None
        folder = self.run_dir / "checkpoints" / f"{self.update:07d}"
        rng: dict[str, torch.Tensor] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state()
        save_state(
            folder,
            {
                "update": self.update,
                "algorithm": self.algorithm.state_dict(),
                "rng": rng,
                "sums": dict(self._sums),
                "num_summed": self._num_summed,
                "data": self.dataset.digest(),
                "history": {name: list(points) for name, points in self.history.items()},
            },
        )
        write_text(folder.with_name("last"), folder.name + "\n")
        return folder

    def load(self, folder: Path) -> None:
        """Continues from a checkpoint folder, to the same numbers as a run that was never interrupted.

        Raises CheckpointError when it was made on other data.
        """
        state = load_state(folder)
        if state["data"] != self.dataset.digest():
            raise CheckpointError(
                f"{folder} was made on other data, or other labels of it, than {self.dataset.name}"
            )
        self.algorithm.load_state_dict(state["algorithm"])
        self.update = state["update"]
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng"]["cuda"])
        self._sums = defaultdict(float, state["sums"])
        self._num_summed = state["num_summed"]
        for name, points in state["history"].items():
            self.history[name] = [(int(update), float(value)) for update, value in points]
