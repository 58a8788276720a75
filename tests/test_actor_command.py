"""`chunkrl actor`: the real command with a fake robot, against a receiver in the test."""

import contextlib
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from actor_fakes import small_policy
from rich.console import Console
from waiting import until

from chunkrl.config import from_dict
from chunkrl.envs.metaworld import FULL_STATE
from chunkrl.errors import ChunkRLError, SpoolError, TransportError
from chunkrl.online.actor import session as actor_session
from chunkrl.online.actor.command import ActorCommand
from chunkrl.online.actor.session import run_actor
from chunkrl.online.actor.station import RobotFile
from chunkrl.online.link.config import ConnectConfig, CorrectionRule, ListenConfig
from chunkrl.online.link.records import EpisodeSummary, Item, StepRecord
from chunkrl.online.link.sender import LearnerClient, UnreachableError
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.transport import SpoolReceiver
from chunkrl.online.link.weights import make_push
from chunkrl.online.link.wire import decode_item
from chunkrl.online.status import WARNING, ActorStatus, LiveView
from chunkrl.training.metrics import METRICS_FILE, read_records

ROBOT = {
    "robot": {"type": "fake", "num_joints": 3, "speed": 0.5, "cameras": {"front": [24, 32]}},
    "leader": {"type": "fake", "num_joints": 3},
    "task": "reach",
    "low": [-5],
    "high": [5, 5, 5],
    "rate_hz": 100,
    "max_steps": 10,
    "handover": {"max_step": 0.5, "tolerance": 0.1},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy, robot.json: what the actors of these tests share."""
    root = tmp_path_factory.mktemp("actor")
    small_policy(0, 3, 3, ()).save(root / "policy")
    (root / "robot.json").write_text(json.dumps(ROBOT))
    return root


@pytest.fixture
def port() -> int:
    """A free one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _command(folder: Path, run: Path, port: int = 1, **settings) -> ActorCommand:
    defaults = {"num_episodes": 2, "keys": "none", "prefetch_steps": 2, "exec_steps": 4, "finish_s": 20.0}
    return ActorCommand(
        policy=str(folder / "policy"),
        robot=str(folder / "robot.json"),
        output_dir=str(run),
        connect=settings.pop("connect", ConnectConfig(f"127.0.0.1:{port}")),
        **defaults | settings,
    )


class Learner:
    """A receiver on `port` with all that came."""

    def __init__(self, root: Path, port: int, **files: str) -> None:
        self.streams = ReceivedStreams(root)
        self.receiver = SpoolReceiver(ListenConfig(f"127.0.0.1:{port}", **files), self.streams)
        self.receiver.start()

    def items(self, actor_id: str = "actor") -> list[Item]:
        """In their order."""
        if actor_id not in self.streams.actors:
            return []
        spool = self.streams.spool(actor_id)
        return [decode_item(data) for data in spool.read(0, 2**30)]

    def episodes(self) -> list[EpisodeSummary]:
        """Those that ended."""
        return [item for item in self.items() if isinstance(item, EpisodeSummary)]

    def close(self) -> None:
        """Ends it."""
        self.receiver.stop(0)
        self.streams.close()


def warnings_of(run: Path) -> list[str]:
    """Those of the actor that say it reaches nobody."""
    lines = (run / "actor.log").read_text().splitlines()
    return [line for line in lines if " WARNING " in line and "entries wait in" in line]


def test_an_actor_acts_without_a_learner_and_goes_on_when_it_comes(
    folder, tmp_path, port, capsys, monkeypatch
):
    run = tmp_path / "run"
    learners, failures, warned = [], [], []
    drain = LearnerClient.drain

    def counted(self: LearnerClient) -> int:
        try:
            return drain(self)
        except UnreachableError as error:
            failures.append(str(error))
            raise

    monkeypatch.setattr(LearnerClient, "drain", counted)
    ready = actor_session._Session._ready

    def waits_for_weights(self: actor_session._Session) -> bool:
        """Before its last episodes: however long the learner takes to come."""
        return (self._items.kept.num_episodes < 30 or self._state().version == 5) and ready(self)

    monkeypatch.setattr(actor_session._Session, "_ready", waits_for_weights)

    def come_late() -> None:
        until(lambda: (run / METRICS_FILE).exists() and read_records(run / METRICS_FILE))
        until(lambda: len(failures) >= 3)  # each doubles the pause: the third is there after a second
        warned.extend(warnings_of(run))  # a connection that is lost later warns again, as it must
        learner = Learner(tmp_path / "learner", port)
        newer = dict(small_policy(1, 3, 3).policy.named_parameters())
        learner.receiver.offer(make_push(5, newer))
        learners.append(learner)

    late = threading.Thread(target=come_late)
    late.start()
    run_actor(_command(folder, run, port, num_episodes=40, finish_s=120.0))
    late.join()
    learner = learners[0]
    items = learner.items()
    steps = [item for item in items if isinstance(item, StepRecord)]
    ends = learner.episodes()
    learner.close()
    assert len(ends) == 40 and len(steps) == 400 == sum(end.num_steps for end in ends)
    assert {step.policy_version for step in steps} == {0, 5} and steps[0].policy_version == 0
    assert all(step.images["front"].shape == (24, 32, 3) for step in steps)
    out = capsys.readouterr()
    assert "40 episodes" in out.out and "all records are with the learner" in out.out
    assert len(warned) == 1 and warned[0].split(" WARNING ")[1].split(": ", 1)[1] in out.err
    records = read_records(run / METRICS_FILE)
    assert [r.update for r in records] == list(range(10, 410, 10))
    assert records[0].scalars["learner/version"] == 0 and records[-1].scalars["learner/version"] == 5
    assert json.loads((run / "config.json").read_text())["num_episodes"] == 40


def test_what_is_recorded_offline_is_sent_later_without_the_robot(folder, tmp_path, port, capsys):
    run = tmp_path / "run"
    run_actor(_command(folder, run, offline=True))
    assert "the next start with this spool without --offline sends them" in capsys.readouterr().out
    send = _command(folder, run, port, send_only=True, finish_s=0.2)
    run_actor(send)  # nobody is there
    assert "22 records are kept in" in capsys.readouterr().out
    learner = Learner(tmp_path / "learner", port)
    run_actor(_command(folder, run, port, send_only=True))
    assert len(learner.episodes()) == 2
    assert "all records are with the learner" in capsys.readouterr().out
    run_actor(
        _command(folder, run, port, num_episodes=1)
    )  # other initial states than the first two episodes'
    assert len(learner.episodes()) == 3
    learner.close()
    assert read_records(run / METRICS_FILE)[-1].scalars["actor/episodes"] == 3


def test_a_spool_of_another_actor_or_kind_and_a_robot_that_does_not_fit_are_refused(folder, tmp_path):
    run = tmp_path / "run"
    run_actor(_command(folder, run, offline=True, num_episodes=1))
    with pytest.raises(SpoolError, match="spool of actor 'actor'"):
        run_actor(_command(folder, run, offline=True, actor_id="other"))
    with pytest.raises(ChunkRLError, match="no actor's spool"):
        run_actor(_command(folder, tmp_path / "none", send_only=True))
    home = {"positions": [0, 0, 0], "max_step": 0.5, "tolerance": 0.1}
    wrong = {
        "cameras": ({"robot": ROBOT["robot"] | {"cameras": {"side": [24, 32]}}}, "11 unsent records"),
        "joints": ({"robot": {"type": "fake", "num_joints": 4}}, "trained for something else"),
        "limits": ({"low": [1, 2]}, "low has 2 values"),
        "handover": ({"handover": None}, "needs `handover`"),
        "leader": ({"leader": None}, "names no `leader`"),
        "tolerance": (
            {"handover": {"max_step": 0.1, "tolerance": 0.2}},
            "tolerance.json: handover max_step 0.1 and tolerance 0.2: 0 <= tolerance <= max_step",
        ),
        "home": (
            {"home": home | {"positions": [0, 0, -90]}},
            r"home.json: home.positions\[2\] is -90, beyond low",
        ),
        "high": ({"home": home | {"positions": [0, 6, 0]}}, r"home.positions\[1\] is 6, beyond high 5"),
        "places": ({"home": home | {"positions": [0, 0]}}, "home.positions has 2 values and high 3"),
        "step": ({"home": home | {"max_step": -1}}, "step.json: home.max_step is -1"),
        "key": ({"lowest": [1]}, "lowest"),
    }
    for name, (change, message) in wrong.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(ROBOT | change))
        with pytest.raises(ChunkRLError, match=message):
            run_actor(
                ActorCommand(
                    policy=str(folder / "policy"),
                    robot=str(file),
                    output_dir=str(run),
                    offline=True,
                    keys="none",
                    num_episodes=1,
                    corrector="leader" if name == "leader" else "none",
                )
            )


