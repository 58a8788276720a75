"""When `chunkrl learner` answers actors, and what it counts after a restart."""

from __future__ import annotations

import io
import json
import re
import signal
import threading
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="needs chunkrl[online]")

from actor_fakes import small_policy
from online_peers import SMALL
from online_records import SPEC, episode
from started import free_address
from test_online_learner import OFFLINE, Process, TestActor, last_update, learner_arguments
from waiting import until

from chunkrl.cli import main
from chunkrl.errors import ChunkRLError, TransportError
from chunkrl.online.actor.command import ActorCommand
from chunkrl.online.actor.session import run_actor
from chunkrl.online.learner.learner import CONFIG_FILE
from chunkrl.online.learner.replay import Replay
from chunkrl.online.link.config import ConnectConfig, ListenConfig, ReplayConfig
from chunkrl.online.link.records import Hello, StepRecord, Welcome
from chunkrl.online.link.sender import LearnerClient, UnreachableError
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.transport import SpoolReceiver
from chunkrl.online.status import WARNING, RowsView
from chunkrl.report.load_run import load_run
from chunkrl.report.run import render_run
from chunkrl.run.policy_io import load_policy
from chunkrl.training.metrics import read_records


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A data set of six episodes, as the replay writes them."""
    replay = Replay(tmp_path / "first", SPEC, ReplayConfig(cameras="image"))
    for number in range(6):
        items = episode(100 + number, 6, "success" if number % 2 else "failure")
        replay.add([item for item in items if isinstance(item, StepRecord)])
    replay.close()
    return tmp_path / "first/shard-000000"


def first_answer(address: str, spool: Spool) -> Welcome:
    """The learner's, as soon as it gives one."""
    client = LearnerClient(ConnectConfig(address), Hello("arm", spool.spool_id, SPEC), spool, SMALL)

    def greeted() -> Welcome | None:
        try:
            return client.greet()
        except UnreachableError:
            return None

    try:
        found = until(greeted)
        assert found is not None
        return found
    finally:
        client.close()


def test_a_learner_with_data_answers_when_policy_and_weights_are_there(tmp_path, recorded, capsys):
    run, address = tmp_path / "run", free_address()
    more = ["--dataset-dir", str(recorded), "--num-updates", "20", "--cameras"]
    thread = threading.Thread(target=main, args=(learner_arguments(run, address, *more),), daemon=True)
    thread.start()
    with Spool(tmp_path / "spool") as spool:
        welcome = first_answer(address, spool)
    assert welcome.weights_version >= 1
    load_policy(run / "policy")  # it is whole
    until(lambda: not thread.is_alive())
    assert re.search(
        rf"listening on port {address.split(':')[1]}; .*actors act with --policy {run}/policy",
        capsys.readouterr().out,
    )


def test_a_learner_without_data_answers_at_once_and_says_with_what_actors_act(tmp_path, recorded, capsys):
    offline, run, address = tmp_path / "offline", tmp_path / "run", free_address()
    main(["train", *OFFLINE[:14], "--dataset-dir", str(recorded), "--num-updates", "2", "--value-updates", "2",
          "--output-dir", str(offline), "--cameras"])  # fmt: skip
    capsys.readouterr()
    arguments = learner_arguments(run, address, "--init", str(offline), "--num-updates", "20", "--cameras")
    arguments = without_value_updates(arguments)
    thread = threading.Thread(target=main, args=([*arguments, "--online.start-episodes", "2"],), daemon=True)
    thread.start()
    actor = TestActor(tmp_path / "spool", address)
    try:
        actor.record(range(2))
        until(lambda: not thread.is_alive())
    finally:
        actor.close()
    out = capsys.readouterr().out
    assert out.index(f"actors act with --policy {offline}/policy") < out.index("waiting for 2 episodes")
    assert f"training on {run}" in out or "actors act with --policy" in out.split("waiting for 2 episodes")[1]


def without_value_updates(arguments: list[str]) -> list[str]:
    """The same with the default."""
    return [a for i, a in enumerate(arguments) if "--value-updates" not in (a, arguments[i - 1])]


