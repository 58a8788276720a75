"""`chunkrl export-values`: a run's values as the files that LeRobot's own training, or anybody else's, weights by."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.files.atomic import replace_file
from chunkrl.files.json_files import as_json, parse_json
from chunkrl.files.output_folder import check_file
from chunkrl.integration.rabc import (
    Spread,
    choose_kappa,
    encode_weights,
    progress_of,
    rabc_weights,
    rises,
    value_ends,
)
from chunkrl.progress import Progress
from chunkrl.report.config import ExportValuesCommand
from chunkrl.report.load_run import load_run
from chunkrl.report.training_run import LabelledData, TrainingRun

_KEY = b"chunkrl.values"
VERSION = 1
PER_SAMPLE = ("smolvla", "pi0", "pi05", "evo1", "molmoact2")  # LeRobot 0.6.1's that weight samples
FEW = 0.2  # of the frames count: the policy learns from little
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Exported:
    """One written file. weight: what its reader makes of it, float32 [N], 1 at most. kappa: None without RA-BC."""

    path: Path
    data: LabelledData
    weight: np.ndarray
    kappa: float | None


def export_values(command: ExportValuesCommand, progress: Progress) -> tuple[Exported, ...]:
    """Writes a file for each data set, and says what is in it and how `lerobot-train` is told of it.

    Raises:
        ChunkRLError: the run has no values, or none of the kind that the format is of; a data set that it has not; a
            setting that the format does not read; another file is in the place. DatasetError: the data are absent or
            have changed since the values were made.
    """
    _check(command)
    run = load_run(command.run, progress)
    column = "value" if command.format == "rabc" else "weight"
    missing = [part for part in run.data if column not in part.labels]
    if missing or not run.data:
        raise ChunkRLError(_without(run, column))
    if command.format != "rabc" and run.config.distil.num_candidates:
        raise ChunkRLError(
            f"{run.folder} distilled chunks that its policy drew, and its weights are theirs, not the recording's: "
            "use --format rabc, or a run without --distil"
        )
    numbers = _chosen(run, command.dataset)
    if command.output is not None and len(numbers) > 1:
        raise ChunkRLError(
            f"--output {command.output} is one file, and {run.folder} has {len(run.data)} data sets: choose one with "
            f"--dataset ({_named(run)}), or leave --output out"
        )
    size = command.chunk_size or run.config.action_horizon
    span = _span(run) if command.format == "rabc" else (0.0, 1.0)
    made = []
    for number in numbers:
        path = (
            Path(command.output).expanduser()
            if command.output
            else run.folder / _file(command.format, number)
        )
        made.append((path, run.data[number], *_columns(command, run, run.data[number], size, span)))
    exported = []
    for path, part, columns, weight, kappa in made:
        _save(path, columns, _record(command, run, part, size, kappa), command.overwrite)
        exported.append(Exported(path, part, weight, kappa))
        print("\n".join(_told(exported[-1], command, size)))
    return tuple(exported)


def _check(command: ExportValuesCommand) -> None:
    if not command.run:
        raise ChunkRLError("name a run: chunkrl export-values RUN, the folder of chunkrl train or learner")
    if command.chunk_size is not None and command.chunk_size < 1:
        raise ChunkRLError(f"--chunk-size {command.chunk_size}: a chunk has at least 1 action")
    if command.chunk_size is not None and command.format == "weights":
        raise ChunkRLError("--chunk-size is of RA-BC; weights are of the run's own chunks: leave it out")
    if command.kappa is not None and command.format != "rabc":
        raise ChunkRLError(f"--kappa is of --format rabc, and not of {command.format}: leave it out")
    if command.kappa is not None and not 0 <= command.kappa < np.inf:
        raise ChunkRLError(f"--kappa {command.kappa}: a rise of progress, at least 0")


def _without(run: TrainingRun, column: str) -> str:
    if column == "value" or not run.has_values:
        return (
            f"{run.folder} has no values of its frames (objective {run.config.objective}, or it was stopped before "
            "they were written): give a run of --objective value, cross_fitted or advantage_conditioned that ended"
        )
    return (
        f"{run.folder} has values and no weights (objective {run.config.objective}): use --format rabc, or a run of "
        "--objective cross_fitted or value"
    )


def _named(run: TrainingRun) -> str:
    return ", ".join(f"{number} is {part.dataset.name}" for number, part in enumerate(run.data))


def _chosen(run: TrainingRun, dataset: str | None) -> list[int]:
    """The numbers of the data sets to write."""
    if dataset is None:
        return list(range(len(run.data)))
    if dataset.isdecimal() and int(dataset) < len(run.data):
        return [int(dataset)]
    for number, part in enumerate(run.data):
        root = part.dataset.table.description.root
        if dataset == part.dataset.name or Path(dataset).expanduser().resolve() == root.resolve():
            return [number]
    raise ChunkRLError(f"--dataset {dataset}: {run.folder} has no such data set; {_named(run)}")


def _file(form: str, number: int) -> str:
    return f"{form}-{number}.parquet" if number else f"{form}.parquet"


def _span(run: TrainingRun) -> tuple[float, float]:
    """The lowest and the highest value of all data sets: progress means the same in each."""
    ended = [value_ends(part.dataset, part.labels["value"], run.config.fit.time_out) for part in run.data]
    return min(float(part.min()) for part in ended), max(float(part.max()) for part in ended)


def _columns(
    command: ExportValuesCommand, run: TrainingRun, part: LabelledData, size: int, span: tuple[float, float]
) -> tuple[Columns, np.ndarray, float | None]:
    """The columns of a file, the weights [N] that its reader makes of them, at most 1, and kappa."""
    table = part.dataset.table
    episode = np.repeat(table.episode_ids, table.episode_length)
    columns = {"index": _index(part), "episode_index": episode}
    columns["frame_index"] = np.arange(table.num_frames) - np.repeat(
        table.episode_start, table.episode_length
    )
    if command.format == "rabc":
        ended = value_ends(part.dataset, part.labels["value"], run.config.fit.time_out)
        columns["progress_sparse"] = progress_of(ended, *span)
        rise = rises(columns["progress_sparse"], episode, size)
        kappa = choose_kappa(rise) if command.kappa is None else command.kappa
        return columns, rabc_weights(columns["progress_sparse"], episode, size, kappa), kappa
    weight = np.where(part.dataset.frame_labels.after_success, 0.0, part.labels["weight"]).astype(np.float32)
    if not np.isfinite(weight).all() or weight.min() < 0 or not weight.any():
        raise ChunkRLError(
            f"{run.folder}: a weight is no finite positive number, or all are 0: train it again"
        )
    if command.format == "weights":
        return columns | {"weight": weight}, weight / weight.max(), None
    encoded = encode_weights(weight, episode, size)
    others = np.arange(len(encoded.others))
    columns["progress_sparse"] = encoded.progress
    further = {
        "index": columns["index"].max() + 1 + others,
        "episode_index": np.full(len(others), table.episode_ids.max() + 1),
        "frame_index": others,
        "progress_sparse": encoded.others,
    }
    whole = {name: np.concatenate([values, further[name]]) for name, values in columns.items()}
    made = rabc_weights(whole["progress_sparse"], whole["episode_index"], size, 1.0)
    return whole, made[: table.num_frames], 1.0


def _index(part: LabelledData) -> np.ndarray:
    """LeRobot's number of every frame in the data set, int64 [N]: what its batches name frames by."""
    table = part.dataset.table
    if not table.has_column("index"):
        raise DatasetError(
            f"{part.dataset.name} has no column 'index', by which LeRobot names frames: write it with LeRobot"
        )
    index = np.asarray(table.column("index")).reshape(-1).astype(np.int64)
    if len(np.unique(index)) != len(index) or index.min() < 0:
        raise DatasetError(
            f"{part.dataset.name}: 'index' names several frames alike, or is negative, so that LeRobot would mix "
            "their weights: write the data set with LeRobot"
        )
    return index


