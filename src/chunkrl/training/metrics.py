"""What training records, and where it goes: `metrics.jsonl`, TensorBoard and, if asked, Weights & Biases.

A checkpoint holds every record that was made before it, so a resumed run begins by writing those again: whatever a
killed run recorded beyond its checkpoint is gone, and no curve has a point twice.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.tensorboard.writer import SummaryWriter

from chunkrl.errors import ChunkRLError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import json_lines, read_json
from chunkrl.files.regular_files import is_there
from chunkrl.training.algorithm import Histogram
from chunkrl.training.config import TrackingConfig

METRICS_FILE = "metrics.jsonl"
MEASURED = (
    "speed/",
    "memory/",
    "online/",
)  # of a machine and a moment; all else is a function of seed and data


@dataclass(frozen=True)
class Record:
    """What was recorded at one update. time: seconds since 1970. phase: the algorithm's phase."""

    update: int
    phase: str
    time: float
    scalars: Mapping[str, float]
    histograms: Mapping[str, Histogram] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; a number that is not finite becomes null."""
        return {
            "update": self.update,
            "phase": self.phase,
            "time": self.time,
            "scalars": {name: v if math.isfinite(v) else None for name, v in self.scalars.items()},
            "histograms": {
                name: {"counts": list(h.counts), "edges": list(h.edges)}
                for name, h in self.histograms.items()
            },
        }

    @staticmethod
    def from_json(values: Any, where: str, error: type[ChunkRLError], cure: str) -> Record:
        """The inverse of `to_json`; null becomes nan.

        Raises:
            error: the values, which stood at `where`, are no record's.
        """
        if wrong := _what_is_wrong(values):
            raise error(f"{where} is no record ({wrong}): {cure}")
        return Record(
            values["update"],
            values["phase"],
            float(values["time"]),
            {name: math.nan if v is None else float(v) for name, v in values["scalars"].items()},
            {
                name: Histogram(tuple(h["counts"]), tuple(h["edges"]))
                for name, h in values["histograms"].items()
            },
        )


_KEYS = frozenset({"update", "phase", "time", "scalars", "histograms"})


def _what_is_wrong(values: Any) -> str:
    """What is wrong with what `Record.to_json` made, "" for nothing. By hand: a run has very many of them."""
    if not isinstance(values, dict) or values.keys() != _KEYS:
        return f"its keys are not {', '.join(sorted(_KEYS))}"
    if type(values["update"]) is not int or not 0 <= values["update"] < 2**62:
        return f"'update' is {values['update']!r}, expected a count from 0"
    if not isinstance(values["phase"], str) or type(values["time"]) not in (int, float):
        return f"'phase' is {values['phase']!r} and 'time' {values['time']!r}, expected a text and seconds"
    scalars, histograms = values["scalars"], values["histograms"]
    if not isinstance(scalars, dict) or not isinstance(histograms, dict):
        return "'scalars' and 'histograms' are not both objects"
    for name, value in scalars.items():
        if value is not None and type(value) not in (int, float):
            return f"'{name}' is {value!r:.60}, expected a number"
    for name, histogram in histograms.items():
        if not _is_histogram(histogram):
            return f"'{name}' is no histogram of n counts and n + 1 ascending edges"
    return ""


def _is_histogram(values: Any) -> bool:
    if not isinstance(values, dict) or values.keys() != {"counts", "edges"}:
        return False
    counts, edges = values["counts"], values["edges"]
    if not isinstance(counts, list) or not isinstance(edges, list) or len(edges) != len(counts) + 1:
        return False
    whole = all(type(n) is int and 0 <= n < 2**62 for n in counts)
    return (
        whole and all(type(x) in (int, float) for x in edges) and sorted(edges) == edges and len(counts) > 0
    )


def thinned(records: Sequence[Record]) -> list[Record]:
    """Every second record of the older half and the whole newer half: what a run without end keeps in memory.

    Records of a phase with the same metrics are a series; each series keeps its first and every second one.
    """
    half = len(records) // 2
    places: Counter[tuple[str, ...]] = Counter()
    kept = []
    for record in records[:half]:
        series = (record.phase, *record.scalars, *record.histograms)
        if places[series] % 2 == 0:
            kept.append(record)
        places[series] += 1
    return [*kept, *records[half:]]


def read_records(path: Path) -> list[Record]:
    """The records of a run's metrics.jsonl; a last line that a kill cut off is left out.

    Raises:
        ChunkRLError: there is no such file, another line is damaged, or lines stand in another order.
    """
    if not is_there(path, ChunkRLError, "give the folder of a training run"):
        raise ChunkRLError(f"{path} is missing: give the folder of a training run")
    cure = "delete the line, or resume the run, which writes the file again from its checkpoint"
    records: list[Record] = []
    seen: set[tuple[Any, ...]] = set()
    for where, values in json_lines(path, ChunkRLError, cure, cut_end=True):
        record = Record.from_json(values, where, ChunkRLError, cure)
        if records and record.update < records[-1].update:
            raise ChunkRLError(
                f"{where}: update {record.update} stands after update {records[-1].update}: {cure}"
            )
        identity = (record.update, record.phase, record.time, *record.scalars)
        if identity in seen:
            raise ChunkRLError(f"{where}: the same record of update {record.update} stands before it: {cure}")
        seen.add(identity)
        records.append(record)
    return records


class Sink(Protocol):
    """One place that records go to."""

    def write(self, record: Record) -> None:
        """Takes a record; updates never decrease."""
        ...

    def close(self) -> None:
        """Everything taken is on its way when this returns."""
        ...


class JsonLines:
    """metrics.jsonl: a line a record, written at once and whole, so that a kill loses at most the last one."""

    def __init__(self, path: Path, past: Sequence[Record]) -> None:
        write_text(path, "".join(self._line(record) for record in past))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    @staticmethod
    def _line(record: Record) -> str:
        return json.dumps(record.to_json(), allow_nan=False) + "\n"

    def write(self, record: Record) -> None:
        """See `Sink`."""
        line = memoryview(self._line(record).encode())
        while line:
            line = line[os.write(self._file, line) :]

    def close(self) -> None:
        """See `Sink`."""
        os.fsync(self._file)
        os.close(self._file)


class TensorBoard:
    """Event files under `folder`; what earlier processes wrote there is purged, and `past` written again."""

    def __init__(self, folder: Path, past: Sequence[Record]) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=0)
        for record in past:
            self.write(record)

    def write(self, record: Record) -> None:
        """See `Sink`."""
        for name, value in record.scalars.items():
            self._writer.add_scalar(name, value, record.update, walltime=record.time)
        for name, histogram in record.histograms.items():
            middles = [(a + b) / 2 for a, b in zip(histogram.edges, histogram.edges[1:], strict=False)]
            self._writer.add_histogram_raw(
                name,
                min=histogram.edges[0],
                max=histogram.edges[-1],
                num=sum(histogram.counts),
                sum=sum(n * x for n, x in zip(histogram.counts, middles, strict=True)),
                sum_squares=sum(n * x * x for n, x in zip(histogram.counts, middles, strict=True)),
                bucket_limits=list(histogram.edges[1:]),  # type: ignore[arg-type]
                bucket_counts=list(histogram.counts),  # type: ignore[arg-type]
                global_step=record.update,
                walltime=record.time,
            )

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


class WandB:
    """A Weights & Biases run of its own for every start of training, in the group named like the run folder.

    A resumed run's is whole: it begins with the records of the checkpoint.
    """

    def __init__(self, run_dir: Path, config: TrackingConfig, past: Sequence[Record]) -> None:
        config.check()
        import wandb  # type: ignore[import-not-found]

        self._wandb: Any = wandb
        settings = run_dir / "config.json"
        try:
            self._run: Any = wandb.init(
                dir=str(run_dir),
                project=config.project,
                group=run_dir.name,
                name=run_dir.name,
                mode=config.mode,
                config=read_json(settings, dict, ChunkRLError, "restore it") if settings.exists() else {},
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise ChunkRLError(
                f"Weights & Biases does not start ({error}): log in with `wandb login`, or record without network "
                "and account with --tracking.mode offline"
            ) from error
        self._run.define_metric("*", step_metric="update")
        for record in past:
            self.write(record)

    def write(self, record: Record) -> None:
        """See `Sink`."""
        histograms = {
            name: self._wandb.Histogram(np_histogram=(list(h.counts), list(h.edges)))
            for name, h in record.histograms.items()
        }
        self._run.log({"update": record.update, **record.scalars, **histograms})

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()


class MetricWriter:
    """Everything that a run records goes through here, to all of its sinks.

    run_dir: gets `metrics.jsonl` and `tensorboard/` (and `wandb/`). past: the records before this start of the run.
    """

    def __init__(
        self, run_dir: Path, config: TrackingConfig = TrackingConfig(), past: Sequence[Record] = ()
    ) -> None:
        self._sinks: list[Sink] = []
        if config.wandb:  # first: what can fail has written nothing yet
            self._sinks.append(WandB(run_dir, config, past))
        self._sinks.append(JsonLines(run_dir / METRICS_FILE, past))
        self._sinks.append(TensorBoard(run_dir / "tensorboard", past))

    def write(self, record: Record) -> None:
        """Takes a record; updates never decrease."""
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        """Nothing can be written afterwards."""
        for sink in self._sinks:
            sink.close()


class SpeedMeter:
    """Where the time of an interval of updates goes, and the memory's peak so far.

    clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._data = self._compute = 0.0
        self._num_samples = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around getting a batch."""
        begin = self._clock()
        yield
        self._data += self._clock() - begin

    @contextmanager
    def computing(self, num_samples: int) -> Iterator[None]:
        """Around an update on a batch of `num_samples`."""
        begin = self._clock()
        yield
        self._compute += self._clock() - begin
        self._num_samples += num_samples

    def flush(self) -> dict[str, float]:
        """The figures of the interval that ends here: samples per second (of waiting and computing), seconds of both;
        and the process's largest resident memory and, with a GPU, largest allocated memory since it began (GB,
        1e9)."""
        seconds = self._data + self._compute
        found = {
            "speed/samples_per_second": self._num_samples / seconds if seconds > 0 else 0.0,
            "speed/seconds_waiting_for_data": self._data,
            "speed/seconds_computing": self._compute,
            "memory/peak_resident_gb": peak_resident_bytes() / 1e9,
        }
        if torch.cuda.is_available():
            found["memory/peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._data = self._compute = 0.0
        self._num_samples = 0
        return found


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
