"""A chunkrl policy behind LeRobot's interface: it acts as `chunkrl.load_policy` of the same folder."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch import Tensor

from chunkrl import load_policy
from chunkrl.errors import CheckpointError, ChunkRLError, ObservationError
from chunkrl.integration.lerobot_frames import lerobot_observation
from chunkrl.models.acting_policy import ASKED, ActingPolicy
from chunkrl.models.overlap import Overlap
from chunkrl.models.plugin_files import ACTION, STATE, feature_key, features
from chunkrl.types import Observation
from lerobot_policy_chunkrl.configuration_chunkrl import ChunkRLConfig
from lerobot_policy_chunkrl.processor_chunkrl import check_pipelines


class ChunkRLPolicy(PreTrainedPolicy):
    """Acts in the units of the policy's data: what goes in and comes out is not normalised.

    actor: the policy as chunkrl loaded it; None: its weights are not read yet (`from_pretrained`).
    """

    config_class = ChunkRLConfig
    name = "chunkrl"

    def __init__(self, config: ChunkRLConfig, actor: ActingPolicy | None = None, **_: Any) -> None:
        super().__init__(config)
        if actor is None:
            raise ChunkRLError(
                "a chunkrl policy is not made from nothing in LeRobot: train it with `chunkrl train`, and give its "
                "folder with --policy.path=RUN/policy"
            )
        self.actor = actor
        self.network = actor.policy  # registered, so that LeRobot moves and counts it
        self._q = getattr(actor, "q", None)  # best-of-N's, if it is a module
        asked = _Asked(config)
        if config.mode == "best_of_n" or any(getattr(asked, name) is not None for name in ASKED):
            actor.ask_as(asked)
        self._generators: list[torch.Generator] = []
        self._queue: deque[Tensor] = deque()

    # ---- loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        **_: Any,
    ) -> ChunkRLPolicy:
        """The policy in a run's folder or a Hub repository, whole, or an error: nothing is left random.

        Raises:
            CheckpointError: a file or a tensor is missing, or config.json describes another policy.
        """
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(
                snapshot_download(
                    str(pretrained_name_or_path),
                    revision=revision,
                    local_files_only=local_files_only,
                    cache_dir=cache_dir,
                    token=token,
                )
            )
        check_pipelines(folder)
        if config is None:
            config = PreTrainedConfig.from_pretrained(folder)
        if not isinstance(config, ChunkRLConfig):
            raise CheckpointError(f"{folder} is of type {config.type!r}, and this loads chunkrl's")
        actor = load_policy(folder, config.device or "cpu", with_q=config.mode == "best_of_n")
        _check_config(folder, config, actor)
        stats = getattr(actor.policy, "stats", None)
        if callable(stats):
            stats()  # raises where a pi policy has none: LeRobot would act with values as they come
        policy = cls(config, actor)
        policy.eval()
        return policy

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes a folder that `from_pretrained` and `chunkrl.load_policy` read."""
        if state_dict is not None:
            raise ChunkRLError(
                "a chunkrl policy is trained on several GPUs by `chunkrl train`, not by lerobot-train"
            )
        if any(save_directory.iterdir()):
            raise ChunkRLError(f"{save_directory} is not empty: save the policy into a new folder")
        self.actor.save(save_directory)

    # ---- acting

    def reset(self) -> None:
        """A new episode: what is left of the last chunk is dropped."""
        self._queue.clear()

    def supports_rtc(self) -> bool:
        """Whether chunks can be asked for that go on from the last one: flows can, Gaussians cannot."""
        return self.actor.takes_overlap

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
        **_: Any,
    ) -> Tensor:
        """Chunks [B, H, A] in the data's units.

        prev_chunk_left_over: [T, A] or [B, T, A], what is left of the last chunk, as this returned it; the new one
        goes on from it. inference_delay: how many of it will have been executed before the new one is there.
        """
        self.eval()
        observation = self._observation(batch)
        size = observation.batch_size
        while len(self._generators) < size:
            generator = torch.Generator().manual_seed(self.config.seed + len(self._generators))
            self._generators.append(generator)
        generators = self._generators[:size]
        overlap = self._overlap(prev_chunk_left_over, inference_delay, execution_horizon)
        if overlap is not None:
            return self.actor.act_on(observation, overlap, generators, self.config.mode)
        return self.actor.act(observation, generators, self.config.mode, self.config.num_candidates)

    def _overlap(
        self, left: Tensor | None, delay: int | None, execution_horizon: int | None
    ) -> Overlap | None:
        if left is None:
            return None
        left = left[None] if left.ndim == 2 else left
        # LeRobot fills it up with zeros to the length of its horizon; in the data's units zeros are actions
        real = (left != 0).flatten(2).any(dim=2).any(dim=0).nonzero()
        if not len(real):
            return None
        rtc = self.config.rtc_config or RTCConfig()
        schedule = rtc.prefix_attention_schedule.value.lower()
        horizon = rtc.execution_horizon if execution_horizon is None else execution_horizon
        kept = left[:, : int(real[-1]) + 1].float()
        return Overlap(kept, delay or 0, horizon, schedule, float(rtc.max_guidance_weight))

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next action [B, A]; a chunk is asked for where the last one is executed."""
        if not self._queue:
            steps = self.config.n_action_steps or self.actor.action_horizon
            self._queue.extend(self.predict_action_chunk(batch)[:, :steps].transpose(0, 1))
        return self._queue.popleft()

    def _observation(self, batch: dict[str, Any]) -> Observation:
        """LeRobot's batch as the policy takes it. Raises ObservationError where something is missing."""
        takes = self.actor.takes
        keys = {camera.name: feature_key(camera.name) for camera in takes.cameras}
        if missing := [key for key in keys.values() if key not in batch]:
            there = sorted(key for key in batch if "image" in key)
            raise ObservationError(
                f"the robot gives the cameras {there or 'none'} and the policy sees {sorted(keys.values())}: missing "
                f"{missing}. Name the robot's cameras so, or give --rename_map"
            )
        frame = {name: batch[key] for name, key in keys.items()}
        if takes.state_dim:
            if STATE not in batch:
                raise ObservationError(f"the batch has no {STATE!r}, which the policy reads: {sorted(batch)}")
            frame[STATE] = batch[STATE]
        frame["task"] = batch.get("task", "")
        return lerobot_observation(frame, tuple(keys))

    # ---- training

    def get_optim_params(self) -> Any:
        """What trains."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, Any]]:
        """The imitation loss on LeRobot's chunks, in the data's units; reduction "none": of every row, [B]."""
        if reduction not in ("mean", "none"):
            raise ChunkRLError(f"reduction is {reduction!r}; use mean or none")
        observation = self.actor.takes.take(self._observation(batch)).observation
        padded = batch.get("action_is_pad")
        real = None if padded is None else ~padded
        per_chunk = self.actor.imitation_loss(observation, batch[ACTION], real)
        mean = per_chunk.mean()
        return (per_chunk if reduction == "none" else mean), {"loss": float(mean.detach())}


class _Asked:
    """`chunkrl.models.acting_policy.Asked` of a configuration."""

    def __init__(self, config: ChunkRLConfig) -> None:
        self.policy = str(config.pretrained_path or "the policy")
        self.mode = config.mode
        self.condition, self.guidance = config.condition, config.guidance
        self.guidance_from, self.flow_steps = config.guidance_from, config.flow_steps


def _check_config(folder: Path, config: ChunkRLConfig, actor: ActingPolicy) -> None:
    """Raises CheckpointError unless config.json describes this policy; the robot's own features may be others."""
    if config.chunk_size != actor.action_horizon:
        raise CheckpointError(
            f"{folder}/config.json has chunk_size {config.chunk_size}, and the policy's chunks have "
            f"{actor.action_horizon} actions: copy the folder again"
        )
    inputs, _ = features(actor)
    absent = sorted(set(inputs) - set(config.input_features or {}))
    if absent:
        raise CheckpointError(
            f"{folder}/config.json has the inputs {sorted(config.input_features or {})}, and the policy reads "
            f"{absent} too: copy the folder again"
        )
    action = (config.output_features or {}).get(ACTION)
    if action is not None and tuple(action.shape) != (actor.action_dim,):
        raise CheckpointError(
            f"the robot or environment takes {list(action.shape)} action values, and the policy in {folder} gives "
            f"{[actor.action_dim]}: it was trained for another one"
        )
