"""A policy that acts while new weights arrive: two copies, of which one acts and the other is written to."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from chunkrl.envs.protocol import EnvStep
from chunkrl.envs.robot import CAMERA_PREFIX
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.evaluation.rollout import batch_observation
from chunkrl.models.config import ActionMode
from chunkrl.online.link.config import SwapAt
from chunkrl.types import Observation


class RunnablePolicy(Protocol):
    """What a runner needs of a policy (`chunkrl.models.acting_policy.ActingPolicy`)."""

    @property
    def policy(self) -> nn.Module:
        """The networks; its parameters' names are those of pushed weights."""
        ...

    @property
    def action_horizon(self) -> int:
        """H."""
        ...

    @property
    def action_dim(self) -> int:
        """A."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """What it sees, of all that there is."""
        ...

    def act(
        self, observation: Observation, generators: Sequence[torch.Generator], mode: Any, num_candidates: int
    ) -> Tensor:
        """Chunks [B, H, A] in the data's units."""
        ...


@dataclass(frozen=True)
class PolicyChunk:
    """actions: float32 [H, A]. version: of the weights that made them."""

    actions: np.ndarray
    version: int


class ChunkSource(Protocol):
    """What makes chunks: `PolicyRunner`, or a test's own."""

    action_horizon: int
    action_dim: int

    @property
    def version(self) -> int:
        """The version of the weights that act now."""
        ...

    def begin_episode(self) -> None:
        """An episode begins."""
        ...

    def act(self, step: EnvStep, seed: int) -> PolicyChunk:
        """The chunk for what is seen now; `seed` determines its noise."""
        ...


@dataclass
class _Copy:
    """lock: held while the copy acts or is written to."""

    policy: RunnablePolicy
    version: int
    lock: threading.Lock = field(default_factory=threading.Lock)


def _shared(policy: RunnablePolicy, trained: set[str]) -> Iterator[Tensor | nn.Module]:
    """What no push changes: frozen parameters, all other tensors of the networks, networks beside `policy.policy`."""
    yield from (p for name, p in policy.policy.named_parameters() if name not in trained)
    for module in policy.policy.modules():
        for tensors in vars(module).values():
            if isinstance(tensors, Mapping):
                yield from (
                    t for t in tensors.values() if isinstance(t, Tensor) and not isinstance(t, nn.Parameter)
                )
    for part in vars(policy).values():
        if isinstance(part, nn.Module) and part is not policy.policy:
            yield part


def _camera_of(name: str, images: Mapping[str, np.ndarray]) -> str:
    """What the environment calls the policy's camera. Raises ChunkRLError where it has none."""
    found = next((theirs for theirs in (name, CAMERA_PREFIX + name) if theirs in images), None)
    if found is None:
        raise ChunkRLError(
            f"the policy needs the camera {name!r}, and there are {sorted(images) or 'none'}: name the cameras "
            "as the policy's data does"
        )
    return found


