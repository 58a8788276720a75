"""Transitions a second from two 256 x 256 cameras: warm store, cold, writer, beside LeRobotDataset where installed.

    python -m benchmarks.data_loading                  # prints Markdown, writes benchmarks/results/data_loading.json

A transition is what chunk RL needs: H = 10 actions, both cameras and the state at t and at t + H, at random t.
Rates are medians of `repeats` runs on one data set. For the column of LeRobot run it in an environment with
lerobot==0.4.4. LeRobot loads with 2 worker processes, everything else is one process.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro
from PIL import Image

from chunkrl.data import ChunkDataset, ChunkSettings
from chunkrl.data.frames import FrameSettings
from chunkrl.data.loader import ChunkLoader
from chunkrl.data.segments import VideoEncoding, encode_video
from chunkrl.data.writer import DatasetWriter, FeatureSpec
from chunkrl.progress import silent

CAMERAS = ("observation.images.front", "observation.images.wrist")
FPS, HORIZON, SIZE = 10, 10, 256


@dataclass(frozen=True)
class LoadingConfig:
    """What to measure."""

    results: str = "benchmarks/results/data_loading.json"
    """Where the numbers go."""
    kinds: tuple[str, ...] = ("image", "video")
    """How cameras are stored."""
    lerobot_reads: tuple[str, ...] = ("image", "video")
    """Kinds that LeRobot reads too, where it is installed; video needs torchcodec or torchvision's reader."""
    num_episodes: int = 30
    length: int = 100
    """Frames an episode."""
    batch_size: int = 32
    batches: int = 20
    """Batches a timed run of the slow paths; the warm store gets ten times as many."""
    repeats: int = 3
    startup_episodes: int = 500
    """Episodes of the set whose opening is timed."""


def episode(number: int, length: int) -> dict[str, np.ndarray]:
    """Moving patterns with a little noise: PNG and AV1 compress them about as camera pictures."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:SIZE, :SIZE]
    columns: dict[str, np.ndarray] = {
        "observation.state": rng.normal(size=(length, 8)).astype(np.float32),
        "action": rng.normal(size=(length, 7)).astype(np.float32),
        "next.success": np.arange(length) == length - 1,
    }
    for place, name in enumerate(CAMERAS):
        shift = 40 * number + 90 * place
        pictures = [
            np.stack(
                [
                    127 + 100 * np.sin((x + 3 * t + shift) / 20),
                    127 + 100 * np.cos((y - 2 * t) / 17),
                    (x + y + t) / 2,
                ],
                axis=-1,
            )
            for t in range(length)
        ]
        noise = rng.integers(-3, 4, (length, SIZE, SIZE, 3))
        columns[name] = (np.stack(pictures) + noise).clip(0, 255).astype(np.uint8)
    return columns


def features(kind: str) -> dict[str, FeatureSpec]:
    """Of the benchmark's data set."""
    return {
        "observation.state": FeatureSpec("float32", (8,)),
        "action": FeatureSpec("float32", (7,)),
        "next.success": FeatureSpec("bool", (1,)),
        **{name: FeatureSpec(kind, (SIZE, SIZE, 3)) for name in CAMERAS},
    }


