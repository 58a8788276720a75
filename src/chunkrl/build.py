"""From a configuration and its data to networks and algorithm."""

from __future__ import annotations

import torch

from chunkrl.algorithms.base import Algorithm
from chunkrl.algorithms.chunk_awr import ChunkAWR, JointConfig, document, iql
from chunkrl.algorithms.cross_fitted_awr import CrossFittedAWR, CrossFittedConfig, Weighting
from chunkrl.data.collection import ChunkData
from chunkrl.data.normalize import Normalizer
from chunkrl.errors import ChunkRLError
from chunkrl.models.encoders import ObservationSpec
from chunkrl.models.factory import NetworkFactory
from chunkrl.models.policy import ChunkShape
from chunkrl.train_config import TrainConfig
from chunkrl.training.optim import OptimConfig


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises ChunkRLError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ChunkRLError(f"device {name!r} is unknown; use cpu, cuda or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise ChunkRLError(f"device {name!r} is not supported; use cpu, cuda or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ChunkRLError(
            "device cuda is asked for, but this PyTorch finds no GPU; use --device cpu or auto, or install a "
            "CUDA build of PyTorch (chunkrl doctor shows what is there)"
        )
    return device


def build_factory(config: TrainConfig, dataset: ChunkData) -> NetworkFactory:
    """The network factory of a run: inputs from the data, statistics of its states and actions."""
    use_state = config.use_state and dataset.state_dim > 0
    use_task = config.use_task if config.use_task is not None else len(dataset.tasks) > 1
    spec = ObservationSpec(dataset.cameras, dataset.state_dim if use_state else 0, use_task)
    actions = dataset.action_statistics()
    state = Normalizer(dataset.state_statistics(), "mean_std") if use_state else Normalizer.identity(1)
    return NetworkFactory(
        spec,
        ChunkShape(dataset.action_horizon, dataset.action_dim),
        state,
        Normalizer(actions, "mean_std"),
        (torch.from_numpy(actions.min), torch.from_numpy(actions.max)),
        config.network,
    )


def build_algorithm(
    config: TrainConfig, dataset: ChunkData, num_updates: int, value_updates: int, device: torch.device
) -> Algorithm:
    """The algorithm of `config.objective`, with fresh networks on `device`.

    num_updates: of the policy. value_updates: of the value phase (objective cross_fitted and its controls).
    """
    factory = build_factory(config, dataset)
    optim = OptimConfig(config.lr, config.weight_decay, config.grad_clip)
    if config.objective in ("iql", "document"):
        recipe = iql if config.objective == "iql" else document
        joint: JointConfig = recipe(
            num_updates=num_updates,
            beta=config.beta,
            lambda_v=config.lambda_v,
            lambda_pi=config.lambda_pi,
            **({"num_folds": config.num_folds} if config.objective == "iql" else {}),
        )
        return ChunkAWR(joint, factory, config.policy, optim, dataset, config.seed, device)
    weighting: Weighting = "uniform"  # the two kinds of cloning
    if config.objective in ("cross_fitted", "shuffled_advantages"):
        weighting = "advantage" if config.objective == "cross_fitted" else "shuffled"
    settings = CrossFittedConfig(
        policy_updates=num_updates,
        value_updates=value_updates,
        beta=config.beta,
        num_folds=config.num_folds,
        weighting=weighting,
        data="successes" if config.objective == "success_cloning" else "all",
        train_q=config.train_q,
        fit=config.fit,
    )
    return CrossFittedAWR(settings, factory, config.policy, optim, dataset, config.seed, device)