def _record(
    command: ExportValuesCommand, run: TrainingRun, part: LabelledData, size: int, kappa: float | None
) -> dict[str, Any]:
    """What the file says of itself."""
    return as_json(
        {
            "version": VERSION,
            "format": command.format,
            "run": run.folder.resolve().name,
            "dataset": part.dataset.name,
            "fingerprint": part.dataset.fingerprint,
            "chunk_size": None if command.format == "weights" else size,
            "kappa": kappa,
            "values": dict(part.rule),
        },
        default=str,
    )


def _save(path: Path, columns: Columns, record: dict[str, Any], overwrite: bool) -> None:
    stored = pa.table({name: pa.array(values) for name, values in columns.items()})
    stored = stored.replace_schema_metadata({_KEY: json.dumps(record, sort_keys=True)})
    check_file(path, overwrite, lambda file: _is_same(file, record))
    with replace_file(path) as temporary:
        pq.write_table(stored, temporary)


def _is_same(file: Path, record: dict[str, Any]) -> bool:
    """Whether a file was made by the same command from the same values."""
    try:
        raw = (pq.read_schema(file).metadata or {}).get(_KEY)
    except (pa.ArrowException, OSError):
        return False
    return raw is not None and parse_json(raw, dict, str(file), DatasetError, "delete it") == record


