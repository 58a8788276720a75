"""Statistics of states and actions, and the one mapping between data units and network units."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from chunkrl.data.metadata import integer
from chunkrl.errors import DatasetError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import numbers, read_json

Mode = Literal["mean_std", "quantile", "min_max", "identity"]
MODES: tuple[Mode, ...] = ("mean_std", "quantile", "min_max", "identity")
QUANTILE_ROWS = 2**20
CONSTANT = 1e-3


@dataclass(frozen=True)
class Statistics:
    """Statistics of D columns over `count` rows: float32 [D] each. std is the population's (divided by
    count)."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    count: int

    def save(self, file: str | Path) -> None:
        """Writes them as JSON; `load` gives the same numbers.

        Raises:
            DatasetError: the file cannot be written.
        """
        record = {name: value.tolist() if name != "count" else value for name, value in asdict(self).items()}
        write_text(file, json.dumps(record, indent=2) + "\n")

    @classmethod
    def load(cls, file: str | Path) -> Statistics:
        """What `save` wrote.

        Raises:
            DatasetError: the file is missing or damaged.
        """
        names, cure = [field.name for field in fields(cls)], "delete it and compute them again"
        record = read_json(Path(file), dict, DatasetError, cure)
        if set(record) != set(names):
            raise DatasetError(f"{file}: damaged statistics ({sorted(record)}, expected {names}): {cure}")
        count = integer(record, "count", str(file), 1)
        columns = [
            np.asarray(numbers(record[name], f"{file}: '{name}'", DatasetError, cure)) for name in names[:-1]
        ]
        fits = all((np.abs(column) <= np.finfo(np.float32).max).all() for column in columns)
        if not fits or any(column.shape != columns[0].shape for column in columns):
            raise DatasetError(f"{file}: damaged statistics (lengths differ, or too large numbers): {cure}")
        return cls(*(column.astype(np.float32) for column in columns), count=count)


def saved_statistics(file: Path, compute: Callable[[], Statistics]) -> Statistics:
    """The file's statistics; computed and saved where it is not there. Its name must say what they are of."""
    if file.is_file():
        return Statistics.load(file)
    statistics = compute()
    statistics.save(file)
    return statistics


def compute_statistics(
    array: np.ndarray, chunk_rows: int = 65536, rows: np.ndarray | None = None
) -> Statistics:
    """Statistics of array [N, D] (a memory map serves) in one pass, `chunk_rows` rows in memory at a time.

    Quantiles are exact (linear interpolation) up to 2**20 rows; of more, they are those of 2**20 or fewer
    evenly spaced rows, whose rank is off by about 1e-4.

    rows: int [M], the rows to use, or bool [N].

    Raises:
        DatasetError: no rows, or NaN or inf (names row and dimension).
    """
    if array.ndim != 2:
        raise ValueError(f"array has shape {array.shape}, expected [N, D]")
    if rows is not None and rows.dtype == np.bool_:
        rows = np.flatnonzero(rows)
    count = len(array) if rows is None else len(rows)
    if count == 0:
        raise DatasetError("no rows to compute statistics of: choose at least one episode")
    stride = math.ceil(count / QUANTILE_ROWS)
    mean, square = np.zeros(array.shape[1]), np.zeros(array.shape[1])
    low, high = np.full(array.shape[1], np.inf), np.full(array.shape[1], -np.inf)
    sample, taken = np.empty((math.ceil(count / stride), array.shape[1]), array.dtype), 0
    for begin in range(0, count, chunk_rows):
        index = slice(begin, begin + chunk_rows) if rows is None else rows[begin : begin + chunk_rows]
        values = np.asarray(array[index], np.float64)
        if not np.isfinite(values).all():
            row, dimension = np.argwhere(~np.isfinite(values))[0]
            place = begin + int(row) if rows is None else int(rows[begin + row])
            raise DatasetError(
                f"row {place}, dimension {dimension} is NaN or inf: correct or leave out its episode"
            )
        low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
        # Chan, Golub & LeVeque (1979): means and sums of squares about the mean combine without cancellation.
        delta, share = values.mean(axis=0) - mean, len(values) / (begin + len(values))
        square += ((values - values.mean(axis=0)) ** 2).sum(axis=0) + delta**2 * begin * share
        mean += delta * share
        chosen = values[-begin % stride :: stride]
        sample[taken : taken + len(chosen)] = chosen
        taken += len(chosen)
    # One column after the other: all of them in float64 would take several times the sample's memory.
    quantiles = [np.quantile(column.astype(np.float64), (0.01, 0.99)) for column in sample.T]
    q01, q99 = np.stack(quantiles, axis=1)
    columns = (column.astype(np.float32) for column in (mean, np.sqrt(square / count), low, high, q01, q99))
    return Statistics(*columns, count=count)


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of both together: exact but for the quantiles, which are count-weighted means.

    A quantile of the union lies between the two, and so does the weighted mean; where the two differ much and
    it matters, compute the statistics of the concatenation instead.
    """
    if a.mean.shape != b.mean.shape:
        raise DatasetError(
            f"statistics of {len(a.mean)} and {len(b.mean)} dimensions: both need the same columns"
        )
    count = a.count + b.count
    share = b.count / count

    def blend(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (1 - share) * x.astype(np.float64) + share * y.astype(np.float64)

    delta = b.mean.astype(np.float64) - a.mean
    variance = (
        blend(a.std.astype(np.float64) ** 2, b.std.astype(np.float64) ** 2) + share * (1 - share) * delta**2
    )
    return Statistics(
        mean=blend(a.mean, b.mean).astype(np.float32),
        std=np.sqrt(variance).astype(np.float32),
        min=np.minimum(a.min, b.min),
        max=np.maximum(a.max, b.max),
        q01=blend(a.q01, b.q01).astype(np.float32),
        q99=blend(a.q99, b.q99).astype(np.float32),
        count=count,
    )


def _affine(statistics: Statistics, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale, float64 [D], before constant dimensions are seen to."""
    s = {
        name: getattr(statistics, name).astype(np.float64)
        for name in ("mean", "std", "min", "max", "q01", "q99")
    }
    if mode == "mean_std":
        return s["mean"], s["std"]
    if mode == "min_max":
        return (s["min"] + s["max"]) / 2, (s["max"] - s["min"]) / 2
    # A rare event (a gripper that closes once) has q01 = q99 though it moves: there the range is min to max.
    rare = s["q99"] - s["q01"] <= CONSTANT * (s["max"] - s["min"])
    low, high = np.where(rare, s["min"], s["q01"]), np.where(rare, s["max"], s["q99"])
    return (low + high) / 2, (high - low) / 2


