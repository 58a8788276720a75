"""Who may talk to whom: loopback freely, any other address only with TLS and a token."""

from __future__ import annotations

from chunkrl.errors import MissingExtraError, TransportError
from chunkrl.online.config import ConnectConfig, ListenConfig
from chunkrl.online.tokens import is_shown, read_secret

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
