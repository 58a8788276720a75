"""The learner's end of the link.

Who may talk to whom: loopback freely, any other address only with TLS and a token.

The learner's end: receives actors' spools and hands out weights.

Every method is registered as a stream of bytes in both directions, also where a client sends and receives one
message (the same on the wire): so this file decodes, bounds, times and logs whatever a peer does, and a silent
or malformed one costs a log line and never a thread for good.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from chunkrl.errors import ChunkRLError, RecordError, SpoolError, TransportError
from chunkrl.install import MissingExtraError
from chunkrl.online.link import wire
from chunkrl.online.link.config import ConnectConfig, ListenConfig, is_shown, read_secret, read_token
from chunkrl.online.link.images import FEATURE
from chunkrl.online.link.records import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION, Hello, WeightPush, Welcome
from chunkrl.online.link.streams import ReceivedStreams

try:
    import grpc
except ImportError as error:
    raise MissingExtraError("Online training", "grpcio", "online") from error

SYSTEM_AUTHORITIES = "system"


def bind(listen: ListenConfig, server: grpc.Server) -> int:
    """Adds the port to `server` and returns its number."""
    try:
        if not listen.tls_key:
            return server.add_insecure_port(listen.address)
        pair = (
            read_secret(listen.tls_key, "private key"),
            read_secret(listen.tls_certificate, "certificate"),
        )
        return server.add_secure_port(listen.address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise TransportError(
            f"cannot listen on {listen.address}: the port is in use, the address is not this machine's, or key and "
            f"certificate are damaged; choose another port or end the other learner ({error})"
        ) from error


def open_channel(connect: ConnectConfig, options: list[tuple[str, int]]) -> grpc.Channel:
    """A channel to the learner; it connects when it is used."""
    if not connect.tls_authority:
        return grpc.insecure_channel(connect.address, options)
    trusted = None
    if connect.tls_authority != SYSTEM_AUTHORITIES:
        trusted = read_secret(connect.tls_authority, "certificate")
    return grpc.secure_channel(connect.address, grpc.ssl_channel_credentials(trusted), options)


_KEY = "authorization"


def token_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """What a client sends with each call."""
    return ((_KEY, f"Bearer {token}"),) if token else ()


def admitted(token: str, context: grpc.ServicerContext) -> bool:
    """Whether the call shows the token (compared in constant time), or none is asked for."""
    return is_shown(token, "Bearer", [str(v) for key, v in context.invocation_metadata() if key == _KEY])


SERVICE = "chunkrl.online.v1.SpoolReceiver"
POLICY_FEATURE = "policy-"
"""Begins the feature by which an actor says what it acts with."""
FEATURES = ("weights", FEATURE)
OUR_PROTOCOLS = (MIN_PROTOCOL_VERSION, PROTOCOL_VERSION)
MESSAGE_OPTIONS = [
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
]
_STATUS_CHARACTERS = 1000
_LOG = logging.getLogger(__name__)
Method = Callable[[Iterator[bytes]], Iterator[bytes]]


@dataclass(frozen=True)
class ReceiverLimits:
    """max_calls: calls at a time; more are told to come again. idle_s: a peer that neither sends nor takes
    anything for so long in the middle of a call is dropped."""

    max_calls: int = 64
    idle_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_calls < 1 or not self.idle_s > 0:
            raise TransportError(f"max_calls {self.max_calls}, idle_s {self.idle_s}: at least 1, above 0")


class _NotGreetedError(ChunkRLError):
    """The learner was started again: the actor greets and asks again."""


class SpoolReceiver:
    """A gRPC server that stores what actors send in `streams` and offers the newest weights.

    It answers from threads of its own: training never waits for it.

    Attributes:
        port: where it listens, after `bind`.
        heard: actor -> when it was heard last, by `time.monotonic`.
        policy: `publisher.policy_features` of what the weights on offer belong to; (): not known.
    """

    def __init__(
        self,
        listen: ListenConfig,
        streams: ReceivedStreams,
        limits: ReceiverLimits = ReceiverLimits(),
    ) -> None:
        self.port = 0
        self.heard: dict[str, float] = {}
        self.policy: tuple[str, ...] = ()
        self._policies: dict[str, tuple[str, ...]] = {}
        self._listen, self._streams, self._limits = listen, streams, limits
        self._token = read_token(listen.token_file)
        self._weights: WeightPush | None = None
        self._own_steps: Mapping[str, int] | None = None
        self._watched: dict[int, tuple[grpc.ServicerContext, float]] = {}
        self._mutex = threading.Lock()
        self._stopped = threading.Event()
        self._server: grpc.Server | None = None
        self._started = False
        self._watchdog = threading.Thread(
            target=self._drop_silent_peers, daemon=True, name="receiver-watchdog"
        )

    def bind(self) -> int:
        """Takes the port, so that nobody else can, and returns it; who calls is not answered before `start`.

        Raises:
            TransportError: the port is in use, ...
        """
        limits = self._limits
        options = [
            *MESSAGE_OPTIONS,
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", int(limits.idle_s * 1000)),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),  # actors' own keepalive is no attack
        ]
        server = grpc.server(
            ThreadPoolExecutor(limits.max_calls, thread_name_prefix="receiver"),
            options=options,
            maximum_concurrent_rpcs=limits.max_calls,
        )
        methods = {"Greet": self._greet, "Append": self._append, "FetchWeights": self._fetch_weights}
        handlers = {
            name: grpc.stream_stream_rpc_method_handler(self._guarded(name, method))
            for name, method in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.port = bind(self._listen, server)
        self._server = server
        return self.port

    def start(self) -> int:
        """Listens from now on; returns the port. Raises TransportError as `bind`, which may come before."""
        if self._server is None:
            self.bind()
        assert self._server is not None
        self._server.start()
        self._started = True
        self._watchdog.start()
        return self.port

    def stop(self, grace_s: float = 1.0) -> None:
        """Stops listening; calls in progress have `grace_s` to end. Actors go on and come back."""
        self._stopped.set()
        if self._server and not self._started:  # only a server that was started gives its port back
            self._server.start()
        if self._server:
            self._server.stop(grace_s).wait()

    def offer(self, push: WeightPush, own_steps: Mapping[str, int] | None = None) -> None:
        """Replaces the weights that actors get.

        own_steps: actor -> at least so many of `push.num_steps` are its own; None: not known.

        Raises:
            TransportError: the version is not newer than the one on offer.
        """
        with self._mutex:
            if self._weights and push.version <= self._weights.version:
                raise TransportError(
                    f"weights version {push.version} after {self._weights.version}: versions only rise "
                    "(chunkrl.online.link.weights.VersionCounter)"
                )
            self._weights, self._own_steps = push, own_steps

    def _greet(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        hello = wire.decode_hello(_first(messages))
        protocol = _negotiate(hello)
        next_sequence = self._streams.greet(hello)
        self.heard[hello.actor_id] = time.monotonic()
        self._policies[hello.actor_id] = tuple(
            name for name in hello.features if name.startswith(POLICY_FEATURE)
        )
        weights = self._weights
        common = tuple(name for name in FEATURES if name in hello.features)
        _LOG.info("actor %s is here, %d items of it are stored", hello.actor_id, next_sequence)
        yield wire.encode_welcome(Welcome(protocol, next_sequence, weights.version if weights else 0, common))

    def _append(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        for data in messages:
            batch = wire.decode_batch(data)
            _check_protocol(batch.protocol)
            next_sequence = self._streams.append(batch)
            self.heard[batch.actor_id] = time.monotonic()
            yield wire.encode_acknowledgement(next_sequence)

    def _fetch_weights(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        request = wire.decode_weight_request(_first(messages))
        _check_protocol(request.protocol)
        if request.actor_id not in self._policies:  # of a learner before this one
            raise _NotGreetedError(f"actor {request.actor_id}: greet before asking for weights")
        self.heard[request.actor_id] = time.monotonic()
        with self._mutex:
            weights, own_steps = self._weights, self._own_steps
        theirs = self._policies[request.actor_id]
        if weights and self.policy and theirs and theirs != self.policy:
            raise TransportError(
                f"actor {request.actor_id} acts with another policy than this learner trains (other statistics, "
                "sizes or cameras), which its weights do not fit: start it with --policy and the `policy` folder of "
                "the learner's run; its episodes are taken all the same"
            )
        if weights and weights.version > request.newer_than:
            own = None if own_steps is None else own_steps.get(request.actor_id, 0)
            yield from wire.encode_weights(weights, own)

    def _guarded(self, name: str, method: Method) -> Callable[..., Iterator[bytes]]:
        """`method` behind the token, the watchdog and one way of answering errors."""

        def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            peer = context.peer()
            if self._stopped.is_set():
                context.abort(grpc.StatusCode.UNAVAILABLE, "the learner ends")
            if not admitted(self._token, context):
                _LOG.warning("%s from %s refused: no token or a wrong one", name, peer)
                context.abort(
                    grpc.StatusCode.UNAUTHENTICATED, "no token or a wrong one: give the learner's token_file"
                )
            try:
                with self._watching(context) as beat:
                    for answer in method(_beating(requests, beat)):
                        yield answer
                        beat()
            except RecordError as error:
                _LOG.warning("%s from %s dropped: %s", name, peer, error)
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, _status_text(error))
            except TransportError as error:
                _LOG.warning("%s from %s refused: %s", name, peer, error)
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, _status_text(error))
            except _NotGreetedError as error:
                context.abort(grpc.StatusCode.UNAVAILABLE, _status_text(error))
            except SpoolError as error:
                _LOG.error(
                    "%s from %s cannot be stored, the actor keeps it and tries again: %s", name, peer, error
                )
                context.abort(grpc.StatusCode.UNAVAILABLE, _status_text(error))
            except grpc.RpcError:
                _LOG.warning("%s from %s ended half way: the peer went away, or sent too much", name, peer)

        return handle

    @contextmanager
    def _watching(self, context: grpc.ServicerContext) -> Iterator[Callable[[], None]]:
        key = id(context)

        def beat() -> None:
            with self._mutex:
                self._watched[key] = (context, time.monotonic())

        beat()
        try:
            yield beat
        finally:
            with self._mutex:
                self._watched.pop(key, None)

    def _drop_silent_peers(self) -> None:
        while not self._stopped.wait(self._limits.idle_s / 4):
            oldest = time.monotonic() - self._limits.idle_s
            with self._mutex:
                silent = [context for context, seen in self._watched.values() if seen < oldest]
            for context in silent:
                _LOG.warning("%s dropped: silent for %g s", context.peer(), self._limits.idle_s)
                context.cancel()


def _beating(requests: Iterator[bytes], beat: Callable[[], None]) -> Iterator[bytes]:
    for data in requests:
        beat()
        yield data


def _first(messages: Iterator[bytes]) -> bytes:
    for data in messages:
        return data
    raise RecordError("a call without a message")


def _negotiate(hello: Hello) -> int:
    """The newest version that both speak."""
    oldest, newest = OUR_PROTOCOLS
    protocol = min(newest, hello.max_protocol)
    if protocol < max(oldest, hello.min_protocol):
        raise TransportError(
            f"actor {hello.actor_id} speaks protocol {hello.min_protocol} to {hello.max_protocol}, the learner "
            f"{oldest} to {newest}: install the same chunkrl version on both"
        )
    return protocol


def _check_protocol(protocol: int) -> None:
    oldest, newest = OUR_PROTOCOLS
    if not oldest <= protocol <= newest:
        raise TransportError(f"protocol {protocol}: the learner speaks {oldest} to {newest}; greet first")


def _status_text(error: Exception) -> str:
    """Status texts travel in a header of bounded size; the cure stands at their end."""
    text = str(error)
    return text if len(text) <= _STATUS_CHARACTERS else f"{text[:500]} ... {text[-490:]}"