@pytest.mark.parametrize("corrector", ["none", "leader"])
def test_the_guard_against_jumps_needs_no_leader(folder, tmp_path, corrector):
    robot = tmp_path / "robot.json"
    robot.write_text(json.dumps(ROBOT | {"handover": {"max_step": 0.001, "tolerance": 0.0}}))
    command = _command(folder, tmp_path / "run", offline=True, num_episodes=1, corrector=corrector)
    run_actor(replace(command, robot=str(robot)))
    with Spool(tmp_path / "run" / "spool") as spool:
        items = [decode_item(data) for data in spool.read(0, 2**30)]
    actions = np.array(
        [np.zeros(3), *(item.executed_action for item in items if isinstance(item, StepRecord))]
    )
    assert len(actions) == 11 and 0 < np.abs(np.diff(actions, axis=0)).max() <= 0.001 + 1e-6


def test_the_robot_file_in_the_docs_is_one():
    text = (Path(__file__).parents[1] / "docs" / "online.md").read_text()
    block = text.split("```json\n")[1].split("```")[0]
    file = from_dict(RobotFile, json.loads(block))
    low, high = file.limits(tuple("abcdef"))
    assert low.tolist() == [-100] * 5 + [0] and high.tolist() == [100] * 6
    assert file.home is not None and len(file.home.positions) == 6 and file.handover is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"robot": None}, "what acts"),
        ({"env": "push-v3"}, "what acts"),
        ({"rate_hz": 30.0}, "control rate"),
        ({"camera_size": 64}, "cameras are in its file"),
        ({"mode": "best_of_n"}, "best_of_n"),
        ({"offline": True, "max_ahead_steps": 0}, "max-ahead-steps"),
        ({"offline": True, "send_only": True}, "send-only"),
        ({"corrector": "scripted"}, "none of a robot's"),
        ({"robot": None, "env": "push-v3", "corrector": "leader"}, "is a robot's"),
        ({"guidance": 2.0}, "pi policies"),
        ({"exec_steps": 9}, "chunk of 8"),
        ({"policy": "nowhere"}, "nowhere"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(folder, tmp_path, settings, message):
    base = vars(_command(folder, tmp_path / "run"))
    with pytest.raises(ChunkRLError, match=message):
        run_actor(ActorCommand(**base | settings))


def test_a_wrong_token_is_refused_before_anything_moves(folder, tmp_path, port):
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(f"{name}-token-of-sixteen-characters")
    learner = Learner(tmp_path / "learner", port, token_file=str(tmp_path / "right"))
    connect = ConnectConfig(f"127.0.0.1:{port}", token_file=str(tmp_path / "wrong"))
    with pytest.raises(TransportError, match="no token or a wrong one"):
        run_actor(_command(folder, tmp_path / "run", connect=connect))
    assert learner.items() == []
    connect = ConnectConfig(f"127.0.0.1:{port}", token_file=str(tmp_path / "right"))
    run_actor(_command(folder, tmp_path / "run", connect=connect, num_episodes=1))
    assert len(learner.episodes()) == 1
    learner.close()


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_act(folder, tmp_path, port, capsys):
    learner = Learner(tmp_path / "learner", port)
    learner.receiver.offer(make_push(3, {"trunk.weight": torch.ones(2, 2)}))
    run_actor(_command(folder, tmp_path / "run", port))
    versions = {item.policy_version for item in learner.items() if isinstance(item, StepRecord)}
    learner.close()
    assert versions == {0}
    assert "unknown parameter 'trunk.weight'" in capsys.readouterr().err
    assert "weights refused" in (tmp_path / "run" / "actor.log").read_text()


def test_an_actor_waits_for_a_learner_that_owes_updates(folder, tmp_path, port):
    """With max_ahead_steps 0 each episode begins with weights that account for all the steps before it."""
    learner = Learner(tmp_path / "learner", port)
    weights = dict(small_policy(1, 3, 3).policy.named_parameters())
    ended = threading.Event()

    def learn() -> None:
        for version in range(1, 4):
            until(lambda: len(learner.episodes()) == version - 1 or ended.is_set())  # noqa: B023
            owed = 10 * (version - 1)
            learner.receiver.offer(
                make_push(version, weights, num_steps=owed + 7), {"actor": owed, "other": 7}
            )

    thread = threading.Thread(target=learn)
    thread.start()
    run_actor(_command(folder, tmp_path / "run", port, num_episodes=3, max_ahead_steps=0, swap_at="episode"))
    ended.set()
    thread.join()
    versions = [item.policy_version for item in learner.items() if isinstance(item, StepRecord)]
    learner.close()
    assert versions == [1] * 10 + [2] * 10 + [3] * 10


def test_an_actor_says_what_it_waits_for(folder, tmp_path, port, monkeypatch):
    monkeypatch.setattr(actor_session, "_TELL_S", 0.0)
    learner = Learner(tmp_path / "learner", port)
    weights = dict(small_policy(1, 3, 3).policy.named_parameters())
    log = tmp_path / "run" / "actor.log"
    log.parent.mkdir()
    log.touch()

    def learn() -> None:
        until(lambda: "none came yet" in log.read_text())
        learner.receiver.offer(make_push(1, weights, num_steps=10), {"actor": 10})

    thread = threading.Thread(target=learn)
    thread.start()
    run_actor(_command(folder, tmp_path / "run", port, num_episodes=2, max_ahead_steps=0))
    thread.join()
    learner.close()
    assert "weights that account for 10 steps (--max-ahead-steps 0); none came yet" in log.read_text()


class Process:
    """The command in a process of its own, its keys from a terminal."""

    def __init__(self, command: list[str], panel: bool = False) -> None:
        self.terminal, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chunkrl.cli", "actor", *command],
            stdin=inner,
            stdout=subprocess.PIPE,
            stderr=inner if panel else subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm"},
        )
        os.close(inner)
        self.lines: list[str] = []
        self.shown = b""
        self._reader = threading.Thread(target=self._read_panel if panel else self._read)
        self._reader.start()

    def _read_panel(self) -> None:
        with contextlib.suppress(OSError):  # the process has ended
            while part := os.read(self.terminal, 4096):
                self.shown += part

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def say(self, phase: str, number: int) -> None:
        """Waits for the `number`th line with this phase."""
        until(lambda: sum(f"| {phase} |" in line for line in self.lines) >= number)

    def press(self, keys: str) -> None:
        """On the terminal."""
        os.write(self.terminal, keys.encode())

    def end(self) -> str:
        """Its output, when it has ended."""
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        assert self.process.wait(timeout=240) == 0, (output, self.lines)
        self._reader.join()
        os.close(self.terminal)
        return output


