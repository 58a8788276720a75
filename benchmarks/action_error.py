"""How far policies are from successful episodes that they never saw: no simulator, a few seconds a policy.

    python -m benchmarks.action_error --data RUN_ON_OTHER_DATA RUN ...

Where all that succeeds is one expert's, policies that cloned it are compared by this more finely than by roll-outs:
the mean absolute difference of the most likely chunk from the recorded one, in the units of actions, over starts of
successful episodes of a data set that none of the runs was trained on; all of them, and by third of the episode. With
`--data` a run on that data set (its labels say who succeeded). Small policies. Prints Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from chunkrl.algorithms.balance import episode_thirds
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.draws import trained_starts
from chunkrl.errors import ChunkRLError
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.run.build import open_data
from chunkrl.run.folder import run_config

BLOCK = 512


@dataclass(frozen=True)
class ErrorConfig:
    """What to compare."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders with small policies."""
    data: str
    """A run on the data to compare with."""
    num_starts: int = 4000
    """Starts to ask about, at most; chosen by chance, the same for all."""
    seed: int = 0


def chosen_starts(data: ChunkCollection, config: ErrorConfig) -> tuple[np.ndarray, np.ndarray]:
    """Positions int [N] of successful episodes' starts, growing, and the third of the episode of each, 0 to 2."""
    trained = trained_starts(data)
    positions = np.arange(len(data)) if trained is None else np.asarray(trained)
    good = positions[np.asarray(data.success)[positions]]
    if not len(good):
        raise ChunkRLError(f"no episode of {config.data}'s data succeeds")
    num = min(len(good), config.num_starts)
    chosen = np.sort(np.random.default_rng(config.seed).choice(good, num, replace=False))
    return chosen, episode_thirds(data)[chosen]


def errors(policy: ChunkPolicy, data: ChunkCollection, positions: np.ndarray) -> np.ndarray:
    """Of each start, float64 [N]; steps past the episode's end do not count."""
    found = []
    for first in range(0, len(positions), BLOCK):
        batch = data.batch(positions[first : first + BLOCK], next_observation=False, with_labels=False)
        off = (policy.act(batch.observation) - batch.actions).abs().mean(-1)
        found.append(((off * batch.action_mask).sum(1) / batch.action_mask.sum(1)).double().numpy())
    return np.concatenate(found)


def _folders(run: Path) -> set[Path]:
    """The data sets of a run."""
    made = run_config(run / "config.json")
    return {Path(name).resolve() for name in (made.dataset_dir, *made.additional_offline_dataset_paths)}


def main(config: ErrorConfig) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    data = open_data(run_config(Path(config.data) / "config.json"))
    positions, third = chosen_starts(data, config)
    print("| run | error | first third | middle | last |\n|---|---|---|---|---|")
    for run in config.runs:
        if both := _folders(Path(run)) & _folders(Path(config.data)):
            raise ChunkRLError(f"{run} was trained on {both.pop()}: name a run on other data with --data")
        found = errors(ChunkPolicy.load(Path(run) / "policy"), data, positions)
        means = [found.mean(), *(found[third == part].mean() for part in range(3))]
        print(f"| {run} | {' | '.join(f'{mean:.4f}' for mean in means)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(ErrorConfig))
