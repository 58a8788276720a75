"""The actor's end: sends its spool to the learner in the background and fetches weights.

The actor never waits for it: steps go into the spool, and what the learner has confirmed leaves it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from chunkrl.errors import ChunkRLError, RecordError, SpoolError, SpoolWriteError, TransportError
from chunkrl.online.link import wire
from chunkrl.online.link.config import ConnectConfig, read_token
from chunkrl.online.link.images import FEATURE, pack_item
from chunkrl.online.link.records import Hello, WeightPush, Welcome
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.transport import (
    FEATURES,
    MESSAGE_OPTIONS,
    OUR_PROTOCOLS,
    SERVICE,
    grpc,
    open_channel,
    token_metadata,
)

_LOG = logging.getLogger(__name__)
_FOR_GOOD = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
}
_FEW = 64
"""Records that are not worth a call of their own: 2 s of an actor at 30 Hz."""


class UnreachableError(ChunkRLError):
    """The learner cannot be reached at the moment: try again later."""


@dataclass(frozen=True)
class SenderConfig:
    """batch_bytes: a message. burst_bytes: a call of several messages, confirmed one by one, which may take
    `call_timeout_s`. greet_timeout_s, weights_timeout_s: of the other calls. poll_s: between looks for something to
    send. gather_s: a few records wait for those that follow, at most so long, and go together; an episode's last ones
    go when none has followed for `poll_s`. first_pause_s, longest_pause_s: after a failure, doubling, with jitter.
    keepalive_s: a connection over which nothing came back for so long is asked, and given up after as long again."""

    batch_bytes: int = 2**20
    burst_bytes: int = 16 * 2**20
    call_timeout_s: float = 60.0
    greet_timeout_s: float = 10.0
    weights_timeout_s: float = 600.0
    poll_s: float = 0.1
    gather_s: float = 0.5
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0
    keepalive_s: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise TransportError(f"{name} {value}: above 0")


class LearnerClient:
    """One actor's connection to the learner. One thread may drain while another fetches weights.

    spool: what is sent; its entries are `wire.encode_item` of the actor's items.

    Attributes:
        weights_version: the newest version on offer when last greeted.
    """

    def __init__(
        self, connect: ConnectConfig, hello: Hello, spool: Spool, config: SenderConfig = SenderConfig()
    ) -> None:
        if hello.spool_id != spool.spool_id:
            raise TransportError(f"hello names spool {hello.spool_id}, the spool is {spool.spool_id}")
        self.weights_version = 0
        hello = replace(hello, features=(*FEATURES, *hello.features))
        self._connect, self._hello, self._spool, self._config = connect, hello, spool, config
        self._protocol = 0  # 0: to be greeted
        self._packs = False
        self._metadata = token_metadata(read_token(connect.token_file))
        pause = [
            ("grpc.initial_reconnect_backoff_ms", int(config.first_pause_s * 1000)),
            ("grpc.min_reconnect_backoff_ms", int(config.first_pause_s * 1000)),
            ("grpc.max_reconnect_backoff_ms", int(config.longest_pause_s * 1000)),
        ]
        alive = [
            ("grpc.keepalive_time_ms", int(config.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(config.keepalive_s * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        self._channel = open_channel(connect, [*MESSAGE_OPTIONS, *pause, *alive])
        self._greet_call = self._channel.unary_unary(f"/{SERVICE}/Greet")
        self._append_call = self._channel.stream_stream(f"/{SERVICE}/Append")
        self._weights_call = self._channel.unary_stream(f"/{SERVICE}/FetchWeights")

    def greet(self) -> Welcome:
        """Agrees on a protocol and takes over what the learner has.

        Raises:
            UnreachableError: no learner there at the moment.
            TransportError: refused; the message names the cure.
        """
        confirmed = self._spool.acknowledged  # another connection may raise it before the answer is here
        try:
            message = wire.encode_hello(self._hello)
            data = self._greet_call(message, timeout=self._config.greet_timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._translate(error) from error
        welcome = wire.decode_welcome(data)
        oldest, newest = OUR_PROTOCOLS
        if not oldest <= welcome.protocol <= newest:
            raise TransportError(
                f"the learner speaks protocol {welcome.protocol}: install its chunkrl version here"
            )
        if welcome.next_sequence < confirmed:
            raise TransportError(
                f"the learner at {self._connect.address} has {welcome.next_sequence} items of "
                f"{self._hello.actor_id}, but {confirmed} are confirmed in {self._spool.root}: by another learner, "
                "or its folder was replaced; start that one, or begin again with another --actor-id and another "
                "--output-dir (or --spool)"
            )
        self._spool.acknowledge(welcome.next_sequence)
        self._protocol, self.weights_version = welcome.protocol, welcome.weights_version
        self._packs = FEATURE in welcome.features
        return welcome

    def drain(self) -> int:
        """Sends what is in the spool, at most `burst_bytes`; returns how many entries were confirmed.

        Raises:
            UnreachableError: the connection failed; what was confirmed before stays so.
            SpoolWriteError: the disk is full, ...: what was confirmed is sent once more, and dropped there.
            TransportError, RecordError, other SpoolErrors: trying again is of no use.
        """
        known = self._protocol != 0
        protocol = self._protocol or self.greet().protocol
        self._spool.sync()  # nothing is sent that a power cut here could take back
        first, end = self._spool.acknowledged, self._spool.durable_sequence
        if first == end:
            return 0
        failure: list[ChunkRLError] = []
        call = self._append_call(
            self._batches(first, end, protocol, failure),
            timeout=self._config.call_timeout_s,
            metadata=self._metadata,
        )
        confirmed = first
        try:
            for data in call:
                confirmed = self._take_acknowledgement(wire.decode_acknowledgement(data), confirmed, end)
        except grpc.RpcError as error:
            self._protocol = 0
            translated = failure[0] if failure else self._translate(error)
            if known and not failure:  # it may be another learner by now: greeting says what is wrong
                translated = UnreachableError(str(translated))
            raise translated from error
        finally:
            call.cancel()
        return self._spool.acknowledged - first

    def fetch_weights(self, newer_than: int, max_bytes: int = wire.MAX_WEIGHT_BYTES) -> WeightPush | None:
        """The newest weights, or None where no version above `newer_than` is on offer.

        Raises:
            RecordError: they were damaged on the way or are too large: keep the old ones.
            UnreachableError, TransportError: as `greet`.
        """
        protocol = self._protocol or self.greet().protocol
        request = wire.WeightRequest(self._hello.actor_id, protocol, newer_than)
        call = self._weights_call(
            wire.encode_weight_request(request),
            timeout=self._config.weights_timeout_s,
            metadata=self._metadata,
        )
        try:
            push = wire.decode_weights(call, max_bytes)
        except grpc.RpcError as error:
            self._protocol = 0
            raise self._translate(error) from error
        finally:
            call.cancel()
        if push and push.version <= newer_than:
            raise RecordError(
                f"weights version {push.version} where one above {newer_than} was asked for: refused"
            )
        return push

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _batches(self, first: int, end: int, protocol: int, failure: list[ChunkRLError]) -> Iterator[bytes]:
        """Runs in a thread of gRPC's, which would turn an exception into an unnamed cancellation."""
        sent = 0
        try:
            while first < end and sent < self._config.burst_bytes:
                items = self._read(first, end)
                sent += sum(map(len, items))
                if self._packs:
                    items = [pack_item(item) for item in items]
                batch = wire.Batch(self._hello.actor_id, self._hello.spool_id, protocol, first, items)
                yield wire.encode_batch(batch)
                first += len(items)
        except ChunkRLError as error:
            failure.append(error)
            raise

    def _read(self, first: int, end: int) -> list[bytes]:
        try:
            return self._spool.read(first, self._config.batch_bytes, end)
        except SpoolError as error:
            if first >= self._spool.acknowledged:
                raise
            raise UnreachableError(
                f"entry {first} was confirmed to another connection meanwhile: the next call begins after it"
            ) from error

    def _take_acknowledgement(self, next_sequence: int, confirmed: int, end: int) -> int:
        """confirmed: by this call so far; the spool may know of more, where a greeting overtook the call."""
        if not confirmed <= next_sequence <= end:
            raise TransportError(
                f"the learner at {self._connect.address} confirmed {next_sequence}, of {end} that were sent: it is "
                "no chunkrl learner, or another actor has the same id"
            )
        self._spool.acknowledge(next_sequence)
        return next_sequence

    def _translate(self, error: grpc.RpcError) -> ChunkRLError:
        code, details = error.code(), error.details()  # type: ignore[attr-defined]
        text = f"learner at {self._connect.address}: {details} ({code.name})"
        return TransportError(text) if code in _FOR_GOOD else UnreachableError(text)


