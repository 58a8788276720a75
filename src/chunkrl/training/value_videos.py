"""Value videos alongside training: a process of its own renders them after a checkpoint, fed through files alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from chunkrl.training.config import ValueVideoConfig

FOLDER = "value_videos"
_LOG = "log.txt"


class Renderer:
    """A program that renders into a folder, one at a time: at low priority, on the CPU, fed through files alone."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether it is still at it."""
        return self._process is not None and self._process.poll() is None

    def start(self, module: str, arguments: Sequence[str | Path], folder: Path) -> None:
        """Runs `python -m module arguments`, which writes to `folder`; there lies its log too."""
        self.folder = folder
        with (folder / _LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )

    def wait(self, timeout: float | None) -> None:
        """Until it has ended; after `timeout` seconds it is stopped."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def collect(self) -> str:
        """Once after it has ended: what went wrong, as a sentence; "" for nothing."""
        code = None if self._process is None else self._process.poll()
        if code is None or self.folder is None:
            return ""
        self._process = None
        if not code:
            return ""
        lines = (self.folder / _LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = lines[-1] if lines else "nothing was said"
        return f"value videos of {self.folder} failed (exit status {code}): {said}"


class ValueVideos:
    """Starts the renderer after checkpoints; gives `Trainer` its `after_save`.

    run_dir: holds config.json; gets `value_videos/<update>/`, with the values it was rendered from.
    labels: the algorithm's labels as they stand, with `value` once there are values.
    save_labels: writes values.parquet of them into a folder.
    """

    def __init__(
        self,
        config: ValueVideoConfig,
        run_dir: Path,
        labels: Callable[[], Mapping[str, np.ndarray]],
        save_labels: Callable[[Path], None],
    ) -> None:
        self._config, self._run_dir = config, run_dir
        self._labels, self._save_labels = labels, save_labels
        self._num_saves = 0
        self._shown: np.ndarray | None = None
        self._renderer = Renderer()
        self._problems: list[str] = []

    def after_save(self, checkpoint: Path) -> None:
        """Starts rendering, unless it is not due, the values are those of the last videos, or the last rendering is
        still at it (which is then a problem that `finish` tells)."""
        self._num_saves += 1
        if self._num_saves % self._config.every_saves:
            return
        value = self._labels().get("value")
        if value is None or (self._shown is not None and np.array_equal(value, self._shown)):
            return
        renderer = self._renderer
        if renderer.is_busy:
            assert renderer.folder is not None
            self._problems.append(
                f"no value videos at checkpoint {checkpoint.name}: those of {renderer.folder.name} were still being "
                "rendered; raise --value-videos.every-saves or lower --value-videos.num-episodes"
            )
            return
        self._collect()
        self._shown = np.array(value)
        folder = self._run_dir / FOLDER / checkpoint.name
        self._save_labels(folder)
        arguments = (self._run_dir, folder, str(self._config.num_episodes), folder)
        renderer.start("chunkrl.report.value_video", arguments, folder)

    def finish(self, timeout: float | None = None) -> list[str]:
        """Waits for the last rendering; returns everything that went wrong, as sentences.

        timeout: seconds, after which the renderer is stopped.
        """
        self._renderer.wait(timeout)
        self._collect()
        return self._problems

    def _collect(self) -> None:
        """Takes note of how the last rendering ended."""
        if problem := self._renderer.collect():
            self._problems.append(problem)
