"""What a run's folder holds for another run: its last checkpoint, its values, the networks to begin with."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from chunkrl.config import load_config, save_config
from chunkrl.data.label_rules import AUTO_LABELS
from chunkrl.errors import CheckpointError
from chunkrl.files.regular_files import is_there, open_regular
from chunkrl.run.config import TrainCommand, TrainConfig, as_fresh, going_on
from chunkrl.run.noted import noted_config
from chunkrl.training.checkpoint import VALUES, left_behind, load_state
from chunkrl.training.metrics import METRICS_FILE

RUN_FILE = "run.json"


def is_run_folder(folder: Path) -> bool:
    """Whether it is the folder of a training run, finished or not."""
    return (folder / "config.json").is_file() and (folder / METRICS_FILE).is_file()


def run_config(path: Path) -> TrainConfig:
    """The configuration of a run, from its config.json, which has every setting of its release."""
    return noted_config(TrainConfig, path)


@dataclass(frozen=True)
class RunRecord:
    """How a run began. command: of chunkrl. init, resumed: where its networks came from, else None."""

    command: str
    init: str | None = None
    resumed: str | None = None


def save_run(config: TrainConfig, run_dir: Path, command: str, goes_on: bool) -> None:
    """Writes config.json, with which a fresh run begins (`--config`), and how this one began, unless it goes on."""
    note_beginning(config, run_dir, command, goes_on)
    save_config(as_fresh(config), run_dir / "config.json")


def note_beginning(config: TrainConfig, run_dir: Path, command: str, goes_on: bool) -> None:
    """Writes how a run began, unless it goes on."""
    if not (goes_on and (run_dir / RUN_FILE).is_file()):
        save_config(RunRecord(command, config.init, config.resume), run_dir / RUN_FILE)


def beginning(run_dir: Path) -> RunRecord | None:
    """How a run began; None where it is of a release that did not note it."""
    file = run_dir / RUN_FILE
    cure = "restore it, or delete it"
    return (
        load_config(RunRecord, file, CheckpointError, cure) if is_there(file, CheckpointError, cure) else None
    )


def run_of(path: Path) -> Path | None:
    """The run's folder of a checkpoint, or of itself; None for a checkpoint that lies elsewhere."""
    folder = find_checkpoint(path)
    run = folder.parent.parent
    is_in_run = folder.parent.name == "checkpoints" and os.path.lexists(run / "config.json")
    return run if is_in_run else None


def resumed_config(path: Path, given: Collection[str] = ()) -> TrainConfig:
    """All settings of the run whose folder or checkpoint `path` is, to resume it in its folder.

    given: names of settings that are given besides; the ones that would overrule them are left out.

    Raises CheckpointError where there is no checkpoint, ChunkRLError where its config.json is damaged.
    """
    run = run_of(path)
    if run is None:
        return TrainConfig(resume=str(path))
    return going_on(run_config(run / "config.json"), path, run, given)


def resumed_command(path: Path, given: Collection[str] = ()) -> TrainCommand:
    """Does as `resumed_config`, for the command line."""
    return TrainCommand(**vars(resumed_config(path, given)))


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder from itself or from its run's folder (its last checkpoint)."""
    for pointer in (path / "checkpoints" / "last", path / "last"):
        if pointer.is_file():
            return _pointed_to(pointer)
    if not (path / VALUES).is_file():
        raise CheckpointError(
            f"no checkpoint at {path}; give a run's folder or one of its checkpoints/<update>"
        )
    return path


def _pointed_to(pointer: Path) -> Path:
    cure = "give one of the checkpoints/<update> beside it"
    with open_regular(pointer, CheckpointError, cure) as file:
        name = file.read(100).decode("ascii", "replace").strip()
    folder = pointer.parent / name
    if not name.isdecimal() or not (folder.is_dir() or left_behind(folder, "old")):
        raise CheckpointError(f"{pointer} names {name!r}, which is no checkpoint beside it: {cure}")
    return folder


def find_values(folder: Path) -> Path | None:
    """The newest checkpoint of a run, `folder` or an older one, whose values are still there; None: there is none.

    A run that labels its data once drops its values afterwards; the checkpoint at the end of their phase has them.
    """
    older = [f for f in folder.parent.iterdir() if f.name.isdecimal() and f.name <= folder.name]
    for candidate in (folder, *sorted(older, reverse=True)):
        with open_regular(candidate / VALUES, CheckpointError, "use another checkpoint") as file:
            if b"values|training" in file.read():  # a state of many records takes long to be parsed
                return candidate
    return None


def initial_networks(source: Path, check: Callable[[Path, dict[str, Any]], None]) -> dict[str, Any]:
    """The networks that a new run begins with, as `Algorithm.take_networks` takes them.

    source: a run's folder or checkpoint gives policy and moments of its last checkpoint, and values of the last one
        that has them; a saved policy's folder gives the policy's networks and statistics alone.
    check: raises CheckpointError unless the saved policy of a folder and its state is one that the new run builds.

    Raises CheckpointError where there is neither, or the saved policy is another kind of policy.
    """
    folder = find_checkpoint(source)
    state = load_state(folder)
    if "spec_json" in state:
        check(folder, state)
        return {"policy": state.get("policy", {})}
    networks = _algorithm_of(folder, state)
    values = find_values(folder)
    if values is not None and values != folder:
        networks = networks | {"values": _algorithm_of(values, load_state(values)).get("values", {})}
    return networks


def _algorithm_of(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(state.get("algorithm"), dict):
        raise CheckpointError(
            f"{folder} is no checkpoint of a run and no saved policy: give a run's folder or its `policy`"
        )
    return state["algorithm"]


# settings that the first data decide where they grow; a resumption has other data
DECIDED = ("value_updates", "use_task")

FREE = {
    "resume",
    "init",
    "output_dir",
    "overwrite",
    "device",
    "save_interval",
    "save_updates",
    "save_minutes",
    "keep_checkpoints",
    "log_interval",
    "num_epochs",
    "num_updates",
    "tracking",
    "value_videos",
    "frames.cache",  # where images are kept; they are the same
}
FREE |= {
    "dataset_dir",
    "additional_offline_dataset_paths",
    "pi0_checkpoints_dir",
}  # the checkpoint's contents count, through the data set's digest
"""What may differ between a run and its resumption."""


def without_label_files(config: TrainConfig) -> TrainConfig:
    """The settings whichever file the labels stand in: the labels themselves count, through the data set's digest."""
    return replace(config, labels=replace(config.labels, labels=AUTO_LABELS), additional_labels=())


def check_same_run(saved: TrainConfig, now: TrainConfig, folder: Path) -> None:
    """Raises CheckpointError where a run of the settings `now` would not be the one that left `folder`."""
    saved, now = without_label_files(saved), without_label_files(now)
    differing = [
        difference
        for f in fields(TrainConfig)
        for difference in _differences(f.name, getattr(saved, f.name), getattr(now, f.name))
    ]
    if differing:
        raise CheckpointError(
            f"{folder} was made with another configuration: {'; '.join(differing)}. What goes on keeps it: leave "
            f"these out, or begin a new run with them (--init {folder} takes the networks of this one)"
        )


def _differences(name: str, then: Any, now: Any) -> list[str]:
    """The settings that differ and are not free, by their own names: `balance.kind`."""
    if name in FREE:
        return []
    if is_dataclass(then) and type(then) is type(now):
        parts = [(f.name, getattr(then, f.name), getattr(now, f.name)) for f in fields(then)]
        return [found for part, *values in parts for found in _differences(f"{name}.{part}", *values)]
    return [] if then == now else [f"{name} ({then} then, {now} now)"]
