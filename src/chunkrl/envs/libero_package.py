"""Imports LIBERO without its questions, and finds its meshes and textures.

`hf-libero` asks on standard input where its data lies when its `config.yaml` is missing, looks for assets beside
itself and then on the Hub, and robosuite chooses an OpenGL library while it is imported. All three are decided here
before the first import.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from chunkrl.data.cache import ensure
from chunkrl.envs.libero_tasks import package_folder
from chunkrl.envs.offscreen import DEBIAN_PACKAGES
from chunkrl.errors import ChunkRLError
from chunkrl.files.atomic import write_text
from chunkrl.install import MissingExtraError

ASSETS_VARIABLE = "LIBERO_ASSETS"
HUB_DATASET = "lerobot/libero-assets"  # where hf-libero itself fetches them
# Folders that every scene needs; a folder without them is another one.
ASSET_FOLDERS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "textures")


def own_cache() -> Path:
    """The folder for LIBERO below chunkrl's cache (`$CHUNKRL_CACHE` or `~/.cache/chunkrl`)."""
    chosen = os.environ.get("CHUNKRL_CACHE") or Path.home() / ".cache" / "chunkrl"
    return Path(chosen).expanduser().resolve() / "libero"


def installed_assets() -> Path | None:
    """The asset folder of this machine, None where there is none: `$LIBERO_ASSETS`, the package's own, or the one
    that was fetched from the Hub, by chunkrl or by LIBERO itself.

    Raises:
        ChunkRLError: `LIBERO_ASSETS` names something else.
        MissingExtraError: LIBERO is not installed.
    """
    chosen = os.environ.get(ASSETS_VARIABLE)
    if chosen:
        folder = Path(chosen).expanduser().resolve()
        missing = [name for name in ASSET_FOLDERS if not (folder / name).is_dir()]
        if missing:
            raise ChunkRLError(
                f"{ASSETS_VARIABLE}={chosen} is no folder of LIBERO's assets: it has no {', '.join(missing)}; name "
                f"the folder that holds them, or unset {ASSETS_VARIABLE} to fetch them from the Hub"
            )
        return folder
    by_package = Path.home() / ".cache" / "libero" / "assets"
    for folder in (package_folder() / "assets", own_cache() / "assets", by_package):
        if all((folder / name).is_dir() for name in ASSET_FOLDERS):
            return folder
    return None


def find_assets() -> Path:
    """The asset folder; fetched from the Hub, as LIBERO does, where this machine has none.

    Raises:
        ChunkRLError: they are not here and cannot be fetched (says how to get them).
        MissingExtraError: LIBERO is not installed.
    """
    found = installed_assets()
    if found is None:
        found = own_cache() / "assets"
        ensure(found, _download, resume=True)
    return found


@cache
def assets_fingerprint(folder: Path) -> str:
    """The fingerprint of an asset folder, 16 hexadecimal digits: names and sizes of the files in its folders, hidden
    ones left out (the Hub's client puts some there). The same assets have the same one on every machine, substitutes
    another."""
    lines = []
    for place, _, names in os.walk(folder, followlinks=True):  # links: as in the Hub's own cache
        for file in (Path(place, name) for name in names):
            within = file.relative_to(folder)
            hidden = any(part.startswith(".") for part in within.parts)
            if len(within.parts) > 1 and file.is_file() and not hidden:
                lines.append(f"{within.as_posix()}\0{file.stat().st_size}\n")
    return hashlib.blake2b("".join(sorted(lines)).encode(), digest_size=8).hexdigest()


def _download(folder: Path) -> None:
    from huggingface_hub import snapshot_download

    print(f"fetching LIBERO's assets from the Hub ({HUB_DATASET}) to {own_cache() / 'assets'}")
    try:
        snapshot_download(HUB_DATASET, repo_type="dataset", local_dir=folder)
    except Exception as error:  # no connection, no such server, no permission: dozens of kinds
        raise ChunkRLError(
            f"LIBERO's meshes and textures are not on this machine, and the Hub's data set {HUB_DATASET} cannot be "
            f"fetched ({type(error).__name__}: {error}). On a machine with a connection: hf download "
            f"{HUB_DATASET} --repo-type dataset --local-dir FOLDER; here: export {ASSETS_VARIABLE}=FOLDER"
        ) from error


def import_libero() -> SimpleNamespace:
    """What the environment needs of LIBERO and robosuite; imported once, assets found.

    domains: problem name -> class; parse_problem: BDDL file -> its parts; controller_config: name -> dict;
    RandomizationError: no placement was found; suite: the package `libero.libero`.

    Raises:
        ChunkRLError: no assets.
        MissingExtraError: LIBERO or robosuite is not installed.
    """
    assets = find_assets()
    _write_config()
    try:
        with _quiet_import():
            libero: Any = importlib.import_module("libero.libero")
            libero._assets_path_cache = str(assets)
            envs = importlib.import_module("libero.libero.envs")
            parser = importlib.import_module("libero.libero.envs.bddl_utils")
            robosuite = importlib.import_module("robosuite")
            errors = importlib.import_module("robosuite.utils.errors")
    except ModuleNotFoundError as error:
        raise MissingExtraError("The LIBERO environment", error.name or "robosuite", "libero") from error
    except (ImportError, OSError) as error:  # OpenCV without libGL; a log file of another user's robosuite
        raise ChunkRLError(
            f"LIBERO cannot be imported: {error}; apt-get install {DEBIAN_PACKAGES} brings the system's libraries"
        ) from error
    return SimpleNamespace(
        assets=assets,
        domains=envs.TASK_MAPPING,
        parse_problem=parser.robosuite_parse_problem,
        controller_config=lambda name: robosuite.load_controller_config(default_controller=name),
        RandomizationError=errors.RandomizationError,
    )


def _write_config() -> None:
    """Gives `libero.libero` the `config.yaml` without which importing it asks on standard input.

    In a folder of our own, unless the user's `LIBERO_CONFIG_PATH` says another; `~/.libero` is left alone.
    """
    package = package_folder()
    if not os.environ.get("LIBERO_CONFIG_PATH"):
        key = hashlib.sha256(str(package).encode()).hexdigest()[:16]
        os.environ["LIBERO_CONFIG_PATH"] = str(own_cache() / f"config-{key}")
    config = Path(os.environ["LIBERO_CONFIG_PATH"]) / "config.yaml"
    if config.exists():
        return
    entries = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": package.parent / "datasets",
        "assets": package / "assets",
    }
    write_text(config, "".join(f'{name}: "{path}"\n' for name, path in entries.items()))


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Without robosuite's advice about its macro file, and without its choice of an OpenGL library.

    Importing robosuite loads EGL, or fails without it, unless MUJOCO_GL names another. Chunkrl draws with a context
    of its own (`chunkrl.envs.offscreen`), so robosuite gets the choice that loads nothing that may be missing.
    """
    before, level = os.environ.get("MUJOCO_GL"), logging.root.manager.disable
    os.environ["MUJOCO_GL"] = "glx"
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before
