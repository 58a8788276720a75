"""Who may talk to whom: loopback freely, any other address only with TLS and a token."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from chunkrl.errors import MissingExtraError, TransportError

try:
    import grpc
except ImportError as error:
    raise MissingExtraError("Online training", "grpcio", "online") from error

DEFAULT_ADDRESS = "127.0.0.1:50151"
_MIN_TOKEN = 16
_TOKEN_CURE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))' > token"
SYSTEM_AUTHORITIES = "system"


def parse_address(address: str) -> tuple[str, int, bool]:
    """host:port (an IPv6 host in brackets) as host, port, and whether it is this machine only."""
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise TransportError(f"address {address!r}: give host:port, for example {DEFAULT_ADDRESS}")
    try:
        return bare, int(port), ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return bare, int(port), bare == "localhost"


def read_token(path: str) -> str:
    """The token in a file; "" where no file is named."""
    if not path:
        return ""
    token = _read(path, "token").decode("ascii", errors="replace").strip()
    if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise TransportError(
            f"{path}: a token has at least {_MIN_TOKEN} ASCII characters, no spaces; {_TOKEN_CURE}"
        )
    return token


@dataclass(frozen=True)
class ListenConfig:
    """Where the learner listens, and who is let in."""

    address: str = DEFAULT_ADDRESS
    """host:port. 127.0.0.1 is this machine only; any other needs the three files below. Port 0: any free one."""
    token_file: str = ""
    """File with the secret that actors must show."""
    tls_certificate: str = ""
    """PEM file with the learner's certificate chain."""
    tls_key: str = ""
    """PEM file with its private key."""

    def __post_init__(self) -> None:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise TransportError("tls_certificate and tls_key go together: give both or neither")
        if not parse_address(self.address)[2] and not (self.token_file and self.tls_key):
            raise TransportError(
                f"address {self.address} can be reached from other machines: give tls_certificate, tls_key and "
                f"token_file, or listen on {DEFAULT_ADDRESS}, through an SSH tunnel if need be ({_TOKEN_CURE})"
            )

    def bind(self, server: grpc.Server) -> int:
        """Adds the port to `server` and returns its number."""
        try:
            if not self.tls_key:
                return server.add_insecure_port(self.address)
            pair = (_read(self.tls_key, "private key"), _read(self.tls_certificate, "certificate"))
            return server.add_secure_port(self.address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise TransportError(
                f"cannot listen on {self.address}: the port is in use, the address is not this machine's, or key and "
                f"certificate are damaged; choose another port or end the other learner ({error})"
            ) from error


@dataclass(frozen=True)
class ConnectConfig:
    """Where the learner is, for an actor."""

    address: str = DEFAULT_ADDRESS
    """host:port of the learner. Any other machine needs the two files below."""
    token_file: str = ""
    """File with the learner's secret."""
    tls_authority: str = ""
    """PEM file with the certificate that signed the learner's, or "system" for those this machine trusts."""

    def __post_init__(self) -> None:
        if not parse_address(self.address)[2] and not (self.token_file and self.tls_authority):
            raise TransportError(
                f"the learner at {self.address} is another machine: give tls_authority and token_file, or reach it "
                f"at {DEFAULT_ADDRESS} through an SSH tunnel"
            )

    def channel(self, options: list[tuple[str, int]]) -> grpc.Channel:
        """A channel to the learner; it connects when it is used."""
        if not self.tls_authority:
            return grpc.insecure_channel(self.address, options)
        trusted = None
        if self.tls_authority != SYSTEM_AUTHORITIES:
            trusted = _read(self.tls_authority, "certificate")
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(trusted), options)


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
