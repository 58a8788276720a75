"""Jitter of the actor's loop with a fake robot, and what new weights do to it.

    python -m benchmarks.actor_loop      # 1 minute; prints Markdown, writes benchmarks/results/actor_loop.json

The policy is a network of `num_layers` x `width` whose chunks take `inference_s` longer than it does itself, as a
large one's would. Weights of all its parameters arrive every `push_every_s`, in bfloat16, and are applied in a thread
of this process. Lateness is measured against absolute deadlines. A tick is near a push from the arrival of weights
until the chunk after next has begun. Records go to a list: no disk takes part.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from chunkrl.envs.action_guard import ActionSpace
from chunkrl.envs.fake_robot import FakeRobot
from chunkrl.envs.robot import RobotEnvironment
from chunkrl.files.atomic import write_text
from chunkrl.online.actor.actor import Actor, ActorConfig, ActorSummary
from chunkrl.online.actor.executor import ChunkExecutor, ControlRate, ExecutionConfig
from chunkrl.online.actor.policy_runner import PolicyRunner
from chunkrl.online.link.config import SwapAt
from chunkrl.types import Observation


@dataclass(frozen=True)
class LoopConfig:
    """What to measure."""

    results: str = "benchmarks/results/actor_loop.json"
    """Where the numbers go."""
    rate_hz: float = 30.0
    """Control rate."""
    seconds: float = 8.0
    """Length of each session."""
    rounds: int = 3
    """Sessions of each kind; the kinds take turns, so that what else the machine does meets all alike."""
    num_joints: int = 7
    """Of the fake robot."""
    camera_size: int = 224
    """Side of the images of its two cameras, pixels."""
    width: int = 1024
    """Of the policy's hidden layers."""
    num_layers: int = 12
    """Hidden layers."""
    inference_s: float = 0.1
    """What a chunk takes beyond the network itself, seconds."""
    push_every_s: float = 2.0
    """Time between two new versions of the weights."""
    exec_steps: int = 15
    """Actions executed of each chunk."""
    prefetch_steps: int = 8
    """Actions left when the next chunk is asked for."""


class WidePolicy:
    """`chunkrl.online.actor.policy_runner.RunnablePolicy`: an MLP from the state to a chunk near 0."""

    cameras: tuple[str, ...] = ()

    def __init__(self, config: LoopConfig) -> None:
        self.action_horizon, self.action_dim = 50, config.num_joints
        width = config.width
        hidden = [layer for _ in range(config.num_layers) for layer in (nn.Linear(width, width), nn.ReLU())]
        out = nn.Linear(width, self.action_horizon * self.action_dim)
        self.policy: nn.Module = nn.Sequential(nn.Linear(config.num_joints, width), *hidden, out)
        self._inference_s = config.inference_s

    def act(
        self,
        observation: Observation,
        generators: Sequence[torch.Generator],
        mode: Any,
        num_candidates: int = 0,
    ) -> Tensor:
        """Chunks [B, H, A]; the benchmark measures the loop, so it takes no best of N."""
        assert observation.state is not None
        time.sleep(self._inference_s)
        return self.policy(observation.state).tanh().view(-1, self.action_horizon, self.action_dim)


class Pusher(threading.Thread):
    """New weights every so often; when each push began and ended, `time.perf_counter` seconds."""

    def __init__(self, runner: PolicyRunner, policy: WidePolicy, every_s: float) -> None:
        super().__init__(daemon=True)
        self._runner, self._every_s = runner, every_s
        self._weights = {k: v.detach().to(torch.bfloat16) for k, v in policy.policy.named_parameters()}
        self._stopped = threading.Event()
        self.times: list[tuple[float, float]] = []

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopped.wait(self._every_s):
            began = time.perf_counter()
            self._runner.push(len(self.times) + 1, self._weights)
            self.times.append((began, time.perf_counter()))

    def stop(self) -> None:
        """Waits for the push under way."""
        self._stopped.set()
        self.join()


class TimedRate(ControlRate):
    """Keeps every tick: when it was due, and how late it was."""

    def __init__(self, rate_hz: float) -> None:
        super().__init__(rate_hz)
        self.ticks: list[tuple[float, float]] = []

    def wait(self) -> float:
        """As a `ControlRate`'s."""
        late = super().wait()
        self.ticks.append((time.perf_counter() - late, late))
        return late


@dataclass(frozen=True)
class Session:
    """What one session measured. late: seconds, a tick. near: bool, a tick near a push. push_s: a push."""

    summary: ActorSummary
    late: np.ndarray
    near: np.ndarray
    push_s: tuple[float, ...]


