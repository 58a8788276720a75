"""Transitions a second from two 256 x 256 cameras: warm store, cold, writer, beside LeRobotDataset where installed.

    python -m benchmarks.data_loading                  # prints Markdown, writes benchmarks/results/data_loading.json

A transition is what chunk RL needs: H = 10 actions, both cameras and the state at t and at t + H, at random t.
What is compared takes turns on one data set, and rates are medians over the turns: what else the machine does meets
all alike. For LeRobot's rows run it in an environment with lerobot==0.4.4. LeRobot loads with 2 worker processes,
everything else is one process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import itertools
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro
from PIL import Image

from benchmarks.loading_data import CAMERAS, FPS, HORIZON, SIZE, TASK, episode, features, write_set
from chunkrl.data import ChunkDataset, ChunkSettings
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.file_segments import VideoEncoding, encode_video
from chunkrl.data.image_decoding import decode_image
from chunkrl.data.loader import ChunkLoader
from chunkrl.data.writer import DatasetWriter
from chunkrl.files.atomic import write_text
from chunkrl.progress import silent

HAS_LEROBOT = importlib.util.find_spec("lerobot") is not None
PACKAGES = ("lerobot", "torch", "torchcodec", "av", "deflate", "pillow", "pyarrow", "datasets")


@dataclass(frozen=True)
class LoadingConfig:
    """What to measure."""

    results: str = "benchmarks/results/data_loading.json"
    """Where the numbers go."""
    note: str = ""
    """Kept with the numbers: what is special about machine or environment."""
    kinds: tuple[str, ...] = ("image", "video")
    """How cameras are stored."""
    seed: int = 0
    """Of the data and of the rows drawn."""
    num_episodes: int = 30
    """Of the set that is read."""
    write_episodes: int = 5
    """That a turn of the writers writes."""
    length: int = 100
    """Frames an episode."""
    batch_size: int = 32
    batches: int = 20
    """Batches a turn of the slow paths; the warm store gets ten times as many."""
    repeats: int = 5
    """Turns that count; one more comes before them."""
    startup_episodes: int = 500
    """Episodes of the set whose opening is timed."""
    only_cold: bool = False
    """Leave out writing, the warm store and start-up: decoding on demand beside the bare decoder and LeRobot."""
    folder: str | None = None
    """Keep the data sets here; default: a temporary folder."""


Timed = tuple[int, Callable[[], float]]
"""Units of work, and a function that does them and returns the seconds they took."""


def timed(units: int, work: Callable[[], Any]) -> Timed:
    """All of `work` counts."""

    def run() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return units, run


def take_turns(runs: Mapping[str, Timed], repeats: int) -> dict[str, float]:
    """Median units a second of each, all in turn, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, (_, run) in runs.items():
            seconds[name].append(run())
    return {name: units / statistics.median(seconds[name][1:]) for name, (units, _) in runs.items()}


def measure_writing(base: Path, kind: str, config: LoadingConfig) -> dict[str, float]:
    """Frames (of both cameras) a second, of the writer, of the bare encoder and of LeRobot's writer."""
    data = [episode(config.seed + i, config.length) for i in range(config.write_episodes)]
    pictures = [[Image.fromarray(picture) for picture in data[0][name]] for name in CAMERAS]

    def bare() -> None:
        for frames in pictures:
            if kind == "video":
                encode_video(frames, base / "bare.mp4", FPS, VideoEncoding())
            else:
                for picture in frames:
                    picture.save(io.BytesIO(), "PNG", compress_level=1)

    def ours() -> None:
        with fresh(base / "ours") as root, DatasetWriter(root, fps=FPS, features=features(kind)) as writer:
            for columns in data:
                writer.add_episode(columns, TASK)

    def lerobot() -> None:
        with fresh(base / "lerobot") as root:
            lerobot_write(root, kind, data)

    num_frames = config.write_episodes * config.length
    runs = {"write frames/s": timed(num_frames, ours), "bare encoder frames/s": timed(config.length, bare)}
    if HAS_LEROBOT:
        runs["LeRobot write frames/s"] = timed(num_frames, lerobot)
    return take_turns(runs, config.repeats)


