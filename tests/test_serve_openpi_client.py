"""openpi's own client, in an environment of its own, against `chunkrl serve` (`make test-openpi`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="needs chunkrl[serve]")
pytest.importorskip("msgpack", reason="needs chunkrl[serve]")

from online_peers import certificate
from pi_tiny import TOKENIZER, tiny_policy
from serve_peers import serving
from started import STARTED
from test_serve import TOKEN, Robot
from test_serve_batcher import trained
from waiting import until

from chunkrl import load_policy
from chunkrl.models.pi import load_pretrained, save_pretrained
from chunkrl.serve.config import ServeListen
from chunkrl.types import Observation

CLIENTS_PYTHON = os.environ.get("OPENPI_PYTHON", "")
pytestmark = [
    pytest.mark.openpi,
    pytest.mark.skipif(
        not CLIENTS_PYTHON, reason="OPENPI_PYTHON names no Python with openpi-client: make test-openpi"
    ),
]


def pi_robot(folder: Path) -> Robot:
    """A tiny pi0.5 from its folder, and six images that are not square."""
    pytest.importorskip("sentencepiece", reason="the tokenizer needs chunkrl[pi]")
    save_pretrained(tiny_policy("pi05"), folder / "bare")
    save_pretrained(load_pretrained(folder / "bare", tokenizer=TOKENIZER), folder / "pi05")
    policy, rng = load_policy(folder / "pi05"), np.random.default_rng(0)
    seen: list[Any] = [
        Observation(
            {camera: rng.integers(0, 256, (48, 64, 3), np.uint8) for camera in policy.cameras},  # type: ignore[misc]
            rng.normal(size=policy.state_dim),  # type: ignore[arg-type]
            text,
        )
        for text in ("push", "pull the red cup", "push") * 2
    ]
    return Robot(policy, seen)


@pytest.fixture(scope="module", params=["small", "pi05"])
def robot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Robot:
    folder = tmp_path_factory.mktemp(request.param)
    return Robot(*trained(folder, "gaussian")) if request.param == "small" else pi_robot(folder)


class Peer:
    """A process of `openpi_peer.py`. rows: of the robot, in the order in which they are asked for. tls: the
    server's certificate."""

    def __init__(
        self, robot: Robot, folder: Path, port: int, what: str, *more: str, turn: int = 0, tls: str = ""
    ) -> None:
        self.robot, count = robot, len(robot.seen)
        self.rows = [(row + turn) % count for row in range(count)]
        self.file = folder / f"{what}-{turn}.npz"
        values: dict[str, Any] = {
            f"{place}:{key}": value
            for place, row in enumerate(self.rows)
            for key, value in robot.message(row).items()
        }
        np.savez(self.file, **values)
        host = "wss://127.0.0.1" if tls else "127.0.0.1"
        command = [CLIENTS_PYTHON, str(Path(__file__).with_name("openpi_peer.py")), host, str(port)]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if tls:
            env["SSL_CERT_FILE"] = tls
        self.process = subprocess.Popen(
            [*command, str(self.file), what, *more], stdout=subprocess.PIPE, text=True, env=env
        )
        STARTED.append(self.process)

    def line(self) -> str:
        """The next one."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def difference(self) -> float:
        """Of its answers from `act`'s, the largest; after its end."""
        assert self.process.wait() == 0
        with np.load(f"{self.file}.answers.npz") as file:
            (answers,) = (file[name] for name in file.files)
        expected = [self.robot.expected(row) for row in self.rows]
        assert answers.dtype == np.float32 and answers.shape == np.shape(expected)
        return float(np.abs(answers - expected).max())


@pytest.mark.parametrize("what", ["chunks", "steps"])
def test_actions_are_the_policys(robot: Robot, tmp_path: Path, what: str) -> None:
    with serving(robot.policy) as server:
        peer = Peer(robot, tmp_path, server.port, what)
        told = json.loads(peer.line())
        assert peer.difference() == 0
    policy = robot.policy
    assert (told["action_horizon"], told["action_dim"]) == (policy.action_horizon, policy.action_dim)


def test_an_error_then_another_connection(robot: Robot, tmp_path: Path) -> None:
    with serving(robot.policy) as server:
        peer = Peer(robot, tmp_path, server.port, "errors")
        assert peer.line() == "Error in inference server:\n"
        assert "lacks the policy's observation.state" in peer.line()
        assert peer.difference() == 0


def test_ten_clients_of_which_one_is_killed_and_one_sends_garbage(robot: Robot, tmp_path: Path) -> None:
    with serving(robot.policy) as server:
        killed = Peer(robot, tmp_path, server.port, "for-ever")
        assert killed.line() == "answered\n"
        garbage = Peer(robot, tmp_path, server.port, "garbage")
        peers = [Peer(robot, tmp_path, server.port, "chunks", turn=turn) for turn in range(8)]
        until(lambda: server.num_clients > 1)
        killed.process.kill()
        assert "no msgpack" in garbage.line()
        differences = [peer.difference() for peer in peers]
        assert garbage.process.wait() == 0
        until(lambda: server.num_clients == 0)
        assert server.counts.clients == 10 and server.counts.refused == 1
    together = robot.policy.own_image_size is not None  # pi: rows of a batch round otherwise
    assert max(differences) <= (1e-5 if together else 0)


def test_token_and_tls(robot: Robot, tmp_path: Path) -> None:
    ours = certificate(tmp_path, "server")
    (tmp_path / "token").write_text(TOKEN)
    listen = ServeListen("127.0.0.1:0", str(tmp_path / "token"), **ours)
    with serving(robot.policy, listen=listen) as server:
        tls = ours["tls_certificate"]
        assert Peer(robot, tmp_path, server.port, "chunks", TOKEN, tls=tls).difference() == 0
        assert Peer(robot, tmp_path, server.port, "chunks", TOKEN + "x", tls=tls).process.wait() != 0
        assert server.counts.clients == 1
