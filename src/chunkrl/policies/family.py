"""One family of policies: what its networks are built of, how they are saved, and what they can do.

To add one, write a `PolicyFamily` and list it in `chunkrl.policies.registry`. Nobody else knows a family by name:
whoever must tell them apart asks for a capability. Without torch, which methods import where they need it: help texts
are made of the families' settings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from chunkrl.errors import ChunkRLError
from chunkrl.models.config import PolicySettings

if TYPE_CHECKING:
    import torch

    from chunkrl.algorithms.base import Networks
    from chunkrl.algorithms.best_of_n import QEnsemble
    from chunkrl.data.collection import ChunkData
    from chunkrl.models.acting_policy import ActingPolicy
    from chunkrl.models.policy import PolicyModel
    from chunkrl.progress import Progress


RunSettings: TypeAlias = Any
"""A run's `TrainConfig`, whose package stands above this one."""


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy in training, or at its end: what saving it needs to know.

    q: makes the Q ensemble for best-of-N, or None where the method trained none.
    """

    networks: PolicyModel
    q: Callable[[], QEnsemble | None]
    config: RunSettings
    dataset: ChunkData


class PolicyFamily(ABC):
    """What is true of most families; one says what differs.

    name: for messages. kinds: values of --policy.kind. settings: the class of `TrainConfig.policy`.
    reads: settings of `TrainConfig` that not every family reads, "network" for all of a part. reads_of: those that
        one of its kinds reads alone. critic_settings: of V and Q alone, which only methods that train these read.
    has_prompt: a condition can be written into what it reads (`PolicyModel.imitation_loss`).
    always_reads_task: whatever --use-task says. encodes_actions: it writes actions as --encoding says.
    is_pretrained: it begins with a checkpoint, and so is trained already.
    is_light: it can be built twice, to measure what an update takes.
    trains_in_parts: on several processes (`chunkrl.training.distributed`).
    extra: of this distribution, with the packages that it acts with; "" for none.
    """

    name = ""
    kinds: tuple[str, ...] = ()
    settings: type[PolicySettings] = PolicySettings
    reads: tuple[str, ...] = ()
    reads_of: Mapping[str, tuple[str, ...]] = {}
    critic_settings: tuple[str, ...] = ()
    has_prompt = False
    always_reads_task = False
    encodes_actions = True
    is_pretrained = False
    is_light = True
    trains_in_parts = False
    extra = ""

    # ---- settings, before data are opened

    def reads_setting(self, path: str, kind: str) -> bool:
        """Whether a kind of it reads the setting `path` ("network.hidden_dim") of those that not all kinds read."""
        reads = (*self.reads, *self.reads_of.get(kind, ()))
        return any(path == read or path.startswith(f"{read}.") for read in reads)

    def instead(self, unread: Sequence[str]) -> str:
        """What to use in place of settings that it does not read; "" where there is nothing."""
        return ""

    def check(self, config: RunSettings) -> None:  # noqa: B027  # optional
        """Raises ChunkRLError for settings that can fit no data."""

    def check_growing(self, config: RunSettings) -> None:  # noqa: B027  # optional
        """Raises ChunkRLError for settings that fit no data which grow (`chunkrl learner`)."""

    def check_parts(self, config: RunSettings, num_processes: int) -> None:  # noqa: B027  # optional
        """Raises ChunkRLError for settings that several processes do not train with."""

    def decided(self, config: RunSettings, dataset: ChunkData) -> dict[str, Any]:
        """Settings that the first data decide, and that more data must not change."""
        return {}

    # ---- networks

    @abstractmethod
    def networks(
        self, config: RunSettings, dataset: ChunkData, device: torch.device, progress: Progress
    ) -> Networks:
        """What builds the networks of a run.

        Raises:
            ChunkRLError: settings and data do not fit; CheckpointError: what it begins with is missing or damaged.
        """

    def told(self, policy: PolicyModel, config: RunSettings) -> str:
        """What a run says of its networks before it begins; "" for nothing."""
        return ""

    # ---- a policy's folder

    @abstractmethod
    def matches(self, folder: Path, kinds: Collection[str]) -> bool:
        """Whether a folder holds a policy of this family; nothing is loaded. kinds: those of all families."""

    @abstractmethod
    def load(self, folder: Path, device: torch.device | str, with_q: bool) -> ActingPolicy:
        """The policy in a folder that `matches`. with_q: whether Q for best-of-N is loaded, where it lies apart.

        Raises:
            CheckpointError: it is not whole.
        """

    @abstractmethod
    def acting(self, trained: TrainedPolicy) -> ActingPolicy:
        """A policy in training as it stands, to act; it shares the networks."""

    def save(self, trained: TrainedPolicy, folder: Path) -> None:
        """Writes `folder` whole or not at all; `load` reads it. All processes call it."""
        self.acting(trained).save(folder)

    def check_initial(
        self, trained: TrainedPolicy, source: Path, folder: Path, state: dict[str, Any]
    ) -> None:
        """Raises CheckpointError unless the saved policy in `folder`, whose `state` was read, is one that the run's
        settings build (--init `source`)."""
        raise ChunkRLError(
            f"--init {source}: no {self.name} policy begins with a saved one; give a run's folder"
        )

    def made_with(self, folder: Path) -> dict[str, Any]:
        """Settings of the run that a policy's folder notes, as JSON."""
        return {}

    def is_own(self, folder: Path) -> bool:
        """Whether a run of this project wrote the folder, and a manifest with it, and no other program."""
        return self.matches(folder, self.kinds)

    def told_of(self, folder: Path) -> dict[str, str]:
        """What a saved policy is asked with, for people: names and texts; nothing is loaded."""
        return {}

    def stock_differences(self, folder: Path) -> list[str]:
        """What LeRobot without a plug-in does otherwise with the folder, where it runs it: each continues "stock
        LeRobot ..."."""
        return []

    def base(self, config: RunSettings) -> Path | None:
        """The folder of the checkpoint that a run begins with; None where it begins with none."""
        return None

    def inner_folders(self, folder: Path) -> tuple[str, ...]:
        """Names of the folders in a policy's that have manifests of their own."""
        return ()

    def problems(self, folder: Path) -> str:
        """What is missing or wrong in a policy's folder whose files can be read; "" for nothing."""
        return ""

    def found_here(self, checkpoints: Path) -> list[tuple[str, str]]:
        """What `chunkrl doctor` says of it here: names and texts. checkpoints: the folder of published ones."""
        return []

    def pretrained(
        self, config: RunSettings, family_in: Callable[[Path], PolicyFamily]
    ) -> tuple[Path, RunSettings]:
        """The saved policy that acts first and that every training of an iteration begins with, and the settings with
        what it decides. family_in: the family of a saved policy (`registry.family_in`).

        Raises:
            ChunkRLError: the settings name none, or contradict it.
        """
        raise ChunkRLError(f"chunkrl iterate begins with no {self.name} policy: use another --policy.kind")