@contextmanager
def fresh(root: Path) -> Iterator[Path]:
    """A folder's name, free before and after."""
    shutil.rmtree(root, ignore_errors=True)
    yield root
    shutil.rmtree(root)


def lerobot_write(root: Path, kind: str, data: list[dict[str, np.ndarray]]) -> None:
    """The episodes by LeRobot's add_frame and save_episode."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]

    described = {name: spec.to_json() | {"shape": spec.shape} for name, spec in features(kind).items()}
    writer = LeRobotDataset.create("local/new", FPS, described, root=root, use_videos=kind == "video")
    for columns in data:
        for frame in range(len(columns["action"])):
            values = {
                name: value[frame] if value.ndim > 1 else value[frame : frame + 1]
                for name, value in columns.items()
            }
            writer.add_frame(values | {"task": TASK})
        writer.save_episode()
    writer.finalize()


def bare_decoder(root: Path, kind: str, config: LoadingConfig) -> Timed:
    """One decoder on one thread, from the first image to the last of a file."""
    if kind == "video":
        file = next((root / "videos").rglob("*.mp4"))

        def decode() -> int:
            with av.open(str(file)) as container:
                container.streams.video[0].codec_context.thread_count = 1
                return sum(
                    frame.to_ndarray(format="rgb24") is not None for frame in container.decode(video=0)
                )

        return timed(decode(), decode)
    stream = io.BytesIO()
    Image.fromarray(episode(config.seed, 1)[CAMERAS[0]][0]).save(stream, "PNG", compress_level=1)

    def decode_png() -> None:
        for _ in range(200):
            decode_image(stream.getvalue(), (SIZE, SIZE))

    return timed(200, decode_png)


def measure_reading(root: Path, cache: Path, config: LoadingConfig, kind: str) -> dict[str, float]:
    """Transitions a second, warm, cold and of LeRobot, and what they are to be compared with."""
    on_demand = ChunkSettings(HORIZON, frames=FrameSettings(cache=False))
    cold = ChunkDataset(root, on_demand, cache_dir=cache, progress=silent)

    def batches(source: ChunkDataset, count: int) -> Timed:
        loader, updates = ChunkLoader(source, config.batch_size, config.seed), itertools.count()

        def run() -> None:
            for _ in range(count):
                loader.batch(next(updates))

        return timed(count * config.batch_size, run)

    runs = {
        "bare decoder pictures/s": bare_decoder(root, kind, config),
        "cold transitions/s": batches(cold, config.batches),
    }
    if HAS_LEROBOT:
        runs["LeRobot transitions/s"] = lerobot_reading(root, config)
    if config.only_cold:
        return take_turns(runs, config.repeats)
    dataset = ChunkDataset(root, ChunkSettings(HORIZON), cache_dir=cache, progress=silent)
    begin = time.perf_counter()
    for name in CAMERAS:
        dataset.table.images(name, np.array([0]))
    built = 2 * dataset.table.num_frames / (time.perf_counter() - begin)
    many = 10 * config.batches
    # The same bytes, from memory to memory, one image after the other.
    pictures = np.zeros((config.batch_size * 4, 3, SIZE, SIZE), np.uint8)
    target = np.ones_like(pictures)

    def copy() -> None:
        for _ in range(many):
            np.copyto(target, pictures)

    runs["warm transitions/s"] = batches(dataset, many)
    runs["memory copy transitions/s"] = timed(many * config.batch_size, copy)
    return {"store built pictures/s": built} | take_turns(runs, config.repeats)


def lerobot_reading(root: Path, config: LoadingConfig) -> Timed:
    """LeRobotDataset on the same data with 2 worker processes; their start and the first batch do not count."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]

    deltas: dict[str, list[float]] = {}
    for name in (*CAMERAS, "observation.state"):
        deltas[name] = [0.0, HORIZON / FPS]
    deltas["action"] = [i / FPS for i in range(HORIZON)]
    data = LeRobotDataset("local/set", root=root, delta_timestamps=deltas)
    rng = np.random.default_rng(config.seed)

    def run() -> float:
        # Exactly these batches: workers that fill their queues after a turn would disturb the next one.
        rows = rng.integers(len(data), size=(config.batches + 1) * config.batch_size).tolist()
        loader = torch.utils.data.DataLoader(data, config.batch_size, sampler=rows, num_workers=2)
        loaded = iter(loader)
        next(loaded)
        begin = time.perf_counter()
        for _ in loaded:
            pass
        return time.perf_counter() - begin

    return config.batches * config.batch_size, run


