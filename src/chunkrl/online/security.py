"""Who may talk to whom: loopback freely, any other address only with TLS and a token."""

from __future__ import annotations

import hmac
from pathlib import Path

from chunkrl.errors import MissingExtraError, TransportError
from chunkrl.online.config import TOKEN_CURE, ConnectConfig, ListenConfig

try:
    import grpc
except ImportError as error:
    raise MissingExtraError("Online training", "grpcio", "online") from error

_MIN_TOKEN = 16
SYSTEM_AUTHORITIES = "system"


def read_token(path: str) -> str:
    """The token in a file; "" where no file is named."""
    if not path:
        return ""
    token = _read(path, "token").decode("ascii", errors="replace").strip()
    if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise TransportError(
            f"{path}: a token has at least {_MIN_TOKEN} ASCII characters, no spaces; {TOKEN_CURE}"
        )
    return token


def bind(listen: ListenConfig, server: grpc.Server) -> int:
    """Adds the port to `server` and returns its number."""
    try:
        if not listen.tls_key:
            return server.add_insecure_port(listen.address)
        pair = (_read(listen.tls_key, "private key"), _read(listen.tls_certificate, "certificate"))
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
        trusted = _read(connect.tls_authority, "certificate")
    return grpc.secure_channel(connect.address, grpc.ssl_channel_credentials(trusted), options)


_KEY = "authorization"


def token_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """What a client sends with each call."""
    return ((_KEY, f"Bearer {token}"),) if token else ()


def admitted(token: str, context: grpc.ServicerContext) -> bool:
    """Whether the call shows the token (compared in constant time), or none is asked for."""
    if not token:
        return True
    shown = [str(value) for key, value in context.invocation_metadata() if key == _KEY]
    return len(shown) == 1 and hmac.compare_digest(shown[0].encode(), f"Bearer {token}".encode())


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TransportError(f"cannot read the {what} {path}: {error.strerror or error}") from error
