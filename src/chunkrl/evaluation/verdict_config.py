"""Settings of `chunkrl verdict`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import ActionMode

_LEAST = {"num_starts": 1, "batch_size": 1, "num_resamples": 100}


@dataclass(frozen=True)
class VerdictCommand:
    """Whether one run's policy is better than another's, from episodes that neither was trained on."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """The folder of the run to judge (--output-dir of chunkrl train)."""
    against: str = ""
    """The folder of the run to judge it against (required)."""
    dataset_dir: tuple[str, ...] = ()
    """Data sets that neither run was trained on, with successes among them; default: the episodes that both runs kept
    from training with --held-out."""
    labels: Annotated[LabelRule, tyro.conf.OmitArgPrefixes] = field(default_factory=LabelRule)
    """How success is read in --dataset-dir; without it: as the first run reads it."""
    mode: ActionMode = "mode"
    """How both policies act: mode (most likely chunk; a flow from zero noise) or sample."""
    num_starts: int = 2000
    """Starts of successful episodes to judge at, evenly spaced over what there is."""
    num_resamples: int = 1000
    """Resamples of the episodes, for the interval."""
    batch_size: int = 64
    """Observations a call of a policy."""
    seed: int = 0
    """Determines the resamples, and the noise of --mode sample."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    output_dir: str | None = None
    """Folder for verdict.json and verdict.html; default: it is only printed. Another verdict there is refused."""
    overwrite: bool = False
    """Another verdict in --output-dir is replaced."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ChunkRLError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.mode == "best_of_n":
            raise ChunkRLError(
                "--mode best_of_n picks by Q, which is no policy's own chunk: use mode or sample"
            )
        if self.labels != LabelRule() and not self.dataset_dir:
            raise ChunkRLError(
                "--success, --labels and the like say how --dataset-dir is read; episodes of the runs' own data are "
                "read as the first run did: leave them out, or name --dataset-dir"
            )