def rate(units: int, run: Callable[[], Any], repeats: int) -> float:
    """Median units a second of `repeats` runs, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return units / statistics.median(times)


def measure_writer(root: Path, kind: str, config: LoadingConfig) -> dict[str, float]:
    """Frames (of both cameras) a second, of the writer and of the bare encoder on one thread."""
    data = [episode(i, config.length) for i in range(config.num_episodes)]
    begin = time.perf_counter()
    with DatasetWriter(root, fps=FPS, features=features(kind)) as writer:
        for columns in data:
            writer.add_episode(columns, "push the block")
    ours = config.num_episodes * config.length / (time.perf_counter() - begin)
    pictures = [[Image.fromarray(picture) for picture in data[0][name]] for name in CAMERAS]

    def bare() -> None:
        for frames in pictures:
            if kind == "video":
                encode_video(frames, root.parent / "bare.mp4", FPS, VideoEncoding())
            else:
                for picture in frames:
                    picture.save(io.BytesIO(), "PNG", compress_level=1)

    return {"write frames/s": ours, "bare encoder frames/s": rate(config.length, bare, config.repeats)}


def bare_decoder(root: Path, kind: str, config: LoadingConfig) -> float:
    """Pictures a second of one decoder on one thread, from the first to the last of a file."""
    if kind == "video":
        file = next((root / "videos").rglob("*.mp4"))

        def decode() -> int:
            with av.open(str(file)) as container:
                container.streams.video[0].codec_context.thread_count = 1
                return sum(
                    frame.to_ndarray(format="rgb24") is not None for frame in container.decode(video=0)
                )

        return rate(decode(), decode, config.repeats)
    stream = io.BytesIO()
    Image.fromarray(episode(0, 1)[CAMERAS[0]][0]).save(stream, "PNG", compress_level=1)

    def decode_png() -> None:
        for _ in range(200):
            np.asarray(Image.open(io.BytesIO(stream.getvalue())))

    return rate(200, decode_png, config.repeats)


def measure_reading(root: Path, cache: Path, kind: str, config: LoadingConfig) -> dict[str, float]:
    """Transitions a second, warm and cold, and what they are to be compared with."""
    size = config.batch_size
    dataset = ChunkDataset(root, ChunkSettings(HORIZON), cache_dir=cache, progress=silent)
    begin = time.perf_counter()
    for name in CAMERAS:
        dataset.table.images(name, np.array([0]))
    built = time.perf_counter() - begin
    on_demand = ChunkSettings(HORIZON, frames=FrameSettings(cache=False))
    cold = ChunkDataset(root, on_demand, cache_dir=cache, progress=silent)

    def batches(source: ChunkDataset, count: int, seed: int = 0) -> Callable[[], None]:
        loader = ChunkLoader(source, size, seed)

        def run() -> None:
            for update in range(count):
                loader.batch(update)

        return run

    many = 10 * config.batches
    warm = rate(many * size, batches(dataset, many), config.repeats)
    # The same bytes, from memory to memory, one picture after the other.
    pictures = np.zeros((size * 4, 3, SIZE, SIZE), np.uint8)
    target = np.ones_like(pictures)

    def copy() -> None:
        for _ in range(many):
            np.copyto(target, pictures)

    return {
        "store built pictures/s": 2 * dataset.table.num_frames / built,
        "bare decoder pictures/s": bare_decoder(root, kind, config),
        "warm transitions/s": warm,
        "memory copy transitions/s": rate(many * size, copy, config.repeats),
        "cold transitions/s": rate(config.batches * size, batches(cold, config.batches), config.repeats),
    }


def lerobot_reading(root: Path, config: LoadingConfig) -> float:
    """Transitions a second of LeRobotDataset on the same data with 2 worker processes."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]

    deltas: dict[str, list[float]] = {}
    for name in (*CAMERAS, "observation.state"):
        deltas[name] = [0.0, HORIZON / FPS]
    deltas["action"] = [i / FPS for i in range(HORIZON)]
    data = LeRobotDataset("local/set", root=root, delta_timestamps=deltas)
    loader = torch.utils.data.DataLoader(
        data, config.batch_size, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
    )
    batches = iter(loader)
    next(batches)  # the workers have started
    begin = time.perf_counter()
    for _ in range(config.batches):
        next(batches)
    return config.batches * config.batch_size / (time.perf_counter() - begin)