@pytest.mark.parametrize(
    ("part", "objective", "phases"),
    [
        ("", "cross_fitted", {"policy"}),  # has values to begin with
        ("", "behaviour_cloning", {"policy"}),  # reads none
        ("policy", "cross_fitted", {"value", "policy"}),  # a saved policy has none
    ],
)
def test_a_value_phase_precedes_where_the_beginning_has_no_values(
    tmp_path, recorded, capsys, part, objective, phases
):
    offline, run = tmp_path / "offline", tmp_path / "run"
    data = ["--dataset-dir", str(recorded), "--num-updates", "2", "--cameras"]
    main(["train", *OFFLINE[:14], *data, "--value-updates", "2", "--output-dir", str(offline)])
    begun = [*data, "--init", str(offline / part), "--objective", objective, "--value-epochs", "2"]
    if objective == "behaviour_cloning":
        begun = begun[:-2]
    begun += ["--log-interval", "1"]
    main(without_fit(without_value_updates(learner_arguments(run, free_address(), *begun)), objective))
    assert {record.phase for record in read_records(run / "metrics.jsonl")} == phases
    # all that was asked for is made: the same command would end at once
    assert f"chunkrl learner --resume {run} --num-updates MORE" in capsys.readouterr().out


def without_fit(arguments: list[str], objective: str) -> list[str]:
    """Settings of values are refused where none are learned."""
    if objective != "behaviour_cloning":
        return arguments
    unread = ("--fit.hidden-dim", "--num-folds")
    return [a for i, a in enumerate(arguments) if a not in unread and arguments[i - 1] not in unread]


def test_a_beginning_that_is_not_there_is_known_before_actors_bring_episodes(tmp_path, capsys):
    arguments = learner_arguments(tmp_path / "run", free_address(), "--init", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit):
        main(arguments)
    said = capsys.readouterr()
    assert "no checkpoint at" in said.err and "listening" not in said.out


def test_a_line_of_the_learner_does_not_repeat_a_warning_that_was_logged():
    lines = io.StringIO()
    RowsView(
        "learner", lambda: [("updates", "3"), (WARNING, "refused"), ("actors", "none")], False, lines
    ).close()
    assert lines.getvalue() == "updates 3 | actors none\n"


def test_a_port_in_use_is_known_before_anything_is_read(tmp_path, capsys):
    streams = ReceivedStreams(tmp_path / "other")
    taken = SpoolReceiver(ListenConfig("127.0.0.1:0"), streams)
    port = taken.start()
    with pytest.raises(SystemExit):
        main(
            learner_arguments(
                tmp_path / "run", f"127.0.0.1:{port}", "--dataset-dir", str(tmp_path / "nowhere")
            )
        )
    taken.stop(0)
    streams.close()
    assert "the port is in use" in capsys.readouterr().err


def test_a_receiver_that_never_listened_gives_its_port_back(tmp_path):
    streams = ReceivedStreams(tmp_path)
    bound = SpoolReceiver(ListenConfig("127.0.0.1:0"), streams)
    port = bound.bind()
    with pytest.raises(TransportError, match="cannot listen"):
        SpoolReceiver(ListenConfig(f"127.0.0.1:{port}"), streams).bind()
    bound.stop(0)
    again = SpoolReceiver(ListenConfig(f"127.0.0.1:{port}"), streams)
    again.start()
    again.stop(0)
    streams.close()


def test_an_actor_whose_policy_is_not_there_says_when_it_is(tmp_path):
    small_policy(0, 3, 3, ()).save(tmp_path / "policy")
    command = ActorCommand(
        policy=str(tmp_path / "run/policy"), env="push-v3", output_dir=str(tmp_path / "actor")
    )
    with pytest.raises(ChunkRLError, match="before it says that it listens"):
        run_actor(command)


def counts(run: Path) -> dict[str, float]:
    """The newest ones of a run's metrics."""
    found: dict[str, float] = {}
    for record in read_records(run / "metrics.jsonl"):
        found |= {name: value for name, value in record.scalars.items() if name.startswith("online/")}
    names = ("online/episodes", "online/steps", "online/episodes_trained_on", "online/steps_trained_on")
    return {name: found[name] for name in names}


