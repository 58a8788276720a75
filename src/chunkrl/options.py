"""Options of the commands that have no part of the package to themselves: demo, doctor, manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


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
