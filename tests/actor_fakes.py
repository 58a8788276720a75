"""What the actor's tests share: chunks that say where they come from, and rigs of fake parts."""

from __future__ import annotations

import threading

import numpy as np
import torch

from chunkrl.data.normalize import Normalizer
from chunkrl.envs.action_guard import ActionSpace
from chunkrl.envs.fake_robot import FakeRobot
from chunkrl.envs.metaworld import ACTION_DIM, STATE_DIM
from chunkrl.envs.protocol import EnvStep
from chunkrl.envs.robot import RobotEnvironment
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.models.encoders import ObservationSpec
from chunkrl.models.factory import NetworkFactory
from chunkrl.models.policy import ChunkShape
from chunkrl.online.actor.executor import ControlRate
from chunkrl.online.actor.policy_runner import PolicyChunk
from chunkrl.policies.chunk_policy import ChunkPolicy, PolicySpec


class CountingSource:
    """Chunk number c asked for at state s is s + [0, 1, ..., H-1] in every value, made by version `version`.

    gate: chunks are made only while it is set.
    """

    def __init__(self, action_horizon: int, action_dim: int = 1, scale: float = 1.0) -> None:
        self.action_horizon, self.action_dim, self._scale = action_horizon, action_dim, scale
        self.version = 0
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[float] = []
        self.seeds: list[int] = []
        self.begun: list[int] = []  # for each episode, how many chunks were made before

    def begin_episode(self) -> None:
        self.begun.append(len(self.seeds))

    def act(self, step: EnvStep, seed: int) -> PolicyChunk:
        self.seeds.append(seed)
        assert self.gate.wait(timeout=240.0), "the test never opened the gate"
        start = float(step.state[0])
        self.asked.append(start)
        values = start + self._scale * np.arange(self.action_horizon, dtype=np.float32)
        return PolicyChunk(np.repeat(values[:, None], self.action_dim, axis=1), self.version)


class NoClock:
    """A clock on which waiting takes no time."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def small_policy(
    seed: int,
    state_dim: int = STATE_DIM,
    action_dim: int = ACTION_DIM,
    cameras: tuple[str, ...] = (),
    kind: str = "gaussian",
) -> ChunkPolicy:
    """Random networks; chunks of 8 actions, up to +-2: beyond what simulators take."""
    torch.manual_seed(seed)
    network = NetworkConfig(hidden_dim=16, num_layers=1)
    shape, config = ChunkShape(horizon=8, action_dim=action_dim), PolicyConfig(kind=kind)
    spec = ObservationSpec(state_dim=state_dim, cameras=cameras)
    scales = Normalizer.identity(state_dim), Normalizer.identity(action_dim)
    bound = 2.0 * torch.ones(action_dim)
    factory = NetworkFactory(spec, shape, *scales, (-bound, bound), network, config, critic_network=network)
    described = PolicySpec(spec, shape, network, config, None, 80.0, "test", "")
    return ChunkPolicy(described, factory.policy(), None)


def fake_rate(fps: float = 30.0) -> ControlRate:
    return ControlRate(fps, spin_s=0.0, clock=NoClock())


def robot_rig(
    num_joints: int = 3, max_steps: int = 20, limit: float = np.inf, **robot
) -> tuple[FakeRobot, RobotEnvironment, ActionSpace, ControlRate]:
    """A fake robot, its environment on a clock that takes no time, its action space (limits +-100), the clock."""
    arm = FakeRobot(num_joints, limit=limit, **robot)
    rate = fake_rate()
    env = RobotEnvironment(arm, rate, "reach", 30.0, max_steps)
    bound = np.full(num_joints, 100.0, np.float32)
    return arm, env, ActionSpace.joint_targets(-bound, bound), rate
