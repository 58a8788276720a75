"""Checkpoints: one safetensors file and one JSON file in a folder that appears whole or not at all.

Where tensors are sharded, each process adds a file with its rows of them, and `shards.json` says their shapes. Such a
checkpoint is read on any number of processes. A manifest (`chunkrl.manifest`) is written last; reading verifies it.
"""

from __future__ import annotations

import glob
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from chunkrl import ranks
from chunkrl.config import load_config, save_config
from chunkrl.errors import CheckpointError
from chunkrl.files.json_files import read_json
from chunkrl.files.tensor_files import read_tensors
from chunkrl.manifest import MANIFEST_FILE, MARK, FileSums, file_sums, verify, write_manifest
from chunkrl.training.shard_files import SHARDS, read_shards, shards_file
from chunkrl.training.shards import is_sharded

_LOG = logging.getLogger(__name__)

TENSORS, VALUES = "state.safetensors", "state.json"
SEPARATOR = "|"
_SUMS = ".sums"  # after a shard's name until the manifest has them
_USE_ANOTHER = "the folder is not a whole checkpoint; copy it again, or use another one"


def _flatten(tree: Mapping[str, Any], prefix: str, tensors: dict[str, torch.Tensor], values: dict) -> None:
    for key, item in tree.items():
        if SEPARATOR in key:
            raise ValueError(f"state key {key!r} contains {SEPARATOR!r}")
        name = f"{prefix}{key}"
        if isinstance(item, torch.Tensor):
            tensor = item.detach()
            # one copy, also of what lies on a GPU: what is written is what there was when saving began
            tensors[name] = tensor if is_sharded(tensor) else tensor.to("cpu", copy=True).contiguous()
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


def save_state(folder: Path, tree: Mapping[str, Any], beside: Mapping[str, str] | None = None) -> None:
    """Writes nested mappings of tensors and JSON values as `folder`, replacing an older one only when whole.

    beside: texts of other files in the folder, by name.
    A kill between the two renames of a replacement leaves the older one under its `.old` name, where
    `load_state` finds it. What killed writers of this folder left is deleted once the new one is in place.
    Where tensors are sharded all processes call it, and the folder appears when the last one has written.
    """
    tensors, values = _snapshot(tree)
    sharded = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    if not sharded:
        _write_whole(folder, tensors, values, beside)
        return
    temporary = folder.with_name(f".{folder.name}.shared.tmp")
    if ranks.is_main():
        _fresh_temporary(folder, "shared")
    ranks.barrier()
    file = temporary / shards_file(ranks.rank(), ranks.world_size())
    save_file({name: _local_rows(tensor) for name, tensor in sharded.items()}, file)
    _sync(file)
    save_config(file_sums(file), file.with_name(file.name + _SUMS))
    if ranks.is_main():
        _write(temporary, {name: t for name, t in tensors.items() if name not in sharded}, values, beside)
        shapes = {name: list(tensor.shape) for name, tensor in sharded.items()}
        layout = {"num_ranks": ranks.world_size(), "shapes": shapes}
        (temporary / SHARDS).write_text(json.dumps(layout, indent=1) + "\n", encoding="utf-8")
        _sync(temporary / SHARDS)
    ranks.barrier()
    if ranks.is_main():
        write_manifest(temporary, known=_take_sums(temporary))
        _put_in_place(temporary, folder)
    ranks.barrier()


class BackgroundSaver:
    """`save_state` alongside training: a state is copied at once and written by a thread, one at a time.

    States with sharded tensors are written at once, for all processes write those together. As a context it ends
    when the last one is written; where another error is on its way, that of writing is logged.
    """

    def __init__(self) -> None:
        self._writing: Future[None] | None = None

    def save(self, folder: Path, tree: Mapping[str, Any], then: Callable[[], None]) -> None:
        """Returns when `tree` is copied; `then` is called when `folder` is whole.

        Waits for the one before, and raises what went wrong with it.
        """
        self.wait()
        if ranks.world_size() > 1:
            save_state(folder, tree)
            then()
            return
        tensors, values = _snapshot(tree)

        def write() -> None:
            _write_whole(folder, tensors, values)
            then()

        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = pool.submit(write)
        pool.shutdown(wait=False)  # the thread ends with the writing

    def wait(self) -> None:
        """Returns when what was saved last is whole; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> BackgroundSaver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            _LOG.warning("the last checkpoint could not be written: %s", failure)


def _snapshot(tree: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], str]:
    """Copies: tensors by name, and the other values as JSON."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    _flatten(tree, "", tensors, values)
    return tensors, json.dumps({MARK: MANIFEST_FILE} | values, indent=1) + "\n"


