"""Whether the advantages of successes say anything of the chunk, asked of finished values: no training, no simulator.

    python -m benchmarks.chunk_evidence RUN ...    # runs with values on states, e.g. runs/benchmark/values/*

Starts of successful episodes only, advantages less the mean of their stratum of time and value. Each start is
compared with its 20 nearest neighbours in the state (of other episodes of its task): the squared difference of
advantages with the five whose chunks are the most alike, over that with the others. 1 minus this is the part of the
advantage's variance between like states that goes with the chunk: 0 where it is all noise. Beside it the same for a
smooth function of the state (random cosines), which knows no chunk: what likeness of states gives. 95 % over
episodes. Prints Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from chunkrl.algorithms.advantages import step_rewards
from chunkrl.algorithms.balance import make_strata
from chunkrl.algorithms.config import BalanceConfig
from chunkrl.algorithms.values_io import load_values
from chunkrl.algorithms.weights import WeightRule, normalized, to_weights
from chunkrl.data.collection import ChunkCollection
from chunkrl.run.build import open_data
from chunkrl.run.folder import run_config

NUM_NEIGHBOURS, NUM_NEAR, NUM_BOOTSTRAP, BLOCK = 20, 5, 1000, 512


@dataclass(frozen=True)
class EvidenceConfig:
    """What to ask."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders with values; their data must be where they were, and have a state."""


@dataclass(frozen=True, eq=False)
class Successes:
    """The N starts of successful episodes. advantage: float [N], less its stratum's mean. state [N, S] and chunk
    [N, H A], in deviations. episode, task: int [N]. size: part of them that carries the default weights' loss."""

    advantage: np.ndarray
    state: np.ndarray
    chunk: np.ndarray
    episode: np.ndarray
    task: np.ndarray
    size: float


def read_successes(run: Path) -> Successes:
    """Of the data and values of a run. Raises ChunkRLError where there are none, or the data have no state."""
    data = open_data(run_config(run / "config.json"))
    labels = load_values(run, data)
    strata = make_strata(data, labels.value, step_rewards(data), None, None, BalanceConfig())
    weight, _ = to_weights(labels.advantage, WeightRule(), strata=strata)
    good = np.flatnonzero(np.asarray(data.success) & (strata.credit > 0))
    index = strata.index[good]
    totals = np.bincount(index, weights=labels.advantage[good], minlength=strata.num)
    mean = totals / np.maximum(np.bincount(index, minlength=strata.num), 1)
    state, chunk = _read(data, good)
    return Successes(
        advantage=labels.advantage[good] - mean[index],
        state=np.clip(_in_deviations(state), -4, 4),
        chunk=_in_deviations(chunk),
        episode=np.asarray(data.episode)[good],
        task=np.asarray(data.task)[good],
        size=normalized(weight[good], None)[1],
    )


def _read(data: ChunkCollection, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    states, chunks = [], []
    for first in range(0, len(positions), BLOCK):
        batch = data.batch(positions[first : first + BLOCK], next_observation=False, with_labels=False)
        assert batch.observation.state is not None, "the data have no state"
        states.append(batch.observation.state.numpy())
        chunks.append(batch.actions.flatten(1).numpy())
    return np.concatenate(states).astype(np.float64), np.concatenate(chunks).astype(np.float64)


def _in_deviations(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / (values.std(0) + 1e-6)


def nearest(successes: Successes, num: int = NUM_NEIGHBOURS) -> np.ndarray:
    """The `num` nearest starts [N, num] by state, of other episodes of the same task."""
    state, found = successes.state, []
    square = (state**2).sum(1)
    for first in range(0, len(state), BLOCK):
        rows = slice(first, first + BLOCK)
        distance = square[rows, None] - 2 * state[rows] @ state.T + square[None]
        same = successes.episode[rows, None] == successes.episode[None]
        distance[same | (successes.task[rows, None] != successes.task[None])] = np.inf
        found.append(np.argpartition(distance, num, axis=1)[:, :num])
    return np.concatenate(found)


def explained(
    values: np.ndarray, successes: Successes, neighbours: np.ndarray
) -> tuple[float, tuple[float, float]]:
    """The part of the variance of values [N] between like states that goes with the chunk, and its interval over
    episodes."""
    unlike = ((successes.chunk[:, None] - successes.chunk[neighbours]) ** 2).sum(-1)
    difference = np.take_along_axis(
        (values[:, None] - values[neighbours]) ** 2, np.argsort(unlike, axis=1), 1
    )
    near, far = difference[:, :NUM_NEAR].mean(1), difference[:, NUM_NEAR:].mean(1)
    _, episode = np.unique(successes.episode, return_inverse=True)
    above, below = (np.bincount(episode, weights=part) for part in (near, far))
    drawn = np.random.default_rng(0).integers(0, len(above), (NUM_BOOTSTRAP, len(above)))
    parts = 1 - above[drawn].sum(1) / below[drawn].sum(1)
    low, high = np.quantile(parts, (0.025, 0.975))
    return float(1 - above.sum() / below.sum()), (float(low), float(high))


def cosines(state: np.ndarray, num: int = 8) -> np.ndarray:
    """A smooth random function of the state, [N]."""
    rng = np.random.default_rng(1)
    return np.cos(2 * state @ rng.normal(size=(state.shape[1], num)) / np.sqrt(state.shape[1])).sum(1)


def main(config: EvidenceConfig) -> None:
    """Prints a row a run."""
    print(
        "| run | successful episodes | part of their starts that carries the weight | explained by the chunk "
        "| of a function of the state |\n|---|---|---|---|---|"
    )
    for run in map(Path, config.runs):
        successes = read_successes(run)
        neighbours = nearest(successes)
        part, (low, high) = explained(successes.advantage, successes, neighbours)
        control, _ = explained(cosines(successes.state), successes, neighbours)
        print(
            f"| {run.parent.name}/{run.name} | {len(np.unique(successes.episode))} | {successes.size:.2f} "
            f"| {part:+.2f} [{low:+.2f}, {high:+.2f}] | {control:+.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(EvidenceConfig))
