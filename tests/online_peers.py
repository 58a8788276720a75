"""Processes and a bad network for the transport's tests.

python online_peers.py receiver ROOT PORT: a receiver until it is killed; prints its port.
python online_peers.py actor ROOT PORT TOTAL: spools items until there are TOTAL, sends them, prints "sent".
"""

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from online_records import SPEC, step

from chunkrl.online.link.config import ConnectConfig, ListenConfig
from chunkrl.online.link.records import Hello
from chunkrl.online.link.sender import LearnerClient, SenderConfig, SpoolSender
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.transport import ReceiverLimits, SpoolReceiver
from chunkrl.online.link.wire import encode_item

SMALL = SenderConfig(
    batch_bytes=3000, burst_bytes=30_000, call_timeout_s=5, greet_timeout_s=2, poll_s=0.01, first_pause_s=0.02,
    longest_pause_s=0.2,
)  # fmt: skip


def certificate(folder: Path, name: str, address: str = "127.0.0.1") -> dict[str, str]:
    """A new key and certificate of its own for `address`, as settings of `ListenConfig`."""
    key, cert = str(folder / f"{name}.key"), str(folder / f"{name}.pem")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={name}"]
    command += ["-addext", f"subjectAltName=IP:{address}"]
    subprocess.run(command, check=True, capture_output=True)
    return {"tls_key": key, "tls_certificate": cert}


def item(sequence: int, actor: str = "arm") -> bytes:
    """What an actor's test spool has under `sequence`: step sequence % 10 of episode sequence // 10."""
    return encode_item(step(sequence // 10, sequence % 10, actor))


def client(
    spool: Spool, port: int, actor: str = "arm", config: SenderConfig = SMALL, **connect: str
) -> LearnerClient:
    """A client for a receiver on this machine."""
    link = ConnectConfig(f"127.0.0.1:{port}", **connect)
    return LearnerClient(link, Hello(actor, spool.spool_id, SPEC), spool, config)


def check_stored(root: Path, total: int, actor: str = "arm") -> None:
    """The receiver's folder holds items 0 to total - 1, each once."""
    streams = ReceivedStreams(root)
    try:
        spool = streams.spool(actor)
        assert spool.next_sequence == total
        assert spool.read(0, 2**30) == [item(i, actor) for i in range(total)]
    finally:
        streams.close()


class BadNetwork:
    """A TCP proxy that delays what it carries and cuts connections after a random number of bytes."""

    def __init__(self, port: int, seed: int, delay_s: float, cut_after: int) -> None:
        self.cuts = 0
        self._rng = random.Random(seed)
        self._target, self._delay, self._cut_after = port, delay_s, cut_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accepts no more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            left = [self._rng.randrange(200, self._cut_after)]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(a, b, left), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):  # the other direction was cut
            while data := source.recv(1500):
                time.sleep(self._delay)
                target.sendall(data[: max(left[0], 0)])
                left[0] -= len(data)
                if left[0] < 0:
                    self.cuts += 1
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):  # closed already
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _receive(root: str, port: int) -> None:
    receiver = SpoolReceiver(ListenConfig(f"127.0.0.1:{port}"), ReceivedStreams(root), ReceiverLimits(8, 5.0))
    print(receiver.start(), flush=True)
    threading.Event().wait()


def _act(root: str, port: int, total: int) -> None:
    with Spool(root, segment_bytes=20_000, sync_interval_s=0.05) as spool:
        sender = SpoolSender(client(spool, port), spool, SMALL)
        print("begun", flush=True)
        while spool.next_sequence < total:
            spool.append(item(spool.next_sequence))
            time.sleep(0.001)
        assert sender.wait_sent(60), sender.failure
        sender.close()
    print("sent", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "receiver":
        _receive(sys.argv[2], int(sys.argv[3]))
    else:
        _act(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
