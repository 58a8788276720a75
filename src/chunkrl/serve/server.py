"""openpi's websocket protocol: a policy on a port, for any number of robots.

The server first sends what it is; then each binary frame is one observation and is answered by one with its chunk.
What cannot be answered is told in a text frame, and the connection ends (1011): the client may come again. Nothing is
kept from one observation to the next but how long the last one took.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import itertools
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chunkrl.errors import ChunkRLError, RecordError, TransportError
from chunkrl.install import MissingExtraError
from chunkrl.online.link.config import is_shown, parse_address, read_token
from chunkrl.serve.batcher import Answer, Batcher, noise_seed
from chunkrl.serve.codec import decode, encode
from chunkrl.serve.config import ServeCommand, ServeListen
from chunkrl.serve.keys import KeyMap
from chunkrl.serve.latency import Histogram

try:
    from websockets.asyncio.server import Server, ServerConnection, serve
    from websockets.exceptions import ConnectionClosed, ConnectionClosedError
    from websockets.frames import CloseCode
    from websockets.http11 import Request, Response
except ImportError as error:
    raise MissingExtraError("Serving a policy", "websockets", "serve") from error

_LOG = logging.getLogger(__name__)
HEALTH = "/healthz"
_QUEUED, _OPEN_S, _CLOSE_S = 1, 10.0, 2.0
_MIB = 2**20
_ENDS = "the server ends"


@dataclass
class Counts:
    """What was done since the start. total_ms: from a frame to its answer; waited_ms: of it until the forward pass;
    infer_ms: of it in there."""

    clients: int = 0
    answered: int = 0
    refused: int = 0
    passes: float = 0.0
    total_ms: Histogram = field(default_factory=Histogram)
    waited_ms: Histogram = field(default_factory=Histogram)
    infer_ms: Histogram = field(default_factory=Histogram)

    def add(self, answer: Answer, total_ms: float) -> None:
        """One more answer."""
        self.answered += 1
        self.passes += 1 / answer.num_rows
        self.total_ms.record(total_ms)
        self.waited_ms.record(answer.waited_ms)
        self.infer_ms.record(answer.infer_ms)


class _OneLine(logging.Filter):
    """Clients that do not get as far as a connection are one line of the log, without a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            reason = record.exc_info[1]
            record.msg, record.args = "%s: %s", (record.getMessage(), reason.__cause__ or reason)
            record.exc_info = None
        return True


_PEERS = logging.getLogger(f"{__name__}.peers")
_PEERS.addFilter(_OneLine())


def tls_context(listen: ServeListen) -> ssl.SSLContext | None:
    """The TLS context of the server; None without a key. Raises TransportError where key or certificate cannot be
    used."""
    if not listen.tls_key:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # No session tickets, by which no websocket client resumes. They come after the TLS handshake, so that the reading
    # thread of a `websockets.sync` client (openpi's) takes them while another one sends the opening request: two
    # threads in one OpenSSL connection, and about one client in 500 waits for an answer to what was never sent.
    context.num_tickets = 0
    try:
        context.load_cert_chain(listen.tls_certificate, listen.tls_key)
    except (OSError, ssl.SSLError) as reason:
        raise TransportError(
            f"tls_certificate {listen.tls_certificate} and tls_key {listen.tls_key} cannot be used ({reason}): give "
            "PEM files of one certificate and its key"
        ) from reason
    return context


