"""Spools reach the learner whole and once, whatever is killed, cut or slow; strangers and garbage do not."""

import itertools
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="needs chunkrl[online]")

import grpc
from online_peers import SMALL, BadNetwork, certificate, check_stored, client, item
from online_records import SPEC, episode_id
from waiting import until

from chunkrl.errors import RecordError, SpoolError, TransportError
from chunkrl.online.link import transport, wire
from chunkrl.online.link.config import ConnectConfig, ListenConfig, parse_address, read_token
from chunkrl.online.link.records import Hello, TensorData, WeightPush
from chunkrl.online.link.sender import LearnerClient, SpoolSender, UnreachableError
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.transport import ReceiverLimits, SpoolReceiver

TOKEN = "a-token-of-some-length"
PEERS = Path(__file__).with_name("online_peers.py")


@contextmanager
def receiving(
    root: Path, listen: ListenConfig = ListenConfig("127.0.0.1:0"), idle_s: float = 5.0
) -> Iterator[SpoolReceiver]:
    streams = ReceivedStreams(root)
    receiver = SpoolReceiver(listen, streams, ReceiverLimits(8, idle_s))
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop(0)
        streams.close()


def fill(spool: Spool, count: int, actor: str = "arm") -> None:
    for _ in range(count):
        spool.append(item(spool.next_sequence, actor))


def drain(link: LearnerClient, spool: Spool) -> None:
    until(lambda: link.drain() == 0)
    assert spool.acknowledged == spool.next_sequence


def test_a_spool_is_drained_and_goes_on(tmp_path):
    with receiving(tmp_path / "learner") as receiver, Spool(tmp_path / "actor", segment_bytes=5000) as spool:
        link = client(spool, receiver.port)
        assert link.drain() == 0
        fill(spool, 95)
        drain(link, spool)
        fill(spool, 3)
        drain(link, spool)
        link.close()
    check_stored(tmp_path / "learner", 98)


def test_a_greeting_may_overtake_a_call_that_sends(tmp_path):
    """The connection that fetches weights greets too, and learns that more came than the call has confirmed."""
    with receiving(tmp_path / "learner") as receiver, Spool(tmp_path / "actor") as spool:
        link, fetcher = client(spool, receiver.port), client(spool, receiver.port)
        fill(spool, 60)
        acknowledge, seen = spool.acknowledge, []

        def overtaken(next_sequence: int) -> None:
            acknowledge(next_sequence)
            seen.append(next_sequence)
            if 0 < next_sequence < 60 and spool.acknowledged < 60:
                until(lambda: fetcher.greet().next_sequence == 60)

        spool.acknowledge = overtaken
        drain(link, spool)
        assert spool.acknowledged == 60 and any(b < a for a, b in itertools.pairwise(seen))
        link.close()
        fetcher.close()
    check_stored(tmp_path / "learner", 60)


def test_a_call_whose_entries_a_greeting_has_confirmed_begins_again(tmp_path):
    with receiving(tmp_path / "learner") as receiver, Spool(tmp_path / "actor", segment_bytes=500) as spool:
        link = client(spool, receiver.port)
        fill(spool, 60)
        link.greet()
        begin, read = spool.acknowledged, spool.read

        def overtaken(first: int, max_bytes: int, end: int | None = None) -> list[bytes]:
            if first == begin:
                spool.acknowledge(40)  # entries of whole segments are deleted
            return read(first, max_bytes, end)

        spool.read = overtaken
        with pytest.raises(UnreachableError, match="the next call begins after it"):
            link.drain()
        link.close()


