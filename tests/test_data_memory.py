"""What a data set keeps in memory a frame; columns and pictures are mapped files and do not count."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np

from chunkrl.data import ChunkDataset
from chunkrl.data.loader import ChunkLoader
from chunkrl.data.writer import DatasetWriter, FeatureSpec
from chunkrl.progress import silent

KEPT_BYTES, PEAK_BYTES = 110, 220
"""A frame. Measured when this was written: 90 kept and 147 at the peak (docs/data.md, "Memory")."""


def write(root: Path, num_frames: int) -> Path:
    features = {
        "observation.state": FeatureSpec("float32", (8,)),
        "action": FeatureSpec("float32", (7,)),
        "next.success": FeatureSpec("bool", (1,)),
    }
    rng = np.random.default_rng(0)
    with DatasetWriter(root, fps=10, features=features) as writer:
        for _ in range(num_frames // 5000):
            columns = {
                "observation.state": rng.normal(size=(5000, 8)).astype(np.float32),
                "action": rng.normal(size=(5000, 7)).astype(np.float32),
                "next.success": np.arange(5000) == 4999,
            }
            writer.add_episode(columns, "push")
    return root


def traced(root: Path, cache: Path) -> tuple[int, int]:
    """Bytes kept by a data set and its loader, and the most that there were."""
    ChunkDataset(
        root, cache_dir=cache, progress=silent
    ).action_statistics()  # the files in the cache are there
    gc.collect()
    tracemalloc.start()
    try:
        dataset = ChunkDataset(root, cache_dir=cache, progress=silent)
        dataset.action_statistics()
        loader = ChunkLoader(dataset, 16, seed=0)
        for update in range(3):
            loader.batch(update)
        gc.collect()
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_memory_a_frame_is_small(tmp_path: Path):
    sizes = (20_000, 80_000)
    measured = [traced(write(tmp_path / str(size), size), tmp_path / "cache") for size in sizes]
    kept, peak = (np.diff(values)[0] / np.diff(sizes)[0] for values in zip(*measured, strict=True))
    print(f"{kept:.0f} bytes a frame kept, {peak:.0f} at the peak")
    assert kept < KEPT_BYTES
    assert peak < PEAK_BYTES
