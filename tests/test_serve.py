"""`chunkrl serve` over the wire: actions are `load_policy().act`'s; no client stops another; who may come in."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("websockets", reason="needs chunkrl[serve]")
pytest.importorskip("msgpack", reason="needs chunkrl[serve]")

from online_peers import certificate
from pi_tiny import tiny_policy
from serve_peers import Client, serving
from started import STARTED
from test_serve_batcher import trained
from waiting import until
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidMessage, InvalidStatus
from websockets.sync.client import connect

from chunkrl.cli import main
from chunkrl.errors import ChunkRLError, TransportError
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.pi.actor import PiActor
from chunkrl.serve.batcher import noise_seed
from chunkrl.serve.codec import encode
from chunkrl.serve.config import ServeCommand, ServeListen
from chunkrl.serve.latency import Histogram, latency_table
from chunkrl.types import Observation

TOKEN = "a-token-of-some-length"


class Robot:
    """What a policy sees, as openpi's clients say it."""

    def __init__(self, policy: ActingPolicy, seen: list[Observation]) -> None:
        self.policy, self.seen = policy, seen

    def message(self, row: int) -> dict[str, Any]:
        seen = self.seen[row]
        images = {f"observation/{name.split('.')[-1]}": picture for name, picture in seen.images.items()}
        return {**images, "observation/state": seen.state, "prompt": seen.task}

    def expected(self, row: int, mode: Any = "mode", seed: int = 0) -> np.ndarray:
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(seed)
            return self.policy.act(self.seen[row], [generator], mode).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def robot(folder: Path) -> Robot:
    return Robot(*trained(folder, "gaussian"))


def test_a_client_gets_the_policys_own_actions(robot: Robot) -> None:
    with serving(robot.policy) as server:
        client = Client(server.port)
        told = client.metadata
        assert (told["action_horizon"], told["action_dim"], told["state_dim"]) == (3, 2, 3)
        assert told["policy"] == "run/policy" and told["mode"] == "mode" and told["client"] == 1
        assert set(told["keys"]) == {*robot.policy.cameras, "observation.state", "task"}
        for row in range(3):
            answer = client.infer(robot.message(row))
            assert np.array_equal(answer["actions"], robot.expected(row))
            assert set(answer) == {"actions", "server_timing"}
            names = {"infer_ms"} if row == 0 else {"infer_ms", "prev_total_ms"}
            assert set(answer["server_timing"]) == names
            assert all(value > 0 for value in answer["server_timing"].values())
        client.close()
        until(lambda: server.num_clients == 0)
        counts = server.counts
        assert (counts.clients, counts.answered, counts.refused, counts.total_ms.count) == (1, 3, 0, 3)


def test_noise_is_determined_by_the_client_and_its_question(robot: Robot) -> None:
    with serving(robot.policy, mode="sample", seed=5) as server:
        for number in (1, 2):
            client = Client(server.port)
            for place in range(2):
                chunk = client.infer(robot.message(0))["actions"]
                assert np.array_equal(chunk, robot.expected(0, "sample", noise_seed(5, number, place)))
            client.close()


def test_a_pi_policy() -> None:
    policy = PiActor(tiny_policy("pi05"))
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (48, 64, 3), np.uint8) for camera in policy.cameras}
    seen = Observation(images, rng.normal(size=8), "push the cup")  # type: ignore[arg-type]
    robot = Robot(policy, [seen])
    with serving(policy) as server:
        client = Client(server.port)
        assert np.array_equal(client.infer(robot.message(0))["actions"], robot.expected(0))
        client.close()


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (
            lambda r: encode({**r.message(0), "observation/state": np.zeros(4)}),
            "4 values, and the policy's state has 3",
        ),
        (lambda r: encode({**r.message(0), "action_dim": 8}), "actions of 8 values .* the policy's have 2"),
        (
            lambda r: encode({**r.message(0), "observation/front": np.zeros((32, 32, 3))}),
            "learned from uint8",
        ),
        (lambda r: encode({"prompt": "push"}), "lacks the policy's"),
        (lambda r: encode([1, 2]), "the observation is list"),
        (lambda r: encode(r.message(0))[:-5], "no msgpack"),
        (lambda r: b"\xc1garbage", "no msgpack"),
        (lambda r: "text", "the frame is text"),
    ],
)
def test_an_error_is_told_and_the_client_comes_again(robot: Robot, frame: Any, told: str) -> None:
    with serving(robot.policy) as server:
        client = Client(server.port)
        with pytest.raises(RuntimeError, match=told) as raised:
            client.exchange(frame(robot))
        assert "Traceback" not in str(raised.value) and ".py" not in str(raised.value)
        with pytest.raises(ConnectionClosedError) as closed:
            client.socket.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
        again = Client(server.port)
        assert np.array_equal(again.infer(robot.message(1))["actions"], robot.expected(1))
        again.close()
        assert server.counts.refused == 1


