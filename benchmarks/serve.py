"""What `chunkrl serve` adds to a policy's own time: latency and throughput against bare `act`, in the same run.

    python -m benchmarks.serve --policy runs/x/policy           # any policy's folder
    python -m benchmarks.serve --policy runs/x/policy --clients 1 10 --num-observations 200

Clients are processes that speak openpi's protocol and ask again as soon as they have an answer: no robot does, so
this is the worst case. Bare `act` runs alone before and after, one observation at a time, in the process that serves;
ratios are to both together. Images are noise of the size that the networks see, so that nothing is resized. The
serving process's processor time depends less than the rest on what else the machine does. Writes JSON.
"""

from __future__ import annotations

import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from chunkrl.files.atomic import write_text
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.run.build import choose_device
from chunkrl.run.policy_io import load_policy
from chunkrl.serve.codec import encode
from chunkrl.serve.command import make_server
from chunkrl.serve.config import ServeCommand, ServeListen
from chunkrl.serve.keys import STATE, TASK, plan_keys
from chunkrl.types import Observation

_WARM_UP = 5


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    policy: str
    clients: tuple[int, ...] = (1, 10)
    """Numbers of clients at a time."""
    num_observations: int = 100
    """Of each client, after the first ones."""
    together: bool | None = None
    """As of chunkrl serve."""
    device: str = "auto"
    output: str | None = None
    """JSON file, e.g. benchmarks/results/serve.json."""


@dataclass(frozen=True)
class Measured:
    """clients: at a time; 0: bare `act`. p50_ms, p99_ms: from a question to its answer, as the client sees it.
    together: observations a forward pass. per_s: answers a second. cpu_ms: the serving process's time an answer."""

    clients: int
    p50_ms: float
    p99_ms: float
    together: float
    per_s: float
    cpu_ms: float


def observation(policy: ActingPolicy, seed: int) -> Observation:
    """Noise of the right form."""
    rng = np.random.default_rng(seed)
    side = policy.own_image_size or 64
    sizes = policy.image_sizes or ((side, side),) * len(policy.cameras)
    images: Any = {
        c: rng.integers(0, 256, (*s, 3), np.uint8) for c, s in zip(policy.cameras, sizes, strict=True)
    }
    state: Any = rng.normal(size=policy.state_dim).astype(np.float32) if policy.state_dim else None
    return Observation(images, state, "push the red cup")


def bare(policy: ActingPolicy, count: int) -> tuple[list[float], float]:
    """Milliseconds of each of `count` calls of `act`, and their processor time together."""
    seen, found, cpu = observation(policy, 0), [], 0.0
    with torch.inference_mode():
        for place in range(count + _WARM_UP):
            if place == _WARM_UP:
                cpu = time.process_time()
            begun = time.perf_counter()
            policy.act(seen).cpu()
            found.append(1000 * (time.perf_counter() - begun))
    return found[_WARM_UP:], 1000 * (time.process_time() - cpu)


def measure(policy: ActingPolicy, config: BenchmarkConfig, clients: int) -> Measured:
    """The server with so many clients."""
    command = ServeCommand(config.policy, ServeListen("127.0.0.1:0"), together=config.together)
    server = make_server(policy, plan_keys(policy, (), (), ""), command)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    with tempfile.TemporaryDirectory() as folder:
        processes = [begun_client(policy, config, server.port, Path(folder), n) for n in range(clients)]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        begun, cpu, counts = time.perf_counter(), time.process_time(), server.counts
        before, passes = counts.answered, counts.passes
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        times = np.concatenate([json.loads(process.communicate()[0]) for process in processes])
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    together = (counts.answered - before) / (counts.passes - passes)
    return row(clients, times, together, len(times) / seconds, 1000 * cpu / len(times))


def begun_client(
    policy: ActingPolicy, config: BenchmarkConfig, port: int, folder: Path, number: int
) -> subprocess.Popen[str]:
    """A client's process."""
    seen = observation(policy, number)
    state = {} if seen.state is None else {STATE: seen.state}
    file = folder / str(number)
    file.write_bytes(encode({**seen.images, **state, TASK: seen.task}))
    numbers = (port, config.num_observations, _WARM_UP, file)
    command = [sys.executable, "-m", "benchmarks.serve_client", *map(str, numbers)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def row(clients: int, times: Any, together: float, per_s: float, cpu_ms: float) -> Measured:
    """times: ms."""
    p50, p99 = np.quantile(times, 0.5), np.quantile(times, 0.99)
    return Measured(clients, float(p50), float(p99), together, per_s, cpu_ms)


def main(config: BenchmarkConfig) -> list[Measured]:
    """Prints a table and writes JSON."""
    torch.set_num_threads(1)
    device = choose_device(config.device)
    policy = load_policy(config.policy, device, with_q=False)
    before, cpu_before = bare(policy, config.num_observations)
    found = [measure(policy, config, clients) for clients in config.clients]
    after, cpu_after = bare(policy, config.num_observations)
    alone = before + after
    act = row(0, alone, 1.0, 1000 / float(np.mean(alone)), (cpu_before + cpu_after) / len(alone))
    print(
        "| clients | p50 ms | p99 ms | together | a second | CPU ms | p50 / act | a second / act | CPU / act |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for one in (act, *found):
        numbers = (one.p50_ms, one.p99_ms, one.together, one.per_s, one.cpu_ms)
        ratios = (one.p50_ms / act.p50_ms, one.per_s / act.per_s, one.cpu_ms / act.cpu_ms)
        cells = " | ".join(f"{number:.3g}" for number in (*numbers, *ratios))
        print(f"| {one.clients or 'bare act'} | {cells} |")
    if config.output:
        machine = {"device": str(device), "machine": platform.platform(), "torch": torch.__version__}
        record = {"config": asdict(config), **machine, "rows": [asdict(one) for one in (act, *found)]}
        write_text(Path(config.output), json.dumps(record, indent=2) + "\n")
    return [act, *found]


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
