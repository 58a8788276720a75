"""The learner's throughput while actors send: updates/s and steps/s with 0, 1 and 4 of them.

    python -m benchmarks.learner_throughput     # 5 minutes; prints Markdown, writes its file in benchmarks/results

One `chunkrl learner` process trains all the time. Actors are processes that send recorded episodes through a spool,
`rate_hz` steps/s each, or as fast as they can. Kinds take turns, so that what else the machine does meets all alike;
the ratio is to the windows without actors of the same run. A window begins when all that came before is trained on.
Actors that send as fast as they can leave more behind than is stored in minutes, so their windows come last, one
after the other. Updates are those in the learner's metrics.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from chunkrl.files.atomic import write_text
from chunkrl.online.actor.recorder import ItemSpool
from chunkrl.online.link.config import ConnectConfig
from chunkrl.online.link.records import EpisodeSummary, Hello, StepRecord, StreamSpec, new_id
from chunkrl.online.link.sender import LearnerClient, SpoolSender, UnreachableError
from chunkrl.online.link.spool import Spool
from chunkrl.training.metrics import METRICS_FILE, read_records

STATE_DIM, ACTION_DIM, EPISODE_STEPS = 39, 4, 100
ACTOR = "actor"


@dataclass(frozen=True)
class ThroughputConfig:
    """What to measure."""

    results: str = "benchmarks/results/learner_throughput.json"
    """Where the numbers go."""
    window_s: float = 12.0
    """Length of a window."""
    rounds: int = 3
    """Windows of each kind."""
    fast: bool = True
    """Also actors that send as fast as they can."""
    rate_hz: float = 30.0
    """Steps per second of an actor that keeps time."""
    camera_size: int = 0
    """Side of the images of one camera, pixels; 0: no camera."""
    batch_size: int = 256
    """Rows a batch."""
    hidden_dim: int = 256
    """Of the policy."""
    capacity_steps: int = 20_000
    """Of the replay."""


@dataclass(frozen=True)
class Kind:
    """num_actors at rate_hz steps/s each; 0: as fast as they can."""

    name: str
    num_actors: int
    rate_hz: float


def spec(camera_size: int) -> StreamSpec:
    """What steps look like."""
    cameras = {"front": (camera_size, camera_size)} if camera_size else {}
    names = tuple(f"s{i}" for i in range(STATE_DIM))
    return StreamSpec(30.0, names, tuple(f"a{i}" for i in range(ACTION_DIM)), cameras, "benchmark")


def act(root: Path, address: str, rate_hz: float, camera_size: int, seconds: float) -> None:
    """An actor process: says "ready", then sends for so long; prints how many records were stored meanwhile."""
    actor, shape = root.name, spec(camera_size)
    rng = np.random.default_rng(abs(hash(actor)) % 2**32)
    ramp = np.linspace(0, 255, max(camera_size, 1), dtype=np.uint8)
    picture = np.stack(
        [np.tile(ramp, (len(ramp), 1)), np.tile(ramp, (len(ramp), 1)).T, np.full((len(ramp),) * 2, 9)], 2
    )
    with Spool(root, sync_interval_s=0.5) as spool:
        client = LearnerClient(ConnectConfig(address), Hello(actor, spool.spool_id, shape), spool)
        _greet(client)
        sender, sink = SpoolSender(client, spool), ItemSpool(spool, actor, shape)
        print("ready", flush=True)
        begin, number = time.monotonic(), 0
        before = spool.acknowledged
        while time.monotonic() - begin < seconds:
            identity, success = new_id(), bool(rng.integers(2))
            for step in range(EPISODE_STEPS):
                last = step == EPISODE_STEPS - 1
                action = rng.normal(size=ACTION_DIM).astype(np.float32)
                images = {"front": np.roll(picture, step, 0).astype(np.uint8)} if camera_size else {}
                sink.append(
                    StepRecord(
                        actor_id=actor,
                        episode_id=identity,
                        step_index=step,
                        task="push",
                        state=rng.normal(size=STATE_DIM).astype(np.float32),
                        images=images,
                        proposed_action=action,
                        executed_action=action,
                        human=False,
                        policy_version=0,
                        reward=float(last and success),
                        success=last and success,
                        terminated=last and success,
                        truncated=last and not success,
                        held=False,
                    )
                )
                number += 1
                if rate_hz:
                    time.sleep(max(0.0, begin + number / rate_hz - time.monotonic()))
            outcome = "success" if success else "timeout"
            sink.append(EpisodeSummary(actor, identity, EPISODE_STEPS, outcome, float(success)))
            if not rate_hz:  # far ahead of the learner there is nothing to measure
                while sender.pending > 4 * EPISODE_STEPS and time.monotonic() - begin < seconds:
                    time.sleep(0.001)
        stored = spool.acknowledged - before
        seconds = time.monotonic() - begin
        sender.wait_sent(60)  # no half episode stays, for which the next window would wait
        print((stored - stored // (EPISODE_STEPS + 1)) / seconds, flush=True)
        sender.close()
        client.close()


def _greet(client: LearnerClient) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client.greet()
            return
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def measure(kind: Kind, folder: Path, address: str, config: ThroughputConfig) -> tuple[float, float, float]:
    """Of one window, a second: updates, steps confirmed to actors, and steps put into the replay's data sets."""
    command = [sys.executable, "-m", "benchmarks.learner_throughput", ACTOR]
    actors = [
        subprocess.Popen(
            [*command, str(folder / f"{kind.name}-{i}"), address, str(kind.rate_hz), str(config.camera_size),
             str(config.window_s)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for i in range(kind.num_actors)
    ]  # fmt: skip
    for actor in actors:
        assert actor.stdout is not None and actor.stdout.readline() == "ready\n"
    begin = time.time()
    time.sleep(config.window_s)
    end = time.time()
    steps = sum(float(actor.stdout.readline()) for actor in actors if actor.stdout)
    for actor in actors:
        actor.wait()
    time.sleep(1.0)  # until the learner has recorded what it did
    found = [r for r in read_records(folder / "run" / METRICS_FILE) if begin <= r.time <= end]
    seconds = found[-1].time - found[0].time
    stored = found[-1].scalars["online/steps"] - found[0].scalars["online/steps"]
    return (found[-1].update - found[0].update) / seconds, steps, stored / seconds


def settle(folder: Path) -> None:
    """Waits until the learner trains on all that actors sent."""
    deadline = time.monotonic() + 300
    while True:
        newest = read_records(folder / "run" / METRICS_FILE)[-1].scalars
        if newest["online/records_waiting"] == newest["online/steps_behind"] == 0:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"the learner does not keep up: {newest}")
        time.sleep(1.0)


def main(config: ThroughputConfig) -> None:
    """Runs the windows in turns and writes the results."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    kinds = [Kind("none", 0, 0), Kind("one", 1, config.rate_hz), Kind("four", 4, config.rate_hz)]
    fast = [Kind("one-fast", 1, 0), Kind("four-fast", 4, 0)] if config.fast else []
    folder = Path(tempfile.mkdtemp(prefix="learner-throughput-"))
    learner = subprocess.Popen(
        [
            *(sys.executable, "-m", "chunkrl.cli", "learner", "--output-dir", str(folder / "run")),
            *("--listen.address", address, "--action-horizon", "5", "--action-dim", str(ACTION_DIM)),
            *("--batch-size", str(config.batch_size), "--network.hidden-dim", str(config.hidden_dim)),
            *("--value-updates", "100", "--log-interval", "5", "--save-updates", "2000", "--device", "cpu"),
            *("--replay.capacity-steps", str(config.capacity_steps), "--online.start-episodes", "10"),
        ],
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    load = os.getloadavg()[0]
    try:
        _fill(folder, address, config)
        for turn, each in enumerate([kinds] * config.rounds + [fast] * config.rounds):
            for kind in each:
                if kind not in fast:
                    settle(folder)
                found[kind.name].append(measure(kind, folder, address, config))
                print(f"turn {turn}: {kind.name} {found[kind.name][-1]}", flush=True)
    finally:
        learner.terminate()
        learner.wait(60)
    results: dict[str, Any] = {
        "config": asdict(config),
        "machine": {
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "load": [load, os.getloadavg()[0]],
        },
        "windows": found,
    }
    write_text(config.results, json.dumps(results, indent=1) + "\n")
    shutil.rmtree(folder)
    base = float(np.median([updates for updates, *_ in found["none"]]))
    print(
        "| actors | updates/s | of those without | steps/s confirmed | steps/s in data sets |\n|---|---|---|---|---|"
    )
    for kind in [*kinds, *fast]:
        updates, steps, stored = np.median(found[kind.name], axis=0)
        speed = (
            f", {kind.rate_hz:g} Hz each"
            if kind.rate_hz
            else ", as fast as they can"
            if kind.num_actors
            else ""
        )
        print(
            f"| {kind.num_actors}{speed} | {updates:.1f} | {updates / base:.0%} | {steps:.0f} | {stored:.0f} |"
        )


def _fill(folder: Path, address: str, config: ThroughputConfig) -> None:
    """Sends the first episodes, until training has begun."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.learner_throughput",
        ACTOR,
        str(folder / "fill"),
        address,
        "0",
    ]
    deadline = time.monotonic() + 180
    while (
        not (folder / "run" / METRICS_FILE).is_file() or len(read_records(folder / "run" / METRICS_FILE)) < 30
    ):
        if time.monotonic() > deadline:
            raise SystemExit((folder / "log").read_text())
        if not (folder / "fill").exists():
            subprocess.run([*command, str(config.camera_size), "5"], check=False, capture_output=True)
        time.sleep(1.0)


if __name__ == "__main__":
    if sys.argv[1:2] == [ACTOR]:
        act(Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6]))
    else:
        main(tyro.cli(ThroughputConfig))
