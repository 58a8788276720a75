"""Anonymous memory (RssAnon: mapped files apart) of reading, building and loading data sets of growing size.

    python -m benchmarks.data_memory                    # prints Markdown

Each size is measured in a process of its own, above what its imports take. Linux only.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from chunkrl.data import ChunkDataset
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.loader import ChunkLoader
from chunkrl.data.writer import DatasetWriter
from chunkrl.progress import silent


@dataclass(frozen=True)
class MemoryConfig:
    """What to measure."""

    sizes: tuple[int, ...] = (100_000, 1_000_000)
    """Frames."""
    episode_length: int = 1000
    """Frames of an episode, a divisor of all sizes."""
    image: int = 0
    """Height and width of the images of one camera; 0: state and action alone."""
    batches: int = 200
    """Of 64 transitions."""
    child: str | None = None
    """Used by the benchmark itself: measure the data set in this folder."""


def write(root: Path, num_frames: int, length: int, image: int) -> None:
    """A data set of random numbers and images."""
    features = {
        "observation.state": FeatureSpec("float32", (8,)),
        "action": FeatureSpec("float32", (7,)),
        "next.success": FeatureSpec("bool", (1,)),
    }
    if image:
        features["observation.images.front"] = FeatureSpec("image", (image, image, 3))
    rng = np.random.default_rng(0)
    with DatasetWriter(root, fps=10, features=features) as writer:
        for _ in range(num_frames // length):
            columns = {
                "observation.state": rng.normal(size=(length, 8)).astype(np.float32),
                "action": rng.normal(size=(length, 7)).astype(np.float32),
                "next.success": np.arange(length) == length - 1,
            }
            if image:
                shape = (length, image, image, 3)
                columns["observation.images.front"] = rng.integers(256, size=shape, dtype=np.uint8)
            writer.add_episode(columns, "push")


def anonymous() -> int:
    """RssAnon of this process, bytes."""
    for line in Path("/proc/self/status").read_text().split("\n"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no RssAnon in /proc/self/status: this benchmark needs Linux")


def measure(root: Path, config: MemoryConfig) -> dict[str, int]:
    """Bytes above the imports: kept at the end, and the most at any time (sampled)."""
    base, peak, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        dataset = ChunkDataset(root / "set", cache_dir=root / "cache", progress=silent)
        for camera in dataset.cameras:
            dataset.table.images(camera, np.array([0]))
        dataset.action_statistics()
        loader = ChunkLoader(dataset, 64, seed=0)
        for update in range(config.batches):
            loader.batch(update)
    finally:
        done.set()
        watcher.join()
    gc.collect()
    return {"imports": base, "kept": anonymous() - base, "peak": peak - base}


def main(config: MemoryConfig) -> None:
    """Measures every size and prints the slopes."""
    if config.child is not None:
        print(json.dumps(measure(Path(config.child), config)))
        return
    found = []
    for size in config.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "set", size, config.episode_length, config.image)
            command = [sys.executable, "-m", "benchmarks.data_memory", "--child", folder]
            command += ["--batches", str(config.batches)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(output.strip().split("\n")[-1]))
    print("| frames | imports MB | kept MB | peak MB |\n|---:|---:|---:|---:|")
    for size, bytes_ in zip(config.sizes, found, strict=True):
        cells = " | ".join(f"{bytes_[name] / 1e6:.0f}" for name in ("imports", "kept", "peak"))
        print(f"| {size:,} | {cells} |")
    for name in ("kept", "peak"):
        slope = (found[-1][name] - found[0][name]) / (config.sizes[-1] - config.sizes[0])
        print(f"{name}: {slope:.0f} bytes per frame")


if __name__ == "__main__":
    main(tyro.cli(MemoryConfig))
