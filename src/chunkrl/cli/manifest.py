"""`chunkrl manifest`: is a folder still what was written? One of before manifests is looked through and gets one."""

from __future__ import annotations

from pathlib import Path

from chunkrl.algorithms.values_io import values_file
from chunkrl.data.parquet import open_parquet, reading
from chunkrl.errors import CheckpointError
from chunkrl.files.json_files import read_json
from chunkrl.files.tensor_files import read_tensors
from chunkrl.manifest import MANIFEST_FILE, read_manifest, verify, write_manifest
from chunkrl.options import ManifestCommand
from chunkrl.policies import registry
from chunkrl.training.checkpoint import VALUES

_OURS = (".json", ".safetensors", ".model")  # what else lies in such a folder, somebody added


def check_manifests(command: ManifestCommand) -> None:
    """Says of each folder what it found.

    Raises:
        CheckpointError: a file is missing, changed or damaged (names it), or the folder is none of this project's.
    """
    root = Path(command.folder)
    if not command.folder or not root.is_dir():
        raise CheckpointError("give a run's folder, its policy or a checkpoint: chunkrl manifest FOLDER")
    values = _values_files(root)
    folders = [root] if _is_one(root) else [f for f in _inside(root) if _is_one(f)]
    if not folders and not values:
        raise CheckpointError(f"{root} is no run, policy or checkpoint: it holds nothing that has a manifest")
    for folder in folders:
        _check(folder, command.renew)
    if values:
        _check_values(root, values, command.renew)


def _inside(run: Path) -> list[Path]:
    checkpoints = (f for f in (run / "checkpoints").glob("*") if f.name.isdecimal())
    return [run / "policy", *sorted(checkpoints)]


def _is_one(folder: Path) -> bool:
    return (folder / VALUES).is_file() or any(family.is_own(folder) for family in registry.FAMILIES)


def _check(folder: Path, renew: bool) -> None:
    inner = registry.family_in(folder).inner_folders(folder)
    for name in inner:  # their manifests first: the outer one has the sums of them
        _check(folder / name, renew)
    if _is_verified(folder, None, renew):
        return
    names = [
        f.name for f in folder.iterdir() if f.is_file() and f.suffix in _OURS and f.name != MANIFEST_FILE
    ]
    names += [f"{name}/{MANIFEST_FILE}" for name in inner]
    _look_through(folder, names)
    write_manifest(folder, names)
    print(f"{folder}: looked through, {MANIFEST_FILE} written ({len(names)} files)")


def _look_through(folder: Path, names: list[str]) -> None:
    cure = "the folder is damaged; copy it again"
    for name in names:
        if name.endswith(".json"):
            read_json(folder / name, dict, CheckpointError, cure, nan=True)
        elif name.endswith(".safetensors"):
            read_tensors(folder / name, CheckpointError, cure)
    if problems := registry.family_in(folder).problems(folder):
        raise CheckpointError(f"{folder} is no whole policy: {cure}\n{problems}")


def _is_verified(folder: Path, names: list[str] | None, renew: bool) -> bool:
    manifest = None if renew else read_manifest(folder)
    if manifest is None:
        return False
    verify(folder, marked=True, only=names)
    print(f"{folder}: as it was written ({len(manifest.files)} files)")
    return True


def _values_files(run: Path) -> list[str]:
    names: list[str] = []
    while (run / values_file(len(names))).is_file():
        names.append(values_file(len(names)))
    return names


def _check_values(run: Path, names: list[str], renew: bool) -> None:
    if _is_verified(run, names, renew):
        return
    for name in names:
        with reading(run / name), open_parquet(run / name) as file:
            file.read(use_threads=False)
    write_manifest(run, names)
    print(f"{run}: {', '.join(names)} looked through, {MANIFEST_FILE} written")
