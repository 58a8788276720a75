"""A pi policy's folder: LeRobot's names of tensors, with Q for best-of-N in a folder of its own in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from chunkrl import ranks
from chunkrl.algorithms.best_of_n import QEnsemble, check_ensemble
from chunkrl.algorithms.cross_fit import CrossFitted
from chunkrl.config import record_of
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.files.tensor_files import load_module
from chunkrl.manifest import MANIFEST_FILE, check_listed
from chunkrl.models.lora import adapted_modules, merge_lora
from chunkrl.models.pi.actor import PiActor
from chunkrl.models.pi.checkpoint import load_pretrained, save_pretrained
from chunkrl.models.pi.config import PiCriticConfig
from chunkrl.models.pi.critic import PiCritic
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.plugin_files import plugin_files
from chunkrl.models.value_head import ValueHead
from chunkrl.training.checkpoint import load_state, save_state
from chunkrl.training.distributed import gather_state

Q_FOLDER = "chunkrl_q"
_CURE_Q = "delete it, or copy the whole policy folder again"


@dataclass(frozen=True)
class PiQSpec:
    """How Q on a pi policy was built: folds, networks of each, how their outputs are read, their size."""

    num_folds: int
    num_critics: int
    head: ValueHead
    critic: PiCriticConfig

    def __post_init__(self) -> None:
        check_ensemble(self.num_folds, self.num_critics)


def gather_policy(policy: PiPolicy) -> PiPolicy | None:
    """The whole policy on the CPU of the main process, None on the others; all processes call it.

    One parameter at a time is whole on the other processes. In one process: `policy` itself.
    """
    if ranks.world_size() == 1:
        return policy
    state = gather_state(policy.model)
    return None if state is None else policy.with_state(state)


def pi_q_state(q: QEnsemble) -> dict[str, Any] | None:
    """What `save_pi_policy` writes of Q on a pi policy; None but in the main process. All processes call it."""
    first: Any = q.critic.networks[0]
    spec = PiQSpec(q.critic.num_folds, len(first.networks), first.value_head, first.networks[0].config)
    state = gather_state(q)
    return None if state is None else {"spec_json": asdict(spec), "q": state}


def save_pi_policy(policy: PiPolicy, folder: str | Path, q_state: dict[str, Any] | None = None) -> None:
    """Writes a folder for LeRobot's plug-in, LoRA merged into the weights, whole or not at all; an older one goes.

    q_state: of `pi_q_state`, for a folder `Q_FOLDER` in it.
    """
    if adapted_modules(policy.model):
        # a copy, for training may go on; on the CPU, for a GPU may have no room for it
        state = {name: t.detach().to("cpu", copy=True) for name, t in policy.model.state_dict().items()}
        policy = policy.with_state(state)
        merge_lora(policy.model)
    beside = None if q_state is None else lambda whole: save_state(whole / Q_FOLDER, q_state)
    save_pretrained(policy, folder, overwrite=True, beside=beside, plugin=plugin_files(PiActor(policy)))


def load_pi_policy(folder: Path, device: torch.device | str, with_q: bool) -> PiActor:
    """A policy that acts. Raises CheckpointError where the folder is not whole."""
    policy = load_pretrained(folder, device=device)
    if not with_q or not (folder / Q_FOLDER).is_dir():
        return PiActor(policy)
    check_listed(folder, [f"{Q_FOLDER}/{MANIFEST_FILE}"])
    return PiActor(policy, q=_load_q(folder / Q_FOLDER, policy))


def _load_q(folder: Path, policy: PiPolicy) -> QEnsemble:
    state = load_state(folder)
    if "spec_json" not in state:
        raise CheckpointError(f"{folder} is not a saved Q: {_CURE_Q}")
    spec = record_of(PiQSpec, state["spec_json"], f"{folder}, 'spec_json'", CheckpointError, _CURE_Q)
    try:
        critic = CrossFitted(
            lambda: PiCritic(policy, spec.critic, spec.head, spec.num_critics), spec.num_folds
        )
        q = QEnsemble(critic)
        load_module(q, state.get("q", {}), folder, CheckpointError)
    except (ChunkRLError, RuntimeError) as error:
        raise CheckpointError(f"the Q in {folder} does not fit the policy beside it: {error}") from error
    return q.to(policy.device).eval().requires_grad_(False)
