"""What a learner trains on: shares of online data in a batch, pictures that stay, shards that come and go."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from chunk_data import random_episodes, write_dataset

pytest.importorskip("grpc", reason="needs chunkrl[online]")

from growing_data import HORIZON, add, offline, present, settings
from online_records import SPEC, episode, episode_id
from test_label_by_hand import begin, do

from chunkrl.data import ChunkDataset, ChunkSettings, chunks, images
from chunkrl.data.control import Control
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.loader import ChunkLoader
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand
from chunkrl.label.marks import Edit
from chunkrl.online.learner.data import Generation, LearnerData, check_no_labels
from chunkrl.online.learner.replay import Replay
from chunkrl.online.link.config import ReplayConfig
from chunkrl.online.link.records import StepRecord
from chunkrl.progress import silent


@pytest.fixture
def replay(tmp_path):
    replay = Replay(
        tmp_path / "replay", SPEC, ReplayConfig(shard_episodes=2, capacity_steps=15, cameras="image")
    )
    yield replay
    replay.close()


def test_every_batch_has_its_share_of_online_data(tmp_path, replay):
    data = LearnerData(
        [offline(tmp_path / "a"), offline(tmp_path / "b", 3)], (), settings(), tmp_path / "cache", 0.25
    )
    assert len(present(data.offline_only().data).datasets) == 2
    for number in range(3):
        add(replay, number, 4 + number)
    generation = data.open(replay)
    assert (generation.num_episodes, generation.num_steps) == (3, 15)
    assert (generation.online_episodes, generation.online_steps) == (3, 15)
    collection = present(generation.data)
    loader = ChunkLoader(collection, 16, seed=0)
    counts = np.array([np.bincount(collection.source(loader.positions(i)), minlength=4) for i in range(400)])
    assert (counts[:, 2:].sum(1) == 4).all()  # 25 % of 16, in every batch
    sizes = np.array([len(dataset) for dataset in collection.datasets])
    assert sizes.tolist() == [45, 18, 9, 6]
    np.testing.assert_array_equal(
        collection.pool(np.arange(78)), np.repeat([0, 1, 2], [45, 18, 15])
    )  # shards are one
    np.testing.assert_allclose(counts.mean(0)[:2], 12 * sizes[:2] / 63, atol=0.1)
    np.testing.assert_allclose(counts.mean(0)[2:], 4 * sizes[2:] / 15, atol=0.1)


def test_what_the_first_shard_decides_of_padding_holds_for_all(tmp_path, replay, monkeypatch, caplog):
    kinds = iter(("unclear", "absolute", "absolute"))
    monkeypatch.setattr(chunks, "recognise_control", lambda *_: Control(next(kinds), (), "a first look"))
    data = LearnerData((), (), settings(), tmp_path / "cache", 1.0)
    for number in range(3):
        add(replay, number, 4 + number)
    alone = present(data.open(replay).data)
    shards = alone.datasets
    assert len(shards) == 2 and (alone.pool(np.arange(len(alone))) == 0).all()
    assert [shard.hold.control for shard in shards] == ["delta", "delta"]
    assert caplog.text.count("unclear (a first look): taken for motions") == 1
    add(replay, 3, 4)
    assert {shard.hold.control for shard in present(data.open(replay).data).datasets} == {"delta"}


def test_pictures_are_decoded_once_and_are_those_of_a_fresh_cache(tmp_path, replay, monkeypatch):
    decoded = []
    original = images.image_frames
    monkeypatch.setattr(images, "image_frames", lambda *a: decoded.append(len(a[3])) or original(*a))
    monkeypatch.chdir(tmp_path)
    data = LearnerData([], (), settings(), Path("cache"), 0.5)  # as of a relative --output-dir
    add(replay, 0, 4)
    data.open(replay)
    add(replay, 1, 5)
    generation = data.open(replay)
    assert sum(decoded) == 9
    fresh = ChunkDataset(
        replay.root / "shard-000000", settings(), cache_dir=tmp_path / "fresh", progress=silent
    )
    rows = np.arange(9)
    camera = "observation.images.front"
    np.testing.assert_array_equal(
        present(generation.data).datasets[0].table.images(camera, rows), fresh.table.images(camera, rows)
    )
    data.drop_unused(present(generation.data))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [
        present(generation.data).datasets[0].fingerprint
    ]


@pytest.mark.parametrize("links", [True, False])
def test_pictures_that_are_there_are_not_copied(tmp_path, replay, monkeypatch, links):
    """New ones go into the same file, which those who train on the older data have mapped; a disk that is full then
    changes nothing."""
    if not links:

        def refuse(*_):
            raise PermissionError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    data, camera = LearnerData([], (), settings(), tmp_path / "cache", 0.5), "observation.images.front"
    add(replay, 0, 4)
    before = present(data.open(replay).data).datasets[0].table
    pictures = before.images(camera, np.arange(4))
    add(replay, 1, 5)
    with monkeypatch.context() as full:

        def no_space(_):
            raise ChunkRLError("the disk is full")

        full.setattr(images, "sync_array", no_space)
        with pytest.raises(ChunkRLError, match="the disk is full"):
            data.open(replay)
    np.testing.assert_array_equal(before.images(camera, np.arange(4)), pictures)
    after = present(data.open(replay).data).datasets[0].table
    assert after.images(camera, np.arange(9)).shape[0] == 9
    np.testing.assert_array_equal(after.images(camera, np.arange(4)), pictures)
    again = pickle.loads(pickle.dumps(before))  # as another process opens it
    np.testing.assert_array_equal(again.images(camera, np.arange(4)), pictures)
    files = {file.stat().st_ino for file in (tmp_path / "cache").rglob("pictures.npy")}
    assert len(files) == (1 if links else 2)


def test_a_kill_or_a_full_disk_between_leaves_the_pictures_of_before(tmp_path, replay, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    data, camera = LearnerData([], (), settings(), tmp_path / "cache", 0.5), "observation.images.front"
    add(replay, 0, 4)
    before = present(data.open(replay).data).datasets[0].table
    pictures = before.images(camera, np.arange(4)).copy()
    assert pictures.any()
    add(replay, 1, 5)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        with pytest.raises(ChunkRLError, match=r"cannot be written.*no space"):
            data.open(replay)
    with monkeypatch.context() as patch:
        patch.setattr(images, "sync_array", kill)
        patch.setattr(images.shutil, "rmtree", lambda *_: None)
        with pytest.raises(Killed):
            data.open(replay)
    after = present(data.open(replay).data).datasets[0].table
    for table in (before, after):
        np.testing.assert_array_equal(table.images(camera, np.arange(4)), pictures)
    files = {file.stat().st_ino for file in (tmp_path / "cache").rglob("pictures.npy")}
    assert len(files) == 2  # it began again, but not by emptying the file that is trained on


def test_an_evicted_shard_is_gone_and_counts_go_on(tmp_path, replay):
    data = LearnerData([], (), settings(), tmp_path / "cache", 0.5)
    generation = Generation(None)
    for number in range(5):
        add(replay, number)
        generation = data.open(replay)
    assert [Path(d.name).name for d in present(generation.data).datasets] == ["shard-000001", "shard-000002"]
    assert (generation.num_episodes, generation.num_steps) == (5, 30)
    assert (generation.online_episodes, generation.online_steps) == (3, 18)
    assert present(generation.data).episode_identities == tuple(episode_id(number) for number in (2, 3, 4))
    replay.close()
    again = Replay(
        tmp_path / "replay", SPEC, ReplayConfig(shard_episodes=2, capacity_steps=15, cameras="image")
    )
    assert again.totals == (5, 30)
    again.close()


def test_a_shard_of_short_episodes_waits(tmp_path, replay):
    data = LearnerData([], (), settings(), tmp_path / "cache", 0.5)
    add(replay, 0, HORIZON - 1)
    assert data.open(replay).data is None
    add(replay, 1, HORIZON)
    assert len(present(data.open(replay).data)) == 2 * HORIZON - 1


def test_columns_that_the_offline_data_alone_have_are_not_asked_of_the_replay(tmp_path, replay):
    rule = LabelRule(success="subgoal_last", subgoal="column", subgoal_key="grasped", human_key="h")
    add(replay, 0, outcome="success")
    data = LearnerData((), (), settings(labels=rule), tmp_path / "cache", 0.5).open(replay).data
    assert data is not None
    assert data.frame_labels.success.tolist() == [True]
    steps = [item for item in episode(0, len(data), "success") if isinstance(item, StepRecord)]
    np.testing.assert_array_equal(data.frame_labels.reward, [step.reward for step in steps])
    np.testing.assert_array_equal(data.frame_labels.human, [step.human for step in steps])


def test_labels_of_a_shard_are_not_passed_over_in_silence(tmp_path, replay, caplog):
    for number in range(3):
        add(replay, number, outcome="failure")
    root = tmp_path / "replay"
    check_no_labels(tmp_path / "none")
    check_no_labels(root)
    data = LearnerData((), (), settings(), tmp_path / "cache", 0.5)
    data.open(replay)
    assert not caplog.records
    labels = begin(root / "shard-000000", LabelRule(step_reward="success"))
    do(labels, 0, Edit("success", 2))
    do(labels, 1, Edit("exclude"))
    labels.close()
    add(replay, 3, outcome="failure")
    data.open(replay)
    found = present(data.open(replay).data)  # a robot at work goes on; once is enough
    assert not found.frame_labels.success.any() and found.num_episodes == 4
    (record,) = caplog.records
    words = "has labels (labels/by_hand.parquet), and a learner reads what its actors recorded, not these"
    assert words in record.message and str(root / "shard-000000" / "labels") in record.message
    with pytest.raises(DatasetError, match=r"move .* away to go on without them") as refused:
        check_no_labels(root)
    assert str(refused.value) == record.message
    # the way that is named: a data set that a new learner begins with
    named = LabelRule(labels="labels/by_hand.parquet")
    label_dataset(LabelCommand(str(root / "shard-000000"), named, export=str(tmp_path / "new")), silent)
    made = ChunkDataset(tmp_path / "new", ChunkSettings(HORIZON), progress=silent)
    assert made.frame_labels.success.tolist() == [True]
    assert np.flatnonzero(made.frame_labels.terminated).tolist() == [2]


def test_the_share_of_one_leaves_offline_data_out(tmp_path, replay):
    data = LearnerData([offline(tmp_path / "a")], (), settings(), tmp_path / "cache", 1.0)
    add(replay, 0)
    assert [Path(d.name).parent.name for d in present(data.open(replay).data).datasets] == ["replay"]


def test_identities_are_those_of_the_episodes_wherever_they_are(tmp_path):
    root = write_dataset(tmp_path / "d", random_episodes(3))
    plain = ChunkDataset(root, ChunkSettings(HORIZON), cache_dir=tmp_path / "cache", progress=silent)
    assert plain.episode_identities == tuple(f"{plain.fingerprint}/{index}" for index in range(3))
    assert offline(tmp_path / "a", 2).episode_identities == (episode_id(1000), episode_id(1001))
