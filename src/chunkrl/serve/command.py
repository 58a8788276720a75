"""What `chunkrl serve` does: loads a policy, tries it, and serves it until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chunkrl.errors import ChunkRLError
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.online.link.config import parse_address
from chunkrl.online.status import WARNING, LastWarning, RowsView
from chunkrl.run.build import choose_device
from chunkrl.run.policy_io import load_policy
from chunkrl.serve.batcher import Batcher, BatchSettings
from chunkrl.serve.config import ServeCommand
from chunkrl.serve.keys import KeyMap, plan_keys
from chunkrl.serve.latency import latency_table
from chunkrl.serve.server import HEALTH, PolicyServer
from chunkrl.signals import handled
from chunkrl.types import Observation
from chunkrl.version import __version__

_LOG = logging.getLogger(__name__)
_SIDE = 64  # of the images of the trial, where the policy takes any


def serve_policy(command: ServeCommand) -> None:
    """Until SIGINT or SIGTERM; then what is being answered is answered, and the times are printed."""
    if not command.policy:
        raise ChunkRLError("name the policy that is served: chunkrl serve --policy RUN/policy")
    device = choose_device(command.device)
    policy = load_policy(command.policy, device, with_q=command.mode == "best_of_n")
    policy.ask_as(command)
    if command.action_dim not in (None, policy.action_dim):
        raise ChunkRLError(
            f"--action-dim {command.action_dim}: the actions of {command.policy} have {policy.action_dim} values: it "
            "was trained for another robot"
        )
    keys = plan_keys(policy, command.rename, command.ignore, command.task)
    first_ms = try_policy(policy, command)
    fps = f" at {policy.fps:g} per second" if policy.fps else ""
    print(
        f"{command.policy} on {device}: chunks of {policy.action_horizon} actions{fps}, {policy.action_dim} values "
        f"each; mode {command.mode}; the first one took {first_ms:.0f} ms"
    )
    for feature, names in keys.features().items():
        print(f"  {feature:<34} is sent as {' or '.join(names)}")
    with _warnings() as warnings:
        asyncio.run(_serve(policy, keys, command, warnings))


def try_policy(policy: ActingPolicy, command: ServeCommand) -> float:
    """Milliseconds of a first chunk, of black images: what fails or loads then does not when a robot waits.

    Raises:
        ChunkRLError: it cannot act as asked.
    """
    sizes = policy.image_sizes or ((policy.own_image_size or _SIDE,) * 2,) * len(policy.cameras)
    images: dict[str, Any] = {
        camera: np.zeros((*size, 3), np.uint8) for camera, size in zip(policy.cameras, sizes, strict=True)
    }
    state: Any = np.zeros(policy.state_dim, np.float32)
    begun = time.perf_counter()
    with torch.inference_mode():
        policy.act(
            Observation(images, state, command.task or "a task"),
            [torch.Generator().manual_seed(command.seed)],
            command.mode,
            command.num_candidates,
        ).cpu()
    return 1000 * (time.perf_counter() - begun)


def make_server(policy: ActingPolicy, keys: KeyMap, command: ServeCommand) -> PolicyServer:
    """A server that is not started. Raises TransportError as `PolicyServer` does."""
    together = policy.gains_from_batches if command.together is None else command.together
    settings = BatchSettings(
        command.mode, command.num_candidates, command.batch_size, command.wait_ms / 1000, together
    )
    batcher = Batcher(policy, settings, lambda: server.num_clients)
    server = PolicyServer(batcher, keys, command, metadata(policy, keys, command))
    return server


def metadata(policy: ActingPolicy, keys: KeyMap, command: ServeCommand) -> dict[str, Any]:
    """What a client is told first."""
    return {
        "server": f"chunkrl {__version__}",
        "policy": "/".join(Path(command.policy).resolve().parts[-2:]),  # RUN/policy
        "action_horizon": policy.action_horizon,
        "action_dim": policy.action_dim,
        "state_dim": policy.state_dim,
        "fps": policy.fps,
        "mode": command.mode,
        "keys": {feature: list(names) for feature, names in keys.features().items()},
        "max_message_mb": command.max_message_mb,
    }


async def _serve(policy: ActingPolicy, keys: KeyMap, command: ServeCommand, warnings: LastWarning) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    server = make_server(policy, keys, command)

    def end() -> None:
        loop.call_soon_threadsafe(ended.set)

    with handled(end):
        await server.start()
        _say_where(server, command)
        begun = time.monotonic()
        rows = _Rows(server, warnings)
        view = RowsView(f"chunkrl serve: {command.policy}", rows, command.live)
        try:
            with warnings.quiet(view.is_live):
                await ended.wait()
                await server.stop()
        finally:
            await loop.run_in_executor(None, view.close)
    for line in _said(server, time.monotonic() - begun):
        print(line)


def _say_where(server: PolicyServer, command: ServeCommand) -> None:
    listen = command.listen
    host = parse_address(listen.address)[0]
    place = f"{f'[{host}]' if ':' in host else host}:{server.port}"
    s = "s" if listen.tls_key else ""
    token = "clients show the token" if listen.token_file else "no token is asked for"
    here = ", this machine only" if listen.is_loopback else ""
    print(f"listening on ws{s}://{place}{here}; {token}; health: http{s}://{place}{HEALTH}", flush=True)
    if not listen.is_loopback and not listen.tls_key:
        _LOG.warning(
            "token and images travel unencrypted: give --tls-certificate and --tls-key unless the network is yours"
        )


class _Rows:
    """What the view shows; the rate is that since it was asked last."""

    def __init__(self, server: PolicyServer, warnings: LastWarning) -> None:
        self._server, self._warnings = server, warnings
        self._last = (time.monotonic(), 0)

    def __call__(self) -> list[tuple[str, str]]:
        counts, now = self._server.counts, time.monotonic()
        then, before = self._last
        self._last = (now, counts.answered)
        rate = (counts.answered - before) / max(now - then, 1e-9)
        total = counts.total_ms
        rows = [
            ("clients", f"{self._server.num_clients} now, {counts.clients} in all"),
            ("answered", f"{counts.answered} ({rate:.1f} per second), {counts.refused} refused"),
            ("ms", f"p50 {total.quantile_ms(0.5):.3g}, p99 {total.quantile_ms(0.99):.3g}"),
            ("together", f"{counts.answered / max(counts.passes, 1):.1f} a forward pass"),
        ]
        warning = self._warnings.recent()
        return [*rows, (WARNING, warning)] if warning else rows


@contextlib.contextmanager
def _warnings() -> Iterator[LastWarning]:
    """Shows chunkrl's warnings meanwhile."""
    logger, warnings = logging.getLogger("chunkrl"), LastWarning()
    logger.addHandler(warnings)
    try:
        yield warnings
    finally:
        logger.removeHandler(warnings)


def _said(server: PolicyServer, seconds: float) -> list[str]:
    counts = server.counts
    lines = [
        f"served {counts.answered} observations of {counts.clients} clients in {seconds:.1f} s, "
        f"{counts.answered / max(seconds, 1e-9):.1f} per second; refused {counts.refused}"
    ]
    if counts.answered:
        rows = [
            ("answer", counts.total_ms),
            ("waited", counts.waited_ms),
            ("forward", counts.infer_ms),
        ]
        lines += latency_table(rows)
        lines.append(f"{counts.answered / counts.passes:.1f} observations a forward pass; answers took")
        lines += counts.total_ms.bars()
    return lines
