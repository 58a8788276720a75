"""RA-BC, LeRobot's own sample weighting (`--sample_weighting.type=rabc`), as arms of the benchmarks.

The weights are `chunkrl.integration.rabc`'s, with LeRobot's kappa of .01. Two estimates of progress:

- `by_value`: our held-out V, as `chunkrl export-values --format rabc` writes it;
- `time_progress`: the part of a successful episode that has passed, regressed from the state as SARM learns it, from
  the successful episodes alone; cross-fitted by episode, like our V.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from chunkrl.algorithms.cross_fit import assign_folds
from chunkrl.algorithms.values_io import load_values
from chunkrl.config import load_config
from chunkrl.data.chunks import ChunkDataset
from chunkrl.integration.rabc import progress_of, rabc_weights, value_ends
from chunkrl.run.config import TrainConfig

KAPPA = 0.01
FOLDS, UPDATES, BATCH, WIDTH, DROPOUT, NOISE, RATE = 5, 1000, 256, 128, 0.5, 0.3, 3e-4


def by_value(dataset: ChunkDataset, values: Path, seed: int) -> np.ndarray:
    """RA-BC on V as progress, float32 [N]; values: the folder of a value run."""
    config = load_config(TrainConfig, values / "config.json")
    value = value_ends(dataset, load_values(values, dataset).value, config.fit.time_out)
    progress = progress_of(value, float(value.min()), float(value.max()))
    return rabc_weights(progress, dataset.episode, dataset.action_horizon, KAPPA)


def by_time(dataset: ChunkDataset, values: Path, seed: int) -> np.ndarray:
    """RA-BC on the part of a success that has passed, float32 [N]."""
    return rabc_weights(time_progress(dataset, seed), dataset.episode, dataset.action_horizon, KAPPA)


def time_progress(dataset: ChunkDataset, seed: int) -> np.ndarray:
    """The cross-fitted part of a success that has passed, float32 [N] in [0, 1]."""
    torch.manual_seed(seed)
    state = np.asarray(dataset.table.column("observation.state"), np.float32)
    inputs = torch.from_numpy((state - state.mean(0)) / (state.std(0) + 1e-6))
    success = dataset.frame_labels.success
    episode = dataset.episode
    step = np.arange(len(episode)) - dataset.table.episode_start[episode]
    done = (dataset.frame_labels.terminated & success[episode]).nonzero()[0]
    length = np.full(len(success), 1)
    length[episode[done]] = step[done] + 1
    target = torch.from_numpy((step / length[episode]).astype(np.float32))
    usable = success[episode] & ~dataset.frame_labels.after_success
    fold, found = assign_folds(success, FOLDS, seed), np.zeros(len(episode), np.float32)
    for number in range(FOLDS):
        rows = np.flatnonzero(usable & (fold[episode] != number))
        network = _regressor(inputs.shape[1])
        optimizer = torch.optim.AdamW(network.parameters(), RATE)
        rng = np.random.default_rng([seed, number])
        for _ in range(UPDATES):
            batch = rows[rng.integers(len(rows), size=BATCH)]
            noisy = inputs[batch] + NOISE * torch.randn(BATCH, inputs.shape[1])
            loss = (network(noisy).squeeze(-1) - target[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        own = np.flatnonzero(fold[episode] == number)
        with torch.no_grad():
            found[own] = network(inputs[own]).squeeze(-1).clamp(0, 1).numpy()
    return found


def _regressor(num_inputs: int) -> nn.Module:
    hidden = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(DROPOUT)]
    return nn.Sequential(
        nn.Linear(num_inputs, WIDTH), nn.ReLU(), nn.Dropout(DROPOUT), *hidden, nn.Linear(WIDTH, 1)
    )
