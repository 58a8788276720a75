"""Small data sets for the tests of the learning core, written by DatasetWriter, and chunk data sets in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data import ChunkDataset, ChunkSettings
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.normalize import Normalizer
from chunkrl.data.writer import DatasetWriter
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.models.encoders import ObservationSpec
from chunkrl.models.factory import NetworkFactory
from chunkrl.models.policy import ChunkShape
from chunkrl.progress import silent
from chunkrl.run.config import TrainConfig
from chunkrl.run.switches import switched_off

FPS = 10.0
Columns = Mapping[str, np.ndarray]


def _spec(values: np.ndarray) -> FeatureSpec:
    values = np.asarray(values)
    if values.ndim == 4:
        return FeatureSpec("image", values.shape[1:])
    return FeatureSpec(values.dtype.name, values.shape[1:] or (1,))


def write_dataset(root: Path, episodes: Sequence[Columns], tasks: Sequence[str] = ("push",)) -> Path:
    """One episode a mapping of columns [T, ...]; episode i has the text tasks[i % len(tasks)]."""
    features = {name: _spec(values) for name, values in episodes[0].items()}
    with DatasetWriter(root, fps=FPS, features=features) as writer:
        for number, columns in enumerate(episodes):
            writer.add_episode(columns, tasks[number % len(tasks)])
    return root


def episode(
    length: int, success: bool, rng: np.random.Generator, **columns: np.ndarray
) -> dict[str, np.ndarray]:
    """Random states [T, 3] and actions [T, 2]; next.success at the last frame of a success."""
    flags = np.zeros(length, dtype=bool)
    flags[-1] = success
    random = {
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
        "next.success": flags,
    }
    return random | columns


def random_episodes(
    num_episodes: int, seed: int = 0, lengths: tuple[int, int] = (5, 12)
) -> list[dict[str, np.ndarray]]:
    """Episodes of which every second one succeeds."""
    rng = np.random.default_rng(seed)
    return [episode(int(rng.integers(*lengths)), i % 2 == 0, rng) for i in range(num_episodes)]


def image_episodes(
    num_episodes: int, cameras: Sequence[str] = ("front", "wrist"), size: int = 32
) -> list[dict[str, np.ndarray]]:
    """Episodes with images of several cameras, uint8 [T, size, size, 3]."""
    rng = np.random.default_rng(3)
    return [
        columns
        | {
            f"observation.images.{name}": rng.integers(0, 256, (6, size, size, 3), dtype=np.uint8)
            for name in cameras
        }
        for columns in (episode(6, i % 2 == 0, rng) for i in range(num_episodes))
    ]


def open_chunks(root: Path, horizon: int = 3, gamma: float = 0.9, **settings: Any) -> ChunkDataset:
    """The data set at `root`, without progress bars."""
    own = {name: settings.pop(name) for name in ("episodes", "cache_dir") if name in settings}
    return ChunkDataset(root, ChunkSettings(horizon, gamma, **settings), **own, progress=silent)


def identity_factory(
    dataset: ChunkDataset, network: NetworkConfig | None = None, policy: PolicyConfig = PolicyConfig()
) -> NetworkFactory:
    """Networks on raw states and actions: no statistic of the data enters them."""
    network = network or NetworkConfig(hidden_dim=32, num_layers=1)
    bound = 1e3 * torch.ones(dataset.action_dim)
    return NetworkFactory(
        ObservationSpec(state_dim=dataset.state_dim),
        ChunkShape(dataset.action_horizon, dataset.action_dim),
        Normalizer.identity(dataset.state_dim),
        Normalizer.identity(dataset.action_dim),
        (-bound, bound),
        network,
        policy,
        critic_network=network,
    )


def that_are_read(defaults: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Both as settings of a training; those of the defaults that objective, kind of policy and given values do not
    read are left out."""
    of_method = {
        name: changes[name] for name in ("objective", "train_q", "policy", "values") if name in changes
    }
    config = TrainConfig(**{**defaults, **of_method})
    paths = (*config.unread(), *config.unread_by_kind(), *switched_off(config))
    unread = {path.partition(".")[0] for path in paths}
    return {name: value for name, value in defaults.items() if name not in unread} | dict(changes)


def settings(
    data: Path, output: Path, defaults: Mapping[str, Any] | None = None, /, **changes: Any
) -> dict[str, Any]:
    """Settings of a training of seconds, for `TrainConfig` or `ChunkLevelOfflineRL`; those of here and of `defaults`
    that the objective does not read are left out."""
    own = {
        "dataset_dir": str(data),
        "action_horizon": 3,
        "action_dim": 2,
        "batch_size": 8,
        "num_updates": 6,
        "value_epochs": 1.0,
        "num_folds": 2,
        "network": NetworkConfig(hidden_dim=8, num_layers=1),
        "log_interval": 2,
        "device": "cpu",
        "output_dir": str(output),
    }
    return that_are_read({**own, **(defaults or {})}, changes)


def policy_of_one_update(data: Path, output: Path, action_dim: int) -> Path:
    """The folder of a policy that cloned one batch of the data."""
    own = {"action_dim": action_dim, "batch_size": 4, "num_updates": 1, "objective": "behaviour_cloning"}
    ChunkLevelOfflineRL(**settings(data, output, **own)).train()
    return output / "policy"


def without_failures(weight: np.ndarray, success: np.ndarray) -> np.ndarray:
    """weight [N], of one place, as weights balanced by default: failures weigh nothing; of mean 1."""
    found = np.where(success, weight, 0.0)
    return found / found.mean()
