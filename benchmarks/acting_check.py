"""What the check of observations costs: `ObservationInput.take` beside the whole of `act`, medians.

    python -m benchmarks.acting_check --repeats 500

A small policy on states, on two cameras of 128 x 128, and the same where training resized images from 256 x 256.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from chunkrl.data.normalize import Normalizer
from chunkrl.data.resize import Resize
from chunkrl.models.encoders import NetworkConfig, ObservationSpec
from chunkrl.models.factory import NetworkFactory
from chunkrl.models.policy import ChunkShape, PolicyConfig
from chunkrl.policies.chunk_policy import ChunkPolicy, PolicySpec
from chunkrl.types import Observation

STATE_DIM, ACTION_DIM, SIZE, BATCH = 8, 7, 128, 4
CAMERAS = ("front", "wrist")


def make_policy(cameras: tuple[str, ...], resize: Resize | None) -> ChunkPolicy:
    """An untrained policy of the default sizes."""
    sees, shape = ObservationSpec(cameras, STATE_DIM), ChunkShape(10, ACTION_DIM)
    network, kind = NetworkConfig(), PolicyConfig()
    state, action = Normalizer.identity(STATE_DIM), Normalizer.identity(ACTION_DIM)
    bounds = (-torch.ones(ACTION_DIM), torch.ones(ACTION_DIM))
    factory = NetworkFactory(sees, shape, state, action, bounds, network, kind, critic_network=network)
    recorded = SIZE if resize is None else 2 * SIZE
    sizes = {
        "image_sizes": ((SIZE, SIZE),) * len(cameras),
        "recorded_sizes": (((recorded, recorded),),) * len(cameras),
    }
    spec = PolicySpec(sees, shape, network, kind, None, 10.0, "none", "", resize=resize, **sizes)
    return ChunkPolicy(spec, factory.policy(), None)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` calls."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e3 * median(times)


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=500)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    cases = {
        "state": ((), None),
        "two cameras": (CAMERAS, None),
        "two cameras, resized": (CAMERAS, Resize(SIZE, SIZE)),
    }
    for name, (cameras, resize) in cases.items():
        policy = make_policy(cameras, resize)
        side = SIZE if resize is None else 2 * SIZE
        images = {c: torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8) for c in cameras}
        seen = Observation(images, torch.zeros(BATCH, STATE_DIM), ("push",) * BATCH)
        check, whole = (
            milliseconds(lambda f=f, o=seen: f(o), repeats) for f in (policy.takes.take, policy.act)
        )
        print(f"{name}: check {check:.3f} ms of act {whole:.3f} ms ({check / whole:.1%}), batch of {BATCH}")


if __name__ == "__main__":
    main()
