"""A learned policy as a controller of collected episodes: its chunks, action by action, beside the simulator."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from chunkrl.collect.config import CollectConfig, CollectPlan
from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.observed import fit_policy, renamed
from chunkrl.evaluation.rollout import Actor, batch_observation
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.run.build import choose_device
from chunkrl.run.policy_io import load_policy


class PolicyController:
    """Acts by chunks (`chunkrl.envs.scripted.LearnedController`)."""

    def __init__(self, actor: Actor, task: str, exec_steps: int) -> None:
        """task: its text. exec_steps: actions executed of each chunk."""
        self._actor, self._task, self._exec_steps = actor, task, exec_steps
        self._rng = np.random.default_rng(0)
        self._actions: list[np.ndarray] = []

    def begin(self, rng: np.random.Generator) -> None:
        """Its turn begins with a new chunk; `rng` seeds the noise of each."""
        self._rng, self._actions = rng, []

    def act(self, step: EnvStep) -> np.ndarray:
        """The next action [A]."""
        if not self._actions:
            generator = torch.Generator().manual_seed(int(self._rng.integers(2**31)))
            with torch.no_grad():
                chunk = self._actor(batch_observation([step], [self._task]), [generator])[0]
            self._actions = list(chunk[: self._exec_steps].float().cpu().numpy())
        return self._actions.pop(0)


def load_acting(config: CollectConfig) -> ActingPolicy:
    """The policy of `config`. Raises ChunkRLError: no policy, or no such device."""
    assert config.policy is not None
    torch.set_num_threads(1)  # each simulator process has its own copy
    return load_policy(config.policy, choose_device(config.device), config.mode == "best_of_n")


def make_controller(plan: CollectPlan, policy: ActingPolicy, env: str, task: str) -> PolicyController:
    """`policy` as `plan` has it act, for the environment `env` with the text `task`.

    Raises ChunkRLError where it does not fit the environment, or the state that is collected.
    """
    config = plan.config
    camera_size = config.camera_size or None if policy.cameras else None  # images may be for the data alone
    request = fit_policy(policy, (env,), config.max_steps, camera_size, config.rename)
    if policy.state_dim and request.options.state != config.state:
        raise ChunkRLError(
            f"--policy {config.policy} takes the state {request.options.state!r}, and --state is {config.state!r}: "
            f"collect with --state {request.options.state}"
        )
    if policy.cameras and request.options.camera_size != config.camera_size:
        raise ChunkRLError(
            f"--policy {config.policy} sees images of {request.options.camera_size} pixels: collect with "
            f"--camera-size {request.options.camera_size}"
        )
    exec_steps = policy.action_horizon if config.exec_steps is None else config.exec_steps
    if exec_steps > policy.action_horizon:
        raise ChunkRLError(
            f"exec_steps {exec_steps} is longer than the policy's chunk {policy.action_horizon}"
        )
    ours = dict(zip(plan.info.cameras, plan.cameras, strict=True))
    pairs = [(ours[environments], theirs) for environments, theirs in request.rename]
    actor = renamed(partial(policy.act, mode=config.mode), pairs)
    return PolicyController(actor, task, exec_steps)