def told(log: Path) -> list[tuple[int, ...]]:
    """Updates, episodes and steps of each end."""
    found = re.findall(r"(\d+) updates; (\d+) episodes, (\d+) steps stored", log.read_text())
    return [tuple(map(int, numbers)) for numbers in found]


def test_counts_agree_before_and_after_a_restart(tmp_path):
    run, address, log = tmp_path / "run", free_address(), tmp_path / "log"
    more = ["--online.start-episodes", "4", "--online.updates-per-step", "1", "--cameras"]
    first = Process(learner_arguments(run, address, *more), log)
    actor = TestActor(tmp_path / "spool", address)
    try:
        steps = actor.record(range(6))
        until(lambda: last_update(run) >= 20 and actor.spool.num_waiting == 0)
        runner = actor.act_with(run / "policy")
        fetcher = actor.fetcher
        assert fetcher is not None
        until(lambda: fetcher.own_steps == steps)  # all updates for them are made
        assert first.end(signal.SIGTERM) == 0
        before, version = counts(run), fetcher.version
        second = Process(["learner", "--config", str(run / CONFIG_FILE), "--resume", str(run)], log)
        until(lambda: fetcher.version > version)
        # the first weights after the restart account for what those before it did
        assert (fetcher.own_steps, fetcher.num_steps) == (steps, steps)
        assert runner is not None
        assert second.end(signal.SIGTERM) == 0
    finally:
        actor.close()
    assert before["online/steps"] == steps == before["online/steps_trained_on"]
    assert counts(run) == before
    assert told(log) == [(20 + steps, 6, steps)] * 2
    # the second start made no update: those of the first are none of its speed
    speeds = re.findall(r"^updates (\d+) policy, ([\d.]+)/s", log.read_text().split("going on from")[1], re.M)
    assert speeds and set(speeds) == {(str(20 + steps), "0.0")}
    assert json.loads((run / "version.json").read_text())["version"] > version
    check_report(run, steps)


def check_report(run: Path, steps: int) -> None:
    """The page of a learner speaks of all that it trained on; of a shard that has grown since, it says so."""
    shown = load_run(run)
    (shard,) = shown.data
    assert (shard.dataset.num_frames, len(shard.episodes), shown.notes) == (steps, 6, ())
    recorded = shown.last("value/rank_correlation_held_out")
    assert recorded is not None and len(shard.labels["value"]) == steps
    render_run(shown)
    replay = Replay(run / "replay", SPEC, ReplayConfig(cameras="image"))
    replay.add([item for item in episode(50, 6, "success") if isinstance(item, StepRecord)])
    replay.close()
    grown = load_run(run)
    assert (grown.has_values, [len(part.episodes) for part in grown.data]) == (False, [7])


def test_the_page_of_a_learner_has_offline_data_and_what_its_actors_sent(tmp_path, recorded, capsys):
    run, address = tmp_path / "run", free_address()
    more = [
        "--dataset-dir",
        str(recorded),
        "--num-updates",
        "30",
        "--online.start-episodes",
        "2",
        "--cameras",
    ]
    more += ["--online.updates-per-step", "1"]
    thread = threading.Thread(target=main, args=(learner_arguments(run, address, *more),), daemon=True)
    thread.start()
    actor = TestActor(tmp_path / "spool", address)
    try:
        steps = actor.record(range(6))
        until(lambda: not thread.is_alive())
    finally:
        actor.close()
    first, second = load_run(run).data
    assert (first.dataset.num_frames, second.dataset.num_frames) == (36, steps)
    assert all(len(part.labels["value"]) == part.dataset.num_frames for part in (first, second))
    offline, online = load_run(run).dataset_weights
    assert offline == pytest.approx(online) == pytest.approx(0.5)
    replay = Replay(run / "replay", SPEC, ReplayConfig(cameras="image"))
    replay.add([item for item in episode(50, 6, "success") if isinstance(item, StepRecord)])
    replay.close()
    capsys.readouterr()
    main(["report", str(run)])
    assert "note: shard-000000 of" in capsys.readouterr().out
    assert "What is not on this page" in (run / "report.html").read_text(encoding="utf-8")
    assert [part.dataset.num_frames for part in load_run(run).data] == [36]
