"""A folder of steps: each step's configuration, and what it found once it is done; a killed step goes on.

`NAME.json` is the configuration of an existing command (`chunkrl train --config round-001/train.json` repeats the
step), written before the step begins. `NAME.done.json` is written when it is over, and holds what later steps need.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from chunkrl.config import save_config
from chunkrl.errors import ChunkRLError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import as_json, leaves, read_json
from chunkrl.iterate.places import Places, located
from chunkrl.progress import Progress
from chunkrl.run.command import train
from chunkrl.run.config import TrainConfig
from chunkrl.run.noted import noted_config

SOURCES_FILE = "sources.json"
_CURE = "delete its folder and resume with --resume"  # of a file that is damaged
# what may change while a step's results stay the same
_FREE = {"num_workers", "hang_s", "videos", "live", "device", "resume", "connect"}
_FREE |= {
    "overwrite",
    "save_minutes",
    "save_interval",
    "save_updates",
    "keep_checkpoints",
    "log_interval",
    "tracking",
    "value_videos",
}


def is_done(folder: Path, name: str) -> bool:
    """Whether the step of this name in `folder` is over."""
    return (folder / f"{name}.done.json").is_file()


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a training can go on from where it stopped."""
    return (run_dir / "checkpoints" / "last").is_file()


def run_step(folder: Path, name: str, config: Any, act: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Does a step unless it is done; returns what it found.

    config: a dataclass, all that the step depends on. act: does what is left of it, and refuses what another
        configuration left.

    Raises ChunkRLError where the step is done with another configuration.
    """
    asked, done = folder / f"{name}.json", folder / f"{name}.done.json"
    if is_done(folder, name):
        check_same(asked, config)
        return read_step(done)["found"]
    started = time.monotonic()
    with kept_if_refused(asked), _own_threads():
        save_config(config, asked)
        found = dict(act())
    write_text(done, json.dumps({"found": found, "seconds": time.monotonic() - started}, indent=1) + "\n")
    return as_json(found)  # as it is read back


@contextmanager
def kept_if_refused(file: Path, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """`file` is what it was where a ChunkRLError ends the block, `unless` something was done by then: what was begun
    before is of its settings."""
    before = file.read_text() if file.is_file() else None
    try:
        yield
    except ChunkRLError:
        if before is not None and not unless():
            write_text(file, before)
        raise


@contextmanager
def _own_threads() -> Iterator[None]:
    """A step leaves no number of threads behind: sums of another one round otherwise, and a run that goes on has
    not done the steps before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_or_go_on(config: TrainConfig, progress: Progress) -> None:
    """The training of a step, from its last checkpoint where it has one."""
    begun = has_checkpoint(Path(config.output_dir))
    train(replace(config, resume=config.output_dir if begun else None, overwrite=not begun), progress)


def check_sources(root: Path, sources: Mapping[str, str], is_new: bool) -> None:
    """Keeps what a run of steps begins with, fingerprints by path, and what comes to it later. Raises ChunkRLError
    where one that goes on has others than were kept."""
    sources = {located(name): found for name, found in sources.items()}
    known = {} if is_new else read_step(root / SOURCES_FILE)
    known = {located(name): found for name, found in known.items()}
    if changed := [name for name in sources if known.get(name, sources[name]) != sources[name]]:
        raise ChunkRLError(
            f"{changed[0]} is no longer what {root} began with: put it back, or begin a new run with another "
            "--output-dir"
        )
    if is_new or not sources.keys() <= known.keys():
        write_text(root / SOURCES_FILE, json.dumps(known | sources, indent=1) + "\n")


def check_same(file: Path, config: Any) -> None:
    """Raises ChunkRLError where `file` holds another configuration than `config`: what an earlier release did not
    know counts as what it did, and paths by where they lead (`places`)."""
    noted = noted_config(type(config), file, cure=_CURE)
    there, here = (leaves(as_json(asdict(one), default=str)) for one in (noted, config))
    root = next((p for p in file.parents if (p / SOURCES_FILE).is_file()), file.parent)
    places = Places.of(file.parent, root, there)
    differing = [
        f"{name} ({there.get(name)!r} there, {here.get(name)!r} here)"
        for name in sorted(there.keys() | here.keys())
        if not places.same(there.get(name), here.get(name)) and not _FREE & set(name.split("."))
    ]
    if differing:
        raise ChunkRLError(
            f"{file} is of another configuration: {'; '.join(differing)}. Resume that one, or use another "
            "--output-dir"
        )


def read_step(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ChunkRLError where the file is damaged."""
    return read_json(file, dict, ChunkRLError, _CURE, nan=True)
