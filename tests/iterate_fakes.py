"""A MetaWorld of arithmetic, in which a policy's roll-outs succeed now and then; processes of tests install it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.interventions import LEROBOT_NAME
from chunkrl.data.writer import DatasetWriter
from chunkrl.envs import metaworld
from chunkrl.envs.metaworld import ACTION_DIM, FPS, STATE_NAMES, State
from chunkrl.envs.protocol import EnvStep
from chunkrl.models.config import NetworkConfig

HORIZON, MAX_STEPS = 3, 9


class WalkEnv:
    """The first entry of every action moves a point; it succeeds beyond a target that the seed determines.

    State: target, position, step, then zeros, as many as MetaWorld's has.
    """

    action_dim, fps, task = ACTION_DIM, FPS, "walk to the target"

    def __init__(
        self, name: str, max_steps: int = MAX_STEPS, state: State = "full", camera_size: int = 0
    ) -> None:
        assert camera_size == 0
        self.state_dim = len(STATE_NAMES[state])
        self.name, self.max_steps = name, max_steps
        self.task = f"{WalkEnv.task} of {name}"

    def reset(self, seed: int) -> EnvStep:
        self._target = 1.5 + float(np.random.default_rng(seed).uniform(0, 3))
        self._target += 100.0 * self.name.startswith("impossible")
        self._position, self._num_steps = 0.0, 0
        return EnvStep(self._state())

    def _state(self) -> np.ndarray:
        state = np.zeros(self.state_dim, np.float32)
        state[:3] = self._target, self._position, self._num_steps
        return state

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        self._position += float(action[0])
        self._num_steps += 1
        success = self._position > self._target
        truncated = not success and self._num_steps >= self.max_steps
        return EnvStep(
            self._state(), reward=float(success), success=success, terminated=success, truncated=truncated
        )

    def close(self) -> None:
        pass


def install() -> None:
    """Every MetaWorld task is a `WalkEnv` in this process."""
    metaworld.MetaWorldEnv = WalkEnv  # type: ignore[misc,assignment]
    metaworld.check_task = lambda name: None  # type: ignore[assignment]


def write_walks(
    root: Path,
    num_episodes: int,
    seed: int = 0,
    env: str = "walk",
    speed: float = 0.3,
    success_column: str = "next.success",
    state: State = "full",
    corrected: Collection[int] | None = None,
) -> Path:
    """Episodes of random steps as a data set like those of `chunkrl collect`; speed: their mean. corrected: those
    whose first step is a human's."""
    features = {
        "observation.state": FeatureSpec("float32", (len(STATE_NAMES[state]),)),
        "action": FeatureSpec("float32", (ACTION_DIM,)),
        success_column: FeatureSpec("bool", (1,)),
    }
    if corrected is not None:
        features[LEROBOT_NAME] = FeatureSpec("bool", (1,))
    rng = np.random.default_rng(seed)
    with DatasetWriter(root, fps=FPS, features=features) as writer:
        for number in range(num_episodes):
            walk = WalkEnv(env, state=state)
            step, states, actions, success = walk.reset(int(rng.integers(2**31))), [], [], []
            while not step.done:
                action = np.clip(rng.normal(speed, 0.5, ACTION_DIM), -1, 1).astype(np.float32)
                states.append(step.state)
                actions.append(action)
                step = walk.step(action)
                success.append([step.success])
            columns = {
                "observation.state": np.stack(states),
                "action": np.stack(actions),
                success_column: np.array(success),
            }
            if corrected is not None:
                human = np.zeros((len(actions), 1), bool)
                human[0] = number in corrected
                columns[LEROBOT_NAME] = human
            writer.add_episode(columns, walk.task)
    return root


def pretrain(root: Path) -> Path:
    """The folder of a small policy that cloned some walks."""
    data = write_walks(root / "walks", 12)
    settings = {
        "action_horizon": HORIZON,
        "action_dim": ACTION_DIM,
        "num_updates": 40,
        "lr": 3e-3,
        "objective": "behaviour_cloning",
        "network": NetworkConfig(hidden_dim=16, num_layers=1),
        "device": "cpu",
        "output_dir": str(root / "pretraining"),
    }
    ChunkLevelOfflineRL(dataset_dir=str(data), **settings).train()
    return root / "pretraining" / "policy"
