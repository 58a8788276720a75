"""`chunkrl doctor`: what is installed, what the machine offers, which extras are missing and how to get them."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.markers import Marker
from packaging.requirements import Requirement


@dataclass(frozen=True)
class DoctorConfig:
    """What is installed, and what is missing."""

    output_dir: str = "."
    """Folder whose free disk space is shown."""


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


def run_doctor(config: DoctorConfig) -> None:
    """Prints the findings, one a line."""
    print(f"python      {platform.python_version()} ({sys.executable})")
    print(f"platform    {platform.platform()}, {os.cpu_count()} cores")
    free = shutil.disk_usage(Path(config.output_dir).resolve()).free / 2**30
    print(f"disk        {free:.1f} GiB free at {Path(config.output_dir).resolve()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            print(f"gpu {index}       {properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}")
    else:
        built = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
        print(f"gpu         none found by this PyTorch (built {built})")
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
        print(
            f"rendering   MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')} (state tasks and the demo need none)"
        )