def _write_whole(
    folder: Path, tensors: dict[str, torch.Tensor], values: str, beside: Mapping[str, str] | None = None
) -> None:
    temporary = _fresh_temporary(folder, str(os.getpid()))
    _write(temporary, tensors, values, beside)
    write_manifest(temporary)
    _put_in_place(temporary, folder)


def _take_sums(folder: Path) -> dict[str, FileSums]:
    """The sums that the processes made of their shards, whose files go."""
    found = {}
    for file in sorted(folder.glob(f"*{_SUMS}")):
        found[file.name.removesuffix(_SUMS)] = load_config(FileSums, file, CheckpointError)
        file.unlink()
    return found


def _local_rows(tensor: Any) -> torch.Tensor:
    return tensor.to_local().cpu().contiguous().clone()


def _fresh_temporary(folder: Path, writer: str) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{writer}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    return temporary


def _write(
    folder: Path, tensors: dict[str, torch.Tensor], values: str, beside: Mapping[str, str] | None
) -> None:
    save_file(tensors, folder / TENSORS)
    texts = {VALUES: values, **(beside or {})}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in (TENSORS, *texts):
        _sync(folder / name)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _put_in_place(temporary: Path, folder: Path) -> None:
    if folder.exists():
        for old in left_behind(folder, "old"):
            shutil.rmtree(old)
        folder.rename(folder.with_name(f".{folder.name}.{os.getpid()}.old"))
    temporary.rename(folder)
    for left in (*left_behind(folder, "old"), *left_behind(folder, "tmp")):
        shutil.rmtree(left)


def left_behind(folder: Path, kind: str) -> list[Path]:
    """Older (`old`) or unfinished (`tmp`) versions of `folder` that a killed writer left."""
    return sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.{kind}"))


def load_state(folder: Path, finite: bool = True) -> dict[str, Any]:
    """What `save_state` wrote; all processes call it.

    Sharded tensors come whole in one process; on several as `StoredTensor`, of which `shards.shard_like` reads rows.

    finite: every number must be.

    Raises:
        CheckpointError: the folder is missing, incomplete, damaged or not what was written, or a tensor holds NaN or
            infinity.
    """
    if not folder.exists() and (older := left_behind(folder, "old")):
        folder = older[-1]
    values = _read_values(folder)
    marked = values.pop(MARK, None) is not None
    with ranks.all_succeed():
        share = (ranks.rank(), ranks.world_size())
        verify(folder, marked, used=(TENSORS, VALUES, SHARDS), share=share)
    tensors: dict[str, Any] = {**read_tensors(folder / TENSORS, CheckpointError, _USE_ANOTHER, finite)}
    if (folder / SHARDS).exists():
        tensors |= read_shards(folder, _USE_ANOTHER)
    tree: dict[str, Any] = {}
    try:
        for name, item in {**values, **tensors}.items():
            _insert(tree, name, item)
    except (AttributeError, TypeError) as error:  # a|b beside a value a
        raise CheckpointError(f"{folder / VALUES} contradicts itself ({error}): {_USE_ANOTHER}") from error
    return tree


def read_plain(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote besides tensors. Raises CheckpointError where it cannot be read."""
    tree: dict[str, Any] = {}
    for name, item in _read_values(folder).items():
        _insert(tree, name, item)
    return tree


def _read_values(folder: Path) -> dict[str, Any]:
    """What a checkpoint says besides its tensors, by name. Raises CheckpointError where it cannot be read."""
    values = read_json(folder / VALUES, dict, CheckpointError, _USE_ANOTHER, nan=True)
    for name, value in values.items():
        not_finite = isinstance(value, float) and not math.isfinite(value)
        if not_finite and not name.startswith(f"sums{SEPARATOR}"):  # of metrics, which may be NaN
            raise CheckpointError(f"{folder / VALUES}: '{name}' is {value}: {_USE_ANOTHER}")
    return values


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
    own = module.state_dict()
    for (
        name,
        tensor,
    ) in state.items():  # floats of another width may be meant: --init into a run of another dtype
        if own[name].is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(f"the checkpoint's {name} is of {tensor.dtype}: use another one")
    module.load_state_dict(dict(state), strict=False)
