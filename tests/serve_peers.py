"""A policy server in a thread, and a client as openpi's speaks to it, in a few lines."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import connect

from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.serve.codec import decode, encode
from chunkrl.serve.command import make_server
from chunkrl.serve.config import ServeCommand, ServeListen
from chunkrl.serve.keys import plan_keys
from chunkrl.serve.server import PolicyServer

ANY_PORT = ServeListen("127.0.0.1:0")


@contextmanager
def serving(policy: ActingPolicy, **settings: Any) -> Iterator[PolicyServer]:
    """A server on a free port, and its end in order."""
    command = ServeCommand(**({"listen": ANY_PORT, "policy": "run/policy"} | settings))
    server = make_server(policy, plan_keys(policy, command.rename, command.ignore, command.task), command)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="serving")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Client:
    """metadata: what it was greeted with. socket: for frames of any kind."""

    def __init__(self, port: int, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        uri = f"{'ws' if tls is None else 'wss'}://127.0.0.1:{port}"
        self._connection = connect(uri, compression=None, max_size=None, additional_headers=headers, ssl=tls)
        self.socket = self._connection.__enter__()
        self.metadata: dict[str, Any] = decode(_bytes(self.socket.recv()))

    def infer(self, observation: Any) -> dict[str, Any]:
        """The answer. Raises RuntimeError with the server's text where it refuses."""
        return self.exchange(encode(observation))

    def exchange(self, frame: str | bytes) -> dict[str, Any]:
        """As `infer`, of a frame as it goes over the wire."""
        self.socket.send(frame)
        answer = self.socket.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return decode(answer)

    def close(self) -> None:
        """Says so."""
        self._connection.__exit__(None, None, None)


def _bytes(frame: str | bytes) -> bytes:
    assert isinstance(frame, bytes)
    return frame