def lerobot_writing(root: Path, kind: str, config: LoadingConfig) -> float:
    """Frames a second of LeRobot's add_frame and save_episode."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]

    described = {name: spec.to_json() | {"shape": spec.shape} for name, spec in features(kind).items()}
    writer = LeRobotDataset.create("local/new", FPS, described, root=root, use_videos=kind == "video")
    num = min(5, config.num_episodes)
    data = [episode(i, config.length) for i in range(num)]
    begin = time.perf_counter()
    for columns in data:
        for frame in range(config.length):
            values = {
                name: value[frame] if value.ndim > 1 else value[frame : frame + 1]
                for name, value in columns.items()
            }
            writer.add_frame(values | {"task": "push the block"})
        writer.save_episode()
    writer.finalize()
    return num * config.length / (time.perf_counter() - begin)


def measure_startup(base: Path, config: LoadingConfig) -> float:
    """Seconds to open a data set of many episodes whose columns are in the cache."""
    rng = np.random.default_rng(0)
    kinds = {name: spec for name, spec in features("image").items() if name not in CAMERAS}
    with DatasetWriter(base / "many", fps=FPS, features=kinds) as writer:
        for _ in range(config.startup_episodes):
            columns = {
                "observation.state": rng.normal(size=(100, 8)).astype(np.float32),
                "action": rng.normal(size=(100, 7)).astype(np.float32),
                "next.success": np.arange(100) == 99,
            }
            writer.add_episode(columns, "push the block")

    def opened() -> None:
        ChunkDataset(base / "many", ChunkSettings(HORIZON), cache_dir=base / "cache", progress=silent)

    return 1 / rate(1, opened, config.repeats)


def table(numbers: dict[str, dict[str, float]]) -> str:
    """The numbers as Markdown, a column a kind of camera."""
    names = list(dict.fromkeys(name for column in numbers.values() for name in column))
    lines = ["| | " + " | ".join(numbers) + " |", "|---|" + "---:|" * len(numbers)]
    for name in names:
        cells = [f"{column[name]:,.4g}" if name in column else "" for column in numbers.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(column: dict[str, float]) -> dict[str, float]:
    """What the issue asks for, from a column of measurements."""
    found = {
        "warm / memory copy": column["warm transitions/s"] / column["memory copy transitions/s"],
        "cold pictures / bare decoder": 4 * column["cold transitions/s"] / column["bare decoder pictures/s"],
        "write / bare encoder": column["write frames/s"] / column["bare encoder frames/s"],
    }
    if "LeRobot transitions/s" in column:
        found["warm / LeRobot"] = column["warm transitions/s"] / column["LeRobot transitions/s"]
        found["cold / LeRobot"] = column["cold transitions/s"] / column["LeRobot transitions/s"]
    if "LeRobot write frames/s" in column:
        found["write / LeRobot"] = column["write frames/s"] / column["LeRobot write frames/s"]
    return found


def main(config: LoadingConfig) -> None:
    """Measures everything, prints and saves it."""
    has_lerobot = importlib.util.find_spec("lerobot") is not None
    numbers: dict[str, dict[str, float]] = {}
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        for kind in config.kinds:
            column = measure_writer(base / kind, kind, config)
            column |= measure_reading(base / kind, base / "cache", kind, config)
            if has_lerobot:
                column["LeRobot write frames/s"] = lerobot_writing(base / f"{kind}-lerobot", kind, config)
                if kind in config.lerobot_reads:
                    column["LeRobot transitions/s"] = lerobot_reading(base / kind, config)
            numbers[kind] = column | ratios(column)
        startup = measure_startup(base, config)
    record = {
        "config": asdict(config),
        "cpus": os.cpu_count(),
        "load_before": load[0],
        "python": platform.python_version(),
        "numbers": numbers,
        "startup_s": startup,
    }
    Path(config.results).parent.mkdir(parents=True, exist_ok=True)
    Path(config.results).write_text(json.dumps(record, indent=2) + "\n")
    print(table(numbers))
    print(f"\nopening {config.startup_episodes} episodes, columns in the cache: {startup:.2f} s")


if __name__ == "__main__":
    main(tyro.cli(LoadingConfig))
