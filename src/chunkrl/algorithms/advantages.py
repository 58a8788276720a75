"""From values to advantages, returns and weights along whole episodes (numpy, one pass)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from chunkrl.algorithms import losses
from chunkrl.data.collection import ChunkData
from chunkrl.data.large_arrays import by_blocks
from chunkrl.errors import ChunkRLError


@dataclass(frozen=True)
class ReturnRange:
    """Lowest and highest return of the data: V is a sigmoid between them, so that it cannot diverge."""

    low: float
    high: float

    def to_unit(self, returns: np.ndarray) -> np.ndarray:
        """Returns -> [0, 1]."""
        return np.clip((returns - self.low) / (self.high - self.low), 0.0, 1.0).astype(np.float32)

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """[0, 1] -> returns."""
        return (self.low + (self.high - self.low) * unit).astype(np.float32)


def return_range(returns: np.ndarray) -> ReturnRange:
    """The range of `returns` [N], never empty; includes 0, the return of an episode without reward."""
    low, high = min(0.0, float(returns.min())), max(0.0, float(returns.max()))
    return ReturnRange(low, high if high > low else low + 1.0)


def step_rewards(dataset: ChunkData) -> np.ndarray:
    """What the action of each frame earned, float32 [N]."""
    labels = dataset.frame_labels
    # a sub-goal onset is the step reward of the document's chunk indicator
    if dataset.reward_kind == "sum":
        return labels.reward
    return by_blocks(dataset.cache_dir, dataset.num_frames, np.float32, lambda rows: labels.subgoal[rows])


def check_rewards(name: str, rewards: np.ndarray) -> None:
    """Raises ChunkRLError where the data `name` has no reward. rewards: of steps, or returns, [N]."""
    if not rewards.any():
        raise ChunkRLError(
            f"no reward anywhere in {name}, so there is nothing to learn values from: say with --success "
            "which episodes succeeded, or use --objective behaviour_cloning"
        )


def check_outcomes(name: str, returns: np.ndarray, known: np.ndarray) -> None:
    """Raises ChunkRLError where the data `name` gives values nothing to learn.

    returns: Monte-Carlo returns [N]. known: bool [N], the starts whose outcome is known.
    """
    check_rewards(name, returns)
    if known.sum() < 2:
        raise ChunkRLError(
            f"no outcome in {name} is known with --fit.time-out bootstrap, because no episode terminates: use "
            "--fit.time-out failure or --failure-terminal"
        )


def standardize(advantage: np.ndarray, scale: float) -> np.ndarray:
    """Mean 0 and deviation `scale` over the data; all zeros where the advantage is constant."""
    deviation = advantage.std()
    if deviation < 1e-8:
        return np.zeros_like(advantage)
    return scale * (advantage - advantage.mean()) / deviation


def shuffle_between(advantage: np.ndarray, seed: int) -> np.ndarray:
    """The control: the same advantages, permuted over all starts."""
    return np.random.default_rng([seed, 0x5AFE]).permutation(advantage)


def to_weights(
    advantage: np.ndarray, beta: float, scale: float, clip: float
) -> tuple[np.ndarray, dict[str, float]]:
    """Weights exp(beta A) float32 [N] of mean 1, of advantages standardised to deviation `scale`; and how few carry
    the loss."""
    standardized = standardize(advantage, scale)
    weight = losses.advantage_weights(torch.from_numpy(standardized), beta, clip)
    weight = weight / weight.mean()
    return weight.numpy().astype(np.float32), {
        "weight/effective_sample_size": float(losses.effective_sample_size(weight)),
        "weight/clip_fraction": float(np.mean(np.exp(beta * standardized) >= clip)),
    }
