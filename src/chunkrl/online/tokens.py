"""Secrets of whoever listens, learner and policy server alike: read from files, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import Path

from chunkrl.errors import TransportError
from chunkrl.online.config import TOKEN_CURE

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