def _told(made: Exported, command: ExportValuesCommand, size: int) -> list[str]:
    """What was written, and the command that reads it."""
    table, spread = made.data.dataset.table, Spread.of(made.weight)
    lines = [
        f"{made.path}: {table.num_frames} frames of {table.num_episodes} episodes of {made.data.dataset.name}"
    ]
    if command.format == "weights":
        lines += [
            f"  mean weight {spread.mean:.3g} of the largest, as good as {spread.effective:.0%} of the frames",
            f"  chunkrl train --objective behaviour_cloning --sample-weights {shlex.quote(str(made.path))} reads it",
        ]
        return lines
    lines.append(
        f"  RA-BC at chunks of {size} with kappa {made.kappa}: weight 0 for {spread.zero:.0%} of the frames, 1 for "
        f"{spread.full:.0%}, mean {spread.mean:.2f}, as good as {spread.effective:.0%} of the frames"
    )
    if spread.effective < FEW:
        lines.append(
            "  warning: few frames count. A longer --chunk-size averages over the noise of values; what they are "
            "worth, chunkrl report says"
        )
    lines += ["  LeRobot 0.6.1 and later:", f"    {lerobot_train(made, size)}"]
    lines.append(
        f"  policies that weight samples there: {', '.join(PER_SAMPLE)}; others stop with an error (ACT: "
        "--policy.type=weighted_act of lerobot_policy_chunkrl)"
    )
    if table.description.version.startswith("v2"):
        lines.append(f"  LeRobot reads v3.0 alone, and this is {table.description.version}: convert it first")
    return lines


def lerobot_train(made: Exported, size: int) -> str:
    """The command line that trains a new SmolVLA on a file."""
    table = made.data.dataset.table
    root = table.description.root
    words = [
        "lerobot-train",
        f"--dataset.repo_id=local/{root.name}",
        f"--dataset.root={root}",
    ]
    if table.description.left_out_episodes:  # LeRobot gives frames that the file does not have the weight 1
        words.append(f"--dataset.episodes={json.dumps(table.episode_ids.tolist())}")
    words += [
        f"--policy.type={PER_SAMPLE[0]}",
        f"--policy.chunk_size={size}",
        f"--policy.n_action_steps={size}",
        "--policy.push_to_hub=false",
        "--sample_weighting.type=rabc",
        f"--sample_weighting.progress_path={made.path}",
        "--sample_weighting.head_mode=sparse",
        f"--sample_weighting.kappa={made.kappa}",
    ]
    return " ".join(shlex.quote(word) for word in words)
