"""A small policy that acts: networks and statistics, in a folder that needs neither the data set nor the run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chunkrl.algorithms.best_of_n import QEnsemble, check_ensemble
from chunkrl.algorithms.cross_fit import CrossFitted
from chunkrl.config import from_dict
from chunkrl.data.action_encoding import ActionEncoding
from chunkrl.data.normalize import Normalizer
from chunkrl.data.resize import Resize
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.files.tensor_files import load_module
from chunkrl.models.acting import CameraInput, ObservationInput, check_request, draw_noise
from chunkrl.models.acting_policy import ASKED, Asked
from chunkrl.models.config import ActionMode, NetworkConfig, PolicySettings
from chunkrl.models.encoders import MOST_VALUES, ObservationSpec
from chunkrl.models.factory import NetworkFactory, policy_network
from chunkrl.models.overlap import Overlap, check_overlap
from chunkrl.models.plugin_files import plugin_files
from chunkrl.models.policy import ChunkShape, PolicyModel
from chunkrl.models.value_head import ValueHead
from chunkrl.training.checkpoint import load_state, save_state
from chunkrl.types import Observation

# what a policy says of the data it comes from, which weights do not depend on
_OF_THE_DATA = ("q", "fps", "objective", "dataset_fingerprint", "image_sizes", "recorded_sizes")


@dataclass(frozen=True)
class QSpec:
    """How the Q ensemble was built: folds, networks of each, their size, how their outputs are read."""

    num_folds: int
    num_critics: int
    network: NetworkConfig
    head: ValueHead = ValueHead("scalar")

    def __post_init__(self) -> None:
        check_ensemble(self.num_folds, self.num_critics)


@dataclass(frozen=True)
class PolicySpec:
    """Everything that rebuilds the networks of a saved policy.

    fps: of the data, steps/s. objective, dataset_fingerprint: where the policy comes from. encoding: how the
    networks write actions. image_sizes: (height, width) of each camera's images; () in policies of before they were
    noted. resize: what made these of the recorded ones, None: nothing. recorded_sizes: (height, width) of each
    camera's images in the files, of every data set; () in policies of before they were noted.
    """

    observation: ObservationSpec
    shape: ChunkShape
    network: NetworkConfig
    policy: PolicySettings
    q: QSpec | None
    fps: float
    objective: str
    dataset_fingerprint: str
    encoding: ActionEncoding = ActionEncoding()
    image_sizes: tuple[tuple[int, int], ...] = ()
    resize: Resize | None = None
    recorded_sizes: tuple[tuple[tuple[int, int], ...], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.fps < math.inf:
            raise ChunkRLError(f"fps is {self.fps}, expected steps per second")
        sizes = [*self.image_sizes, *(size for sizes in self.recorded_sizes for size in sizes)]
        if any(not 0 < side <= MOST_VALUES for size in sizes for side in size):
            raise ChunkRLError(
                f"image_sizes are {self.image_sizes}, recorded {self.recorded_sizes}: expected pixels"
            )
        for of_cameras in (self.image_sizes, self.recorded_sizes):
            if of_cameras and len(of_cameras) != len(self.observation.cameras):
                raise ChunkRLError(f"sizes {of_cameras}: expected one for each of {self.observation.cameras}")
        if self.observation.state_dim:  # else actions may be encoded by a state that the networks do not see
            self.encoding.check(self.shape.action_dim, self.observation.state_dim)


def read_spec(folder: str | Path, state: Mapping[str, Any]) -> PolicySpec:
    """The description in a saved policy's state. Raises CheckpointError where another version wrote it."""
    if not isinstance(state.get("spec_json"), dict):
        raise CheckpointError(f"{folder} is not a saved policy (a run's `policy` folder)")
    try:
        return from_dict(PolicySpec, state["spec_json"])
    except ChunkRLError as error:
        raise CheckpointError(
            f"{folder} was saved by another version of chunkrl, which named settings otherwise ({error}): use "
            "that version, or train it again"
        ) from error


def _input_of(spec: PolicySpec) -> ObservationInput:
    """What a small policy takes; of one that does not say the sizes of its images, any."""
    names, sizes, recorded = spec.observation.cameras, spec.image_sizes, spec.recorded_sizes
    cameras = (
        CameraInput(name, sizes[i] if sizes else None, (recorded[i] if recorded else ()) if sizes else None)
        for i, name in enumerate(names)
    )
    return ObservationInput(
        tuple(cameras), spec.observation.state_dim, spec.observation.use_task, spec.resize
    )