def test_several_actors_and_what_is_refused(tmp_path, caplog):
    with receiving(tmp_path / "learner") as receiver:
        for actor in ("one", "two"):
            with Spool(tmp_path / actor) as spool:
                fill(spool, 12, actor)
                link = client(spool, receiver.port, actor)
                drain(link, spool)
                link.close()
        with Spool(tmp_path / "other") as spool:
            cases = [
                (Hello("one", spool.spool_id, SPEC), "choose another --actor-id, with an --output-dir"),
                (
                    Hello("new", spool.spool_id, replace(SPEC, fps=20.0)),
                    "fps 20.0, but this learner's data has 10.0",
                ),
                (Hello("new", spool.spool_id, SPEC, 7, 9), "speaks protocol 7 to 9, the learner 1 to 1"),
            ]
            for hello, text in cases:
                link = LearnerClient(ConnectConfig(f"127.0.0.1:{receiver.port}"), hello, spool, SMALL)
                with pytest.raises(TransportError, match=text):
                    link.greet()
                assert text in caplog.text
                link.close()
            spool.append(b"garbage")
            link = client(spool, receiver.port, "new")
            sender = SpoolSender(link, spool, SMALL)
            assert not sender.wait_sent(5)
            assert "is damaged or no such message" in str(sender.failure)
            sender.close()
            link.close()
        with pytest.raises(SpoolError, match="another learner has this folder open"):
            ReceivedStreams(tmp_path / "learner")
    for actor in ("one", "two"):
        check_stored(tmp_path / "learner", 12, actor)


def test_batches_that_overlap_or_leave_a_gap(tmp_path):
    streams = ReceivedStreams(tmp_path, max_actors=1)
    hello = Hello("arm", episode_id(5), SPEC)
    assert streams.greet(hello) == 0

    def send(first: int, end: int) -> int:
        return streams.append(
            wire.Batch("arm", episode_id(5), 1, first, [item(i) for i in range(first, end)])
        )

    assert send(0, 4) == 4
    assert send(0, 4) == 4
    assert send(2, 7) == 7
    assert send(1, 3) == 7
    with pytest.raises(RecordError, match="number 8 came, but 7 is next"):
        send(8, 9)
    with pytest.raises(RecordError, match="sent an item of actor other"):
        streams.append(wire.Batch("arm", episode_id(5), 1, 7, [item(7), item(8, "other")]))
    with pytest.raises(TransportError, match="greet before sending"):
        streams.append(wire.Batch("arm", episode_id(6), 1, 7, [item(7)]))
    with pytest.raises(TransportError, match="raise max_actors"):
        streams.greet(replace(hello, actor_id="second"))
    streams.close()
    check_stored(tmp_path, 7)
    (tmp_path / "stream.json").write_text("{}")
    with pytest.raises(SpoolError, match=r"stream\.json: .*\"fps\": restore it"):
        ReceivedStreams(tmp_path)


def test_a_learner_that_lost_its_folder_is_noticed(tmp_path):
    with Spool(tmp_path / "actor") as spool:
        fill(spool, 5)
        with receiving(tmp_path / "learner") as receiver:
            link = client(spool, receiver.port)
            drain(link, spool)
            link.close()
        with receiving(tmp_path / "empty") as receiver:
            link = client(spool, receiver.port)
            with pytest.raises(
                TransportError, match=r"has 0 items of arm, but 5 are confirmed in .* another --actor-id"
            ):
                link.drain()
            link.close()


def test_no_learner_is_no_error_for_good(tmp_path):
    with Spool(tmp_path / "actor") as spool:
        fill(spool, 5)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        link = client(spool, port)
        with pytest.raises(UnreachableError, match="UNAVAILABLE"):
            link.drain()
        sender = SpoolSender(link, spool, SMALL)
        assert not sender.wait_sent(0.3) and sender.failure is None and sender.pending == 5
        with receiving(tmp_path / "learner", ListenConfig(f"127.0.0.1:{port}")):
            assert sender.wait_sent(20)
        sender.close()
        link.close()
    check_stored(tmp_path / "learner", 5)


