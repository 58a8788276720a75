"""Data that grow: folds that stay, mixtures that are exact, labels that are carried, shards that come and go."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs chunkrl[online]")

from chunk_data import random_episodes, write_dataset
from online_records import SPEC, episode, episode_id
from test_label_by_hand import begin, do

from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.algorithms.config import BalanceConfig, DistilConfig
from chunkrl.algorithms.growth import EpisodeRows, carry, extend_folds
from chunkrl.config import load_config
from chunkrl.data import ChunkDataset, ChunkSettings, chunks, images
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.control import Control
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.loader import ChunkLoader
from chunkrl.errors import CheckpointError, ChunkRLError, DatasetError
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand
from chunkrl.label.marks import Edit
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.online.learner.config import LearnerConfig, LearnerReplay, OnlineConfig
from chunkrl.online.learner.data import DataWorker, Generation, LearnerData, check_no_labels, replay_settings
from chunkrl.online.learner.replay import Replay
from chunkrl.online.learner.source import OnlineSource
from chunkrl.online.link.config import ReplayConfig
from chunkrl.online.link.records import Hello, StepRecord
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.wire import Batch, encode_item
from chunkrl.progress import silent
from chunkrl.training.data_source import FixedData

HORIZON = 3
T = TypeVar("T")


def present(value: T | None) -> T:
    """`value`, which must be there."""
    assert value is not None
    return value


def test_an_episode_keeps_its_fold_and_a_new_one_gets_the_least_loaded_of_its_outcome():
    known = {"a": 1, "b": 0, "gone": 0}
    identities = ("new1", "a", "new2", "b", "new3", "new4")
    success = np.array([True, True, False, False, True, False])
    # new1: fold 0 has no success; new2: fold 1 has no failure; new3: both folds have one success and two episodes
    expected = [0, 1, 1, 0, 0, 1]
    fold = extend_folds(known, identities, success, 2)
    assert fold.tolist() == expected
    assert (
        extend_folds(
            dict(zip(identities, expected, strict=True)), identities[::-1], success[::-1], 2
        ).tolist()
        == (expected[::-1])
    )


def test_values_go_with_their_episodes():
    before = EpisodeRows(("a", "b", "c"), np.array([2, 3, 1]))
    now = EpisodeRows(("c", "new", "a"), np.array([1, 2, 2]))
    carried = carry(np.arange(6, dtype=np.float32), before, now)
    np.testing.assert_array_equal(carried, [5, np.nan, np.nan, 0, 1])


def add(replay: Replay, number: int, length: int = 6, outcome: str = "success", task: str = "push") -> None:
    items = episode(number, length, outcome)  # type: ignore[arg-type]
    replay.add([replace(item, task=task) for item in items if isinstance(item, StepRecord)])


def offline(root: Path, num_episodes: int = 6) -> ChunkDataset:
    """Data of the replay's shapes, from a shard of another replay."""
    replay = Replay(root, SPEC, ReplayConfig(cameras="image"))
    for number in range(num_episodes):
        add(replay, 1000 + number, 5 + number, "success" if number % 2 else "failure")
    replay.close()
    return ChunkDataset(root / "shard-000000", settings(), cache_dir=root / "cache", progress=silent)


def settings(**changes) -> ChunkSettings:
    return replay_settings(ChunkSettings(HORIZON, **changes))


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
    np.testing.assert_allclose(counts.mean(0)[:2], 12 * sizes[:2] / 63, atol=0.1)
    np.testing.assert_allclose(counts.mean(0)[2:], 4 * sizes[2:] / 15, atol=0.1)


def test_what_the_first_shard_decides_of_padding_holds_for_all(tmp_path, replay, monkeypatch, caplog):
    kinds = iter(("unclear", "absolute", "absolute"))
    monkeypatch.setattr(chunks, "recognise_control", lambda *_: Control(next(kinds), (), "a first look"))
    data = LearnerData((), (), settings(), tmp_path / "cache", 1.0)
    for number in range(3):
        add(replay, number, 4 + number)
    shards = present(data.open(replay).data).datasets
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


