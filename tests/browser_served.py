"""Data sets and pages of `chunkrl label --browser` for tests: served in this process, asked as a browser asks."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from chunk_data import episode

from chunkrl.browser.command import shown_by_hand
from chunkrl.browser.server import PageServer
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.frames import FrameTable
from chunkrl.data.sidecar import save_sidecar
from chunkrl.data.writer import DatasetWriter
from chunkrl.label.config import LabelCommand
from chunkrl.progress import silent

LENGTH = 20
SIDE = 48


def gray(step: int) -> int:
    """The brightness of all pixels of an image at a step: what a camera shows says where it is."""
    return 20 + 10 * step


def write_cameras(root: Path, kind: str, num_episodes: int = 3) -> Path:
    """Two cameras whose brightness says the step, all episodes in one file of each. Even episodes succeed."""
    shades = np.array([gray(step) for step in range(LENGTH)], np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (LENGTH, SIDE, SIDE, 3)).copy()
    rng = np.random.default_rng(0)
    columns = [
        episode(
            LENGTH,
            number % 2 == 0,
            rng,
            **{"observation.images.front": images, "observation.images.wrist": images},
        )
        for number in range(num_episodes)
    ]
    features = {
        name: FeatureSpec(kind, values.shape[1:])
        if values.ndim == 4
        else FeatureSpec(values.dtype.name, values.shape[1:] or (1,))
        for name, values in columns[0].items()
    }
    with DatasetWriter(root, fps=10.0, features=features) as writer:
        for one in columns:
            writer.add_episode(one, "push the block")
    return root


def write_values(root: Path, run: Path, ends: list[float]) -> Path:
    """A run whose held-out values rise to `ends` at the end of each episode; returns are 0 and 1."""
    table = FrameTable.open(root, progress=silent, settings=FrameSettings(cache=False))
    value = np.concatenate(
        [np.linspace(0.5, end, length) for end, length in zip(ends, table.episode_length, strict=True)]
    ).astype(np.float32)
    returns = np.arange(table.num_frames, dtype=np.float32) % 2
    arrays = {"value": value, "value_seen": value, "return": returns, "advantage": value - 0.5}
    run.mkdir(exist_ok=True)
    save_sidecar(run / "values.parquet", table, arrays, {"dataset": str(root)})
    return run


def write_sets(root: Path) -> Path:
    """One data set of videos, one of images, and values of the first: the label of episode 1 is doubted most."""
    write_cameras(root / "video", "video")
    write_cameras(root / "image", "image", num_episodes=2)
    write_values(root / "video", root / "run", [0.9, 0.8, 0.7])
    return root


@dataclass
class Browser:
    """Asks as a browser with the link does. `headers` are sent with every request."""

    link: str
    headers: dict[str, str] = field(default_factory=dict)

    def enter(self) -> Browser:
        """Opens the link, and keeps the cookie."""
        parts = urlsplit(self.link)
        status, headers, _ = self.ask("GET", f"{parts.path}?{parts.query}")
        assert (status, headers["location"]) == (303, "/")
        self.headers["cookie"] = headers["set-cookie"].split(";")[0]
        return self

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any, bytes]:
        """Status, headers (a mapping without case) and content."""
        place = urlsplit(self.link)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=240)
        try:
            connection.request(method, path, body, self.headers | headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, path: str, status: int = 200) -> Any:
        """What JSON answers."""
        found, _, content = self.ask("GET", path)
        assert found == status, content
        return json.loads(content)

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        """An edit from the page, and what JSON answers."""
        place = urlsplit(self.link)
        origin = {"origin": f"http://{place.netloc}", "content-type": "application/json"}
        found, _, content = self.ask("POST", path, json.dumps(body).encode(), **origin)
        assert found == status, content
        return json.loads(content)


@contextmanager
def served(command: LabelCommand) -> Iterator[str]:
    """The link of a page for labels by hand."""
    with shown_by_hand(command, silent) as bench:
        server = PageServer(bench, "127.0.0.1:0")
        server.start()
        try:
            yield server.link
        finally:
            server.stop()
