"""A run folder as what its report shows: of `chunkrl train`, or of `chunkrl learner` with the data of its actors."""

from __future__ import annotations

from pathlib import Path

from chunkrl.errors import ChunkRLError
from chunkrl.files.json_files import read_json
from chunkrl.files.regular_files import is_there
from chunkrl.progress import Progress, silent
from chunkrl.report.learner import learner_run
from chunkrl.report.training_run import TrainingRun, load_data
from chunkrl.run.folder import beginning, is_run_folder, run_config
from chunkrl.run.offline import VERSIONS_FILE
from chunkrl.run.parts import check_one_run
from chunkrl.training.metrics import METRICS_FILE, read_records


def load_run(folder: str | Path, progress: Progress = silent) -> TrainingRun:
    """What `chunkrl train` or `chunkrl learner` left in `folder`.

    Raises:
        ChunkRLError: it is no folder of a run, holds parts of two, or a file of it is damaged. DatasetError: as
            `load_data`.
    """
    folder = Path(folder)
    if not is_run_folder(folder):
        raise ChunkRLError(
            f"{folder} is no folder of a training run: it needs config.json and {METRICS_FILE}, which chunkrl train "
            "writes to --output-dir"
        )
    check_one_run(folder)
    config = run_config(folder / "config.json")
    versions, records = _read_versions(folder / VERSIONS_FILE), tuple(read_records(folder / METRICS_FILE))
    begun = beginning(folder)
    if begun is not None and begun.command == "learner":
        return learner_run(TrainingRun(folder, config, versions, records, ()), progress)
    data = load_data(config, folder, progress)
    return TrainingRun(folder, config, versions, records, data, config.dataset_weights)


def _read_versions(path: Path) -> dict[str, str]:
    cure = "delete it, or resume the run"
    if not is_there(path, ChunkRLError, cure):
        return {"versions": "not recorded"}  # by runs of before 2026-11
    versions = read_json(path, dict, ChunkRLError, cure)
    if not all(isinstance(version, str) for version in versions.values()):
        raise ChunkRLError(f"{path} is damaged (a version is no text): {cure}")
    return versions