def test_a_policy_that_fails_is_told_without_a_traceback(
    robot: Robot, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        takes, cameras, state_dim, action_dim = robot.policy.takes, robot.policy.cameras, 3, 2
        action_horizon, fps, gains_from_batches = 3, None, False

        def act(self, *_: Any) -> Any:
            raise RuntimeError("out of memory")

    broken: Any = Broken()
    with serving(broken) as server, pytest.raises(RuntimeError) as raised:
        Client(server.port).infer(robot.message(0))
    assert str(raised.value) == "the policy failed (RuntimeError: out of memory); the server's log says where"
    assert any(record.exc_info for record in caplog.records)


def get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_health_and_the_token(robot: Robot, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    with serving(robot.policy, listen=ServeListen("127.0.0.1:0", str(token))) as server:
        assert get(server.port, "/healthz") == (200, b"OK\n")
        for wrong in ("", "another-token-of-some-length", TOKEN[:-1]):
            with pytest.raises(InvalidStatus) as refused:
                Client(server.port, wrong)
            assert refused.value.response.status_code == 401
        client = Client(server.port, TOKEN)
        assert np.array_equal(client.infer(robot.message(0))["actions"], robot.expected(0))
        client.close()
        assert server.counts.clients == 1


def test_a_page_in_a_browser_is_no_robot(robot: Robot) -> None:
    page = {"Origin": "https://example.com"}
    with (
        serving(robot.policy) as server,
        pytest.raises(InvalidStatus) as refused,
        connect(f"ws://127.0.0.1:{server.port}", additional_headers=page),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_tls(robot: Robot, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours, others = certificate(tmp_path, "server"), certificate(tmp_path, "other")
    with serving(robot.policy, listen=ServeListen("127.0.0.1:0", **ours)) as server:
        trusting = ssl.create_default_context(cafile=ours["tls_certificate"])
        client = Client(server.port, tls=trusting)
        assert np.array_equal(client.infer(robot.message(0))["actions"], robot.expected(0))
        # a client whose reading thread is woken by a ticket while it asks to come in may hang
        session = client.socket.socket.session  # type: ignore[attr-defined]
        assert session is not None and not session.has_ticket
        client.close()
        with pytest.raises(ssl.SSLError):
            Client(server.port, tls=ssl.create_default_context(cafile=others["tls_certificate"]))
        with pytest.raises(InvalidMessage):
            Client(server.port)  # ws:// where wss:// is spoken
        last = Client(server.port, tls=trusting)
        assert np.array_equal(last.infer(robot.message(1))["actions"], robot.expected(1))
        last.close()
    assert not any(record.exc_info for record in caplog.records)
    with (
        pytest.raises(TransportError, match="cannot be used"),
        serving(
            robot.policy, listen=ServeListen("127.0.0.1:0", tls_key=ours["tls_key"], tls_certificate=__file__)
        ),
    ):
        pass


def test_other_addresses_need_a_token() -> None:
    for address in ("0.0.0.0:8000", "10.1.2.3:8000", "robot.local:8000", "[::]:8000"):
        with pytest.raises(TransportError, match="reached from other machines: give --token-file"):
            ServeListen(address)
        ServeListen(address, token_file="token")
    for address in ("localhost:1", "127.0.0.1:1", "[::1]:1"):
        ServeListen(address)
    with pytest.raises(TransportError, match="go together"):
        ServeListen(tls_key="key")
    with pytest.raises(TransportError, match="give host:port"):
        ServeListen("8000")


def test_a_port_in_use_is_told(robot: Robot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = ServeListen(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(TransportError, match="the port is in use"), serving(robot.policy, listen=listen):
            pass


def test_a_frame_that_is_too_large_ends_its_client_alone(robot: Robot) -> None:
    with serving(robot.policy, max_message_mb=1) as server:
        other = Client(server.port)
        client = Client(server.port)
        with pytest.raises(ConnectionClosedError) as closed:
            client.infer({"observation/front": np.zeros((1024, 1024, 3), np.uint8)})
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
        assert np.array_equal(other.infer(robot.message(0))["actions"], robot.expected(0))
        other.close()


def test_more_clients_than_allowed_are_refused(robot: Robot) -> None:
    with serving(robot.policy, max_clients=1) as server:
        first = Client(server.port)
        with pytest.raises(InvalidStatus) as refused:
            Client(server.port)
        assert refused.value.response.status_code == 503
        first.close()
        until(lambda: server.num_clients == 0)
        Client(server.port).close()


@pytest.mark.parametrize("together", [False, True])
def test_ten_clients_of_which_one_is_killed_and_one_sends_garbage(robot: Robot, together: bool) -> None:
    rounds, found, started = 12, {}, threading.Barrier(8 + 1)

    def act(number: int, port: int) -> None:
        client = Client(port)
        started.wait()
        rows = [(number + turn) % len(robot.seen) for turn in range(rounds)]
        found[number] = [(row, client.infer(robot.message(row))["actions"]) for row in rows]
        client.close()

    with serving(robot.policy, together=together) as server:
        threads = [threading.Thread(target=act, args=(number, server.port)) for number in range(8)]
        for thread in threads:
            thread.start()
        killed, garbage = Client(server.port), Client(server.port)
        started.wait()
        killed.socket.send(encode(robot.message(0)))
        killed.socket.socket.shutdown(socket.SHUT_RDWR)  # with a question open, and no word
        with pytest.raises(RuntimeError, match="no msgpack"):
            garbage.exchange(bytes(range(200, 256)) * 50)
        for thread in threads:
            thread.join()
        until(lambda: server.num_clients == 0)
    assert sorted(found) == list(range(8))
    for row, chunk in (answer for answers in found.values() for answer in answers):
        if together:
            assert np.abs(chunk - robot.expected(row)).max() <= 1e-5
        else:
            assert np.array_equal(chunk, robot.expected(row))
    assert server.counts.clients == 10 and server.counts.refused == 1
    assert server.counts.answered in (8 * rounds, 8 * rounds + 1)  # the killed one's, if it was made before


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_the_end_answers_what_was_asked(robot: Robot) -> None:
    """A policy that is busy when the server is told to end: the answer comes, then 1001."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        takes, cameras, state_dim, action_dim = robot.policy.takes, robot.policy.cameras, 3, 2
        action_horizon, fps, gains_from_batches = 3, None, False

        def act(self, *arguments: Any) -> Any:
            begun.set()
            go_on.wait()
            return robot.policy.act(*arguments)

    slow: Any = Slow()
    answers: list[Any] = []

    def act(port: int) -> None:
        client = Client(port)
        answers.append(client.infer(robot.message(0))["actions"])
        with pytest.raises(ConnectionClosed) as closed:
            client.socket.recv()
        answers.append(closed.value.rcvd)

    def go_on_when_ending(port: int) -> None:
        until(lambda: not listens(port))
        go_on.set()

    with serving(slow, finish_s=300.0) as server:
        threads = [threading.Thread(target=f, args=(server.port,)) for f in (act, go_on_when_ending)]
        threads[0].start()
        begun.wait()
        threads[1].start()
    for thread in threads:
        thread.join()
    assert np.array_equal(answers[0], robot.expected(0))
    assert answers[1].code == 1001


def test_the_command_from_start_to_control_c(robot: Robot, folder: Path) -> None:
    command = [sys.executable, "-m", "chunkrl", "serve", "--policy", str(folder / "run" / "policy")]
    command += ["--address", "127.0.0.1:0", "--device", "cpu", "--action-dim", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    STARTED.append(process)
    assert process.stdout is not None
    lines = []
    while not (
        found := re.search(
            r"listening on ws://127.0.0.1:(\d+), this machine only", lines[-1] if lines else ""
        )
    ):
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()
    assert re.search(r"observation.images.front +is sent as .*observation/front", "".join(lines))
    client = Client(int(found[1]))
    assert np.array_equal(client.infer(robot.message(0))["actions"], robot.expected(0))
    with pytest.raises(RuntimeError, match="no msgpack"):
        client.exchange(b"\xc1")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert re.search(r"served 1 observations of 1 clients in .*; refused 1", out)
    assert re.search(r"answer +[\d.]+ +[\d.]+", out) and "#####" in out
    assert "no msgpack" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("", "name the policy that is served"),
        ("--policy nowhere", "nowhere holds no policy"),
        ("--policy {policy} --action-dim 7", "have 2 values: it was trained for another robot"),
        ("--policy {policy} --address 0.0.0.0:1", "give --token-file"),
        ("--policy {policy} --rename a=side", "give CLIENT'S=POLICY'S"),
        ("--policy {policy} --flow-steps 3", "--flow-steps are for pi policies"),
        ("--policy {policy} --mode best_of_n", "best-of-N needs Q"),
        ("--policy {policy} --batch-size 0", "batch_size is 0"),
    ],
)
def test_commands_that_cannot_serve(
    robot: Robot, folder: Path, more: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--device", "cpu", *more.format(policy=folder / "run" / "policy").split()])
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_times_are_counted_in_bounded_memory() -> None:
    found = Histogram()
    assert (found.mean_ms, found.quantile_ms(0.5), found.bars()) == (0, 0, [])
    for ms in range(1, 1001):
        found.record(ms)
    size = len(found._buckets)
    for share in (0.01, 0.5, 0.95, 0.99, 1):
        assert 1000 * share <= found.quantile_ms(share) <= 1000 * share * 2 ** (1 / 16)
    assert found.mean_ms == 500.5 and found.longest_ms == found.quantile_ms(1) == 1000
    for ms in (0, 1e-9, 1e12):
        found.record(ms)
    assert len(found._buckets) == size and found.count == 1003
    assert sum(int(line.split()[3]) for line in found.bars()) == 1003
    assert [line.split()[0] for line in latency_table([("answer", found)])] == ["ms", "answer"]


def test_settings_that_mean_nothing() -> None:
    for wrong in ({"wait_ms": -1.0}, {"wait_ms": float("nan")}, {"max_clients": 0}, {"mode": "best"}):
        with pytest.raises(ChunkRLError):
            replace(ServeCommand(), **wrong)  # type: ignore[arg-type]
