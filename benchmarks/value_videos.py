"""What value videos cost the training loop: milliseconds in the hook after each checkpoint, and samples per second.

    python -m benchmarks.value_videos --dataset-dir data/push-v3

The data set needs cameras: chunkrl collect --num-episodes 40 --camera-size 64.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import tyro

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data.sidecar import save_sidecar
from chunkrl.training.config import ValueVideoConfig
from chunkrl.training.value_videos import ValueVideos


@dataclass(frozen=True)
class Settings:
    """num_episodes: to render. num_updates: of the policy. num_frames: of the file whose writing is timed."""

    dataset_dir: str = "data/push-v3"
    num_episodes: int = 4
    num_updates: int = 1500
    num_frames: int = 1_000_000


class Timed:
    """Seconds of every call of the hook."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        after_save = ValueVideos.after_save

        def timed(videos: ValueVideos, checkpoint: Path) -> None:
            begin = time.perf_counter()
            after_save(videos, checkpoint)
            self.seconds.append(time.perf_counter() - begin)

        ValueVideos.after_save = timed  # type: ignore[method-assign]


def train(settings: Settings, num_episodes: int, output: Path) -> float:
    """Median samples per second of the policy phase."""
    run = ChunkLevelOfflineRL(
        dataset_dir=settings.dataset_dir,
        cameras=(),
        action_horizon=5,
        action_dim=4,
        batch_size=256,
        num_updates=settings.num_updates,
        value_epochs=2.0,
        log_interval=50,
        save_interval=5,
        device="cpu",
        output_dir=str(output),
        value_videos=ValueVideoConfig(num_episodes=num_episodes),
    )
    run.train()
    assert run.trainer is not None
    name = "speed/samples_per_second"
    return float(
        np.median([r.scalars[name] for r in run.trainer.records if r.phase == "policy" and name in r.scalars])
    )


def seconds_to_write(num_frames: int, folder: Path) -> float:
    """Of the values' file of that many frames, in episodes of 200; the fastest of three."""
    num = num_frames // 200
    table: Any = SimpleNamespace(
        num_frames=num * 200,
        episode_ids=np.arange(num),
        episode_length=np.full(num, 200),
        episode_start=200 * np.arange(num),
        description=SimpleNamespace(fingerprint="none"),
    )
    rng = np.random.default_rng(0)
    names = ("value", "value_seen", "return", "advantage", "weight")
    labels = {name: rng.normal(size=num * 200).astype(np.float32) for name in names}
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        save_sidecar(folder / "values.parquet", table, labels, {})
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def main(settings: Settings) -> None:
    """Prints the costs."""
    torch.set_num_threads(1)
    timed = Timed()
    with tempfile.TemporaryDirectory() as folder:
        without, with_videos = (
            train(settings, num, Path(folder) / str(num)) for num in (0, settings.num_episodes)
        )
        written = seconds_to_write(settings.num_frames, Path(folder))
    ms = sorted(1000 * s for s in timed.seconds)
    print(f"hook, ms: starting a renderer {ms[-1]:.1f}; with nothing to render {np.median(ms):.2f}")
    print(
        f"samples/s, median: {without:.0f} without videos, {with_videos:.0f} while and after they are rendered"
    )
    print(f"writing the values of {settings.num_frames:,} frames: {written:.2f} s")


if __name__ == "__main__":
    main(tyro.cli(Settings))