def test_a_full_disk_of_the_learner_is_waited_out(tmp_path, monkeypatch, caplog):
    with receiving(tmp_path / "learner") as receiver, Spool(tmp_path / "actor") as spool:
        fill(spool, 5)
        link = client(spool, receiver.port)
        link.greet()

        def full(self, payload):
            raise SpoolError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Spool, "append", full)
            with pytest.raises(UnreachableError, match="No space left"):
                link.drain()
        assert "cannot be stored, the actor keeps it" in caplog.text
        drain(link, spool)
        link.close()
    check_stored(tmp_path / "learner", 5)


# Security


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:50", ("127.0.0.1", 50, True)),
        ("localhost:50", ("localhost", 50, True)),
        ("[::1]:50", ("::1", 50, True)),
        ("0.0.0.0:50", ("0.0.0.0", 50, False)),
        ("[::]:50", ("::", 50, False)),
        ("10.0.0.2:50", ("10.0.0.2", 50, False)),
        ("localhost.evil.org:50", ("localhost.evil.org", 50, False)),
        ("127.0.0.1.evil.org:50", ("127.0.0.1.evil.org", 50, False)),
    ],
)
def test_loopback_is_recognised(address, expected):
    assert parse_address(address) == expected


def test_other_addresses_need_tls_and_a_token(tmp_path):
    for address in ("0.0.0.0:50051", "robot.local:1"):
        with pytest.raises(TransportError, match="give tls_certificate, tls_key and token_file"):
            ListenConfig(address, token_file="token")
        with pytest.raises(TransportError, match="give tls_certificate, tls_key and token_file"):
            ListenConfig(address, tls_certificate="a", tls_key="b")
        with pytest.raises(TransportError, match="give tls_authority and token_file"):
            ConnectConfig(address, token_file="token")
    with pytest.raises(TransportError, match="go together"):
        ListenConfig(tls_key="b")
    for address in ("127.0.0.1", "127.0.0.1:x", ":50", "127.0.0.1:70000"):
        with pytest.raises(TransportError, match="give host:port"):
            ListenConfig(address)
    (tmp_path / "token").write_text("short")
    with pytest.raises(TransportError, match="at least 16"):
        read_token(str(tmp_path / "token"))
    with pytest.raises(TransportError, match="cannot read the token"):
        read_token(str(tmp_path / "none"))


def test_token_and_tls(tmp_path, caplog):
    right, wrong = tmp_path / "token", tmp_path / "wrong"
    right.write_text(TOKEN + "\n")
    wrong.write_text(TOKEN + "x")
    ours, others = certificate(tmp_path, "learner"), certificate(tmp_path, "stranger")
    listen = ListenConfig("0.0.0.0:0", str(right), **ours)
    with receiving(tmp_path / "learner", listen) as receiver, Spool(tmp_path / "actor") as spool:
        fill(spool, 4)
        trusted = ours["tls_certificate"]
        for token in ("", str(wrong)):
            link = client(spool, receiver.port, tls_authority=trusted, token_file=token)
            for call in (link.greet, link.drain, lambda link=link: link.fetch_weights(0)):
                with pytest.raises(TransportError, match="no token or a wrong one"):
                    call()
            link.close()
        assert "refused: no token or a wrong one" in caplog.text
        for authority in (
            "",
            others["tls_certificate"],
            "system",
        ):  # plain text, and a learner nobody vouches for
            link = client(spool, receiver.port, tls_authority=authority, token_file=str(right))
            with pytest.raises(UnreachableError):
                link.greet()
            link.close()
        link = client(spool, receiver.port, tls_authority=trusted, token_file=str(right))
        drain(link, spool)
        link.close()
    check_stored(tmp_path / "learner", 4)


def test_a_port_in_use_is_one_clear_error(tmp_path):
    with receiving(tmp_path / "a") as receiver:
        other = SpoolReceiver(ListenConfig(f"127.0.0.1:{receiver.port}"), ReceivedStreams(tmp_path / "b"))
        with pytest.raises(TransportError, match="the port is in use"):
            other.start()


# Malformed peers


