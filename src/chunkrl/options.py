"""Options that several commands share, or that have no part of the package to themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from chunkrl.errors import ChunkRLError


def check_least(options: Any, least: Mapping[str, float]) -> None:
    """Raises ChunkRLError for a setting below its least value. options: a record; what is None was not given."""
    for name, limit in least.items():
        value = getattr(options, name)
        if value is not None and value < limit:
            raise ChunkRLError(f"{name} is {value}; it must be at least {limit}")


@dataclass(frozen=True)
class DemoConfig:
    """The main job, small enough for two cores without a GPU."""

    output_dir: str = ""
    """Data sets, runs, results.json and report.html; default: runs/demo-001, the next free number. A folder that
    holds a demo is refused."""
    resume: bool = False
    """The demo in --output-dir goes on: data and trainings that are there are kept."""
    overwrite: bool = False
    """The demo in --output-dir makes place: its folder is kept as NAME.replaced-001."""
    tasks: tuple[str, ...] = ("push-v3", "pick-place-v3")
    """MetaWorld tasks."""
    mixtures: tuple[str, ...] = ("within", "episodes")
    """within: quality changes inside episodes; episodes: good or bad as a whole."""
    num_collect: int = 150
    """Episodes per data set."""
    num_eval: int = 100
    """Fresh initial states, the same for every policy."""
    policy_updates: int = 4000
    """Updates of every policy."""
    seed: int = 0
    """Seed of collection and training."""
    num_workers: int = 2
    """Processes, one task each."""


EpisodeOrder = Literal["doubt", "number", "unlabelled"]


@dataclass(frozen=True)
class BrowserConfig:
    """A page in a browser on which episodes are looked at and labelled."""

    browser: bool = False
    """Open a page with the episodes: their cameras, values and labels. The extra `browser` must be installed."""
    run: str | None = None
    """With --browser: values and advantages to show, of a run's folder or of one of its files of values."""
    order: EpisodeOrder = "doubt"
    """With --browser, what comes first: episodes without a label and then those whose label the values of --run doubt
    most; by number; or those without a label, then by number."""
    address: str = "127.0.0.1:0"
    """With --browser: host:port of the page. 127.0.0.1 is this machine alone; port 0 is any free one."""
    open: bool = True
    """With --browser: open the page where there is a display; its link is printed in any case."""


@dataclass(frozen=True)
class DoctorConfig:
    """What is installed, and what is missing."""

    output_dir: str = "."
    """Folder whose free disk space is shown."""
    pi0_checkpoints_dir: str = "checkpoints/pi0"
    """Folder of the pi checkpoints (chunkrl download fills it)."""


@dataclass(frozen=True)
class ManifestCommand:
    """Compares a policy, a checkpoint, or a whole run with its manifests, and writes those that are missing."""

    folder: Annotated[str, tyro.conf.Positional] = ""
    """A run's folder (its policy, checkpoints and values), or one of these."""
    renew: bool = False
    """Accept what has changed since: look the files through, and write their sums again."""


@dataclass(frozen=True)
class CompletionCommand:
    """A script for your shell, which completes commands, flags and their choices: put
    eval "$(chunkrl completion bash)" into ~/.bashrc, the same with zsh into ~/.zshrc; for fish run
    chunkrl completion fish > ~/.config/fish/completions/chunkrl.fish"""

    shell: Annotated[str, tyro.conf.Positional] = ""
    """bash, zsh or fish."""
