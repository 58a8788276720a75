"""`chunkrl learner` with actors: whole processes that are killed, weights that are acted with, the jump start."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("grpc", reason="needs chunkrl[online]")

from actor_fakes import small_policy
from online_peers import SMALL
from online_records import SPEC, episode
from started import STARTED, free_address
from test_online_faults import stored_episodes
from waiting import until

from chunkrl.cli import main
from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import CheckpointError, ChunkRLError, TransportError
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.online.actor.policy_runner import PolicyRunner
from chunkrl.online.actor.recorder import ItemSpool
from chunkrl.online.learner.learner import CONFIG_FILE
from chunkrl.online.learner.replay import Replay
from chunkrl.online.link.config import ConnectConfig, ReplayConfig
from chunkrl.online.link.records import Hello, StepRecord
from chunkrl.online.link.sender import LearnerClient, SpoolSender
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.weights import WeightFetcher, policy_features
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.run.policy_io import load_policy
from chunkrl.training.metrics import read_records

SETTINGS = [
    *(
        "--action-horizon",
        "3",
        "--action-dim",
        "2",
        "--batch-size",
        "8",
        "--num-folds",
        "2",
        "--device",
        "cpu",
    ),
    *(
        "--network.hidden-dim",
        "16",
        "--fit.hidden-dim",
        "16",
        "--replay.cameras",
        "image",
        "--log-interval",
        "10",
    ),
    *(
        "--value-updates",
        "20",
        "--save-updates",
        "20",
        "--online.look-updates",
        "1",
        "--online.push-s",
        "0.1",
    ),
]
OFFLINE = [part for part in SETTINGS if not part.startswith("--online")]


def learner_arguments(run: Path, address: str, *more: str) -> list[str]:
    return ["learner", *SETTINGS, "--output-dir", str(run), "--listen.address", address, *more]


class TestActor:
    """Sends episodes of `online_records` and takes weights, in this process."""

    __test__ = False

    def __init__(self, root: Path, address: str) -> None:
        self.spool = Spool(root, sync_interval_s=0.5)
        self.sink = ItemSpool(self.spool, "arm", SPEC)
        self._link = ConnectConfig(address)
        self._client = LearnerClient(self._link, Hello("arm", self.spool.spool_id, SPEC), self.spool, SMALL)
        self.sender = SpoolSender(self._client, self.spool, SMALL)
        self.fetcher: WeightFetcher | None = None

    def record(self, numbers: range, version: int = 0) -> int:
        """Records episodes; returns their steps."""
        steps = 0
        for number in numbers:
            for item in episode(number, 5 + number % 4, "success" if number % 2 else "failure"):
                if isinstance(item, StepRecord):
                    steps += 1
                self.sink.append(item)
        return steps

    def act_with(self, policy: Path) -> PolicyRunner:
        """From now on newer weights are fetched."""
        loaded = load_policy(policy)
        return self.fetch_for(PolicyRunner(loaded, "push", "mode"), loaded)

    def fetch_for(self, runner: PolicyRunner, loaded: ActingPolicy) -> PolicyRunner:
        """From now on newer weights are fetched for `runner`, which acts with `loaded`."""
        hello = Hello("arm", self.spool.spool_id, SPEC, features=policy_features(loaded))
        self.sender.close()
        self._client.close()
        self._client = LearnerClient(self._link, hello, self.spool, SMALL)
        self.sender = SpoolSender(self._client, self.spool, SMALL)
        self.fetcher = WeightFetcher(self._client.fetch_weights, runner.push, every_s=0.05)
        return runner

    def close(self) -> None:
        self.sender.close()
        if self.fetcher is not None:
            self.fetcher.close()
        self._client.close()
        self.spool.close()


def test_episodes_come_training_begins_and_weights_are_acted_with(tmp_path, capsys):
    run, address = tmp_path / "run", free_address()
    (run / "cache").mkdir(parents=True)
    (run / "cache/notes").write_text("somebody's")
    more = [
        "--online.start-episodes",
        "4",
        "--online.updates-per-step",
        "1",
        "--num-updates",
        "60",
        "--cameras",
    ]
    thread = threading.Thread(target=main, args=(learner_arguments(run, address, *more),), daemon=True)
    thread.start()
    actor = TestActor(tmp_path / "spool", address)
    try:
        steps = actor.record(range(4))
        until((run / "policy/state.json").is_file)
        loaded = load_policy(run / "policy")
        assert isinstance(loaded, ChunkPolicy)
        runner, observation = PolicyRunner(loaded, "push", "mode"), EnvStep(np.zeros(3, np.float32), {})
        before = runner.act(observation, 0)  # before anything is fetched: weights may be there at once
        actor.fetch_for(runner, loaded)
        fetcher = actor.fetcher
        assert fetcher is not None
        until(lambda: fetcher.num_steps == steps)  # the learner waits: no newer ones come
        after = runner.act(observation, 0)
        assert (before.version, after.version) == (0, fetcher.version)
        assert not np.array_equal(before.actions, after.actions)
        other = small_policy(0, 3, 2)
        assert policy_features(other) != policy_features(loaded)
        sees = replace(loaded.spec, observation=replace(loaded.spec.observation, cameras=("front",)))
        older, newer = (
            ChunkPolicy(replace(sees, image_sizes=sizes), loaded.policy, loaded.q)
            for sizes in ((), ((64, 64),))
        )
        assert policy_features(older) == policy_features(newer)  # folders of before do not say sizes
        with Spool(tmp_path / "other") as spool:
            hello = Hello("other", spool.spool_id, SPEC, features=policy_features(other))
            stranger = LearnerClient(ConnectConfig(address), hello, spool, SMALL)
            stranger.greet()
            with pytest.raises(TransportError, match="acts with another policy"):
                stranger.fetch_weights(0)
            stranger.close()
        while steps < 60:  # training waits for steps: nothing more comes of these
            first = steps
            steps += actor.record(range(first, first + 1), after.version)
        until(lambda: not thread.is_alive())
    finally:
        actor.close()
        thread.join(20)
    records = read_records(run / "metrics.jsonl")
    assert [r.phase for r in records if "loss/value" in r.scalars] and records[-1].phase == "policy"
    assert records[-1].update == 80 and records[-1].scalars["online/steps"] == steps
    stored = stored_episodes(run / "replay")
    assert sum(stored.values()) == steps
    trained = load_policy(run / "policy")
    for name, parameter in trained.policy.named_parameters():
        assert torch.isfinite(parameter).all(), name
    assert "waiting for 4 episodes" in capsys.readouterr().out
    assert (run / ".learner-cache").is_dir() and (run / "cache/notes").read_text() == "somebody's"


class Process:
    """`chunkrl` with these arguments."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        self._output = output.open("ab")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chunkrl.cli", *arguments],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        STARTED.append(self.process)

    def end(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        code = self.process.wait(120)
        self._output.close()
        return code


def last_update(run: Path) -> int:
    pointer = run / "checkpoints/last"
    return int(pointer.read_text()) if pointer.is_file() else -1


def test_a_learner_that_is_killed_goes_on_with_all_data_and_higher_versions(tmp_path):
    run, address, log = tmp_path / "run", free_address(), tmp_path / "log"
    more = ["--online.start-episodes", "4", "--cameras"]
    first = Process(learner_arguments(run, address, *more), log)
    actor = TestActor(tmp_path / "spool", address)
    try:
        steps = actor.record(range(6))
        until(lambda: last_update(run) >= 40)
        first.end()
        killed_at = last_update(run)
        version = json.loads((run / "version.json").read_text())["version"]
        steps += actor.record(range(6, 9))
        again = ["learner", "--config", str(run / CONFIG_FILE), "--resume", str(run)]
        second = Process(again, log)
        runner = actor.act_with(run / "policy")
        fetcher = actor.fetcher
        assert fetcher is not None
        until(lambda: fetcher.num_steps == steps)
        assert fetcher.version > version and fetcher.num_refused == 0
        assert runner.act(EnvStep(np.zeros(3, np.float32), {}), 0).version > version
        until(lambda: last_update(run) >= killed_at + 40)
        assert second.end(signal.SIGTERM) == 0
    finally:
        actor.close()
    stored = stored_episodes(run / "replay")
    assert len(stored) == 9 and sum(stored.values()) == steps
    updates = [record.update for record in read_records(run / "metrics.jsonl")]
    assert updates == sorted(updates) and updates[-1] > killed_at
    assert "Traceback" not in log.read_text()


def test_a_learner_killed_before_it_trained_begins_again_and_one_at_work_keeps_its_settings(tmp_path):
    from chunkrl.online.learner.config import LearnerConfig
    from chunkrl.online.learner.learner import _resolved
    from chunkrl.online.link.streams import ReceivedStreams
    from chunkrl.run.config import TrainConfig

    config = LearnerConfig(train=TrainConfig(resume=str(tmp_path), output_dir=str(tmp_path)))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        _resolved(config, tmp_path)
    (tmp_path / CONFIG_FILE).write_text("{}")  # all that it has while it waits for first episodes
    assert _resolved(config, tmp_path).resume is None

    at_work = ReceivedStreams(tmp_path / "replay/incoming")
    with pytest.raises(SystemExit):
        main(learner_arguments(tmp_path, free_address()))
    at_work.close()
    assert (tmp_path / CONFIG_FILE).read_text() == "{}"


def test_a_learner_whose_shards_a_person_labelled_does_not_begin(tmp_path, capsys):
    replay = Replay(tmp_path / "kept", SPEC, ReplayConfig(cameras="image"))
    replay.add([item for item in episode(0, 4, "success") if isinstance(item, StepRecord)])
    replay.close()
    (tmp_path / "kept/shard-000000/labels").mkdir()
    (tmp_path / "kept/shard-000000/labels/by_hand.parquet").touch()
    with pytest.raises(SystemExit):
        main(learner_arguments(tmp_path / "run", free_address(), "--replay.root", str(tmp_path / "kept")))
    message = capsys.readouterr().err
    assert "shard-000000 has labels (labels/by_hand.parquet)" in message and "--dataset-dir NEW" in message
    assert not (tmp_path / "run" / CONFIG_FILE).exists()


def test_a_folder_with_an_older_run_is_refused_unless_it_is_resumed(tmp_path, capsys):
    from chunkrl.online.learner.config import LearnerConfig
    from chunkrl.online.learner.learner import _begin_folder
    from chunkrl.run.config import TrainConfig

    (tmp_path / CONFIG_FILE).write_text("{}")
    (tmp_path / "evaluations").mkdir()
    with pytest.raises(SystemExit):
        main(learner_arguments(tmp_path, free_address()))
    message = " ".join(capsys.readouterr().err.split())
    assert "holds a run of chunkrl learner" in message
    assert "use another --output-dir" in message and "--resume" in message
    assert (tmp_path / CONFIG_FILE).read_text() == "{}"

    def begin(folder, **settings):
        return _begin_folder(LearnerConfig(TrainConfig(output_dir=str(folder), **settings)))

    with pytest.raises(ChunkRLError, match="never written over"):
        begin(tmp_path, resume=str(tmp_path.parent))
    for resume in (tmp_path, tmp_path / "checkpoints" / "3"):
        assert begin(tmp_path, resume=str(resume)) == begin("", resume=str(resume)) == tmp_path
    begin(tmp_path / "new")
    kept = tmp_path.with_name(f"{tmp_path.name}.replaced-001")
    begin(tmp_path, overwrite=True)
    assert (kept / CONFIG_FILE).read_text() == "{}" and not list(tmp_path.iterdir())


def test_jump_start_offline_online_offline(tmp_path):
    """Each step begins with the networks of the last one, and the last one has all data."""
    from chunkrl.online.learner.replay import Replay
    from chunkrl.online.link.config import ReplayConfig

    replay = Replay(tmp_path / "first", SPEC, ReplayConfig(cameras="image"))
    for number in range(6):
        items = episode(100 + number, 6, "success" if number % 2 else "failure")
        replay.add([item for item in items if isinstance(item, StepRecord)])
    replay.close()
    settings = ["--dataset-dir", str(tmp_path / "first/shard-000000"), *OFFLINE[:14], "--num-updates", "20"]
    offline, online, again = (tmp_path / name for name in ("1", "2", "3"))
    main(["train", *settings, "--value-updates", "20", "--output-dir", str(offline), "--cameras"])

    address = free_address()
    actor = TestActor(tmp_path / "spool", address)
    actor.record(range(4))
    more = [
        "--dataset-dir",
        str(tmp_path / "first/shard-000000"),
        "--init",
        str(offline),
        "--num-updates",
        "20",
    ]
    arguments = learner_arguments(online, address, *more, "--online.start-episodes", "4", "--cameras")
    arguments = [a for i, a in enumerate(arguments) if "--value-updates" not in (a, arguments[i - 1])]
    thread = threading.Thread(
        target=main, args=([*arguments, "--online.updates-per-step", "1"],), daemon=True
    )
    thread.start()
    try:
        until(lambda: not thread.is_alive())
    finally:
        actor.close()
    phases = {record.phase for record in read_records(online / "metrics.jsonl")}
    assert phases == {"policy"}
    assert not [r for r in read_records(online / "metrics.jsonl") if "loss/value" in r.scalars]
    shards = sorted(str(path) for path in (online / "replay").glob("shard-*"))
    main(
        [
            *("train", *settings, "--value-updates", "10", "--output-dir", str(again), "--init", str(online)),
            *("--additional-offline-dataset-paths", *shards, "--cameras"),
        ]
    )

    def state(run: Path) -> dict:
        from chunkrl.run.folder import find_values
        from chunkrl.training.checkpoint import load_state

        folder = find_values(run / "checkpoints" / (run / "checkpoints/last").read_text().strip())
        assert folder is not None
        return load_state(folder)["algorithm"]["values"]

    folds = [
        dict(zip(s["episodes"], s["fold"].tolist(), strict=True))
        for s in map(state, (offline, online, again))
    ]
    assert [len(fold) for fold in folds] == [6, 10, 10]
    assert folds[2] == folds[1] and folds[0].items() <= folds[1].items()


def test_a_learner_without_room_says_so_and_ends(tmp_path, monkeypatch):
    from chunkrl.online.learner.intake import EpisodeIntake

    def full(self, read_bytes=0, enough=None):
        raise ChunkRLError("the disk is full: free some space")

    monkeypatch.setattr(EpisodeIntake, "poll", full)
    address = free_address()
    actor = TestActor(tmp_path / "spool", address)
    actor.record(range(2))
    with pytest.raises(SystemExit) as stop:
        main(learner_arguments(tmp_path / "run", address, "--online.patience-s", "0", "--cameras"))
    actor.close()
    assert stop.value.code == 2
    assert actor.spool.next_sequence > 0


@pytest.mark.slow
@pytest.mark.parametrize("victims", [("learner",), ("actor",), ("learner", "actor")])
def test_real_commands_killed_20_times(tmp_path, victims):
    """Episodes that the actor finished are stored, each once, each whole; training goes on each time."""
    pytest.importorskip("metaworld", reason="needs chunkrl[sim]")
    rng, address, log = random.Random(3), free_address(), tmp_path / "log"
    run, acting = tmp_path / "learner", tmp_path / "actor"
    data = tmp_path / "data"
    main(["collect", "--env", "push-v3", "--num-episodes", "6", "--max-steps", "40", "--num-workers", "0",
          "--output-dir", str(data)])  # fmt: skip
    settings = [
        a if a != "2" or b != "--action-dim" else "4" for b, a in zip(["", *SETTINGS], SETTINGS, strict=False)
    ]
    settings = [*settings, "--dataset-dir", str(data), "--success", "all"]
    learner = ["learner", *settings, "--output-dir", str(run), "--listen.address", address]
    begun = Process([*learner, "--online.start-episodes", "2"], log)
    until((run / "policy/state.json").is_file, 120)
    actor = ["actor", "--policy", str(run / "policy"), "--env", "push-v3", "--max-steps", "15"]
    actor += [
        "--rate-hz",
        "60",
        "--keys",
        "none",
    ]  # as fast as it can, it stores for minutes while no learner runs
    actor += ["--connect.address", address, "--output-dir", str(acting)]
    again = ["learner", "--config", str(run / CONFIG_FILE), "--resume", str(run)]
    processes = {"learner": begun, "actor": Process(actor, log)}
    starts = {"learner": again, "actor": actor}
    for _ in range(20):
        time.sleep(rng.uniform(2.0, 9.0))
        for name in victims:
            processes[name].end()
        for name in victims:
            processes[name] = Process(starts[name], log)
    processes["actor"].end()
    update = last_update(run)
    until(lambda: last_update(run) > update, 120)
    final = Process([*actor, "--num-episodes", "2", "--finish-s", "120"], log)
    assert final.process.wait(240) == 0
    with Spool(acting / "spool") as spool:
        assert spool.acknowledged == spool.next_sequence
        sent = spool.next_sequence
    stored_until = run / "replay/incoming/actor/acknowledged.json"
    until(lambda: json.loads(stored_until.read_text())["next_sequence"] == sent, 120)
    assert processes["learner"].end(signal.SIGTERM) == 0
    stored = stored_episodes(run / "replay")
    from chunkrl.online.learner.intake import read_set_aside

    aside = [read_set_aside(path) for path in (run / "replay/set_aside").glob("*")]
    assert not {items[0].episode_id for items in aside} & stored.keys()
    assert sent == sum(stored.values()) + len(stored) + sum(map(len, aside))
    assert len(aside) <= 21
    assert "Traceback" not in log.read_text()