def test_keys_of_a_terminal_lead_a_session_and_sigterm_ends_another_in_order(folder, tmp_path, port):
    learner = Learner(tmp_path / "learner", port)
    robot = tmp_path / "robot.json"
    robot.write_text(json.dumps(ROBOT | {"max_steps": 100_000, "rate_hz": 50}))
    common = [f"--policy={folder / 'policy'}", f"--robot={robot}", f"--connect.address=127.0.0.1:{port}"]
    by_keys = Process([*common, "--actor-id=keys", f"--output-dir={tmp_path / 'a'}", "--corrector=leader"])
    by_signal = Process(
        [*common, "--actor-id=signal", f"--output-dir={tmp_path / 'b'}", "--keys=none", "--max-steps=20"],
        panel=True,
    )
    by_keys.say("waiting", 1)
    for keys, phase, number in (
        ("2", "policy", 1),
        ("5", "human", 1),
        ("5", "policy", 2),
        ("1", "ended: success", 1),
        ("2", "policy", 3),
        ("0", "ended: failure", 1),
        ("r", "ended: discarded", 1),
        ("2", "policy", 4),
        ("1", "ended: success", 2),
        ("0", "ended: failure", 2),
        ("2", "policy", 5),
    ):
        by_keys.press(keys)
        by_keys.say(phase, number)
    by_keys.press("q")
    said = by_keys.end()
    assert "3 episodes, 1 successful" in said and "1 discarded" in said and "1 interventions" in said
    ends = [item for item in learner.items("keys") if isinstance(item, EpisodeSummary)]
    assert [end.outcome for end in ends] == ["success", "discarded", "failure", "timeout"]
    assert [end.num_interventions for end in ends] == [1, 0, 0, 0]
    human = [item.human for item in learner.items("keys") if isinstance(item, StepRecord)]
    assert any(human) and not all(human)
    until(lambda: sum(isinstance(item, EpisodeSummary) for item in learner.items("signal")) >= 1)
    until(lambda: b"last episode" in by_signal.shown and b"truncated" in by_signal.shown)
    by_signal.process.send_signal(signal.SIGTERM)
    assert "all records are with the learner" in by_signal.end()
    items = learner.items("signal")
    learner.close()
    last = items[-1]
    assert isinstance(last, EpisodeSummary) and last.outcome == "timeout"
    for text in (b"chunkrl actor signal", b"episode", b"learner", b"connected"):
        assert text in by_signal.shown