class SpoolSender:
    """Drains a spool in a thread of its own until it is closed; goes on after every failure that may pass.

    Attributes:
        failure: the error that ended it for good, or None; the actor shows it and goes on recording.
        reachable: whether the last attempt succeeded.
    """

    def __init__(self, client: LearnerClient, spool: Spool, config: SenderConfig = SenderConfig()) -> None:
        self.failure: ChunkRLError | None = None
        self.reachable = False
        self._client, self._spool, self._config = client, spool, config
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="spool-sender")
        self._thread.start()

    @property
    def pending(self) -> int:
        """Entries that the learner has not confirmed."""
        return self._spool.num_waiting

    def wait_sent(self, timeout_s: float) -> bool:
        """Waits until everything is confirmed; False where `timeout_s` pass or sending ended for good."""
        deadline = time.monotonic() + timeout_s
        while self.pending and not self.failure and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.pending == 0

    def close(self) -> None:
        """Ends the thread, after the call that is running; what is not confirmed stays in the spool."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        pause = self._config.first_pause_s
        while not self._closing.is_set():
            there = self._spool.next_sequence
            try:
                moved = self._client.drain()
            except (UnreachableError, SpoolWriteError) as error:
                level = (
                    logging.WARNING
                    if self.reachable or pause == self._config.first_pause_s
                    else logging.DEBUG
                )
                _LOG.log(level, "%s; %d entries wait in %s", error, self.pending, self._spool.root)
                self.reachable = isinstance(error, SpoolWriteError)
                self._closing.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, self._config.longest_pause_s)
            except (TransportError, RecordError, SpoolError) as error:
                _LOG.error("sending ends: %s; all entries stay in %s", error, self._spool.root)
                self.failure, self.reachable = error, False
                return
            except Exception as error:  # shown by the actor, which goes on recording
                _LOG.exception("sending ends; all entries stay in %s", self._spool.root)
                self.failure, self.reachable = TransportError(f"sending failed: {error!r}"), False
                return
            else:
                self.reachable, pause = True, self._config.first_pause_s
                took_all = self._spool.acknowledged >= there  # a call does not hold many large records
                if took_all and moved < _FEW:
                    self._gather()

    def _gather(self) -> None:
        """Waits for something to send, and what comes with it: a call costs the learner as much as many records."""
        until, seen = time.monotonic() + self._config.gather_s, 0
        while not self._closing.wait(self._config.poll_s):
            pending = self.pending
            if pending in (0, seen) or pending >= _FEW or time.monotonic() >= until:
                return
            seen = pending
