"""`chunkrl doctor`: what is installed, what the machine offers, which extras are missing and how to get them."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

from chunkrl.errors import ChunkRLError
from chunkrl.install import install_command
from chunkrl.options import DoctorConfig
from chunkrl.policies import registry
from chunkrl.version import __version__

_WIDTH = 80
PURPOSES = {
    "browser": "episodes in a browser: chunkrl label --browser",
    "dev": "tests, linter, types",
    "eightbit": "AdamW with moments of 8 bits",
    "evaluation": "comparisons of several training seeds",
    "gcs": "pi checkpoints from Google Cloud Storage",
    "hil": "gym-hil's scene, by keyboard",
    "keyboard": "an actor's keys beside a display",
    "lerobot": "LeRobot's robots and leader arms",
    "libero": "the LIBERO simulator",
    "online": "actor and learner",
    "pi": "pi0 and pi0.5",
    "serve": "a policy for openpi's clients",
    "sim": "MetaWorld, the demo",
    "tracking": "Weights & Biases",
}


def _lacking(requirement: Requirement) -> str:
    """What is missing, or outside the range that chunkrl supports; "" for nothing."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name}{requirement.specifier}"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name}{requirement.specifier} (not {found})"
    return ""


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


def _opengl() -> str:
    """Which library draws LIBERO's images; nothing is loaded."""
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


def _has_display() -> bool:
    return bool(os.environ.get("DISPLAY")) or sys.platform in ("darwin", "win32")


def _keys() -> str:
    """Where the keys of `chunkrl actor` can come from here."""
    terminal = "terminal (this one)" if sys.stdin is not None and sys.stdin.isatty() else "terminal (ssh -t)"
    if importlib.util.find_spec("pynput") is None:
        return f"{terminal}; pynput: not installed (extra keyboard)"
    return (
        f"{terminal}; pynput: {'a display is there' if _has_display() else 'no display (DISPLAY is unset)'}"
    )


def run_doctor(config: DoctorConfig) -> None:
    """Prints a table of what is there: the machine, pi checkpoints, and the extras that can be completed here."""
    rows = [*_machine(Path(config.output_dir).resolve())]
    for family in registry.FAMILIES:
        rows += family.found_here(Path(config.pi0_checkpoints_dir))
    rows.append(("keys", _keys()))
    if importlib.util.find_spec("mujoco") is not None:
        rows.append(("opengl", _opengl()))
    if importlib.util.find_spec("libero") is not None:
        rows.append(("libero", _libero()))
    groups = requirements()
    rows.append(("chunkrl", f"{__version__}: {_core(groups.pop('', []))}"))
    left_out = []
    for extra, group in sorted(groups.items()):
        lacking = [text for requirement in group if (text := _lacking(requirement))]
        if lacking and (reason := _obstacle(extra)):
            left_out.append(f"{extra} ({reason})")
        else:
            state = f"lacks {', '.join(lacking)}" if lacking else "installed"
            rows.append((extra, f"{PURPOSES.get(extra, '')}: {state}"))
    if left_out:
        rows.append(("not here", "; ".join(left_out)))
    for name, text in rows:
        print(_wrapped(name, text))
    print(f"To complete one: {install_command('EXTRA')}")  # not wrapped: to be copied


def _machine(folder: Path) -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "platform", f"{platform.platform()}, {os.cpu_count()} cores"
    yield "memory", _memory()
    yield "disk", f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB free at {folder}"
    if not torch.cuda.is_available():
        built = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
        yield "gpu", f"none found by this PyTorch (built {built})"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        memory = f"{total:.0f} GiB, {free:.0f} GiB free"
        yield f"gpu {index}", f"{properties.name}, {memory}, CUDA {torch.version.cuda}"


def _core(group: list[Requirement]) -> str:
    lacking = [text for requirement in group if (text := _lacking(requirement))]
    if lacking:
        return f"MISSING {', '.join(lacking)}: {install_command('')}"
    return ", ".join(f"{requirement.name} {version(requirement.name)}" for requirement in group)


def _obstacle(extra: str) -> str:
    """Why this machine cannot complete an extra; "" where it can."""
    if extra == "lerobot" and Version(torch.__version__) >= Version("2.11"):
        return "needs torch below 2.11, an environment of its own: make test-lerobot"
    if extra == "libero" and shutil.which("cmake") is None:
        return "needs cmake to build"
    if extra == "keyboard" and not _has_display():
        return "no display; a terminal's keys need nothing"
    if extra == "hil" and _opengl().startswith("MISSING"):
        return "no OpenGL"
    return ""


def _wrapped(name: str, text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=f"{name:<12}",
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )
