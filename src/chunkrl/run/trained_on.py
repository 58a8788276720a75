"""Which episodes a run was trained on, by their contents: they are known again wherever they stand now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import CheckpointError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.files.regular_files import is_there
from chunkrl.run.folder import beginning, is_run_folder, run_config, run_of

TRAINED_FILE = "trained_on.json"  # in a run's folder
_CURE = "restore it, or train again"


def episode_digests(dataset: ChunkDataset) -> list[str]:
    """A digest of each episode's actions and states, [E]: labels and images do not count, nor where it stands."""
    table, found = dataset.table, []
    for start, length in zip(table.episode_start.tolist(), table.episode_length.tolist(), strict=True):
        digest = hashlib.blake2b(digest_size=8)
        for values in (table.action, table.state):
            if values is not None:
                digest.update(np.ascontiguousarray(values[start : start + length]).data)
        found.append(digest.hexdigest())
    return found


def note_trained(run_dir: Path, datasets: Sequence[ChunkDataset]) -> None:
    """Writes what the run is trained on, whole or not at all."""
    digests = sorted({digest for dataset in datasets for digest in episode_digests(dataset)})
    write_text(run_dir / TRAINED_FILE, json.dumps({"episodes": digests}) + "\n")


def trained_on(run_dir: Path) -> frozenset[str] | None:
    """The digests of the episodes that the run was trained on; None: it does not say (a release of before, or a
    learner, whose data grow). Raises CheckpointError where the file is damaged."""
    file = run_dir / TRAINED_FILE
    if not is_there(file, CheckpointError, _CURE):
        return None
    found = read_json(file, dict, CheckpointError, _CURE).get("episodes")
    if not isinstance(found, list) or not all(isinstance(digest, str) for digest in found):
        raise CheckpointError(f"{file} is damaged (it lists no episodes): {_CURE}")
    return frozenset(found)


def runs_before(run_dir: Path) -> list[Path]:
    """The runs whose networks it began with, the newest first, as far as their folders are still there."""
    found: list[Path] = []
    while (before := _before(run_dir)) is not None and before not in found:
        found.append(before)
        run_dir = before
    return found


def _before(run_dir: Path) -> Path | None:
    begun, config = beginning(run_dir), run_config(run_dir / "config.json")
    source = None if begun is None else begun.init
    if source is None and config.pi0_config is not None:
        source = str(Path(config.pi0_checkpoints_dir).expanduser() / config.pi0_config)
    if source is None:
        return None
    path = Path(source)
    for folder in (path, path.parent):  # a run, or its policy
        if is_run_folder(folder):
            return folder.resolve()
    try:
        run = run_of(path)  # of a checkpoint
    except CheckpointError:
        return None
    return None if run is None else run.resolve()