def run(config: LoopConfig, push: bool, swap_at: SwapAt) -> Session:
    """One session of two episodes."""
    torch.manual_seed(0)
    size = (config.camera_size, config.camera_size)
    robot = FakeRobot(config.num_joints, {"front": size, "wrist": size}, speed=0.5)
    rate = TimedRate(config.rate_hz)
    max_steps = round(config.seconds * config.rate_hz / 2)
    env = RobotEnvironment(robot, rate, "hold still", config.rate_hz, max_steps)
    policy = WidePolicy(config)
    runner = PolicyRunner(policy, env.task, "mode", swap_at)
    executor = ChunkExecutor(runner, ExecutionConfig(config.exec_steps, config.prefetch_steps))
    bound = np.full(config.num_joints, 10.0, np.float32)
    space = ActionSpace.joint_targets(-bound, bound)
    pusher = Pusher(runner, policy, config.push_every_s)
    actor = Actor(env, space, executor, [], ActorConfig(num_episodes=2, confirm=False), None, rate)
    if push:
        pusher.start()
    summary = actor.run()
    if push:
        pusher.stop()
    due, late = np.array(rate.ticks).T
    swap_s = summary.execution.max_inference_s + config.exec_steps / config.rate_hz
    near = np.zeros(len(due), bool)
    for began, ended in pusher.times:
        near |= (due >= began) & (due <= ended + swap_s)
    return Session(summary, late, near, tuple(ended - began for began, ended in pusher.times))


def numbers(sessions: Sequence[Session]) -> dict[str, float]:
    """Of all sessions of one kind together, as milliseconds and counts."""
    late = 1000 * np.concatenate([session.late for session in sessions])
    near = np.concatenate([session.near for session in sessions])
    pushes = [1000 * seconds for session in sessions for seconds in session.push_s]
    jitters = [session.summary.jitter for session in sessions if session.summary.jitter is not None]
    result = {
        "ticks": len(late),
        "rate, Hz": float(np.mean([jitter.rate_hz for jitter in jitters])),
        "lateness p50, ms": float(np.percentile(late, 50)),
        "lateness p99, ms": float(np.percentile(late, 99)),
        "lateness max, ms": float(late.max()),
        "missed ticks": sum(jitter.num_missed for jitter in jitters),
        "skipped ticks": sum(jitter.num_skipped for jitter in jitters),
        "steps held": sum(session.summary.num_held for session in sessions),
        "chunks": sum(session.summary.execution.num_chunks for session in sessions),
        "chunk, ms": 1000 * float(np.median([s.summary.execution.median_inference_s for s in sessions])),
        "pushes": len(pushes),
    }
    if pushes:
        result |= {
            "push, ms": float(np.median(pushes)),
            "ticks near a push": int(near.sum()),
            "lateness p99 near a push, ms": float(np.percentile(late[near], 99)),
            "lateness max near a push, ms": float(late[near].max()),
        }
    return result


def main(config: LoopConfig) -> None:
    """Without new weights and with them, swapped at chunks and at episodes, in turns; prints a table."""
    torch.set_num_threads(1)
    kinds: dict[str, tuple[bool, SwapAt]] = {
        "no new weights": (False, "chunk"),
        "swap between chunks": (True, "chunk"),
        "swap between episodes": (True, "episode"),
    }
    sessions: dict[str, list[Session]] = {name: [] for name in kinds}
    loads = [os.getloadavg()[0]]
    for _ in range(config.rounds):
        for name, (push, swap_at) in kinds.items():
            sessions[name].append(run(config, push, swap_at))
        loads.append(os.getloadavg()[0])
    runs = {name: numbers(of_kind) for name, of_kind in sessions.items()}
    parameters = sum(p.numel() for p in WidePolicy(config).policy.parameters())
    machine = {"cores": os.cpu_count(), "loads": loads, "python": platform.python_version()}
    results = {"config": asdict(config), "machine": machine, "parameters": parameters, "runs": runs}
    write_text(config.results, json.dumps(results, indent=1))
    print(f"{parameters / 1e6:.1f} M parameters, {machine}\n")
    print("| |", " | ".join(runs), "|\n|---|" + "---|" * len(runs))
    for name in max(runs.values(), key=len):
        cells = [f"{of_kind[name]:.3g}" if name in of_kind else "" for of_kind in runs.values()]
        print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main(tyro.cli(LoopConfig))
