"""Training on data that grow: folds that stay, labels that are carried, updates that wait for steps."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs chunkrl[online]")

from growing_data import HORIZON, Growing, add, collections, present, settings
from online_records import SPEC, episode, episode_id

from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.algorithms.config import BalanceConfig, ConditioningConfig, DistilConfig
from chunkrl.algorithms.growth import EpisodeRows, carry, extend_folds
from chunkrl.config import load_config
from chunkrl.data import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.online.learner.config import LearnerConfig, LearnerReplay, OnlineConfig
from chunkrl.online.learner.data import DataWorker, Generation, LearnerData, replay_settings
from chunkrl.online.learner.replay import Replay
from chunkrl.online.learner.source import OnlineSource
from chunkrl.online.link.config import ReplayConfig
from chunkrl.online.link.records import Hello
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.wire import Batch, encode_item
from chunkrl.progress import silent
from chunkrl.training.data_source import FixedData


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


def test_data_without_a_success_left_are_not_gone_on_with(tmp_path, caplog):
    """Where all of them made room for failures; training has what it had until one comes."""
    of, changed = collections(tmp_path), threading.Condition()
    worker = Worker(Generation(of["few"], 8, 48))
    source = OnlineSource(worker, OnlineConfig(), changed, "")  # type: ignore[arg-type]
    source.push = lambda num_steps, own: None
    assert source.wait_for_first(True, print)
    failures = Replay(tmp_path / "failures", SPEC, ReplayConfig(cameras="image"))
    for number in range(20, 23):
        add(failures, number, outcome="failure")
    failures.close()
    shard = ChunkDataset(
        tmp_path / "failures" / "shard-000000",
        settings(cameras=()),
        cache_dir=tmp_path / "c",
        progress=silent,
    )
    worker.newest = Generation(ChunkCollection([shard]), 11, 66)
    for done in range(2):
        source.updated(done + 1)
        assert source.is_due(done + 1, True) and source.take(done + 1, True) is None
    assert source.data is of["few"] and caplog.text.count("no episode of the newest data succeeds") == 1
    worker.newest = Generation(of["more"], 12, 72)
    assert source.take(2, True) is of["more"]


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
        (
            {
                "objective": "advantage_conditioned",
                "policy": PolicyConfig(kind="pi"),
                "pi0_config": "pi05",
                "conditioning": ConditioningConfig(force_high=(0,)),
            },
            "--conditioning.force-high names offline",
        ),
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