class Growing:
    """Grows when it is told to. at: update -> what it is from then on."""

    stopped = False

    def __init__(self, at: dict[int, ChunkCollection]) -> None:
        self.data = at[0]
        self._at, self._update = at, 0

    def is_due(self, done, last_phase):
        return self._at.get(self._update, self.data) is self.data

    def take(self, done, last_phase):
        self.data = self._at[self._update]
        return self.data

    def updated(self, update):
        self._update = update

    def metrics(self):
        return {}

    def digest(self):
        return ""


def collections(tmp_path: Path) -> dict[str, ChunkCollection]:
    """few: two shards of 4 episodes; more: the second has 8; fewer: the first is gone. Opened again by each call."""
    made = {}
    for name, numbers in (("a", range(4)), ("b", range(4, 8)), ("c", range(4, 12))):
        if not (tmp_path / name).exists():
            replay = Replay(tmp_path / name, SPEC, ReplayConfig(cameras="image"))
            for number in numbers:
                add(replay, number, 5 + number % 3, "success" if number % 2 else "failure")
            replay.close()
        made[name] = ChunkDataset(
            tmp_path / name / "shard-000000",
            settings(cameras=()),
            cache_dir=tmp_path / "cache",
            progress=silent,
        )
    return {
        "few": ChunkCollection([made["a"], made["b"]]),
        "more": ChunkCollection([made["a"], made["c"]]),
        "fewer": ChunkCollection([made["c"]]),
    }


def config(tmp_path: Path, **changes) -> TrainConfig:
    small = TrainConfig(
        action_horizon=HORIZON,
        action_dim=2,
        batch_size=8,
        num_folds=2,
        network=NetworkConfig(hidden_dim=16, num_layers=1),
        device="cpu",
        value_updates=5,
        num_updates=30,
        save_updates=1000,
        output_dir=str(tmp_path / "run"),
    )
    return replace(small, **changes)


@pytest.mark.parametrize("value_updates_per_update", [0, 1])
def test_training_goes_on_as_data_come_and_go(tmp_path, value_updates_per_update):
    data = collections(tmp_path)
    more: dict[str, Any] = {"balance": BalanceConfig(min_starts=5, time_bins=2)}
    if value_updates_per_update:
        more |= {"value_updates_per_update": 1, "relabel_interval": 8}
    run = ChunkLevelOfflineRL(
        config(tmp_path, **more),
        source=Growing(
            {0: data["few"], 3: data["more"], 15: data["few"], 16: data["more"], 25: data["fewer"]}
        ),
    )
    values = run.algorithm.values
    folds = dict(zip(data["few"].episode_identities, values.fold.tolist(), strict=True))
    low, high = values.range.low, values.range.high
    run.train()
    assert present(run.trainer).update == 35
    after = dict(zip(data["fewer"].episode_identities, values.fold.tolist(), strict=True))
    assert len(after) == 8 and all(folds[name] == fold for name, fold in after.items() if name in folds)
    assert set(after.values()) == {0, 1}
    assert (values.range.low, values.range.high) == (low, high)
    for name in ("value", "weight", "advantage"):
        assert len(run.algorithm.labels[name]) == len(data["fewer"])
    np.testing.assert_allclose(run.algorithm.labels["weight"].mean(), 1.0, rtol=1e-5)
    # the strata are those of the data of now, and each has what its successes are due
    stratum, weight = run.algorithm.labels["stratum"], run.algorithm.labels["weight"]
    good = np.unique(stratum[data["fewer"].success])
    due = [weight[stratum == one].sum() / np.count_nonzero(stratum == one) for one in good]
    assert len(good) > 1 and due == pytest.approx([due[0]] * len(good), rel=1e-4)
    # what was carried is what the networks say, where they no longer learn
    if not value_updates_per_update:
        carried = run.algorithm.labels["value"]
        values.relabel()
        np.testing.assert_allclose(values.frame_values()[0], carried, atol=1e-6)


def test_returns_outside_the_range_are_counted_and_warned_about(tmp_path, caplog):
    data = collections(tmp_path)
    fit = replace(TrainConfig().fit, return_range=(0.0, 0.5))
    run = ChunkLevelOfflineRL(config(tmp_path, fit=fit), source=Growing({0: data["few"], 3: data["more"]}))
    assert "outside 0 to 0.5" in caplog.text
    run.train()
    share = np.mean(run.algorithm.values.returns > 0.5)
    assert 0 < share < 1
    assert present(run.trainer).history["value/outside_range"][0][1] == pytest.approx(share)


