"""Actor and learner killed at random, alone and together: episodes finished = episodes stored, none twice."""

import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="needs chunkrl[online]")

import pyarrow.parquet as pq
from online_live import length

from chunkrl.online.intake import read_set_aside
from chunkrl.online.replay import EPISODE_KEY, reading
from chunkrl.online.streams import ReceivedStreams

SCRIPT = Path(__file__).with_name("online_live.py")


class Process:
    """An actor or learner, with what it printed."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def begun(self) -> None:
        """Waits until it works."""
        assert self._process.stdout and self._process.stdout.readline() == "begun\n"

    def kill(self) -> list[str]:
        """SIGKILL; the lines printed until then."""
        self._process.send_signal(signal.SIGKILL)
        return self.wait()

    def wait(self) -> list[str]:
        """The lines printed until it ends."""
        assert self._process.stdout
        lines = self._process.stdout.read().splitlines()
        self._process.wait()
        self._process.stdout.close()
        return lines


def stored_episodes(root: Path) -> dict[str, int]:
    """Episode id -> rows, in all shards; fails where one is in two places."""
    found: dict[str, int] = {}
    with reading(root) as folders:
        for folder in folders:
            tables = [pq.read_table(file, columns=[EPISODE_KEY]) for file in folder.glob("data/*/*.parquet")]
            rows = [identity for table in tables for identity in table[EPISODE_KEY].to_pylist()]
            assert not found.keys() & set(rows)
            found |= {identity: rows.count(identity) for identity in rows}
    return found


def kill(tmp_path: Path, rounds: int, victims: tuple[str, ...], seed: int) -> None:
    rng = random.Random(seed)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    finished: list[str] = []
    started = {
        "learner": ("learner", tmp_path / "learner", port),
        "actor": ("actor", tmp_path / "actor", port, 10_000),
    }
    processes = {name: Process(*arguments) for name, arguments in started.items()}
    for name in started.keys() - set(victims):
        processes[name].begun()

    def end(name: str) -> None:
        lines = processes[name].kill()
        if name == "actor":
            finished.extend(
                line.split()[1] for line in lines if line.startswith("finished") and len(line) == 45
            )

    for _ in range(rounds):
        for name in victims:
            processes[name].begun()
        time.sleep(rng.uniform(0.1, 0.6))
        for name in victims:
            end(name)
        for name in victims:
            processes[name] = Process(*started[name])
    end("actor")
    last = Process("actor", tmp_path / "actor", port, 2)
    last.begun()
    lines = last.wait()
    assert lines[-1] == "sent"
    finished += [line.split()[1] for line in lines[:-1]]
    deadline = time.monotonic() + 60
    while finished[-1] not in stored_episodes(tmp_path / "learner/replay"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    end("learner")

    stored = stored_episodes(tmp_path / "learner/replay")
    assert all(count == length(identity) for identity, count in stored.items())
    kills = 1 + rounds * ("actor" in victims)
    assert set(finished) <= stored.keys()
    assert len(stored) - len(finished) <= kills  # killed between the spool and the print
    aside = [read_set_aside(path) for path in (tmp_path / "learner/set_aside").glob("*")]
    assert len(aside) <= kills and not {items[0].episode_id for items in aside} & stored.keys()
    streams = ReceivedStreams(tmp_path / "learner/incoming")
    spool = streams.spool("arm")
    assert (
        spool.acknowledged == spool.next_sequence == sum(stored.values()) + len(stored) + sum(map(len, aside))
    )
    streams.close()


def test_both_killed(tmp_path):
    kill(tmp_path, 1, ("learner", "actor"), 0)


@pytest.mark.slow
@pytest.mark.parametrize("victims", [("learner",), ("actor",), ("learner", "actor")])
def test_killed_20_times(tmp_path, victims):
    kill(tmp_path, 20, victims, 1)
