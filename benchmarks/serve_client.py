"""A client of `benchmarks.serve`, in a process that imports neither torch nor the policy.

    python -m benchmarks.serve_client PORT COUNT WARM_UP FILE

Asks with the frame in FILE. After WARM_UP answers it prints `ready` and waits for a line; then it asks COUNT times
and prints their milliseconds as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from websockets.sync.client import connect

from chunkrl.serve.codec import decode


def main(port: str, count: str, warm_up: str, file: str) -> None:
    """See above."""
    frame = Path(file).read_bytes()
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as socket:
        socket.recv()
        times = []
        for place in range(int(warm_up) + int(count)):
            if place == int(warm_up):
                print("ready", flush=True)
                sys.stdin.readline()
            begun = time.perf_counter()
            socket.send(frame)
            answer = socket.recv()
            times.append(1000 * (time.perf_counter() - begun))
            assert isinstance(answer, bytes) and "actions" in decode(answer)
    print(json.dumps(times[int(warm_up) :]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
