"""Settings of pi policies: whose chunks are made, what trains, and what is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import tyro

from chunkrl.errors import ChunkRLError
from chunkrl.models.config import LoRAConfig
from chunkrl.models.pi.config import DEFAULT_FLOW_STEPS, ConditionPlace, PiCriticConfig

PiUse = Literal["replace", "candidates"]
PiDtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class PiChunkConfig:
    """How a pi policy's chunks are made and used."""

    use: PiUse = "replace"
    """replace: in place of the data's chunks (the document's); candidates: beside them (objective iql)."""
    num_candidates: int = 4
    """Chunks a start, where they are candidates."""
    recipe: str | None = None
    """pi0_libero, pi05_libero, pi0_base, pi05_base or a JSON file; default: as the folder or its name says."""
    cameras: tuple[str, ...] | None = None
    """The data set's cameras in the policy's order; default: the same names."""
    tokenizer: str | None = None
    """SentencePiece file; default: the checkpoint's or the cache's."""
    asset_id: str | None = None
    """Which norm stats, where an openpi folder has several."""
    flow_steps: int = DEFAULT_FLOW_STEPS
    """Euler steps of the flow."""
    batch_size: int = 16
    """Starts at once."""
    dtype: PiDtype = "auto"
    """Precision of the weights; auto: bfloat16 on a GPU, float32 on a CPU."""
    seed: int = 0
    """Determines the noise."""

    def __post_init__(self) -> None:
        if self.use not in get_args(PiUse) or self.dtype not in get_args(PiDtype):
            raise ChunkRLError(
                f"pi0.use is {self.use!r} and pi0.dtype {self.dtype!r}; use one of {', '.join(get_args(PiUse))}, and "
                f"of {', '.join(get_args(PiDtype))}"
            )
        for name in ("num_candidates", "flow_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ChunkRLError(f"pi0.{name} is {getattr(self, name)}; it must be at least 1")
        if self.seed < 0:
            raise ChunkRLError(f"pi0.seed is {self.seed}; it must not be negative")

    @property
    def num_samples(self) -> int:
        """N, chunks per start."""
        return self.num_candidates if self.use == "candidates" else 1


NormStatsFrom = Literal["checkpoint", "data"]


@dataclass(frozen=True)
class PiTrainingConfig:
    """How a pi policy is trained."""

    train: str = "full"
    """What trains: full, language_and_expert, expert, expert_and_last_layers:N, lora, lora_and_expert."""
    trainable: tuple[str, ...] = ()
    """Glob patterns of parameter names in place of `train`; a leading - excludes."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Rank, scale and targets of LoRA, where `train` says lora or lora_and_expert."""
    num_noise: int = 4
    """Noise samples a prefix pass: nearly free."""
    state_noise: float = 0.0
    """Noise on the state while the policy trains; 1 is about the data's own deviation."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass."""
    norm_stats: NormStatsFrom = "checkpoint"
    """What normalises states and actions: the checkpoint's statistics, or this data's (a new robot)."""
    condition_place: ConditionPlace = "end"
    """Where the advantage stands in the prompt: after the state, or after the task (for stock LeRobot)."""
    critic: PiCriticConfig = field(default_factory=PiCriticConfig)
    """V and Q on the policy's features."""

    def __post_init__(self) -> None:
        if self.num_noise < 1 or self.state_noise < 0:
            raise ChunkRLError(
                f"pi.num_noise is {self.num_noise} and state_noise {self.state_noise}: at least 1, and not negative"
            )
        if self.norm_stats not in get_args(NormStatsFrom):
            raise ChunkRLError(f"pi.norm_stats is {self.norm_stats!r}; use checkpoint or data")

    @property
    def uses_lora(self) -> bool:
        """Whether `train` asks for LoRA."""
        return self.train in ("lora", "lora_and_expert")


Name = Literal["pi0_libero", "pi0_base", "pi05_libero", "pi05_base", "all", "tokenizer"]


@dataclass(frozen=True)
class DownloadCommand:
    """The published pi checkpoints, whole or not at all; the same command goes on after an interruption."""

    names: Annotated[tuple[Name, ...], tyro.conf.Positional] = ()
    """What to fetch."""
    checkpoints: tuple[Name, ...] = ()
    """The same, as a flag."""
    repo_id: str | None = None
    """A Hub repository, owner/name."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    include: tuple[str, ...] = ()
    """Glob patterns of the Hub repository's files that are fetched, such as '*.safetensors'; default: all."""
    download_dir: str | None = None
    """For names: the folder that gets one folder each (default checkpoints/pi0). For --repo-id: the folder itself
    (default checkpoints/pi0/NAME)."""
    source: str = "gs://openpi-assets/checkpoints"
    """Where the named checkpoints are: any fsspec URL, for a mirror."""
    tokenizer_source: str | None = None
    """Where the tokenizer is; default: Google's bucket."""


@dataclass(frozen=True)
class ConfigCommand:
    """Another project's configuration into files for chunkrl's commands: chunkrl config import FILE, of LeRobot's
    HIL-SERL and its pi0.5 fork (config-hiserl.json)."""

    action: Annotated[str, tyro.conf.Positional] = ""
    """import."""
    file: Annotated[str, tyro.conf.Positional] = ""
    """The configuration, JSON or YAML."""
    output_dir: str | None = None
    """Folder for train.json, learner.json, actor.json and robot.json; default: one here with the file's name."""
    overwrite: bool = False
    """Write over such files of an earlier import."""
