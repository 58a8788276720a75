"""pi0 and pi0.5 as a family of policies: pretrained checkpoints, with critics on their own features."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chunkrl.errors import ChunkRLError
from chunkrl.models.config import PolicyConfig
from chunkrl.policies.family import PolicyFamily, RunSettings, TrainedPolicy

if TYPE_CHECKING:
    import torch

    from chunkrl.data.collection import ChunkData
    from chunkrl.models.pi.actor import PiActor
    from chunkrl.models.pi.factory import PiNetworks
    from chunkrl.models.policy import PolicyModel
    from chunkrl.progress import Progress


class PiFamily(PolicyFamily):
    """The policy of the checkpoint of --pi0-config."""

    name = "pi"
    kinds = ("pi",)
    settings = PolicyConfig
    reads = ("pi",)
    critic_settings = ("pi.critic",)
    has_prompt = True
    always_reads_task = True
    encodes_actions = False
    is_pretrained = True
    is_light = False
    trains_in_parts = True
    extra = "pi"

    # ---- settings, before data are opened

    def instead(self, unread: Sequence[str]) -> str:
        """Its own names of them."""
        if all(path.startswith("encoding") for path in unread):
            return "a pi policy writes actions as they are recorded"
        if all(path in ("use_state", "use_task") for path in unread):
            return "a pi policy reads the task, and the state as its recipe says"
        return "those of its critics are --pi.critic.depth, --pi.critic.dropout and --pi.critic.state-noise"

    def check(self, config: RunSettings) -> None:
        """Statistics must stay those that networks learned with."""
        if config.init and config.pi.norm_stats == "data":
            raise ChunkRLError(
                "--init with --pi.norm-stats data would give the run's networks other statistics than they learned "
                "with: leave --init out and start from its policy, with --pi0-checkpoints-dir RUN --pi0-config "
                "policy --pi.norm-stats checkpoint"
            )

    def check_growing(self, config: RunSettings) -> None:
        """Statistics are of data that stay."""
        if config.pi.norm_stats == "data":
            raise ChunkRLError(
                "--pi.norm-stats data are of data that stay: train offline first, and go on from that policy with "
                "--pi0-checkpoints-dir RUN --pi0-config policy --pi.norm-stats checkpoint"
            )

    def check_parts(self, config: RunSettings, num_processes: int) -> None:
        """Each process would drop other values."""
        if config.pi.critic.dropout > 0:
            raise ChunkRLError(
                f"--pi.critic.dropout is for one process, not for {num_processes} processes: set it to 0"
            )

    # ---- networks

    def networks(
        self, config: RunSettings, dataset: ChunkData, device: torch.device, progress: Progress
    ) -> PiNetworks:
        """Builds networks on the checkpoint's policy."""
        from chunkrl.integration.pi_training import FROZEN, pi_networks

        return pi_networks(
            dataset,
            _checkpoint(config),
            config.pi0,
            # values alone train nothing of the policy: no masters in float32, no LoRA
            config.pi if config.method.trains_policy else replace(config.pi, trainable=FROZEN),
            config.conditioning if config.method.conditions else None,
            device,
            progress,
        )

    def told(self, policy: PolicyModel, config: RunSettings) -> str:
        """What trains, by part."""
        from chunkrl.training.trainable import count_trainable

        model: Any = policy.acting
        return f"what trains of {config.pi0_config}:\n{count_trainable(model.model)}"

    # ---- a policy's folder

    def matches(self, folder: Path, kinds: Collection[str]) -> bool:
        """Any layout that a checkpoint has."""
        from chunkrl.models.pi.checkpoint import RECIPE_FILE
        from chunkrl.models.pi.weights import WEIGHTS_FILE, WEIGHTS_INDEX

        return any((folder / name).is_file() for name in (RECIPE_FILE, WEIGHTS_FILE, WEIGHTS_INDEX))

    def load(self, folder: Path, device: torch.device | str, with_q: bool) -> PiActor:
        """What a run saved, or any checkpoint folder that says its settings.

        with_q: False leaves Q in its folder: a float32 critic per fold, more memory than the policy.
        """
        from chunkrl.integration.pi_saving import load_pi_policy

        return load_pi_policy(folder, device, with_q)

    def acting(self, trained: TrainedPolicy) -> PiActor:
        """What acts, with Q where the method trained one."""
        from chunkrl.models.pi.actor import PiActor

        policy: Any = trained.networks.acting
        return PiActor(policy, q=trained.q())

    def save(self, trained: TrainedPolicy, folder: Path) -> None:
        """A LeRobot folder, with Q in a folder of its own in it; gathered from all processes."""
        from chunkrl.integration.pi_saving import gather_policy, pi_q_state, save_pi_policy

        policy: Any = trained.networks.acting
        whole, q = gather_policy(policy), trained.q()
        q_state = None if q is None else pi_q_state(q)
        if whole is not None:
            save_pi_policy(whole, folder, q_state)

    def check_initial(
        self, trained: TrainedPolicy, source: Path, folder: Path, state: dict[str, Any]
    ) -> None:
        """A state of small networks does not fit, and says so when it is loaded."""

    def is_own(self, folder: Path) -> bool:
        """Recognises it by the recipe."""
        from chunkrl.models.pi.checkpoint import RECIPE_FILE

        return (folder / RECIPE_FILE).is_file()

    def told_of(self, folder: Path) -> dict[str, str]:
        """By the recipe."""
        from chunkrl.models.pi.checkpoint import find_recipe

        recipe = find_recipe(folder)
        settings = recipe.settings
        facts = {"model": recipe.config.kind, "prompt format": settings.prompt_format}
        if settings.condition:
            place = "the state" if settings.condition_place == "end" else "the task"
            facts["asked with"] = f"{settings.condition}, after {place} in the prompt"
            away = f", away from {settings.guidance_from}" if settings.guidance_from else ""
            facts["guidance"] = f"{settings.guidance:g}{away}"
        if settings.conditions:
            facts["trained with"] = "; ".join(settings.conditions)
        facts["normalised by"] = settings.normalization.replace("_", " ")
        if any(settings.delta_actions):
            facts["actions relative to the state"] = ", ".join(
                str(number) for number, relative in enumerate(settings.delta_actions) if relative
            )
        return facts

    def stock_differences(self, folder: Path) -> list[str]:
        """By the recipe."""
        from chunkrl.models.pi.checkpoint import find_recipe
        from chunkrl.models.pi.lerobot_format import differences

        return differences(find_recipe(folder))

    def base(self, config: RunSettings) -> Path | None:
        """The checkpoint of --pi0-config."""
        return None if config.pi0_config is None else _checkpoint(config)

    def inner_folders(self, folder: Path) -> tuple[str, ...]:
        """Q, where there is one."""
        from chunkrl.integration.pi_saving import Q_FOLDER

        return (Q_FOLDER,) if (folder / Q_FOLDER).is_dir() else ()

    def problems(self, folder: Path) -> str:
        """Tensors against the recipe; no weight is read."""
        from chunkrl.models.pi.checkpoint import inspect_pretrained

        return inspect_pretrained(folder).problems() if self.is_own(folder) else ""

    def found_here(self, checkpoints: Path) -> list[tuple[str, str]]:
        """Tokenizer and checkpoints."""
        from chunkrl.models.pi import found

        return [
            ("tokenizer", found.tokenizer()),
            *(("checkpoint", line) for line in found.checkpoints(checkpoints)),
        ]

    def pretrained(
        self, config: RunSettings, family_in: Callable[[Path], PolicyFamily]
    ) -> tuple[Path, RunSettings]:
        """The checkpoint."""
        if config.init is not None:
            raise ChunkRLError(
                "--init gives a pi policy's training another start than --pi0-config, the pretrained policy that "
                "each round begins with: leave it out"
            )
        if config.pi0_config is None:
            raise ChunkRLError(
                "--policy.kind pi needs the pretrained policy: --pi0-checkpoints-dir and --pi0-config"
            )
        if config.pi.norm_stats == "data":
            raise ChunkRLError(
                "--pi.norm-stats data would give each round's policy other statistics than the one that acted: train "
                "once with it (chunkrl train), and iterate from that policy with --pi0-checkpoints-dir RUN "
                "--pi0-config policy"
            )
        return _checkpoint(config), config


def _checkpoint(config: RunSettings) -> Path:
    assert config.pi0_config is not None, "check_config asks for it"
    return Path(config.pi0_checkpoints_dir).expanduser() / config.pi0_config