def test_garbage_is_answered_logged_and_survived(tmp_path, caplog):
    with receiving(tmp_path / "learner") as receiver, Spool(tmp_path / "actor") as spool:
        channel = grpc.insecure_channel(f"127.0.0.1:{receiver.port}", transport.MESSAGE_OPTIONS)
        for method in ("Greet", "Append", "FetchWeights"):
            call = channel.stream_stream(f"/{transport.SERVICE}/{method}")
            for messages in ([b"\xff\xff garbage"], [bytes(1000)]):
                with pytest.raises(grpc.RpcError) as failure:
                    list(call(iter(messages), timeout=240))
                assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
        assert "dropped: greeting of 10 bytes is damaged" in caplog.text
        big = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{receiver.port}", big) as large:
            call = large.stream_stream(f"/{transport.SERVICE}/Append")
            with pytest.raises(grpc.RpcError) as failure:
                list(call(iter([bytes(wire.MAX_MESSAGE_BYTES + 1)]), timeout=240))
            assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        for bytes_ in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(range(256)) * 20,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff",
        ):
            with socket.create_connection(("127.0.0.1", receiver.port)) as raw:
                raw.sendall(bytes_)
        channel.close()
        fill(spool, 4)
        link = client(spool, receiver.port)
        drain(link, spool)
        link.close()
    check_stored(tmp_path / "learner", 4)


def test_a_silent_peer_is_dropped_and_holds_no_thread(tmp_path, caplog):
    with receiving(tmp_path / "learner", idle_s=0.3) as receiver, Spool(tmp_path / "actor") as spool:
        channel = grpc.insecure_channel(f"127.0.0.1:{receiver.port}")

        def silence() -> Iterator[bytes]:
            time.sleep(5)
            yield b""

        calls = [
            channel.stream_stream(f"/{transport.SERVICE}/Append")(silence()) for _ in range(8)
        ]  # all threads
        for call in calls:
            with pytest.raises(grpc.RpcError):
                next(call)
        assert caplog.text.count("dropped: silent for 0.3 s") == 8
        fill(spool, 4)
        sender = SpoolSender(client(spool, receiver.port), spool, SMALL)
        assert sender.wait_sent(20)
        sender.close()
        channel.close()
    check_stored(tmp_path / "learner", 4)


def test_a_peer_that_takes_no_more_is_dropped(tmp_path, caplog):
    with receiving(tmp_path / "learner", idle_s=0.3) as receiver:
        receiver.offer(push(1, rows=64))  # more than any buffer between the two holds
        with Spool(tmp_path / "actor") as spool:
            client(spool, receiver.port).greet()
        with grpc.insecure_channel(f"127.0.0.1:{receiver.port}") as channel:
            call = channel.unary_stream(f"/{transport.SERVICE}/FetchWeights")
            answer = call(wire.encode_weight_request(wire.WeightRequest("arm", 1, 0)))
            next(answer)
            until(lambda: "dropped: silent" in caplog.text)
            with pytest.raises(grpc.RpcError):
                list(answer)


# Weights


def push(version: int, rows: int = 3) -> WeightPush:
    return WeightPush.make(version, {"w": TensorData("bfloat16", (rows, 2**19), bytes(rows * 2**20))})


def test_weights_are_fetched_when_newer(tmp_path):
    with receiving(tmp_path / "learner") as receiver, Spool(tmp_path / "actor") as spool:
        link = client(spool, receiver.port)
        assert link.fetch_weights(0) is None
        receiver.offer(push(2))
        assert link.fetch_weights(0) == push(2) and link.fetch_weights(2) is None
        assert link.greet().weights_version == 2
        receiver.offer(push(5))
        assert link.fetch_weights(2) == push(5)
        with pytest.raises(TransportError, match="version 5 after 5"):
            receiver.offer(push(5))
        with pytest.raises(RecordError, match="more than the 1000 allowed"):
            link.fetch_weights(2, max_bytes=1000)
        assert link.fetch_weights(2) == push(5)
        receiver._policies.clear()  # a learner that was started again: it asks who is there before it gives anything
        with pytest.raises(UnreachableError, match="greet before"):
            link.fetch_weights(2)
        assert link.fetch_weights(2) == push(5)
        link.close()


