"""Settings of the link between actor and learner, and its secrets.

Settings that actor and learner have parts of: what is kept, when weights change, who corrects.

Secrets of whoever listens, learner and policy server alike: read from files, compared in constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chunkrl.errors import ChunkRLError, DatasetError, TransportError


@dataclass(frozen=True)
class ReplayConfig:
    """How much is kept, and how."""

    shard_episodes: int = 50
    """Episodes per data set; whole data sets are dropped, oldest first."""
    capacity_steps: int = 0
    """The oldest data set is dropped when the others hold at least so many steps (0: nothing is dropped)."""
    cameras: Literal["video", "image"] = "video"
    """video: mp4, small, with LeRobot's loss; image: PNG, without loss, many times larger."""

    def __post_init__(self) -> None:
        if self.shard_episodes < 1 or self.capacity_steps < 0:
            raise DatasetError(
                f"shard_episodes {self.shard_episodes}, capacity_steps {self.capacity_steps}: at least 1 and 0"
            )
        if self.cameras not in ("video", "image"):
            raise DatasetError(f"cameras {self.cameras!r}: use video or image")


SwapAt = Literal["chunk", "episode"]


@dataclass(frozen=True)
class CorrectionRule:
    """When a scripted corrector takes over, and for how long. See the module's docstring."""

    budget: int = 50
    """Interventions in a session."""
    stall_steps: int = 30
    """Steps without progress until it takes over."""
    progress_m: float = 0.01
    """What counts as progress, metres."""
    deviation_m: float = 0.05
    """Growth of the distance at which it takes over, metres."""
    correction_steps: int = 25
    """Steps of an intervention."""
    let_go_steps: int = 15
    """First of them, which lift the open gripper."""

    def __post_init__(self) -> None:
        for name, least in (("budget", 0), ("stall_steps", 1), ("correction_steps", 1), ("let_go_steps", 0)):
            if getattr(self, name) < least:
                raise ChunkRLError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.progress_m <= 0 or self.deviation_m <= 0:
            raise ChunkRLError("progress_m and deviation_m are lengths above 0, metres")


DEFAULT_ADDRESS = "127.0.0.1:50151"
TOKEN_CURE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))' > token"


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


def check_tls_pair(certificate: str, key: str) -> None:
    """Raises TransportError where only one of the two files is given."""
    if bool(certificate) != bool(key):
        raise TransportError("tls_certificate and tls_key go together: give both or neither")


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
        check_tls_pair(self.tls_certificate, self.tls_key)
        if not parse_address(self.address)[2] and not (self.token_file and self.tls_key):
            raise TransportError(
                f"address {self.address} can be reached from other machines: give tls_certificate, tls_key and "
                f"token_file, or listen on {DEFAULT_ADDRESS}, through an SSH tunnel if need be ({TOKEN_CURE})"
            )


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


_MIN_TOKEN = 16


def read_token(path: str) -> str:
    """The token in a file; "" where no file is named."""
    if not path:
        return ""
    token = read_secret(path, "token").decode("ascii", errors="replace").strip()
    if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise TransportError(
            f"{path}: a token has at least {_MIN_TOKEN} ASCII characters, no spaces; {TOKEN_CURE}"
        )
    return token


def read_secret(path: str, what: str) -> bytes:
    """What a file holds. Raises TransportError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TransportError(f"cannot read the {what} {path}: {error.strerror or error}") from error


def is_shown(token: str, scheme: str, shown: Sequence[str]) -> bool:
    """Whether the only value of the header `authorization` is `scheme` and the token, or none is asked for.

    scheme: `Bearer` or `Api-Key`. shown: all values of that header.
    """
    if not token:
        return True
    return len(shown) == 1 and hmac.compare_digest(shown[0].encode(), f"{scheme} {token}".encode())
