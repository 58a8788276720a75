"""`chunkrl doctor`: what is installed, what the machine offers, which extras are missing and how to get them."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.markers import Marker
from packaging.requirements import Requirement

from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.options import DoctorConfig


def _installed(requirement: Requirement) -> str:
    """`name version`, marked where it is missing or outside the range that chunkrl supports."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} MISSING (needs {requirement.specifier or 'any version'})"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} {found} OUTSIDE {requirement.specifier}"
    return f"{requirement.name} {found}"


def requirements() -> dict[str, list[Requirement]]:
    """chunkrl's requirements by extra; "" are those of the core."""
    groups: dict[str, list[Requirement]] = {"": []}
    for line in requires("chunkrl") or []:
        requirement = Requirement(line)
        groups.setdefault(_extra(requirement.marker), []).append(requirement)
    return groups


def _extra(marker: Marker | None) -> str:
    text = "" if marker is None else str(marker)
    return text.split("extra ==")[1].strip().strip("'\"") if "extra ==" in text else ""


def _memory() -> str:
    """Main memory, and what is available of it where the system says."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return f"{total:.1f} GiB"
    values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return f"{total:.1f} GiB, {int(values['MemAvailable'].split()[0]) / 2**20:.1f} GiB available"


def _tokenizer() -> str:
    from chunkrl.models.pi.tokenizer import find_tokenizer

    try:
        return str(find_tokenizer(None, None))
    except CheckpointError as error:
        return f"MISSING: {error}"


def _checkpoint(folder: Path) -> str:
    """What a folder of weights is, or why it cannot be loaded; no weight is read."""
    from chunkrl.models.pi.checkpoint import find_layout, find_recipe
    from chunkrl.models.pi.recipes import RECIPES

    try:
        layout = find_layout(folder)
    except CheckpointError as error:
        return f"NOT A CHECKPOINT: {error}"
    try:
        recipe = RECIPES[folder.name]() if folder.name in RECIPES else find_recipe(folder)
    except CheckpointError as error:
        return f"{layout}; {error}"
    config, settings = recipe.config, recipe.settings
    return f"{layout}, {config.kind}, horizon {config.horizon}, prompt format {settings.prompt_format}"


def _checkpoints(root: Path) -> list[str]:
    """One line a checkpoint in `root`, unfinished downloads included."""
    if not root.is_dir():
        return [f"none: no folder {root} (chunkrl download pi05_libero makes it)"]
    lines = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name.endswith(".partial"):
            name = folder.name.removeprefix(".").removesuffix(".partial")
            lines.append(f"{root / name}: NOT WHOLE: its download did not end; the same command goes on")
        elif not folder.name.startswith("."):
            lines.append(f"{folder}: {_checkpoint(folder)}")
    return lines or [f"none in {root} (chunkrl download pi05_libero)"]


def _opengl() -> str:
    """Which library draws LIBERO's pictures; nothing is loaded."""
    from chunkrl.envs.offscreen import choose_backend

    try:
        backend = choose_backend()
    except ChunkRLError as error:
        return f"MISSING: {error}"
    return f"{backend} (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}); MetaWorld and the demo need none"


def _libero() -> str:
    """LIBERO's package and its assets; nothing is fetched."""
    from chunkrl.envs.libero_package import assets_fingerprint, installed_assets
    from chunkrl.envs.libero_tasks import package_folder

    try:
        package = package_folder()
        assets = installed_assets()
    except ChunkRLError as error:
        return f"MISSING: {error}"
    if assets is None:
        return (
            f"{package}; assets: none yet, fetched from the Hub at first use, or export LIBERO_ASSETS=FOLDER"
        )
    return f"{package}; assets {assets_fingerprint(assets)}: {assets}"


def _keys() -> str:
    """Where the keys of `chunkrl actor` can come from here."""
    terminal = "terminal (this one)" if sys.stdin is not None and sys.stdin.isatty() else "terminal (ssh -t)"
    display = bool(os.environ.get("DISPLAY")) or sys.platform in ("darwin", "win32")
    if importlib.util.find_spec("pynput") is None:
        return f"{terminal}; pynput: not installed (extra keyboard)"
    return f"{terminal}; pynput: {'a display is there' if display else 'no display (DISPLAY is unset)'}"


def run_doctor(config: DoctorConfig) -> None:
    """Prints the findings, one a line."""
    print(f"python      {platform.python_version()} ({sys.executable})")
    print(f"platform    {platform.platform()}, {os.cpu_count()} cores")
    print(f"memory      {_memory()}")
    free = shutil.disk_usage(Path(config.output_dir).resolve()).free / 2**30
    print(f"disk        {free:.1f} GiB free at {Path(config.output_dir).resolve()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
            memory = f"{total:.0f} GiB, {free:.0f} GiB free"
            print(f"gpu {index}       {properties.name}, {memory}, CUDA {torch.version.cuda}")
    else:
        built = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
        print(f"gpu         none found by this PyTorch (built {built})")
    print(f"tokenizer   {_tokenizer()}")
    for line in _checkpoints(Path(config.pi0_checkpoints_dir)):
        print(f"checkpoint  {line}")
    print(f"keys        {_keys()}")
    missing = []
    for extra, group in sorted(requirements().items()):
        lines = [_installed(requirement) for requirement in group]
        bad = [line for line in lines if "MISSING" in line or "OUTSIDE" in line]
        name = f"extra {extra}" if extra else "core"
        print(f"{name:<12}{'; '.join(lines)}")
        if bad:
            missing.append(f"chunkrl[{extra}]" if extra else "chunkrl")
    for name in missing:
        print(f"to complete: pip install '{name}'")
    if importlib.util.find_spec("mujoco") is not None:
        print(f"opengl      {_opengl()}")
    if importlib.util.find_spec("libero") is not None:
        print(f"libero      {_libero()}")
