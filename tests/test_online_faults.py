"""Actor and learner killed at random, alone and together: episodes finished = episodes stored, none twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="needs chunkrl[online]")

import pyarrow.parquet as pq
from online_live import length
from online_peers import certificate
from started import STARTED, end_all, free_address
from waiting import until

from chunkrl.online.learner.intake import read_set_aside
from chunkrl.online.learner.replay import EPISODE_KEY, reading
from chunkrl.online.link.streams import ReceivedStreams

SCRIPT = Path(__file__).with_name("online_live.py")


class Process:
    """An actor or learner, with what it printed."""

    def __init__(self, *arguments: object, host: tuple[str, ...] = ()) -> None:
        command = [*host, sys.executable, str(SCRIPT), *map(str, arguments)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        STARTED.append(self._process)

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
    """Episode id -> steps, in order, by what `chunkrl.data.writer` tells readers; fails where one is there twice."""
    found: dict[str, int] = {}
    with reading(root) as folders:
        for folder in folders:
            info = json.loads((folder / "meta/info.json").read_text())
            files = sorted(folder.glob("meta/episodes/*/*.parquet"))
            places = ["data/chunk_index", "data/file_index"]
            rows = [row for file in files for row in pq.read_table(file, columns=places).to_pylist()]
            tables: dict[Path, list[tuple[int, str]]] = {}
            for index, row in enumerate(rows[: info["total_episodes"]]):
                place = {name.removeprefix("data/"): row[name] for name in places}
                path = folder / info["data_path"].format(**place)
                if path not in tables:
                    table = pq.read_table(path, columns=["episode_index", EPISODE_KEY])
                    tables[path] = list(
                        zip(*(table[name].to_pylist() for name in table.schema.names), strict=True)
                    )
                steps = [identity for episode, identity in tables[path] if episode == index]
                [identity] = set(steps)
                assert identity not in found
                found[identity] = len(steps)
    return found


def wait_stored(root: Path, identity: str) -> None:
    until(lambda: identity in stored_episodes(root), pause_s=0.5)  # reading keeps the learner from adding


def kill(tmp_path: Path, rounds: int, victims: tuple[str, ...], seed: int) -> None:
    rng = random.Random(seed)
    address = free_address()
    finished: list[str] = []
    started = {
        "learner": ("learner", tmp_path / "learner", address, "-"),
        "actor": ("actor", tmp_path / "actor", address, "-", 10_000),
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
    last = Process("actor", tmp_path / "actor", address, "-", 2)
    last.begun()
    lines = last.wait()
    assert lines[-1] == "sent"
    finished += [line.split()[1] for line in lines[:-1]]
    wait_stored(tmp_path / "learner/replay", finished[-1])
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


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root, and mounting to be allowed")
    try:
        yield folder
    finally:
        end_all()
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("full", ["learner", "actor"])
def test_a_disk_that_is_full_20_times(tmp_path, full):
    """A file system without a free block: sending and storing go on where there is room again."""
    rng = random.Random(2)
    address = free_address()
    with small_disk(tmp_path / full, 40) as disk:
        roots = {name: tmp_path / name / "root" for name in ("learner", "actor")}
        learner = Process("learner", roots["learner"], address, "-")
        learner.begun()
        actor = Process("actor", roots["actor"], address, "-", 200)
        actor.begun()
        for _ in range(20):
            time.sleep(rng.uniform(0.05, 0.3))
            with (
                (disk / "ballast").open("wb", buffering=0) as file,
                pytest.raises(
                    OSError, match="No space left"
                ),  # who works there may free a block a moment later
            ):
                while True:
                    file.write(bytes(4096))
            time.sleep(rng.uniform(0.05, 0.3))
            (disk / "ballast").unlink()
        lines = actor.wait()
        assert lines[-1] == "sent", lines[-3:]
        finished = [line.split()[1] for line in lines[:-1]]
        wait_stored(roots["learner"] / "replay", finished[-1])
        learner.kill()
        stored = stored_episodes(roots["learner"] / "replay")
        assert set(stored) == set(finished) and len(finished) == 200
        assert all(count == length(identity) for identity, count in stored.items())


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces, 10.99.0.1 and 10.99.0.2, that see nothing but each other."""
    if not shutil.which("ip") or not shutil.which("openssl") or os.geteuid() != 0:
        pytest.skip("needs root, the ip and the openssl command")
    a, b = (f"chunkrl-{os.getpid()}-{name}" for name in "ab")
    try:
        for name in (a, b):
            if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode:
                pytest.skip("network namespaces are not allowed here")
        subprocess.run(
            ["ip", "-n", a, "link", "add", "v", "type", "veth", "peer", "v", "netns", b], check=True
        )
        for name, address in ((a, "10.99.0.1/24"), (b, "10.99.0.2/24")):
            subprocess.run(["ip", "-n", name, "address", "add", address, "dev", "v"], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "v", "up"], check=True)
        yield a, b
    finally:
        for name in (a, b):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_hosts_with_tls_and_a_cable_that_is_pulled(tmp_path):
    (tmp_path / "token").write_text("a-token-of-some-length")
    certificate(tmp_path, "learner", "10.99.0.1")
    with two_hosts() as (a, b):
        address = "10.99.0.1:50151"
        learner = Process("learner", tmp_path / "learner", address, tmp_path, host=("ip", "netns", "exec", a))
        learner.begun()
        actor = Process("actor", tmp_path / "actor", address, tmp_path, 150, host=("ip", "netns", "exec", b))
        actor.begun()
        for _ in range(3):
            time.sleep(0.7)
            subprocess.run(["ip", "-n", b, "link", "set", "v", "down"], check=True)
            time.sleep(0.7)
            subprocess.run(["ip", "-n", b, "link", "set", "v", "up"], check=True)
        lines = actor.wait()
        assert lines[-1] == "sent"
        finished = [line.split()[1] for line in lines[:-1]]
        wait_stored(tmp_path / "learner/replay", finished[-1])
        learner.kill()
    stored = stored_episodes(tmp_path / "learner/replay")
    assert list(stored) == finished and len(finished) == 150
    assert all(count == length(identity) for identity, count in stored.items())
