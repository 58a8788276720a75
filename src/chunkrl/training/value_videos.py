"""Value videos beside training: a process of its own renders them after a checkpoint, fed through files alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chunkrl.errors import ChunkRLError

FOLDER = "value_videos"
_LOG = "log.txt"


@dataclass(frozen=True)
class ValueVideoConfig:
    """Videos of episodes with their values, rendered beside training."""

    num_episodes: int = 0
    """Of --dataset-dir, successes and failures in turn (0: no videos)."""
    every_saves: int = 1
    """Checkpoints between two times; where the values are still the same, there are no new videos."""

    def __post_init__(self) -> None:
        if self.num_episodes < 0 or self.every_saves < 1:
            raise ChunkRLError(
                "value_videos.num_episodes must be at least 0, value_videos.every_saves at least 1"
            )


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
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = run_dir
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
        if self._process is not None and self._process.poll() is None:
            self._problems.append(
                f"no value videos at checkpoint {checkpoint.name}: those of {self._folder.name} were still being "
                "rendered; raise --value-videos.every-saves or lower --value-videos.num-episodes"
            )
            return
        self._collect()
        self._shown = np.array(value)
        self._folder = self._run_dir / FOLDER / checkpoint.name
        self._save_labels(self._folder)
        arguments = (self._run_dir, self._folder, str(self._config.num_episodes), self._folder)
        with (self._folder / _LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chunkrl.evaluation.value_video", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )

    def finish(self, timeout: float | None = None) -> list[str]:
        """Waits for the last rendering; returns everything that went wrong, as sentences.

        timeout: seconds, after which the renderer is stopped.
        """
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._collect()
        return self._problems

    def _collect(self) -> None:
        """Takes note of how the last rendering ended."""
        if self._process is None:
            return
        if self._process.returncode:
            lines = (self._folder / _LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            self._problems.append(
                f"value videos of {self._folder} failed (exit status {self._process.returncode}): "
                f"{lines[-1] if lines else 'nothing was said'}"
            )
        self._process = None
