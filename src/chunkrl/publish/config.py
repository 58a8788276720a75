"""`chunkrl push` and `chunkrl pull`: their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

What = Literal["auto", "policy", "dataset"]


@dataclass(frozen=True)
class PushCommand:
    """A policy with its card, or a data set, to the Hugging Face Hub: looked through, listed, asked about first."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """A run's folder, a policy's, or a data set's."""
    repo_id: str | None = None
    """Repository, account/name (required); it is made where there is none."""
    licence: str | None = None
    """The licence of what is pushed, as the Hub names it: apache-2.0, mit, cc-by-4.0, other (required)."""
    public: bool = False
    """Everybody may see it; else you alone, or your organisation."""
    revision: str | None = None
    """Branch, made where there is none; default: main."""
    what: What = "auto"
    """policy, dataset; auto: what the folder holds."""
    evaluation: tuple[str, ...] = ()
    """For the card: folders of chunkrl evaluate, or NAME=FOLDER, of this policy and of others to compare with."""
    without_run: bool = False
    """The card says nothing of data and training (the data are not on this machine)."""
    dry_run: bool = False
    """Print the list of files and the card, and ask the Hub nothing."""
    yes: bool = False
    """Do not ask before sending."""
    overwrite: bool = False
    """Replace what stands there by what is pushed; older commits stay in the repository's history."""


@dataclass(frozen=True)
class PullCommand:
    """A policy or a data set from the Hugging Face Hub, whole or not at all, and verified."""

    repo_id: Annotated[str, tyro.conf.Positional] = ""
    """Repository, account/name."""
    revision: str | None = None
    """Branch, tag or commit; default: main."""
    what: Literal["policy", "dataset"] = "policy"
    """policy or dataset: the Hub has one repository of a name for each."""
    output_dir: str | None = None
    """The folder itself; default: the repository's name, here."""
