"""Checkpoints: one safetensors file and one JSON file in a folder that appears whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from chunkrl.errors import CheckpointError

TENSORS, VALUES = "state.safetensors", "state.json"
SEPARATOR = "|"


def _flatten(tree: Mapping[str, Any], prefix: str, tensors: dict[str, torch.Tensor], values: dict) -> None:
    for key, item in tree.items():
        if SEPARATOR in key:
            raise ValueError(f"state key {key!r} contains {SEPARATOR!r}")
        name = f"{prefix}{key}"
        if isinstance(item, torch.Tensor):
            tensors[name] = item.detach().cpu().contiguous().clone()
        elif isinstance(item, Mapping):
            values[name] = {}  # so that an empty mapping survives the round trip
            _flatten(item, f"{name}{SEPARATOR}", tensors, values)
        else:
            values[name] = item


def _insert(tree: dict[str, Any], name: str, item: Any) -> None:
    *parents, leaf = name.split(SEPARATOR)
    for parent in parents:
        tree = tree.setdefault(parent, {})
    if isinstance(item, dict):
        tree.setdefault(leaf, {})  # an empty mapping; its contents come under names of their own
    else:
        tree[leaf] = item


def save_state(folder: Path, tree: Mapping[str, Any]) -> None:
    """Writes nested mappings of tensors and JSON values as `folder`, replacing an older one only when whole.

    A kill between the two renames of a replacement leaves the older one under its `.old` name, where
    `load_state` finds it. What killed writers of this folder left is deleted once the new one is in place.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    _flatten(tree, "", tensors, values)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    save_file(tensors, temporary / TENSORS)
    (temporary / VALUES).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    for name in (TENSORS, VALUES):
        with (temporary / name).open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        for old in _left_behind(folder, "old"):
            shutil.rmtree(old)
        folder.rename(folder.with_name(f".{folder.name}.{os.getpid()}.old"))
    temporary.rename(folder)
    for left in (*_left_behind(folder, "old"), *_left_behind(folder, "tmp")):
        shutil.rmtree(left)


def _left_behind(folder: Path, kind: str) -> list[Path]:
    """Older (`old`) or unfinished (`tmp`) versions of `folder` that a killed writer left."""
    return sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.{kind}"))


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises CheckpointError when the folder is missing, incomplete or damaged."""
    if not folder.exists() and (older := _left_behind(folder, "old")):
        folder = older[-1]
    try:
        values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{VALUES} holds no JSON object")
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint ({error}); use another one") from error
    tree: dict[str, Any] = {}
    for name, item in {**values, **tensors}.items():
        _insert(tree, name, item)
    return tree


def trained_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters and buffers by name: what a checkpoint keeps of a network whose frozen parameters come from
    a pretrained checkpoint."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def load_trained_state(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `trained_state`, strict. Raises CheckpointError when other parameters are trained."""
    expected = set(trained_state(module))
    if set(state) != expected:
        differing = sorted(set(state) ^ expected)
        raise CheckpointError(
            f"the checkpoint trains other parameters ({', '.join(differing[:3])}, ...: {len(differing)} differ); "
            "resume with the settings that it was made with"
        )
    module.load_state_dict(dict(state), strict=False)
