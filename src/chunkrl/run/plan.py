"""What a run is going to do, before it does: phases, updates, parameters, memory, files, and minutes on this machine.

Minutes are measured: `rehearse` trains each phase for its first updates, by the training loop itself but for labels
that nothing learned, and counts up. It leaves networks and labels that must be built again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from chunkrl.data.collection import ChunkData
from chunkrl.errors import LabelError
from chunkrl.progress import Progress, describe, silent
from chunkrl.run.config import TrainConfig
from chunkrl.training.algorithm import Algorithm, Metrics, Phase
from chunkrl.training.eight_bit import moment_bytes
from chunkrl.training.metrics import peak_resident_bytes
from chunkrl.training.save_clock import FIRST_S
from chunkrl.training.trainer import Trainer, TrainerConfig

REHEARSED_STARTS = 256
FIRST_UPDATES, FIRST_SECONDS = 20, 30.0
"""Updates and seconds of a phase, after which its minutes are known."""
_NOT_REHEARSED = ("distil",)  # its labels are chunks of the whole data
_LABELS_PER_START = 8  # float32 numbers in a checkpoint


@dataclass(frozen=True)
class PhasePlan:
    """num_starts: that batches are drawn from. seconds: of an update on this machine; None: not measured. num_done:
    updates that a resumed run has done before."""

    name: str
    num_updates: int
    num_starts: int
    seconds: float | None = None
    num_done: int = 0

    @property
    def seconds_left(self) -> float | None:
        """The seconds of the updates that are not done."""
        return None if self.seconds is None else (self.num_updates - self.num_done) * self.seconds


@dataclass(frozen=True)
class NetworkPlan:
    """Scalars that train and that do not, and bytes: of weights, and of gradients, moments and averages."""

    trained: int
    frozen: int
    weights: int
    training: int


@dataclass(frozen=True)
class Rehearsal:
    """seconds: of an update, by phase. label_seconds: of a start, that values label. peak, peak_gpu: bytes of memory,
    the latter 0 without a GPU."""

    seconds: Mapping[str, float]
    label_seconds: float
    peak: int
    peak_gpu: int


@dataclass(frozen=True)
class TrainingPlan:
    """phases: those with updates. networks: by what they are. rehearsal: what was measured; None: nothing. output:
    where the run goes. `str` is for people."""

    config: TrainConfig
    output: str
    phases: tuple[PhasePlan, ...]
    updates_per_epoch: int
    num_starts: int
    networks: Mapping[str, NetworkPlan]
    device: str
    rehearsal: Rehearsal | None = None

    @property
    def seconds(self) -> float | None:
        """All updates and labels that are not done; None where a phase was not measured."""
        left = [phase.seconds_left for phase in self.phases]
        if self.rehearsal is None or None in left:
            return None
        return sum(seconds for seconds in left if seconds is not None) + self.label_seconds

    @property
    def label_seconds(self) -> float:
        """The seconds of giving all starts their labels; 0 where they have them, or nothing was measured."""
        # the data are labelled when the first phase ends
        if self.rehearsal is None or any(phase.num_done > 0 for phase in self.phases[1:]):
            return 0.0
        return self.num_starts * self.rehearsal.label_seconds

    @property
    def checkpoint_bytes(self) -> int:
        """The largest checkpoint, about."""
        # what trains, in place of its gradients, and moments and averages
        return sum(n.training for n in self.networks.values()) + 4 * _LABELS_PER_START * self.num_starts

    def __str__(self) -> str:
        return "\n".join(
            f"  {name:<9} {line}"
            for name, lines in (
                ("plan", self._phase_lines()),
                ("networks", self._network_lines()),
                ("memory", [self._memory_line()]),
                ("time", [self._time_line()]),
                ("writes", self._file_lines()),
            )
            for name, line in zip([name, *[""] * len(lines)], lines, strict=False)
        )

    def _phase_lines(self) -> list[str]:
        values = self.config.values
        lines = [f"no value phase: values and advantages are those of {values}"] if values is not None else []
        for number, phase in enumerate(self.phases, 1):
            passes = phase.num_updates * self.config.batch_size / max(1, phase.num_starts)
            line = (
                f"phase {number} of {len(self.phases)}: {phase.name}, {phase.num_updates:,} updates of "
                f"{self.config.batch_size} chunks ({passes:.3g} passes over {phase.num_starts:,} starts"
            )
            line += ", more over those that will weigh something)" if self._will_choose(phase) else ")"
            if phase.num_done:
                line += f", {phase.num_done:,} are done"
            if (seconds := phase.seconds_left) is not None and phase.num_done < phase.num_updates:
                line += f", {minutes(seconds)}"
            lines.append(line)
        return lines or ["nothing is trained"]

    def _will_choose(self, phase: PhasePlan) -> bool:
        """Whether the weights, which are not known yet, say what the phase draws."""
        config = self.config
        chooses = config.method.weighs and not config.method.joint and config.relabel_interval == 0
        return chooses and phase.name in ("policy", "distil") and phase.num_done == 0

    def _network_lines(self) -> list[str]:
        return [
            f"{name}: {n.trained:,} parameters train" + (f", {n.frozen:,} are frozen" if n.frozen else "")
            if n.trained
            else f"{name}: {n.frozen:,} parameters, none of which trains"
            for name, n in self.networks.items()
        ]

    def _memory_line(self) -> str:
        counted = sum(n.weights + n.training for n in self.networks.values())
        line = f"{size(counted)} for weights, gradients, moments and averages; batches and activations come on top"
        if self.rehearsal is not None:
            line += f"; measured: {size(self.rehearsal.peak)} at most in this process"
            if self.rehearsal.peak_gpu:
                line += f", {size(self.rehearsal.peak_gpu)} of the GPU"
        return line

    def _time_line(self) -> str:
        if self.seconds is not None:
            labels = ""
            if self.label_seconds >= 1:
                labels = (
                    f", with {minutes(self.label_seconds)} in which {self.num_starts:,} starts are labelled"
                )
            return f"{minutes(self.seconds)} on this machine ({self.device}), measured on the first updates{labels}"
        if self.rehearsal is None:
            return f"on this machine ({self.device}): measured on each phase's first updates, when it begins"
        missing = ", ".join(phase.name for phase in self.phases if phase.seconds is None)
        return f"on this machine ({self.device}): {missing} could not be measured beforehand"

    def _file_lines(self) -> list[str]:
        config = self.config
        every = f"{config.save_updates or config.save_interval * self.updates_per_epoch:,} updates"
        when = ["at the end of each phase"]
        if config.save_updates or config.save_interval:
            when.append(f"every {every}")
        if config.save_minutes:
            first = min(FIRST_S / 60, config.save_minutes)
            when.append(f"after {first:g} minutes and every {config.save_minutes:g} minutes without one")
        kept = (
            f"the newest {config.keep_checkpoints} stay"
            if config.keep_checkpoints
            else "all stay but those by time"
        )
        kept_files = ["policy/"] * config.method.trains_policy + [
            "values.parquet"
        ] * config.method.gives_values
        return [
            f"{self.output}",
            f"checkpoints/: {', '.join(when)}",
            f"  ({size(self.checkpoint_bytes)} each at most, about; {kept})",
            f"{', '.join((*kept_files, 'config.json', 'metrics.jsonl', 'tensorboard/'))}",
        ]


def minutes(seconds: float) -> str:
    """A time for people."""
    if seconds < 60:
        return f"about {round(seconds)} seconds" if seconds >= 1.5 else "about 1 second"
    return f"about {seconds / 60:.1f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"


def size(num_bytes: float) -> str:
    """Bytes for people."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def make_plan(
    config: TrainConfig,
    algorithm: Algorithm,
    data: ChunkData,
    updates_per_epoch: int,
    output: str,
    device: str,
    num_done: int = 0,
) -> TrainingPlan:
    """The plan of a run as it was built, without a measurement. num_done: updates that it has done."""
    phases, before = [], 0
    for p in algorithm.phases():
        if p.num_updates:
            done = min(max(num_done - before, 0), p.num_updates)
            num_starts = len(data) if p.subset is None else len(p.subset)
            phases.append(PhasePlan(p.name, p.num_updates, num_starts, num_done=done))
            before += p.num_updates
    networks, seen = {}, set[int]()
    for name, module in algorithm.trained_networks().items():
        if name == "policy" and not config.method.trains_policy:
            continue
        networks[name] = _network_plan(module, config, name == "policy", seen)
    return TrainingPlan(config, output, tuple(phases), updates_per_epoch, len(data), networks, device)