def test_weights_damaged_on_the_way_are_refused(tmp_path, monkeypatch):
    encode = wire.encode_weights

    def damage(sent: WeightPush, own_steps: int | None) -> Iterator[bytes]:
        for message in encode(sent, own_steps):
            yield message[:-1] + bytes([message[-1] ^ 1])

    with receiving(tmp_path / "learner") as receiver, Spool(tmp_path / "actor") as spool:
        receiver.offer(push(2))
        link = client(spool, receiver.port)
        monkeypatch.setattr(wire, "encode_weights", damage)
        with pytest.raises(RecordError):
            link.fetch_weights(0)
        monkeypatch.setattr(wire, "encode_weights", lambda sent, own: list(encode(sent, own))[:-1])
        with pytest.raises(RecordError, match="cut off after 2097152 of 3145728"):
            link.fetch_weights(0)
        monkeypatch.undo()
        assert link.fetch_weights(0) == push(2)
        link.close()


# Faults


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, str(PEERS), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def kill_receiver(tmp_path: Path, rounds: int, seed: int) -> None:
    rng, port = random.Random(seed), free_port()
    with Spool(tmp_path / "actor", segment_bytes=20_000) as spool:
        sender = SpoolSender(client(spool, port), spool, SMALL)
        for last in [False] * rounds + [True]:
            with start("receiver", tmp_path / "learner", port) as process:
                assert process.stdout and int(process.stdout.readline()) == port
                stop = time.monotonic() + rng.uniform(0.05, 0.5)
                while time.monotonic() < stop:
                    fill(spool, 5)
                if last:
                    assert sender.wait_sent(60), sender.failure
                process.send_signal(signal.SIGKILL)
        sender.close()
        total = spool.next_sequence
    check_stored(tmp_path / "learner", total)


def kill_actor(tmp_path: Path, rounds: int, seed: int) -> None:
    rng, total = random.Random(seed), 400 * rounds
    with receiving(tmp_path / "learner") as receiver:
        for _ in range(rounds):
            with start("actor", tmp_path / "actor", receiver.port, total) as process:
                assert process.stdout and process.stdout.readline() == "begun\n"
                time.sleep(rng.uniform(0.0, 0.4))
                process.send_signal(signal.SIGKILL)
        with start("actor", tmp_path / "actor", receiver.port, total) as process:
            assert process.stdout and process.stdout.read().split() == ["begun", "sent"]
    check_stored(tmp_path / "learner", total)


def cut_network(tmp_path: Path, total: int, seed: int) -> None:
    with receiving(tmp_path / "learner") as receiver, Spool(tmp_path / "actor") as spool:
        network = BadNetwork(receiver.port, seed, delay_s=0.002, cut_after=60_000)
        sender = SpoolSender(client(spool, network.port), spool, SMALL)
        for _ in range(total // 10):
            fill(spool, 10)
            time.sleep(0.005)
        assert sender.wait_sent(120), sender.failure
        sender.close()
        network.close()
        assert network.cuts >= total // 200  # a step has about 0.4 kB
    check_stored(tmp_path / "learner", total)


def test_a_killed_receiver(tmp_path):
    kill_receiver(tmp_path, 2, 0)


def test_a_killed_actor(tmp_path):
    kill_actor(tmp_path, 2, 0)


def test_a_slow_network_with_cuts(tmp_path):
    cut_network(tmp_path, 400, 0)


@pytest.mark.slow
def test_a_receiver_killed_20_times(tmp_path):
    kill_receiver(tmp_path, 20, 1)


@pytest.mark.slow
def test_an_actor_killed_20_times(tmp_path):
    kill_actor(tmp_path, 20, 1)


@pytest.mark.slow
def test_a_network_with_many_cuts(tmp_path):
    cut_network(tmp_path, 4000, 1)