def test_the_panel_shows_what_the_session_is_about() -> None:
    console = Console(width=90, record=True, file=io.StringIO(), force_terminal=True)
    rows = [
        ("control", "30.0 Hz"),
        ("learner", "127.0.0.1:50151 connected, 3 records unsent"),
        (WARNING, "oh"),
    ]
    view = LiveView("chunkrl actor arm: fake_robot", lambda: rows, console)
    view(ActorStatus(12, 83, "human", 30.0, 14, 2, 7, "5 give back", 11, 7, "truncated"))
    view.close()
    console.print(view.render())
    text = console.export_text()
    for part in (
        "arm: fake_robot", "12, step 83", "7/11 = 64%", "human", "version 14", "7 actions ready", "30.0 Hz", "oh",
        "3 records unsent", "5 give back", "2 interventions", "last episode  truncated",
    ):  # fmt: skip
        assert part in text, part


def test_metaworld_by_name_with_a_scripted_corrector_on_a_clock(tmp_path):
    pytest.importorskip("metaworld")
    small_policy(0).save(tmp_path / "policy")
    run_actor(
        ActorCommand(
            policy=str(tmp_path / "policy"),
            env="push-v3",
            output_dir=str(tmp_path / "run"),
            offline=True,
            num_episodes=1,
            max_steps=30,
            rate_hz=200.0,
            keys="none",
            corrector="scripted",
            correction=CorrectionRule(budget=1, stall_steps=10, correction_steps=5),
        )
    )
    with Spool(tmp_path / "run" / "spool") as spool:
        items = [decode_item(data) for data in spool.read(0, 2**30)]
    steps = [item for item in items if isinstance(item, StepRecord)]
    assert len(steps) == 30 and sum(step.human for step in steps) == 5
    spec = json.loads((tmp_path / "run" / "spool" / "stream.json").read_text())
    assert (spec["actor_id"], spec["robot_type"], spec["fps"]) == ("actor", "metaworld:push-v3", 80.0)
    assert spec["state_names"] == list(FULL_STATE)
    (record,) = read_records(tmp_path / "run" / METRICS_FILE)
    assert record.scalars["episode/human_fraction"] == pytest.approx(5 / 30)
    assert record.scalars["speed/rate_hz"] > 0
