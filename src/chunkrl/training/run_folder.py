"""What a run's folder holds for another run: its last checkpoint, its values, the networks to begin with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from chunkrl.algorithms.config import BalanceConfig
from chunkrl.config import load_config
from chunkrl.data.json_files import read_json
from chunkrl.data.regular_files import open_regular
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.train_checks import WEIGHTED
from chunkrl.train_config import TrainConfig
from chunkrl.training.checkpoint import VALUES, left_behind, load_state
from chunkrl.training.policy_io import PolicySpec, read_spec


def run_config(path: Path) -> TrainConfig:
    """The configuration of a run, from its config.json, which has every setting: one that does not say how weights
    were balanced is from before they were."""
    config = load_config(TrainConfig, path)
    if config.objective in WEIGHTED and "balance" not in read_json(path, dict, ChunkRLError, "restore it"):
        return replace(config, balance=BalanceConfig("none"))
    return config


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


def initial_networks(source: Path, spec: PolicySpec | None) -> dict[str, Any]:
    """The networks that a new run begins with, as `Algorithm.take_networks` takes them.

    source: a run's folder or checkpoint gives policy and moments of its last checkpoint, and values of the last one
        that has them; a saved policy's folder gives the policy's networks and statistics alone.
    spec: what the new run builds, to be the saved policy's; None for a policy that says nothing of the kind.

    Raises CheckpointError where there is neither, or the saved policy is another kind of policy.
    """
    folder = find_checkpoint(source)
    state = load_state(folder)
    if "spec_json" in state:
        if spec is not None:
            _check_same_networks(source, read_spec(folder, state), spec)
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


# what equal tensors do not show: names of inputs, and what outputs mean
_SAME = ("observation", "shape", "network", "policy", "encoding")


def _check_same_networks(source: Path, saved: PolicySpec, built: PolicySpec) -> None:
    differing = [
        f"{name} {getattr(saved, name)} there and {getattr(built, name)} here"
        for name in _SAME
        if getattr(saved, name) != getattr(built, name)
    ]
    if differing:
        raise CheckpointError(
            f"--init {source}: another policy than these settings build: {'; '.join(differing)}. Give the settings "
            "of the run that made it (its config.json), and --use-task as its data decided it"
        )