class PolicyServer:
    """Listens from `start` to `stop`; both run in one event loop.

    Attributes:
        counts: what was done so far.
        port: where it listens.
    """

    def __init__(
        self, batcher: Batcher, keys: KeyMap, config: ServeCommand, metadata: Mapping[str, Any]
    ) -> None:
        """metadata: what each client is told first, besides its number. Raises TransportError as `tls_context` does,
        and where the token cannot be read."""
        self.counts, self.port = Counts(), 0
        self._batcher, self._keys, self._config, self._metadata = batcher, keys, config, metadata
        self._token = read_token(config.listen.token_file)
        self._tls = tls_context(config.listen)
        self._numbers = itertools.count(1)
        self._open: set[ServerConnection] = set()
        self._busy, self._idle, self._ending = 0, asyncio.Event(), False
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def num_clients(self) -> int:
        """Connected now."""
        return len(self._open)

    async def start(self) -> None:
        """Raises TransportError where it cannot listen."""
        config = self._config
        host, port, _ = parse_address(config.listen.address)
        try:
            server = self._server = await serve(
                self._serve,
                host,
                port,
                process_request=self._before,
                origins=[None],  # a page in a browser of this machine is no robot
                compression=None,
                max_size=config.max_message_mb * _MIB,
                max_queue=_QUEUED,
                ping_interval=config.ping_s / 2,
                ping_timeout=config.ping_s / 2,
                open_timeout=_OPEN_S,
                close_timeout=_CLOSE_S,
                server_header=None,
                logger=_PEERS,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else _OPEN_S,
            )
        except OSError as reason:
            raise TransportError(
                f"cannot listen on {config.listen.address}: the port is in use, or the address is not this "
                f"machine's: choose another --address, or end what listens there ({reason.strerror or reason})"
            ) from reason
        self.port = next(iter(server.sockets)).getsockname()[1]
        self._task = asyncio.create_task(self._batcher.run())

    async def stop(self) -> None:
        """Closes in order: nobody is let in, what is being answered is answered, clients are told, the port is
        free."""
        assert self._server is not None and self._task is not None
        self._ending = True
        self._server.close(close_connections=False)
        if self._busy:
            self._idle.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self._config.finish_s)
        closing = [c.close(CloseCode.GOING_AWAY, _ENDS) for c in self._open]
        await asyncio.gather(*closing, return_exceptions=True)
        await self._server.wait_closed()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _before(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer to what is not to become a websocket."""
        if request.path == HEALTH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not is_shown(self._token, "Api-Key", request.headers.get_all("Authorization")):
            _LOG.warning("%s: refused, it shows no token or another one", _peer(connection))
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "send the header 'Authorization: Api-Key TOKEN' (api_key)\n"
            )
        if len(self._open) >= self._config.max_clients:
            _LOG.warning("%s: refused, there are %d clients", _peer(connection), len(self._open))
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients: come again\n")
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        """One client, from its greeting to its end."""
        number = next(self._numbers)
        self.counts.clients += 1
        self._open.add(connection)
        gone = asyncio.create_task(connection.wait_closed())
        _LOG.info("client %d: connected from %s", number, _peer(connection))
        try:
            await connection.send(encode({**self._metadata, "client": number}))
            await self._answer_all(connection, number, gone)
        except ConnectionClosedError as reason:
            _LOG.warning("client %d: lost (%s)", number, reason)
        except ConnectionClosed:
            _LOG.info("client %d: left", number)
        finally:
            gone.cancel()
            self._open.discard(connection)

    async def _answer_all(self, connection: ServerConnection, number: int, gone: asyncio.Task[None]) -> None:
        previous: dict[str, float] = {}
        for place in itertools.count():
            frame = await connection.recv()
            begun = time.perf_counter()
            self._busy += 1
            try:
                answer = await self._answer(frame, noise_seed(self._config.seed, number, place), gone)
                if answer is None:
                    return
                timing = {"infer_ms": answer.infer_ms, **previous}
                await connection.send(encode({"actions": answer.actions, "server_timing": timing}))
            except ConnectionClosed:
                raise
            except Exception as reason:
                await self._refuse(connection, number, reason)
                return
            finally:
                self._busy -= 1
                if not self._busy:
                    self._idle.set()
            total_ms = 1000 * (time.perf_counter() - begun)
            self.counts.add(answer, total_ms)
            if self._ending:  # else a client that asks at once keeps it busy
                await connection.close(CloseCode.GOING_AWAY, _ENDS)
                return
            previous = {"prev_total_ms": total_ms}

    async def _answer(self, frame: str | bytes, seed: int, gone: asyncio.Task[None]) -> Answer | None:
        """None: the client is gone, nobody waits for it."""
        if isinstance(frame, str):
            raise RecordError("the frame is text: send an observation as a binary frame")
        asked = asyncio.create_task(self._batcher.ask(self._keys.observation(decode(frame)), seed))
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        asked.cancel()
        return None

    async def _refuse(self, connection: ServerConnection, number: int, reason: Exception) -> None:
        """Tells the client why, and ends the connection."""
        self.counts.refused += 1
        if isinstance(reason, ChunkRLError):
            told = str(reason)
            _LOG.warning("client %d: %s", number, told)
        else:
            told = f"the policy failed ({type(reason).__name__}: {reason}); the server's log says where"
            _LOG.error("client %d: the policy failed", number, exc_info=reason)
        await connection.send(told)
        await connection.close(CloseCode.INTERNAL_ERROR, "see the text before")


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a client"