def test_a_run_resumes_on_data_that_have_grown(tmp_path):
    data = collections(tmp_path)
    source = Growing({0: data["few"]})
    first = ChunkLevelOfflineRL(config(tmp_path), source=source)
    first.train()
    folds = dict(zip(data["few"].episode_identities, first.algorithm.values.fold.tolist(), strict=True))
    data = collections(tmp_path)
    again = ChunkLevelOfflineRL(
        config(tmp_path, num_updates=40, resume=str(tmp_path / "run")), source=Growing({0: data["more"]})
    )
    again.train()
    assert present(again.trainer).update == 45
    after = dict(zip(data["more"].episode_identities, again.algorithm.values.fold.tolist(), strict=True))
    assert {name: after[name] for name in folds} == folds
    assert len(again.algorithm.labels["weight"]) == len(data["more"])


@pytest.mark.parametrize("given", [None, True])
def test_whether_networks_read_the_task_is_decided_once(tmp_path, given):
    """Data of one task began the run; a second task in its resumption changes no network."""
    data = collections(tmp_path)["more"]
    first = ChunkLevelOfflineRL(config(tmp_path, use_task=given), source=Growing({0: data}))
    first.train()
    other = Replay(tmp_path / "d", SPEC, ReplayConfig(cameras="image"))
    for number in range(20, 24):
        add(other, number, task="pull")
    other.close()
    added = ChunkDataset(
        tmp_path / "d/shard-000000", settings(cameras=()), cache_dir=tmp_path / "cache", progress=silent
    )
    both = ChunkCollection([*collections(tmp_path)["more"].datasets, added])
    assert both.tasks == ("push", "pull")
    resumed = config(tmp_path, use_task=given, num_updates=33, resume=str(tmp_path / "run"))
    again = ChunkLevelOfflineRL(resumed, source=Growing({0: both}))
    again.train()
    assert present(again.trainer).update == 38
    assert (
        again.policy.encoder.spec.use_task
        == bool(given)
        == load_config(TrainConfig, tmp_path / "run/config.json").use_task
    )
    with pytest.raises(CheckpointError, match="use_task"):
        ChunkLevelOfflineRL(replace(resumed, use_task=not given), source=Growing({0: both}))


def test_init_takes_policy_values_and_folds_and_not_the_statistics_of_the_new_data(tmp_path):
    data = collections(tmp_path)
    first = ChunkLevelOfflineRL(config(tmp_path), source=FixedData(data["few"]))
    first.train()
    data = collections(tmp_path)
    second = ChunkLevelOfflineRL(
        config(tmp_path, init=str(tmp_path / "run"), value_updates=0, output_dir=str(tmp_path / "second")),
        source=Growing({0: data["more"]}),
    )
    for name, tensor in first.policy.state_dict().items():
        np.testing.assert_array_equal(second.policy.state_dict()[name], tensor, err_msg=name)
    folds = dict(zip(data["more"].episode_identities, second.algorithm.values.fold.tolist(), strict=True))
    # the run's values ended with their phase: its checkpoint of then has them
    assert len(folds) == 12
    second.train()
    assert present(second.trainer).update == 30
    assert "loss/value" not in present(second.trainer).history


class Worker:
    """A `DataWorker` that has what a test gives it."""

    def __init__(self, newest: Generation) -> None:
        self.newest, self.used = newest, []
        self.failure: Exception | None = None

    def use(self, data):
        self.used.append(data)


def test_updates_wait_for_steps_and_weights_go_out_before(tmp_path):
    data = collections(tmp_path)["few"]
    of = {"arm": 30, "other": 18}
    worker, changed = Worker(Generation(data, 8, 48, steps_by_actor=of)), threading.Condition()
    source = OnlineSource(worker, OnlineConfig(updates_per_step=0.5, push_s=1000), changed, "")  # type: ignore[arg-type]
    pushed = []
    source.push = lambda num_steps, own: pushed.append((num_steps, own))
    assert source.wait_for_first(True, print)
    assert source.is_due(0, False) and source.is_due(1000, False)  # the value phase owes nothing
    for done in range(24):
        assert source.is_due(done, True)
        source.updated(done + 1)
        if done == 11:  # 24 steps of 48: whosever the others are, at least 6 of arm's 30 are among these
            source.push_now()
            assert pushed[-1] == (24, {"arm": 6, "other": 0})
    assert not source.is_due(24, True)
    grown = Generation(data, 9, 50, steps_by_actor={"arm": 32, "other": 18})

    def arrive() -> None:
        with changed:
            worker.newest = grown
            changed.notify_all()

    timer = threading.Timer(0.3, arrive)
    timer.start()
    assert source.take(24, True) is None  # the same data; only the count is new
    assert pushed[-1] == (48, of)
    assert source.is_due(24, True)
    source.updated(25)
    assert not source.is_due(25, True)
    source.stop()
    assert source.take(25, True) is None
    timer.join()


