"""A terminal that is lost, as where an `ssh -t` connection drops, ends actor and trial in order."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from actor_fakes import small_policy
from waiting import until

from chunkrl.data.frames import FrameTable
from chunkrl.signals import handled

ROBOT = {
    "robot": {"type": "fake", "num_joints": 3, "speed": 0.5},
    "task": "reach",
    "low": [-5],
    "high": [5],
    "rate_hz": 100,
    "max_steps": 100_000,
}
# As a login's command: it leads a session whose terminal its input is.
PROGRAM = """
import os, sys
from pathlib import Path
from chunkrl.envs.fake_robot import FakeRobot
closed = Path(sys.argv.pop(1))
if sys.argv.pop(1) == "leads":
    os.open(os.ttyname(0), os.O_RDWR)
FakeRobot.close = lambda self: closed.touch()
from chunkrl.cli import main
main()
"""


@pytest.mark.parametrize(
    ("command", "leads", "view"),
    [
        ("actor", True, "--live"),
        ("trial", False, "--no-live"),  # the terminal is gone before anybody says so
    ],
)
def test_a_lost_terminal_ends_a_session_in_order(
    tmp_path: Path, command: str, leads: bool, view: str
) -> None:
    small_policy(0, 3, 3, ()).save(tmp_path / "policy")
    (tmp_path / "robot.json").write_text(json.dumps(ROBOT))
    policy, run = str(tmp_path / "policy"), tmp_path / "run"
    policies = {"actor": ["--policy", policy, "--offline"], "trial": [f"a={policy}", f"b={policy}"]}[command]
    terminal, inner = pty.openpty()
    settings = ["--robot", str(tmp_path / "robot.json"), "--output-dir", str(run), view]
    before = [str(tmp_path / "closed"), "leads" if leads else "is told"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *before, command, *policies, *settings],
        **{"stdin": inner, "stdout": inner, "stderr": inner, "start_new_session": True},
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm"},
    )
    os.close(inner)
    shown = b""

    def shows(pattern: bytes) -> bool:
        nonlocal shown
        assert process.poll() is None, shown.decode()
        shown += os.read(terminal, 4096)
        return re.search(pattern, shown) is not None

    until(lambda: shows(b"waiting"))
    os.write(terminal, b"2")
    until(lambda: shows(b"step [1-9]"))
    os.close(terminal)
    if not leads:  # the kernel tells the session's leader alone, which passes it on
        time.sleep(0.5)  # several lines or panels go to the terminal meanwhile
        assert process.poll() is None
        process.send_signal(signal.SIGHUP)
    time.sleep(0.02)
    process.send_signal(signal.SIGHUP)  # as the kernel does once more, when a shell has ended
    assert process.wait(240) == 0
    assert (tmp_path / "closed").exists()
    if command == "actor":
        assert FrameTable.open(run / "data" / "shard-000000").num_episodes == 1  # the one under way
        assert json.loads((run / "metrics.jsonl").read_text())
    else:
        assert json.loads((run / "result.json").read_text())["neither"] == {"discarded": 1}
        assert (run / "report.html").is_file()


@pytest.fixture
def _as_before() -> object:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("kill", [False, True])
def test_a_hangup_comes_once_and_hurries_nobody(kill: bool) -> None:
    calls: list[str] = []
    with handled(lambda: calls.append("stop"), kill=kill):
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert calls == ["stop"]
        if not kill:  # who wants it to end at once still can
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGHUP)  # while what is left is put in order
    with handled(lambda: calls.append("never")):
        signal.raise_signal(signal.SIGHUP)
    assert calls == ["stop"]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with handled(lambda: calls.append("interrupted"), kill=kill):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)  # a connection that drops meanwhile
    assert calls == ["stop", "interrupted"]


@pytest.mark.usefixtures("_as_before")
def test_who_ignores_hangups_goes_on() -> None:
    calls: list[str] = []
    for handler in (signal.SIG_IGN, signal.SIG_DFL):  # as under nohup, and without
        signal.signal(signal.SIGHUP, handler)
        with handled(lambda: calls.append("stop")):
            if handler is signal.SIG_IGN:
                signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is handler and not calls