class ChunkPolicy:
    """A trained policy that acts: chunks [B, H, A] in the data's units from batched observations.

    takes: what it takes.
    """

    def __init__(self, spec: PolicySpec, policy: PolicyModel, q: QEnsemble | None) -> None:
        self.spec, self.policy, self.q = spec, policy.eval(), q
        self.takes = _input_of(spec)

    @property
    def action_horizon(self) -> int:
        """H."""
        return self.spec.shape.horizon

    @property
    def action_dim(self) -> int:
        """A."""
        return self.spec.shape.action_dim

    @property
    def state_dim(self) -> int:
        """S; 0 for a policy without state."""
        return self.spec.observation.state_dim

    @property
    def fps(self) -> float | None:
        """Control rate of the data, steps/s."""
        return self.spec.fps

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that observations must have."""
        return self.spec.observation.cameras

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each camera's images as the networks see them; () where the policy does not say."""
        return self.spec.image_sizes

    @property
    def recorded_sizes(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """(height, width) of each camera's images in the data's files; () where the policy does not say."""
        return self.spec.recorded_sizes

    @property
    def own_image_size(self) -> int | None:
        """None: images are what training made of them."""
        return None

    @property
    def gains_from_batches(self) -> bool:
        """Its passes are short."""
        return False

    def ask_as(self, asked: Asked) -> dict[str, Any]:
        """Refuses what is asked: a small policy has no prompt and no flow that takes steps."""
        given = [f"--{name.replace('_', '-')}" for name in ASKED if getattr(asked, name) is not None]
        if given:
            raise ChunkRLError(
                f"{' and '.join(given)} are for pi policies, and {asked.policy} is a small one: leave them out"
            )
        return dict.fromkeys(ASKED)

    def identity(self) -> str:
        """See `ActingPolicy.identity`."""
        spec = {name: value for name, value in asdict(self.spec).items() if name not in _OF_THE_DATA}
        if spec["resize"] is None:  # as of releases that do not know it
            del spec["resize"]
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode())
        for name, buffer in sorted(self.policy.named_buffers()):
            digest.update(name.encode() + buffer.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        generators: Sequence[torch.Generator] = (),
        mode: ActionMode = "mode",
        num_candidates: int = 16,
    ) -> Tensor:
        """A chunk [H, A] for one observation, or chunks [B, H, A] for a batch; row b's noise comes from
        generators[b] alone.

        observation: as `ObservationInput.take` takes it, numpy or torch. Mode `mode` draws no noise, and takes any
        generators, or none. Raises ObservationError for what the policy did not learn from, DatasetError where
        actions are encoded by the state and the observation has none, ChunkRLError for another mode.
        """
        taken = self.takes.take(observation)
        observation = taken.observation
        check_request(mode, generators, observation.batch_size, num_candidates)
        actions = self._encoded(observation, generators, mode, num_candidates)
        state = observation.state
        actions = self.spec.encoding.decode(actions, None if state is None else state.to(actions.device))
        return actions[0] if taken.single else actions

    def _encoded(
        self,
        observation: Observation,
        generators: Sequence[torch.Generator],
        mode: ActionMode,
        num_candidates: int,
    ) -> Tensor:
        """The chunks as the networks write them; Q was trained on such ones."""
        if mode == "mode":
            return self.policy.most_likely(observation)
        num_samples = num_candidates if mode == "best_of_n" else 1
        shape = (num_samples, *self.policy.noise_shape)
        noise = draw_noise(mode, generators, observation.batch_size, shape)
        candidates = self.policy.sample(observation, num_samples, noise)
        if mode == "sample":
            return candidates[:, 0]
        if self.q is None:
            raise ChunkRLError(
                "best-of-N needs Q(x, A), and this policy was trained without: train with --train-q"
            )
        return self.q.best(observation, candidates)

    @property
    def takes_overlap(self) -> bool:
        """Flows do."""
        return bool(getattr(self.policy, "takes_overlap", False))

    @torch.no_grad()
    def act_on(
        self,
        observation: Observation,
        overlap: Overlap,
        generators: Sequence[torch.Generator] = (),
        mode: ActionMode = "mode",
    ) -> Tensor:
        """See `ActingPolicy.act_on`."""
        if not self.takes_overlap:
            raise ChunkRLError(
                "this policy has no flow that could be guided by what is left of the last chunk: use --policy.kind "
                "flow or pi, or execute whole chunks"
            )
        taken = self.takes.take(observation).observation
        check_overlap(overlap, taken.batch_size, self.action_dim, mode)
        check_request(mode, generators, taken.batch_size, 1)
        state = None if taken.state is None else taken.state.to(overlap.actions.device)
        left = replace(overlap, actions=self.spec.encoding.encode(overlap.actions, state))
        noise = draw_noise(mode, generators, taken.batch_size, (1, *self.policy.noise_shape))
        network: Any = self.policy
        chunks = network.sample(taken, 1, noise, overlap=left)[:, 0]
        return self.spec.encoding.decode(chunks, None if state is None else state.to(chunks.device))

    def imitation_loss(
        self, observation: Observation, actions: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """See `ActingPolicy`."""
        if action_mask is None:
            action_mask = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device)
        encoded = self.spec.encoding.encode(actions, observation.state)
        return self.policy.imitation_loss(observation, encoded, action_mask).per_chunk

    def save(self, folder: str | Path) -> None:
        """Writes `folder` whole or not at all, with the files of LeRobot's plug-in."""
        state: dict[str, Any] = {"spec_json": asdict(self.spec), "policy": self.policy.state_dict()}
        if self.q is not None:
            state["q"] = self.q.state_dict()
        save_state(Path(folder), state, plugin_files(self))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        make_policy: Callable[[NetworkFactory], PolicyModel] = policy_network,
    ) -> ChunkPolicy:
        """Reads what `save` wrote; strict. make_policy: the network that the policy is.

        Raises:
            CheckpointError: the folder is no whole policy.
        """
        state = load_state(Path(folder))
        spec = read_spec(folder, state)
        shape = spec.shape
        factory = NetworkFactory(
            spec.observation,
            shape,
            Normalizer.identity(max(spec.observation.state_dim, 1)),
            Normalizer.identity(shape.action_dim),
            (torch.zeros(shape.action_dim), torch.zeros(shape.action_dim)),
            spec.network,
            spec.policy,
            critic_network=spec.network if spec.q is None else spec.q.network,
            make_policy=make_policy,
        )
        try:
            policy = factory.policy()
        except ChunkRLError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        q = None
        if spec.q is not None:
            q_spec = spec.q
            critic = CrossFitted(lambda: factory.critic(q_spec.num_critics, q_spec.head), q_spec.num_folds)
            q = QEnsemble(critic)
        load_module(policy, state.get("policy", {}), Path(folder), CheckpointError)
        if q is not None:
            load_module(q, state.get("q", {}), Path(folder), CheckpointError)
        return cls(spec, policy.to(device), None if q is None else q.to(device).eval())