class Normalizer(nn.Module):
    """x -> (x - shift) / scale per dimension; shift and scale are buffers, so a checkpoint has them.

    mean_std: zero mean, unit standard deviation. min_max: [min, max] -> [-1, 1]. quantile: [q01, q99] ->
    [-1, 1], nothing is cut off beyond. identity: x.

    A dimension that moves less than a thousandth (`CONSTANT`) of what the median moving dimension does, or
    only by float32 rounding, is taken for constant: it is centred and divided by that median (1 where
    nothing moves). So a constant maps to 0, and if it moves later it enters in proportion to the others.
    Dividing by its own near-zero spread would turn sensor noise, or the first real motion, into thousands.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, statistics: Statistics, mode: Mode = "mean_std") -> None:
        super().__init__()
        if mode not in MODES:
            raise DatasetError(f"normalisation '{mode}' is unknown: use one of {', '.join(MODES)}")
        self.mode = mode
        shift, scale = np.zeros(len(statistics.mean)), np.ones(len(statistics.mean))
        if mode != "identity":
            shift, scale = _affine(statistics, mode)
            # a spread below float32's smallest normal number would be stored as 0
            moving = scale > np.maximum(1e-6 * np.abs(shift), np.finfo(np.float32).tiny)
            typical = float(np.median(scale[moving])) if moving.any() else 1.0
            scale = np.where(moving & (scale >= CONSTANT * typical), scale, typical)
        self.register_buffer("shift", torch.from_numpy(shift.astype(np.float32)))
        self.register_buffer("scale", torch.from_numpy(scale.astype(np.float32)))

    @classmethod
    def identity(cls, dim: int) -> Normalizer:
        """One that changes nothing: [..., dim]; also what a checkpoint's buffers are loaded into."""
        zeros, ones = np.zeros(dim, np.float32), np.ones(dim, np.float32)
        return cls(Statistics(zeros, ones, -ones, ones, -ones, ones, 1), "identity")

    @property
    def dim(self) -> int:
        """D."""
        return len(self.shift)

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return self.shift.device

    def normalize(self, x: Tensor) -> Tensor:
        """Data units [..., D] to network units [..., D]."""
        return (x - self.shift) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        """Network units [..., D] to data units [..., D]."""
        return x * self.scale + self.shift

    def forward(self, x: Tensor) -> Tensor:
        """`normalize`."""
        return self.normalize(x)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, mode={self.mode}"
