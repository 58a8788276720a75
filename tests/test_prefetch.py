"""Batches loaded alongside training: in order, bounded, with the labels of the moment, and nothing else changes."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import identity_factory, image_episodes, open_chunks, random_episodes, write_dataset

from chunkrl.algorithms.cloning import Cloning, CloningConfig
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.loader import ChunkLoader
from chunkrl.data.prefetch import Prefetcher
from chunkrl.errors import DatasetError
from chunkrl.training.config import OptimConfig
from chunkrl.training.trainer import Trainer, TrainerConfig
from chunkrl.types import ChunkTransition


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_numbers_come_in_order_and_only_a_few_are_loaded_ahead() -> None:
    loaded: list[int] = []
    reached = threading.Condition()

    def load(number: int) -> int:
        with reached:
            loaded.append(number)
            reached.notify_all()
        return 10 * number

    with Prefetcher(load, range(3, 9), ahead=2) as ahead:
        for place in range(6):
            assert ahead.next() == 10 * (place + 3)
            # two more are loaded while the caller works, whatever it does, and no third
            expected = list(range(3, min(9, place + 6)))
            with reached:
                assert reached.wait_for(lambda n=len(expected): len(loaded) >= n, timeout=240)
                assert loaded == expected
        with pytest.raises(IndexError):
            ahead.next()
    assert not threads()


def test_an_error_comes_up_where_it_is_due_and_as_it_was_raised() -> None:
    def load(number: int) -> int:
        if number == 2:
            raise DatasetError("image 2 is damaged")
        return number

    with Prefetcher(load, range(5)) as ahead:
        assert [ahead.next(), ahead.next()] == [0, 1]
        with pytest.raises(DatasetError, match="image 2 is damaged"):
            ahead.next()
    assert not threads()


def test_closing_waits_for_the_thread_and_drops_the_rest() -> None:
    begun, go_on = threading.Event(), threading.Event()
    loaded: list[int] = []

    def load(number: int) -> int:
        begun.set()
        go_on.wait(30)
        loaded.append(number)
        return number

    ahead = Prefetcher(load, range(100), ahead=5)
    assert begun.wait(30)
    threading.Timer(0.05, go_on.set).start()
    ahead.close()
    assert loaded == [0] and not threads()


class Recorder:
    """An algorithm that keeps its batches, and changes a label after some updates."""

    def __init__(self, learner: Cloning, relabel_after: dict[int, float]) -> None:
        self.learner, self.relabel_after = learner, relabel_after
        self.seen: list[ChunkTransition] = []
        self.in_loop: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def update(self, name: str, batch: ChunkTransition) -> Any:
        self.seen.append(batch)
        metrics = self.learner.update(name, batch)
        if (value := self.relabel_after.get(len(self.seen))) is not None:
            data = self.learner._dataset
            data.attach("weight", np.full(len(data), value, np.float32))
        return metrics


def recorder(dataset: Any, relabel_after: dict[int, float] | None = None, updates: int = 8) -> Any:
    config = CloningConfig(policy_updates=updates, value_updates=0)
    torch.manual_seed(0)
    networks = identity_factory(dataset.datasets[0] if isinstance(dataset, ChunkCollection) else dataset)
    learner = Cloning(config, networks, OptimConfig(), dataset, 0, torch.device("cpu"))
    return Recorder(learner, relabel_after or {})


def test_every_batch_has_the_labels_of_its_update(tmp_path: Path) -> None:
    roots = [write_dataset(tmp_path / str(n), random_episodes(4, seed=n)) for n in range(2)]
    dataset = ChunkCollection([open_chunks(root) for root in roots])
    algorithm = recorder(dataset, {3: 0.5, 4: 0.25})
    Trainer(algorithm, dataset, TrainerConfig(batch_size=6)).run()
    weights = [batch.labels["weight"].unique().tolist() for batch in algorithm.seen]
    assert weights == [[1.0]] * 3 + [[0.5]] + [[0.25]] * 4


def test_batches_and_torchs_random_numbers_are_those_of_a_loop_that_loads_itself(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", image_episodes(4, size=8))
    # decoded on demand: the slow way, on threads of its own
    dataset = open_chunks(root, frames=FrameSettings(cache=False))
    algorithm = recorder(dataset)
    Trainer(algorithm, dataset, TrainerConfig(batch_size=4, seed=5)).run()
    drawn = torch.rand(3)
    by_hand = recorder(dataset)
    loader = ChunkLoader(dataset, 4, 5, next_observation=False)
    by_hand.learner.start_phase("policy")
    for update, batch in enumerate(algorithm.seen):
        own = loader.batch(update)
        by_hand.update("policy", own)
        assert torch.equal(own.index, batch.index) and torch.equal(own.actions, batch.actions)
        for camera, images in own.observation.images.items():
            assert torch.equal(images, batch.observation.images[camera])
    assert torch.equal(drawn, torch.rand(3))
    ours, theirs = (r.learner.policy.parameters() for r in (algorithm, by_hand))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_damaged_picture_stops_training_with_its_own_error(tmp_path: Path) -> None:
    dataset = open_chunks(write_dataset(tmp_path / "d", image_episodes(4, size=8)))
    algorithm = recorder(dataset)
    batch = dataset.batch

    def damaged(*args: Any, **kwargs: Any) -> ChunkTransition:
        if len(algorithm.seen) >= 1:
            raise DatasetError("episode 1: the image is damaged")
        return batch(*args, **kwargs)

    dataset.batch = damaged  # type: ignore[method-assign]
    with pytest.raises(DatasetError, match="episode 1: the image is damaged"):
        Trainer(algorithm, dataset, TrainerConfig(batch_size=4)).run()
    assert not threads()