class PolicyRunner:
    """Chunks of the newest weights that are whole; `push` may be called from another thread at any time.

    The copy that acts is never written to. `push` checks weights completely, writes them to the other copy and
    says that it is ready; the next `act` (swap_at `chunk`) or the next episode (`episode`) exchanges two references.
    What is not trained exists once: both copies share it. Without `trained`
    the second copy is made at the first push. Weights of a Q
    that chooses chunks are not pushed.
    """

    def __init__(
        self,
        policy: RunnablePolicy,
        task: str,
        mode: ActionMode = "sample",
        swap_at: SwapAt = "chunk",
        trained: Iterable[str] | None = None,
        num_candidates: int = 16,
    ) -> None:
        """
        Args:
            policy: acts first, as version 0.
            task: the task's text.
            mode: of `policy.act`. With `best_of_n` weights are refused: the Q that chooses would be an older one.
            swap_at: when new weights begin to act.
            trained: names of the parameters of `policy.policy` that are pushed; None: those of the first push.
            num_candidates: N of `best_of_n`.

        Raises:
            ChunkRLError: another mode or `swap_at`, or the policy has no such parameter.
        """
        for name, value, choices in (
            ("swap_at", swap_at, get_args(SwapAt)),
            ("mode", mode, get_args(ActionMode)),
        ):
            if value not in choices:
                raise ChunkRLError(f"{name} is {value!r}; it must be one of {choices}")
        known = dict(policy.policy.named_parameters())
        self._trained = None if trained is None else frozenset(trained)
        if self._trained is not None and (unknown := self._trained - set(known)):
            raise ChunkRLError(f"the policy has no parameter {min(unknown)!r}, which is to be trained")
        self.action_horizon, self.action_dim = policy.action_horizon, policy.action_dim
        self._task, self._mode, self._swap_at = task, mode, swap_at
        self._num_candidates = num_candidates
        self._shapes = {name: tuple(parameter.shape) for name, parameter in known.items()}
        self._active = _Copy(policy, 0)
        self._standby = None if self._trained is None else self._copy_of(self._active)
        self._ready = False
        self._swap_lock = threading.Lock()  # of the two references and `_ready`
        self._push_lock = threading.Lock()  # one push at a time
        self._newest = 0

    @property
    def version(self) -> int:
        """The version of the weights that act now."""
        return self._active.version

    def begin_episode(self) -> None:
        """Weights that are ready begin to act."""
        self._swap()

    def act(self, step: EnvStep, seed: int) -> PolicyChunk:
        """The chunk for what is seen now; `seed` determines its noise. Raises what the policy raises."""
        generator = torch.Generator().manual_seed(seed)
        if self._swap_at == "chunk":
            self._swap()
        acting = self._active
        with acting.lock, torch.no_grad():
            cameras = {name: _camera_of(name, step.images) for name in acting.policy.cameras}
            observation = batch_observation([step], [self._task], cameras)
            chunk = acting.policy.act(observation, [generator], self._mode, self._num_candidates)[0]
            return PolicyChunk(chunk.float().cpu().numpy(), acting.version)

    def push(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Takes over weights of `version`, in any floating type.

        Raises CheckpointError where they are not newer than the last ones, not exactly the trained parameters, of
        other shapes, or not finite; what acts stays as it is.
        """
        with self._push_lock:
            self._check(version, tensors)
            if self._standby is None:
                self._trained = frozenset(tensors)
                self._standby = self._copy_of(self._active)
            with self._swap_lock:
                self._ready = False  # what waits there is about to be overwritten
                standby = self._standby
            with (
                standby.lock,
                torch.no_grad(),
            ):  # an `act` that began before the last swap may still run on it
                parameters = dict(standby.policy.policy.named_parameters())
                for name, tensor in tensors.items():
                    parameters[name].copy_(tensor)
                standby.version = version
            self._newest = version
            with self._swap_lock:
                self._ready = True

    def _copy_of(self, original: _Copy) -> _Copy:
        """A copy of what is trained; the rest is shared."""
        with original.lock:  # it may be acting
            shared = {id(part): part for part in _shared(original.policy, set(self._trained or ()))}
            return _Copy(copy.deepcopy(original.policy, shared), original.version)

    def _swap(self) -> None:
        with self._swap_lock:
            if self._ready and self._standby is not None:
                self._active, self._standby = self._standby, self._active
                self._ready = False

    def _check(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        def refuse(why: str) -> CheckpointError:
            return CheckpointError(f"weights version {version} refused, version {self.version} stays: {why}")

        if version <= self._newest:
            raise refuse(f"version {self._newest} is there already")
        if self._mode == "best_of_n":
            raise refuse("the Q that chooses among chunks is not pushed; act with mode sample or mode")
        if not tensors:
            raise refuse("they hold nothing")
        for kind, names in (
            ("lack", (self._trained or set()) - tensors.keys()),
            ("have an unknown", tensors.keys() - (self._trained or self._shapes.keys())),
        ):
            if names:
                raise refuse(
                    f"they {kind} parameter {min(names)!r} ({len(names)} in all): train the same model"
                )
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != self._shapes[name]:
                raise refuse(f"{name!r} has shape {list(tensor.shape)}, expected {list(self._shapes[name])}")
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                raise refuse(f"{name!r} is {tensor.dtype} or holds NaN or inf")