def test_a_learner_that_goes_on_accounts_for_what_it_had_accounted_for(tmp_path):
    data = collections(tmp_path)["few"]
    worker = Worker(Generation(data, 8, 48, steps_by_actor={"arm": 48}))
    source = OnlineSource(worker, OnlineConfig(updates_per_step=0.5), threading.Condition(), "")  # type: ignore[arg-type]
    pushed = []
    source.push = lambda num_steps, own: pushed.append((num_steps, own))
    assert source.wait_for_first(True, print)
    source.begin(update=44, done=24, last_phase=True)  # 20 of values before
    source.push_now()  # before the first update after the restart
    assert pushed == [(48, {"arm": 48})]
    source.begin(update=10, done=0, last_phase=False)
    source.push_now()
    assert pushed[-1] == (0, {"arm": 0})  # values first: nothing is accounted for


def test_steps_behind_are_never_fewer_than_none(tmp_path, monkeypatch):
    """What training can have is counted before: else it would be ahead, and a run's last record say too few."""
    streams = ReceivedStreams(tmp_path / "incoming")
    streams.greet(Hello("arm", episode_id(7), SPEC))
    items = [encode_item(item) for number in range(3) for item in episode(number, 4)]
    data = LearnerData([], (), replay_settings(config(tmp_path).chunk_settings()), tmp_path / "cache", 0.5)
    place, online, changed = (
        LearnerReplay(cameras="image"),
        OnlineConfig(start_episodes=1),
        threading.Condition(),
    )
    worker = DataWorker(streams, place, tmp_path / "replay", data, online, changed)
    seen = []
    monkeypatch.setattr(
        LearnerData, "open", lambda self, replay: seen.append((worker.state.num_steps, replay.totals[1]))
    )
    for end in (5, 10, 15):
        streams.append(Batch("arm", episode_id(7), 1, end - 5, items[end - 5 : end]))
        worker._once()
    assert worker._replay is not None
    worker._replay.close()
    streams.close()
    assert seen == [(4, 4), (8, 8), (12, 12)]


def test_what_training_asks_for_is_what_failed(tmp_path):
    data = collections(tmp_path)["few"]
    worker = Worker(Generation(data, 8, 48))
    source = OnlineSource(worker, OnlineConfig(), threading.Condition(), "")  # type: ignore[arg-type]
    assert source.wait_for_first(True, print) and source.is_due(0, True)
    worker.failure = ChunkRLError("the disk is full: free some space")
    assert not source.is_due(1, True)
    with pytest.raises(ChunkRLError, match="the disk is full"):
        source.take(1, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "iql"}, "use one of cross_fitted"),
        ({"train_q": True}, "--train-q"),
        ({"distil": DistilConfig(4)}, r"--distil\.\* is of data that stay"),
        ({"dataset_weights": (1.0,)}, "several data sets"),
        ({"schedule": "cosine"}, "--num-updates"),
        (
            {
                "policy": PolicyConfig(kind="pi"),
                "pi0_config": "pi05",
                "pi": replace(TrainConfig().pi, norm_stats="data"),
            },
            "norm-stats data are of data that stay",
        ),
        (
            {
                "labels": replace(TrainConfig().labels, step_reward="cost"),
                "fit": replace(TrainConfig().fit, target="bootstrap"),
            },
            "--failure-terminal",
        ),
    ],
)
def test_settings_that_exclude_growth_are_refused(changes, message):
    with pytest.raises(ChunkRLError, match=message):
        LearnerConfig(train=replace(TrainConfig(), **changes)).check()


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
