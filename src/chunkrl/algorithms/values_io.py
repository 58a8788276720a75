"""Values, advantages and what became of them, of every frame, beside a run: one parquet file a data set."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.algorithms.advantages import check_outcomes, frame_advantages, return_range, step_rewards
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.value_labels import ValueLabels, known_outcomes, monte_carlo_returns
from chunkrl.data.collection import ChunkCollection, ChunkData
from chunkrl.data.frames import FrameTable
from chunkrl.data.parquet import group_starts
from chunkrl.data.progress_files import read_progress
from chunkrl.data.sidecar import Sidecar, load_sidecar, save_sidecar
from chunkrl.errors import ChunkRLError
from chunkrl.manifest import MANIFEST_FILE, MARK, read_manifest, verify, write_manifest

_NEEDED = ("value", "value_seen", "return", "advantage")
_NAMES = (*_NEEDED, "weight", "stratum", "advantage_bin_raw", "advantage_bin")


def values_file(number: int) -> str:
    """The file of a run with the values of data set `number` (0: --dataset-dir)."""
    return f"values-{number}.parquet" if number else "values.parquet"


def num_rows(path: Path) -> int:
    """The frames that a file of values is of. Raises DatasetError where it is damaged."""
    return int(group_starts(path)[-1])


def save_values(
    run_dir: Path, data: ChunkData, labels: Mapping[str, np.ndarray], rule: Mapping[str, Any]
) -> None:
    """Writes the labels that there are of every frame, and a manifest of the files; rule: what made them."""
    collection = ChunkCollection.of(data)
    present = [name for name in _NAMES if name in labels]
    split = {name: collection.split(labels[name]) for name in present}
    for number, dataset in enumerate(collection.datasets):
        arrays = {name: parts[number] for name, parts in split.items()}
        save_sidecar(
            run_dir / values_file(number),
            dataset.table,
            arrays,
            dict(rule) | {"dataset": dataset.name, "returns": _meaning(collection), MARK: MANIFEST_FILE},
        )
    write_manifest(run_dir, [values_file(number) for number in range(len(collection.datasets))])


def _meaning(data: ChunkData) -> dict[str, Any]:
    """What returns are of: values of other ones are other numbers."""
    rewards = zlib.crc32(np.ascontiguousarray(step_rewards(data)).data)
    ends = zlib.crc32(np.packbits(data.segments.terminated).tobytes())
    return {
        "gamma": data.gamma,
        "reward": data.reward_kind,
        "rewards": f"{rewards:08x}",
        "terminated": f"{ends:08x}",
    }


def _is_of(stored: Any, meaning: Mapping[str, Any]) -> bool:
    """Whether values are of these returns; files of before do not say which episodes terminated."""
    return isinstance(stored, dict) and {"terminated": meaning["terminated"]} | stored == meaning


def read_values_files(
    run_dir: Path,
    tables: Sequence[FrameTable],
    numbers: Sequence[int] | None = None,
    rewritten: Collection[int] = (),
) -> list[Sidecar]:
    """The files of a run with the labels of its data sets, verified against the manifest.

    numbers: of the data sets, as `values_file` takes them; None: from 0 on. rewritten: those of `numbers` whose data
        sets' own files may have been merged since, with the same episodes.

    Raises:
        DatasetError: a file is missing or damaged, or belongs to other data.
        CheckpointError: a file is not what was written.
    """
    chosen = range(len(tables)) if numbers is None else numbers
    names = [values_file(number) for number in chosen]
    listed = read_manifest(run_dir) is not None
    if listed:
        verify(run_dir, marked=True, only=names)
    sidecars = [
        load_sidecar(run_dir / values_file(number), table, rewritten=number in rewritten)
        for number, table in zip(chosen, tables, strict=True)
    ]
    if not listed:
        verify(run_dir, any(MARK in sidecar.metadata for sidecar in sidecars), only=names)
    return [
        replace(sidecar, metadata={key: item for key, item in sidecar.metadata.items() if key != MARK})
        for sidecar in sidecars
    ]


def load_values(run_dir: Path, data: ChunkData) -> ValueLabels:
    """The values that an earlier run wrote for the same data sets, in the same order.

    Raises:
        DatasetError: a file is missing, or belongs to other data.
        ChunkRLError: the run has no values, or values of other returns.
    """
    sidecars = read_values_files(run_dir, [dataset.table for dataset in ChunkCollection.of(data).datasets])
    parts = [sidecar.arrays for sidecar in sidecars]
    meaning = _meaning(data)
    if not all(_is_of(sidecar.metadata.get("returns"), meaning) for sidecar in sidecars):
        raise ChunkRLError(
            f"{run_dir} has values of other returns ({sidecars[0].metadata.get('returns')} there, {meaning} here): "
            "train them with the same --gamma, --reward, --success, --step-reward and --failure-terminal, or leave "
            "--values out"
        )
    missing = [name for name in _NEEDED if any(name not in part for part in parts)]
    if missing:
        raise ChunkRLError(
            f"{run_dir} has no {', '.join(missing)} of the frames: give a run of --objective value, cross_fitted or "
            "advantage_conditioned"
        )
    for name in _NEEDED:
        if not all(part[name].dtype.kind == "f" and np.isfinite(part[name]).all() for part in parts):
            raise ChunkRLError(f"{run_dir}: '{name}' of a frame is no finite number: train the values again")
    value, seen, returns, advantage = (np.concatenate([part[name] for part in parts]) for name in _NEEDED)
    return ValueLabels(value, seen, returns, advantage)


def values_of_progress(path: Path, data: ChunkData, fit: ValueFit) -> ValueLabels:
    """Progress of LeRobot's reward models in place of V: 0 is the data's lowest return, 1 its highest.

    Nobody held anything out here: what the reward model learned from is not known.

    Raises:
        DatasetError: as `read_progress`. ChunkRLError: the data have no reward.
    """
    (dataset,) = ChunkCollection.of(data).datasets
    reward = step_rewards(data)
    returns = monte_carlo_returns(data, reward)
    check_outcomes(data.name, reward, known_outcomes(data, fit.time_out)[data.starts])
    counted = returns[~data.frame_labels.after_success]
    value = return_range(counted).from_unit(read_progress(path, dataset.table, "--values"))
    return ValueLabels(value, value, returns, frame_advantages(value, reward, data, fit))