def _network_plan(module: nn.Module, config: TrainConfig, averages: bool, seen: set[int]) -> NetworkPlan:
    parameters = [p for p in module.parameters() if id(p) not in seen]
    seen.update(map(id, parameters))
    trained = [p for p in parameters if p.requires_grad]
    eight_bit = config.optimizer == "adamw_8bit"
    moments = sum(moment_bytes(p) if eight_bit else 2 * p.nbytes for p in trained)
    ema = sum(4 * p.numel() for p in trained) if averages and config.ema_decay > 0 else 0
    return NetworkPlan(
        trained=sum(p.numel() for p in trained),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        weights=sum(p.nbytes for p in parameters),
        training=sum(p.nbytes for p in trained) + moments + ema,
    )


class _FirstUpdates:
    """An algorithm whose phases end after their first updates; it labels by labels that nothing learned."""

    def __init__(self, algorithm: Algorithm, num_updates: int) -> None:
        self._algorithm, self._num_updates = algorithm, num_updates
        self._all = [p for p in algorithm.phases() if p.num_updates and p.name not in _NOT_REHEARSED]
        self._rehearsed = False
        self.label_seconds = 0.0
        self.times: dict[str, list[float]] = {}  # of each phase: its start and the end of its updates

    def __getattr__(self, name: str) -> Any:
        return getattr(self._algorithm, name)

    def phases(self) -> tuple[Phase, ...]:
        now = {phase.name: phase for phase in self._algorithm.phases()}
        return tuple(
            replace(found, num_updates=min(found.num_updates, self._num_updates), num_passes=1)
            for found in (now.get(phase.name, phase) for phase in self._all)
        )

    def start_phase(self, name: str, progress: Progress = silent) -> Metrics:
        if name != "value":
            self.rehearse_once()
        metrics = self._algorithm.start_phase(name, progress)
        self.times[name] = [time.monotonic()]
        return metrics

    def rehearse_once(self) -> None:
        if not self._rehearsed:
            self._rehearsed = True
            self.label_seconds = self._algorithm.rehearse(REHEARSED_STARTS)


