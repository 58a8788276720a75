"""Several data sets as one: shares, determinism, ranks, task texts, training on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import image_episodes, open_chunks, random_episodes, write_dataset
from chunk_data import settings as training_settings
from hypothesis import given
from hypothesis import strategies as st

from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.loader import ChunkLoader, source_counts
from chunkrl.data.sidecar import load_sidecar
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.models.config import NetworkConfig
from chunkrl.types import ChunkTransition


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
) -> ChunkLoader:
    collection = ChunkCollection(datasets, weights or None)
    return ChunkLoader(collection, batch_size, settings.pop("seed", 0), **settings)


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
    wholes = [dataset.batch(np.arange(len(dataset))) for dataset in datasets]
    assert batch.observation.state is not None
    states = [whole.observation.state for whole in wholes if whole.observation.state is not None]
    assert torch.equal(batch.observation.state, torch.cat(states)[batch.index])
    assert torch.equal(batch.actions, torch.cat([whole.actions for whole in wholes])[batch.index])


def test_a_batch_keeps_the_order_it_was_asked_for(datasets: list[ChunkDataset]) -> None:
    collection = ChunkCollection(datasets)
    first, second = len(datasets[0]), len(datasets[1])
    index = np.array([first + second, 1, first, 0, len(collection) - 1])
    batch = collection.batch(index, next_observation=False)
    assert batch.index.tolist() == index.tolist()
    assert batch.observation.task == ("task c", "task a", "task b", "task a", "task c")
    assert batch.next_observation is batch.observation
    expected = [datasets[2][0], datasets[0][1], datasets[1][0], datasets[0][0], datasets[2][-1]]
    for row, item in enumerate(expected):
        assert torch.equal(batch.actions[row], item.actions)
        assert batch.frame_index[row] == item.frame_index and batch.episode_index[row] == item.episode_index


def test_frames_and_episodes_count_through_the_data_sets(datasets: list[ChunkDataset]) -> None:
    collection = ChunkCollection(datasets)
    assert (len(collection), collection.num_episodes) == (sum(map(len, datasets)), 7)
    assert collection.starts.tolist() == list(range(collection.num_frames))
    assert np.unique(collection.episode).tolist() == list(range(7))
    assert collection.frame_labels.success.tolist() == [True, False, True, False, True, True, False]
    # each frame's segment ends with its own episode
    last = np.flatnonzero(np.diff(collection.episode, append=-1)) + 1
    assert collection.segments.ends.tolist() == last.tolist()
    assert collection.tasks == ("task a", "task b", "task c")
    values = np.arange(len(collection), dtype=np.float32)
    collection.attach("number", values)
    assert collection.batch(np.array([0, len(collection) - 1])).labels["number"].tolist() == [0, values[-1]]
    for dataset in datasets:
        dataset.labels.clear()
    pooled = np.concatenate([dataset.table.action for dataset in datasets])
    np.testing.assert_allclose(collection.action_statistics().mean, pooled.mean(0), atol=1e-6)
    np.testing.assert_allclose(collection.action_statistics().std, pooled.std(0), atol=1e-6)
    assert ChunkCollection(datasets[:1]).digest() == datasets[0].digest() != collection.digest()


def test_without_weights_every_start_is_equally_likely(datasets: list[ChunkDataset]) -> None:
    loader = mixture(datasets)
    counts = np.zeros(len(loader.data))
    for update in range(4000):
        counts += np.bincount(loader.positions(update), minlength=len(counts))
    np.testing.assert_allclose(counts / counts.sum() * len(counts), 1, atol=0.1)


@pytest.mark.parametrize("subset", [None, [2, 3, 5, 7, 11, 13, 17]])
def test_one_data_set_gives_a_fresh_permutation_an_epoch(
    datasets: list[ChunkDataset], subset: list[int] | None
) -> None:
    positions = np.arange(len(datasets[0])) if subset is None else np.array(subset)
    loader = ChunkLoader(datasets[0], 3, 5, subset=subset)
    assert loader.updates_per_epoch == len(positions) // 3
    for update in range(3 * loader.updates_per_epoch):
        epoch, number = divmod(update, loader.updates_per_epoch)
        order = np.random.default_rng([5, epoch]).permutation(positions)
        assert loader.positions(update).tolist() == order[3 * number : 3 * number + 3].tolist()


def test_a_subset_leaves_out_data_sets_without_any(datasets: list[ChunkDataset]) -> None:
    first = len(datasets[0])
    loader = mixture(datasets, 1, 1, 2, batch_size=4, subset=[0, 1, 2, first, first + 1])
    for update in range(10):
        drawn = loader.positions(update)
        assert sorted(drawn >= first) == [False, False, True, True]
        assert set(drawn) <= {0, 1, 2, first, first + 1}
    with pytest.raises(DatasetError, match="0 transitions"):
        mixture(datasets, 1, 1, 1, subset=[])


def test_every_row_is_drawn_once_a_pass(datasets: list[ChunkDataset]) -> None:
    loader = mixture(datasets[:2], 1, 1, batch_size=2)
    size = len(datasets[1])
    rows = [int(loader.positions(update)[1]) - len(datasets[0]) for update in range(3 * size)]
    passes = [rows[i * size : (i + 1) * size] for i in range(3)]
    for one in passes:
        assert sorted(one) == list(range(size))
    assert passes[0] != passes[1]


def test_a_source_smaller_than_its_share_repeats(datasets: list[ChunkDataset]) -> None:
    size = len(datasets[1])
    loader = mixture(datasets[:2], 1, 2 * size + 1, batch_size=2 * size + 2)
    rows = loader.positions(0)[1:] - len(datasets[0])
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


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_end_to_end_have_their_shares_each(datasets: list[ChunkDataset], world_size: int) -> None:
    single = mixture(datasets, 2, 1, 1)
    assert mixture(datasets, batches_per_update=3).updates_per_epoch == sum(map(len, datasets)) // 24
    for rank in range(world_size):
        loader = mixture(datasets, 2, 1, 1, rank=rank, world_size=world_size, batches_per_update=3)
        size = loader.batch_size // 3
        assert size * world_size == single.batch_size
        for update in range(5):
            for number, part in enumerate(np.split(loader.positions(update), 3)):
                whole = single.positions(3 * update + number)
                assert part.tolist() == whole[rank::world_size].tolist()


def test_values_and_policy_of_one_update_draw_from_all_data_sets(
    datasets: list[ChunkDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [dataset.name for dataset in datasets[:2]]
    run = ChunkLevelOfflineRL(
        dataset_dir=roots[0],
        additional_offline_dataset_paths=(roots[1],),
        dataset_weights=(1.0, 1.0),
        **{"action_horizon": 3, "action_dim": 2, "batch_size": 8, "num_updates": 4, "value_updates": 2},
        **{"num_folds": 2, "network": NetworkConfig(hidden_dim=8, num_layers=1), "device": "cpu"},
        **{"value_updates_per_update": 2, "relabel_interval": 2, "output_dir": str(tmp_path / "run")},
    )
    seen: dict[str, list[list[int]]] = {"values": [], "policy": []}

    def recorded(name: str, update: Callable[..., Any]) -> Callable[..., Any]:
        def call(batch: ChunkTransition) -> Any:
            seen[name].append(np.bincount(run.dataset.source(batch.index.numpy()), minlength=2).tolist())
            return update(batch)

        return call

    values = run.algorithm.values
    monkeypatch.setattr(values, "update", recorded("values", values.update))
    monkeypatch.setattr(run.algorithm, "_update_policy", recorded("policy", run.algorithm._update_policy))
    run.train()
    assert seen == {"values": [[4, 4]] * 10, "policy": [[4, 4]] * 4}


def test_data_sets_of_different_rates_are_refused(
    datasets: list[ChunkDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chunk_data.FPS", 20.0)
    fast = open_chunks(write_dataset(tmp_path / "fast", random_episodes(1)))
    with pytest.raises(DatasetError) as caught:
        ChunkCollection([datasets[0], fast])
    for part in (
        fast.name,
        datasets[0].name,
        "frames per second: 20.0, but",
        "has 10.0",
        "leave the data set out",
    ):
        assert part in str(caught.value)


def test_what_does_not_fit_is_refused(datasets: list[ChunkDataset], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least one"):
        ChunkCollection([])
    with pytest.raises(DatasetError, match="weight 0"):
        mixture(datasets[:2], 1, 0)
    with pytest.raises(DatasetError, match="2 weights for 3 data sets"):
        mixture(datasets, 1, 1)
    with pytest.raises(DatasetError, match="multiple"):
        mixture(datasets, world_size=3)
    other = open_chunks(Path(datasets[0].name), horizon=2)
    with pytest.raises(DatasetError, match=r"actions per chunk: 2, but .* has 3"):
        ChunkCollection([datasets[1], other])
    with pytest.raises(DatasetError, match=r"is there twice: .*--dataset-weights"):
        ChunkCollection([datasets[0], datasets[1], datasets[0]])
    roots = [write_dataset(tmp_path / str(n), image_episodes(1, ("front",), n)) for n in (16, 32)]
    with pytest.raises(DatasetError, match=r"cameras .*32, 32.* resize"):
        ChunkCollection([open_chunks(root) for root in roots])
    small = FrameSettings(resize=(16, 16))
    loader = ChunkLoader(ChunkCollection([open_chunks(root, frames=small) for root in roots]), 2, 0)
    assert loader.batch(0).observation.images["observation.images.front"].shape == (2, 3, 16, 16)
    datasets[0].attach("value", np.zeros(len(datasets[0])))
    with pytest.raises(DatasetError, match="different labels"):
        mixture(datasets[:2], 1, 1).batch(0)
    datasets[0].labels.clear()


def offline(root: Path, output: Path, **settings: Any) -> ChunkLevelOfflineRL:
    paths = (str(root / "b"), str(root / "c"))
    own: dict[str, Any] = {"value_epochs": 2.0, "num_folds": 3, "num_updates": 8}
    own |= {"network": NetworkConfig(hidden_dim=16, num_layers=1), "log_interval": TrainConfig().log_interval}
    own |= {"additional_offline_dataset_paths": paths}
    return ChunkLevelOfflineRL(**training_settings(root / "a", output, own, **settings))


@pytest.mark.parametrize("objective", ["cross_fitted", "iql"])
def test_training_on_several_data_sets_resumes(
    datasets: list[ChunkDataset], tmp_path: Path, objective: str
) -> None:
    root = Path(datasets[0].name).parent
    weights = (2.0, 1.0, 1.0)
    whole = offline(root, tmp_path / "whole", objective=objective, dataset_weights=weights)
    whole.train()
    assert whole.policy.encoder.spec.use_task  # each data set has one task, all together have three
    # folds are over the episodes of all data sets
    fold = np.concatenate([dataset.labels["fold"] for dataset in whole.dataset.datasets])
    first_frames = np.unique(whole.dataset.episode, return_index=True)[1]
    assert np.bincount(fold[first_frames]).tolist() == [3, 2, 2]
    half = offline(root, tmp_path / "half", objective=objective, dataset_weights=weights, num_updates=4)
    half.train()
    resumed = offline(
        root, tmp_path / "half", objective=objective, dataset_weights=weights, resume=str(tmp_path / "half")
    )
    resumed.train()
    for ours, theirs in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ChunkRLError, match="dataset_weights"):
        offline(
            root, tmp_path / "half", objective=objective, dataset_weights=(), resume=str(tmp_path / "half")
        )
    if objective == "cross_fitted":
        for name, dataset in zip(("values", "values-1", "values-2"), whole.dataset.datasets, strict=True):
            found = load_sidecar(tmp_path / "whole" / f"{name}.parquet", dataset.table)
            assert found.metadata["dataset"] == dataset.name
            np.testing.assert_array_equal(found.arrays["value"], dataset.labels["value"])


def test_labels_of_additional_data_sets(datasets: list[ChunkDataset], tmp_path: Path) -> None:
    root = Path(datasets[0].name).parent
    run = offline(root, tmp_path, labels=LabelRule(success="all"), additional_success="next.success")
    assert run.dataset.frame_labels.success.tolist() == [True] * 4 + [True] + [True, False]
    listed = LabelRule(success="episodes", success_episodes=(0, 1))
    run = offline(root, tmp_path, labels=listed, additional_success="auto")
    assert run.dataset.frame_labels.success.tolist() == [True, True, False, False, True, True, False]
    with pytest.raises(ChunkRLError, match="--additional-success"):
        offline(root, tmp_path, labels=listed)
    with pytest.raises(ChunkRLError, match="--subgoal csv"):
        offline(root, tmp_path, labels=LabelRule(subgoal="csv", subgoal_csv="x.csv"))
    with pytest.raises(ChunkRLError, match="several data sets"):
        offline(root, tmp_path, additional_offline_dataset_paths=(), dataset_weights=(1.0,))
