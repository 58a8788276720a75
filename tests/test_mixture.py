"""Mixtures of data sets: shares, determinism, ranks, task texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import image_episodes, open_chunks, random_episodes, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.frames import FrameSettings
from chunkrl.data.mixture import MixtureLoader, Source, concatenate, source_counts
from chunkrl.errors import DatasetError


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[ChunkDataset]:
    base = tmp_path_factory.mktemp("mixture")
    sizes = {"a": 4, "b": 1, "c": 2}
    return [
        open_chunks(write_dataset(base / name, random_episodes(n, seed=n), (f"task {name}",)))
        for name, n in sizes.items()
    ]


def mixture(
    datasets: list[ChunkDataset], *weights: float, batch_size: int = 8, **settings: Any
) -> MixtureLoader:
    sources = [Source(d, w) for d, w in zip(datasets, weights, strict=False)]
    return MixtureLoader(sources, batch_size, settings.pop("seed", 0), **settings)


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=6),
    st.integers(1, 64),
    st.floats(0, 1, exclude_max=True),
)
def test_each_count_is_the_share_rounded_up_or_down(weights: list[float], size: int, offset: float) -> None:
    shares = np.array(weights) / np.sum(weights)
    counts = source_counts(shares, size, offset)
    assert counts.sum() == size
    assert (counts >= np.floor(shares * size - 1e-6)).all()
    assert (counts <= np.ceil(shares * size + 1e-6)).all()


def test_counts_are_the_shares_on_average() -> None:
    shares = np.array([0.5, 0.03, 0.47])
    offsets = (np.arange(1000) + 0.5) / 1000
    mean = np.mean([source_counts(shares, 10, offset) for offset in offsets], axis=0)
    np.testing.assert_allclose(mean, 10 * shares, atol=2e-3)


def test_shares_tasks_and_labels(datasets: list[ChunkDataset]) -> None:
    loader = mixture(datasets, 2, 1, 1)
    batch = loader.batch(0)
    for update in range(20):
        batch = loader.batch(update)
        assert [batch.observation.task.count(f"task {name}") for name in "abc"] == [4, 2, 2]
        assert batch.observation.task == batch.next_observation.task
        assert batch.actions.shape == (8, 3, 2)
    # `index` counts through the sources, and is the row that the batch holds.
    flat = concatenate([dataset.batch(np.arange(len(dataset))) for dataset in datasets])
    assert batch.observation.state is not None and flat.observation.state is not None
    assert torch.equal(batch.observation.state, flat.observation.state[batch.index])
    assert torch.equal(batch.actions, flat.actions[batch.index])


def test_every_row_is_drawn_once_a_pass(datasets: list[ChunkDataset]) -> None:
    loader = mixture(datasets[:2], 1, 1, batch_size=2)
    size = len(datasets[1])
    rows = [int(loader.positions(update)[1][0]) for update in range(3 * size)]
    passes = [rows[i * size : (i + 1) * size] for i in range(3)]
    for one in passes:
        assert sorted(one) == list(range(size))
    assert passes[0] != passes[1]


def test_a_source_smaller_than_its_share_repeats(datasets: list[ChunkDataset]) -> None:
    size = len(datasets[1])
    rows = mixture(datasets[1:2], 1, batch_size=2 * size + 1).positions(0)[0]
    assert np.bincount(rows, minlength=size).max() <= 3
    assert (np.bincount(rows, minlength=size) >= 2).all()


def test_a_function_of_seed_and_update(datasets: list[ChunkDataset]) -> None:
    loader, again = mixture(datasets, 1, 0.3, 2), mixture(datasets, 1, 0.3, 2)
    drawn = [loader.batch(update).index.tolist() for update in range(12)]
    assert [again.batch(update).index.tolist() for update in (11, 0, 7)] == [drawn[11], drawn[0], drawn[7]]
    assert mixture(datasets, 1, 0.3, 2, seed=1).batch(0).index.tolist() != drawn[0]
    assert loader.updates_per_epoch == sum(map(len, datasets)) // 8


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_batch(datasets: list[ChunkDataset], world_size: int) -> None:
    whole = mixture(datasets, 2, 1, 1)
    parts = [mixture(datasets, 2, 1, 1, rank=rank, world_size=world_size) for rank in range(world_size)]
    for update in range(5):
        drawn = [part.batch(update) for part in parts]
        together = sorted(index for batch in drawn for index in batch.index.tolist())
        assert together == sorted(whole.batch(update).index.tolist())
        assert {len(batch.index) for batch in drawn} == {8 // world_size}
        assert {batch.observation.task.count("task a") for batch in drawn} == {4 // world_size}


def test_what_does_not_fit_is_refused(datasets: list[ChunkDataset], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least one"):
        MixtureLoader([], 8, 0)
    with pytest.raises(DatasetError, match="weight 0"):
        mixture(datasets, 1, 0)
    with pytest.raises(DatasetError, match="multiple"):
        mixture(datasets, 1, world_size=3)
    other = open_chunks(datasets[0].table.description.root, horizon=2)
    with pytest.raises(DatasetError, match=r"actions a chunk: 2, but .* has 3"):
        MixtureLoader([Source(datasets[0]), Source(other)], 8, 0)
    roots = [write_dataset(tmp_path / str(n), image_episodes(1, ("front",), n)) for n in (16, 32)]
    with pytest.raises(DatasetError, match=r"cameras .*32, 32.* resize"):
        MixtureLoader([Source(open_chunks(root)) for root in roots], 2, 0)
    small = FrameSettings(resize=(16, 16))
    loader = MixtureLoader([Source(open_chunks(root, frames=small)) for root in roots], 2, 0)
    assert loader.batch(0).observation.images["observation.images.front"].shape == (2, 3, 16, 16)
    datasets[0].attach("value", np.zeros(len(datasets[0])))
    with pytest.raises(DatasetError, match="different labels"):
        mixture(datasets, 1, 1).batch(0)
    datasets[0].labels.clear()