def rehearse(algorithm: Algorithm, data: ChunkData, config: TrainConfig, num_updates: int) -> Rehearsal:
    """Trains each phase for its first `num_updates`, in this process alone, and writes nothing. Algorithm and the
    data's labels are of no further use. Raises LabelError where the values of another run give the labels, and a bin
    is empty."""
    first = _FirstUpdates(algorithm, num_updates)

    def note(stage: str, done: int, total: int) -> None:
        if stage in first.times:
            first.times[stage].append(time.monotonic())

    trainer = Trainer(cast(Algorithm, first), data, TrainerConfig(config.batch_size, config.seed), None, note)
    with _without_warnings():
        try:
            trainer.run()
            first.rehearse_once()
        except LabelError:
            if config.values is not None:  # these are the run's own labels: it would end here
                raise
            # of labels that mean nothing; what came before is measured
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return Rehearsal(
        {stage: _seconds_each(found) for stage, found in first.times.items() if len(found) > 1},
        first.label_seconds,
        peak_resident_bytes(),
        gpu,
    )


def _seconds_each(times: Sequence[float]) -> float:
    """Between updates, without the first ones where there are more: they make room and compile."""
    warm = times[len(times) // 3 :] if len(times) > 5 else times
    return (warm[-1] - warm[0]) / (len(warm) - 1)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What the labels of a rehearsal are worth is nobody's concern."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def measured(plan: TrainingPlan, rehearsal: Rehearsal) -> TrainingPlan:
    """The plan with what was measured."""
    phases = tuple(replace(phase, seconds=rehearsal.seconds.get(phase.name)) for phase in plan.phases)
    return replace(plan, phases=phases, rehearsal=rehearsal)


class FirstMinutes:
    """A progress that also says, when a phase has made its first updates, how long all of it takes on this machine.

    progress: gets everything. phases: whose minutes are said. say: a line. now: seconds.
    """

    def __init__(
        self,
        progress: Progress,
        phases: Collection[str],
        say: Callable[[str], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._say, self._now = progress, say, now
        self._waiting, self._began = set(phases), dict[str, tuple[int, float]]()

    def describe(self, stage: str, place: str, note: str) -> None:
        """See `DescribedProgress`."""
        describe(self._progress, stage, place, note)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `Progress`."""
        self._progress(stage, done, total)
        if stage not in self._waiting:
            return
        first, began = self._began.setdefault(stage, (done, self._now()))
        seconds, count = self._now() - began, done - first
        if count and (count >= FIRST_UPDATES or seconds >= FIRST_SECONDS):
            self._waiting.remove(stage)
            if done < total:
                told = minutes(seconds / count * (total - done))
                self._say(
                    f"  {stage}: {told} for the other {total - done:,} updates, measured on the first {done:,}"
                )
