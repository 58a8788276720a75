"""What `chunkrl label --browser` takes in Chromium, beside reading and writing the same bytes.

    python -m benchmarks.browser_page --output-dir runs/browser     # a minute of CPU; prints Markdown

Two data sets are made, of states alone and with one small video: 500 episodes of 600 frames each. The page is opened
without and with what the browser has cached, episodes are opened, stepped through and labelled; numbers are the
median of `--repeats`. Beside them stands what cannot be undercut: the same answers from the server alone, the
files read from the disk, and the labels' file written and synchronised by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import HTTPCookieProcessor, build_opener

import numpy as np
import pyarrow.parquet as pq

from chunkrl.browser.command import shown_by_hand
from chunkrl.browser.server import PageServer
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.formats import describe
from chunkrl.data.frames import FrameTable
from chunkrl.data.sidecar import save_sidecar
from chunkrl.data.video_copy import EncodedVideo, VideoFormat, packet_formats
from chunkrl.data.writer import DatasetWriter
from chunkrl.label.by_hand import HandLabels
from chunkrl.label.config import LabelCommand
from chunkrl.label.marks import Edit
from chunkrl.options import BrowserConfig
from chunkrl.progress import silent

NUM_EPISODES, LENGTH, FPS, SIDE = 500, 600, 30.0, 64
STATE, ACTION = 8, 7
CAMERA = "observation.images.front"
READY = "body[data-ready=yes]"


def write(root: Path, with_video: bool, num_episodes: int, length: int) -> Path:
    """The data set, unless it is there; one episode of a video is encoded and its packets copied."""
    if (root / "meta" / "info.json").is_file():
        return root
    features = {
        "observation.state": FeatureSpec("float32", (STATE,)),
        "action": FeatureSpec("float32", (ACTION,)),
        "next.success": FeatureSpec("bool", (1,)),
    }
    camera: dict[str, Any] = {}
    copied: dict[str, VideoFormat] = {}
    if with_video:
        features[CAMERA] = FeatureSpec("video", (SIDE, SIDE, 3))
        encoded = encode_once(root.with_name(f"{root.name}-template"), length)
        camera, copied = {CAMERA: encoded}, {CAMERA: encoded.format}
    rng = np.random.default_rng(0)
    with DatasetWriter(root, fps=FPS, features=features, copied=copied) as writer:
        for number in range(num_episodes):
            writer.add_episode(numbers(rng, length, number % 2 == 0) | camera, "move the square")
    return root


def numbers(rng: np.random.Generator, length: int, success: bool) -> dict[str, np.ndarray]:
    """The columns of an episode without its images."""
    flags = np.zeros(length, bool)
    flags[-1] = success
    return {
        "observation.state": rng.normal(size=(length, STATE)).cumsum(0).astype(np.float32),
        "action": rng.normal(size=(length, ACTION)).astype(np.float32),
        "next.success": flags,
    }


def encode_once(root: Path, length: int) -> EncodedVideo:
    """One episode of a bar that moves, in a data set of its own."""
    images = np.zeros((length, SIDE, SIDE, 3), np.uint8)
    for t in range(length):
        at = t * (SIDE - 8) // length
        images[t, :, at : at + 8] = 200
    features = {
        "action": FeatureSpec("float32", (ACTION,)),
        CAMERA: FeatureSpec("video", (SIDE, SIDE, 3)),
    }
    with DatasetWriter(root, fps=FPS, features=features, overwrite=True) as writer:
        writer.add_episode({"action": np.zeros((length, ACTION), np.float32), CAMERA: images}, "encode")
    description = describe(root)
    formats = packet_formats(description, CAMERA, np.arange(length) / FPS)
    assert formats is not None
    span = description.episodes[0].videos[CAMERA]
    return EncodedVideo(images, span.file, span.from_timestamp, formats[0])


def write_values(root: Path, run: Path) -> Path:
    """Values of every frame, as a run has them; numbers drawn at random."""
    table = FrameTable.open(root, progress=silent, settings=FrameSettings(cache=False))
    value = np.random.default_rng(1).uniform(size=table.num_frames).astype(np.float32)
    arrays = {"value": value, "value_seen": value, "return": np.round(value), "advantage": value - 0.5}
    run.mkdir(parents=True, exist_ok=True)
    save_sidecar(run / "values.parquet", table, arrays, {"dataset": str(root)})
    return run


def median_ms(repeats: int, work: Callable[[int], object]) -> float:
    """Of one call, milliseconds; `work` is given its number."""
    times = []
    for number in range(repeats):
        begun = time.perf_counter()
        work(number)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


@contextmanager
def page(link: str, program: str) -> Iterator[tuple[Any, float]]:
    """A page in a new browser, and the seconds until it can be used."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.set_default_timeout(600_000)
        begun = time.perf_counter()
        opened.goto(link)
        opened.wait_for_selector(READY, state="attached")
        opened.evaluate("chunkrl.player.settled")
        yield opened, time.perf_counter() - begun
        browser.close()