def measure_startup(base: Path, config: LoadingConfig) -> float:
    """Seconds to open a data set of many episodes whose columns are in the cache."""
    rng = np.random.default_rng(config.seed)
    kinds = {name: spec for name, spec in features("image").items() if name not in CAMERAS}
    with DatasetWriter(base / "many", fps=FPS, features=kinds, overwrite=True) as writer:
        for _ in range(config.startup_episodes):
            columns = {
                "observation.state": rng.normal(size=(100, 8)).astype(np.float32),
                "action": rng.normal(size=(100, 7)).astype(np.float32),
                "next.success": np.arange(100) == 99,
            }
            writer.add_episode(columns, TASK)

    def opened() -> None:
        ChunkDataset(base / "many", ChunkSettings(HORIZON), cache_dir=base / "cache", progress=silent)

    return 1 / take_turns({"": timed(1, opened)}, config.repeats)[""]


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
    pictures = column | {"cold pictures/s": 4 * column["cold transitions/s"]}
    pairs = {
        "warm / memory copy": ("warm transitions/s", "memory copy transitions/s"),
        "cold pictures / bare decoder": ("cold pictures/s", "bare decoder pictures/s"),
        "write / bare encoder": ("write frames/s", "bare encoder frames/s"),
        "warm / LeRobot": ("warm transitions/s", "LeRobot transitions/s"),
        "cold / LeRobot": ("cold transitions/s", "LeRobot transitions/s"),
        "write / LeRobot": ("write frames/s", "LeRobot write frames/s"),
    }
    return {
        name: pictures[ours] / pictures[other]
        for name, (ours, other) in pairs.items()
        if ours in pictures and other in pictures
    }


def environment() -> dict[str, Any]:
    """Machine and versions."""
    found = {}
    for name in PACKAGES:
        if importlib.util.find_spec("PIL" if name == "pillow" else name):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "stand-in"
    model = [line for line in Path("/proc/cpuinfo").read_text().split("\n") if line.startswith("model name")]
    return {
        "cpus": os.cpu_count(),
        "cpu": model[0].partition(":")[2].strip() if model else platform.processor(),
        "python": platform.python_version(),
        "packages": found,
    }


def measure(base: Path, config: LoadingConfig) -> dict[str, Any]:
    """Everything, as the results file has it."""
    numbers: dict[str, dict[str, float]] = {}
    load, digests = {}, {}
    for kind in config.kinds:
        load[kind] = os.getloadavg()
        column = {} if config.only_cold else measure_writing(base, kind, config)
        digests[kind] = write_set(base / kind, kind, config.num_episodes, config.length, config.seed)
        column |= measure_reading(base / kind, base / "cache", config, kind)
        numbers[kind] = column | ratios(column)
    record = {
        "config": {k: v for k, v in asdict(config).items() if k not in ("results", "folder")},
        "data_sha256": digests,
        "load_average_before": load,
        "environment": environment(),
        "numbers": numbers,
    }
    return record if config.only_cold else record | {"startup_s": measure_startup(base, config)}


def main(config: LoadingConfig) -> None:
    """Measures everything, prints and saves it."""
    if config.folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            record = measure(Path(temporary), config)
    else:
        record = measure(Path(config.folder), config)
    write_text(config.results, json.dumps(record, indent=2) + "\n")
    print(table(record["numbers"]))
    if "startup_s" in record:
        print(
            f"\nopening {config.startup_episodes} episodes, columns in the cache: {record['startup_s']:.2f} s"
        )


if __name__ == "__main__":
    main(tyro.cli(LoadingConfig))
