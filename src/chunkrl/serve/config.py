"""`chunkrl serve`: its settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import get_args

from chunkrl.errors import ChunkRLError, TransportError
from chunkrl.models.config import ActionMode
from chunkrl.online.link.config import TOKEN_CURE, check_tls_pair, parse_address

DEFAULT_ADDRESS = "127.0.0.1:8000"
_LEAST = {
    **{"num_candidates": 1, "seed": 0, "batch_size": 1, "wait_ms": 0, "max_clients": 1, "max_message_mb": 1},
    **{"ping_s": 1, "finish_s": 0},
}


@dataclass(frozen=True)
class ServeListen:
    """Where the server listens, and who is let in."""

    address: str = DEFAULT_ADDRESS
    """host:port. 127.0.0.1 is this machine only; any other (0.0.0.0: all of this machine's) needs --token-file.
    Port 0: any free one."""
    token_file: str = ""
    """File with the secret that clients must show: `api_key` of openpi's client."""
    tls_certificate: str = ""
    """PEM file with the server's certificate chain: clients then connect to wss://."""
    tls_key: str = ""
    """PEM file with its private key."""

    def __post_init__(self) -> None:
        check_tls_pair(self.tls_certificate, self.tls_key)
        if not self.is_loopback and not self.token_file:
            raise TransportError(
                f"address {self.address} can be reached from other machines: give --token-file ({TOKEN_CURE}), or "
                f"listen on {DEFAULT_ADDRESS}, through an SSH tunnel if need be"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return parse_address(self.address)[2]


@dataclass(frozen=True)
class ServeCommand:
    """A policy for robots: openpi's websocket protocol, so that its clients need no change."""

    policy: str = ""
    """A saved policy's folder (required): a run's `policy`, or any pi folder that says its settings."""
    listen: ServeListen = field(default_factory=ServeListen)
    """Where clients connect."""
    rename: tuple[str, ...] = ()
    """Keys of observations that the policy knows by another name: CLIENT'S=POLICY'S. The policy's are its cameras,
    observation.state (several are joined in this order) and task. Parts of nested maps are named images/top."""
    ignore: tuple[str, ...] = ()
    """Keys that clients send and the policy does not take; others that it does not know are errors."""
    task: str = ""
    """The task's text where a client sends none."""
    action_dim: int | None = None
    """Values of an action that the robots take; another policy is refused at the start."""

    mode: ActionMode = "mode"
    """mode (most likely chunk; a flow from zero noise), sample (drawn noise, as openpi and LeRobot evaluate pi
    policies), or best_of_n (needs training with --train-q or --objective iql)."""
    num_candidates: int = 16
    """N of best_of_n."""
    condition: str | None = None
    """What a pi policy is asked for, e.g. "Advantage: negative"; "" for nothing; default: what it was saved with."""
    guidance: float | None = None
    """Classifier-free guidance of a pi policy towards the condition; default: what it was saved with."""
    guidance_from: str | None = None
    """The condition that guidance leads away from, e.g. "Advantage: negative"; "" for the policy asked for nothing;
    default: what it was saved with."""
    flow_steps: int | None = None
    """Euler steps of a pi policy; default 10."""
    seed: int = 0
    """Determines all noise: with the number of a client and of its observation."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    batch_size: int = 16
    """Observations that are answered together, at most."""
    wait_ms: float = 2.0
    """How long an observation waits for those of other clients, milliseconds; a client alone never waits."""
    together: bool | None = None
    """Observations that wait share a forward pass: faster, but a chunk then depends on the others' number by
    rounding (1e-6). Default: of pi policies; a small policy makes each as if it were alone, to the bit."""
    max_clients: int = 64
    """Clients at a time; more are refused."""
    max_message_mb: int = 16
    """Largest observation that is read, MiB."""
    ping_s: float = 60.0
    """A client whose machine does not answer for so long is dropped, seconds."""
    finish_s: float = 5.0
    """How long the end waits for observations that are being answered, seconds."""
    live: bool = True
    """A panel that refreshes itself, where the output is a terminal; else a line now and then."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                raise ChunkRLError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.mode not in get_args(ActionMode):
            raise ChunkRLError(f"mode is {self.mode!r}; use one of {', '.join(get_args(ActionMode))}")