# in the page, so that no time of the test's own connection counts
OPEN = """async (number) => { const begun = performance.now(); await chunkrl.queue.open(number);
  await chunkrl.player.settled; return performance.now() - begun; }"""
STEP = """async (step) => { const begun = performance.now(); chunkrl.player.go(step);
  await chunkrl.player.settled; return performance.now() - begun; }"""
EDIT = """async (edit) => { const begun = performance.now(); await chunkrl.edits.edit(chunkrl.shown.number, edit);
  return performance.now() - begun; }"""


def measure(root: Path, run: Path, program: str, repeats: int) -> dict[str, float]:
    """Milliseconds by what is done."""
    shutil.rmtree(root / "labels", ignore_errors=True)
    begun = time.perf_counter()
    command = LabelCommand(str(root), page=BrowserConfig(browser=True, run=str(run)))
    with shown_by_hand(command, silent) as bench:
        server = PageServer(bench, "127.0.0.1:0")
        server.start()
        found = {"command ready": 1000 * (time.perf_counter() - begun)}
        with page(server.link, program) as (opened, seconds):
            found["first page"] = 1000 * seconds
            begun = time.perf_counter()
            opened.reload()
            opened.wait_for_selector(READY, state="attached")
            opened.evaluate("chunkrl.player.settled")
            found["page again"] = 1000 * (time.perf_counter() - begun)
            chosen = [7 * number % bench.num_episodes for number in range(1, repeats + 1)]
            found["episode opened"] = statistics.median(opened.evaluate(OPEN, n) for n in chosen)
            steps = [(37 * number) % bench.episode(0)["length"] for number in range(1, repeats + 1)]
            found["step shown"] = statistics.median(opened.evaluate(STEP, step) for step in steps)
            edits = [{"kind": "subgoal", "step": step, "on": True} for step in steps]
            found["edit saved"] = statistics.median(opened.evaluate(EDIT, edit) for edit in edits)
            found["list sorted"] = 1000 * _timed(
                lambda: opened.evaluate("document.getElementById('sort').onclick()")
            )
        asked = build_opener(HTTPCookieProcessor())
        asked.open(server.link).read()
        origin = server.link.split("/?")[0]

        def answers(number: int) -> None:
            for part in ("", "/curves"):
                asked.open(f"{origin}/api/episode/{chosen[number]}{part}").read()

        found["episode and curves, server alone"] = median_ms(repeats, answers)
        server.stop()
        labels = bench.sets[0].labels
        assert isinstance(labels, HandLabels)
        found["edit's processor time, without a page"] = statistics.median(
            edit_ms(labels, position, step) for position, step in zip(chosen, steps, strict=True)
        )
    found |= _limits(root, repeats)
    return found


def edit_ms(labels: HandLabels, position: int, step: int) -> float:
    """Processor time of a success or a failure that is kept, milliseconds."""
    begun = time.process_time()
    edit = Edit("success", step) if step % 2 else Edit("failure")
    labels.edit(position, labels.history(position).version, edit)
    return 1000 * (time.process_time() - begun)


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _limits(root: Path, repeats: int) -> dict[str, float]:
    """What the disk alone takes."""
    labels = root / "labels" / "by_hand.parquet"
    content, stored, copy = labels.read_bytes(), pq.read_table(labels), root / "labels" / "copy"

    def synchronised(write_file: Callable[[], object]) -> None:
        write_file()
        with copy.open("rb+") as file:
            os.fsync(file.fileno())

    found = {
        "labels' bytes written and synchronised": median_ms(
            repeats, lambda _: synchronised(lambda: copy.write_bytes(content))
        ),
        "labels encoded as parquet, written, synchronised": median_ms(
            repeats, lambda _: synchronised(lambda: pq.write_table(stored, copy))
        ),
    }
    copy.unlink()
    files = sorted((root / "data").rglob("*.parquet"))
    found["all data files read"] = median_ms(3, lambda _: [file.read_bytes() for file in files])
    if videos := sorted((root / "videos").rglob("*.mp4")):
        found["all videos read"] = median_ms(3, lambda _: [file.read_bytes() for file in videos])
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/browser"))
    parser.add_argument("--num-episodes", type=int, default=NUM_EPISODES)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--results", type=Path, default=None)
    chosen = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for name, with_video in (("states alone", False), ("one video", True)):
        root = chosen.output_dir / re.sub(r"\W+", "_", name)
        write(root, with_video, chosen.num_episodes, chosen.length)
        run = write_values(root, chosen.output_dir / f"{root.name}-run")
        found[name] = measure(root, run, chosen.chromium, chosen.repeats)
    print(
        f"{chosen.num_episodes} episodes of {chosen.length} frames; load {os.getloadavg()[0]:.1f}; milliseconds\n"
    )
    print(f"| ms | {' | '.join(found)} |\n|---|{'---:|' * len(found)}")
    for row in dict.fromkeys(row for one in found.values() for row in one):
        print(f"| {row} | {' | '.join(f'{one[row]:.3g}' if row in one else '' for one in found.values())} |")
    if chosen.results:
        chosen.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
