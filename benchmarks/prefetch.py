"""What loading batches alongside training saves: the share of a run's time that it waits for data, both ways.

chunkrl collect --num-episodes 40 --camera-size 64 --output-dir data/images
python -m benchmarks.prefetch --dataset-dir data/images          # images decoded on demand: the slow way
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.envs.metaworld import ACTION_DIM
from chunkrl.training import trainer

_NAMES = ("speed/seconds_waiting_for_data", "speed/seconds_computing")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    dataset_dir: str
    num_updates: int = 100
    batch_size: int = 32
    num_repeats: int = 2
    """Of both ways in turn; each gives its best."""
    num_threads: int = 1


class InLoop:
    """The interface of `Prefetcher`, loading when it is asked."""

    def __init__(self, load: Callable[[int], Any], numbers: range) -> None:
        self._load = load
        self._numbers: Iterator[int] = iter(numbers)

    def next(self) -> Any:
        """The next one."""
        return self._load(next(self._numbers))

    def __enter__(self) -> InLoop:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def seconds(config: BenchmarkConfig, loads: Any) -> tuple[float, float]:
    """Of waiting for data and of computing, in a run of behaviour cloning."""
    with tempfile.TemporaryDirectory() as folder:
        run = ChunkLevelOfflineRL(
            dataset_dir=config.dataset_dir,
            action_horizon=5,
            action_dim=ACTION_DIM,
            batch_size=config.batch_size,
            num_updates=config.num_updates,
            objective="behaviour_cloning",
            frames=FrameSettings(cache=False),
            output_dir=folder,
            save_interval=0,
        )
        trainer.Prefetcher = loads
        run.train()
    assert run.trainer is not None
    waiting, computing = (
        sum(record.scalars.get(name, 0.0) for record in run.trainer.records) for name in _NAMES
    )
    return waiting, computing


def main(config: BenchmarkConfig) -> None:
    """Prints the table."""
    torch.set_num_threads(config.num_threads)
    ways: dict[str, Any] = {"in the loop": InLoop, "beside it": trainer.Prefetcher}
    found = {
        name: [seconds(config, loads) for _ in range(config.num_repeats)] for name, loads in ways.items()
    }
    print("| batches are loaded | waiting for data, s | computing, s | waiting |\n|---|---|---|---|")
    for name, runs in found.items():
        waiting, computing = min(runs, key=sum)
        print(f"| {name} | {waiting:.2f} | {computing:.2f} | {waiting / (waiting + computing):.1%} |")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
