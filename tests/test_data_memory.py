"""What a data set keeps in memory a frame; columns and images are mapped files and do not count."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from chunk_data import random_episodes, write_dataset

from chunkrl.data import ChunkCollection, ChunkDataset, large_arrays
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.loader import ChunkLoader
from chunkrl.data.writer import DatasetWriter
from chunkrl.progress import silent

NAMES = (
    "actions",
    "action_mask",
    "reward",
    "discount",
    "covered_steps",
    "episode_index",
    "frame_index",
    "index",
)

KEPT_BYTES, PEAK_BYTES = 2, 6
"""A frame, where arrays are mapped from 4 kB on; measured when this was written: 0.4 and 2.9."""


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of a few thousand frames go the way of the largest."""
    monkeypatch.setattr(large_arrays, "MAPPED_BYTES", 4096)
    monkeypatch.setattr(large_arrays, "BLOCK_ROWS", 1000)


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


def test_memory_a_frame_is_small(tmp_path: Path, small_limits: None):
    sizes = (20_000, 80_000)
    measured = [traced(write(tmp_path / str(size), size), tmp_path / "cache") for size in sizes]
    kept, peak = (np.diff(values)[0] / np.diff(sizes)[0] for values in zip(*measured, strict=True))
    print(f"{kept:.1f} bytes per frame kept, {peak:.1f} at the peak")
    assert kept < KEPT_BYTES
    assert peak < PEAK_BYTES


def test_mapped_arrays_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    roots = [write_dataset(tmp_path / str(seed), random_episodes(9, seed)) for seed in range(2)]

    def batches() -> list[torch.Tensor]:
        datasets = [ChunkDataset(root, cache_dir=tmp_path / "cache", progress=silent) for root in roots]
        data = ChunkCollection(datasets)
        data.attach("number", np.arange(len(data)))
        found = []
        for subset in (None, np.flatnonzero(data.success)):
            loader = ChunkLoader(data, 7, seed=3, subset=subset)
            drawn = [loader.batch(update) for update in range(9)]
            found += [torch.cat([getattr(b, name).float().flatten() for b in drawn]) for name in NAMES]
            found.append(torch.cat([batch.labels["number"] for batch in drawn]))
        return [*found, *map(torch.tensor, (data.episode, data.task, data.frame_labels.reward))]

    small = batches()
    monkeypatch.setattr(large_arrays, "MAPPED_BYTES", 1)
    monkeypatch.setattr(large_arrays, "BLOCK_ROWS", 4)
    for one, other in zip(small, batches(), strict=True):
        assert torch.equal(one, other)


def test_large_arrays_are_files_without_a_name(tmp_path: Path, small_limits: None):
    array = large_arrays.zeros(tmp_path, (600, 2), np.float32)
    assert type(array) is np.ndarray and not array.any() and not any(tmp_path.iterdir())
    assert isinstance(array.base, np.memmap) and type(large_arrays.zeros(tmp_path, 9, bool).base) is type(
        None
    )
    array[:] = 1.5
    assert large_arrays.keep(tmp_path, array[1:]).base is not None
    assert np.shares_memory(large_arrays.keep(tmp_path, array[1:]), array)
    values = np.arange(5000)
    kept = large_arrays.keep(tmp_path, values)
    assert np.array_equal(kept, values) and not np.shares_memory(kept, values)
    squares = large_arrays.by_blocks(tmp_path, 5000, np.int64, lambda rows: values[rows] ** 2)
    assert np.array_equal(squares, values**2)
