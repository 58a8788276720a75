"""Videos of the actors' newest episode with its values, alongside training: a process of its own renders each.

The learner hands over where the episode is and its values, as one small file; the renderer reads the images from
the replay (`chunkrl.report.beside_learner` is that program).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import ChunkRLError
from chunkrl.online.learner.data import Generation
from chunkrl.online.learner.evaluation import PROGRAM
from chunkrl.training.config import ValueVideoConfig
from chunkrl.training.value_videos import FOLDER, Renderer

_LOG = logging.getLogger(__name__)
EPISODE_FILE = "episode.json"
_PATIENCE_S = 600.0  # at the end of a run


class EpisodeVideos:
    """Starts a renderer when so many episodes came; while one is at work none is due, and the next shows what is the
    newest then. What goes wrong is a warning.

    run_dir: holds config.json; gets `value_videos/episodes-<number ever stored>/`. generation: what the run begins
    with.

    Raises:
        ChunkRLError: the actors' episodes have no cameras.
    """

    def __init__(self, config: ValueVideoConfig, run_dir: Path, generation: Generation) -> None:
        self._every, self._run_dir = config.every_episodes, run_dir
        self._renderer = Renderer()
        newest = self.newest
        self._last = 0 if newest is None else int(newest.parent.name.removeprefix("episodes-"))
        shard = newest_shard(generation)
        if self._every and shard is not None and not shard.table.description.cameras:
            raise ChunkRLError(_no_cameras(shard))

    @property
    def newest(self) -> Path | None:
        """The newest video of the run; None before the first."""
        return max((self._run_dir / FOLDER).glob("episodes-*/episode-*-*.*"), default=None)

    def begin_if_due(self, generation: Generation, labels: Mapping[str, np.ndarray]) -> None:
        """Starts rendering the newest episode of `generation`, whose labels are `labels`, [len] each."""
        if not self._every or generation.num_episodes // self._every <= self._last // self._every:
            return
        shard = newest_shard(generation)
        if shard is None or "value" not in labels or self._renderer.is_busy:
            return
        self._warn()
        self._last = generation.num_episodes
        if not shard.table.description.cameras:
            _LOG.warning("%s", _no_cameras(shard))
            self._every = 0
            return
        folder = self._run_dir / FOLDER / f"episodes-{generation.num_episodes:09d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # not through a synchronised file: training must not wait for the disk, and nobody reads it after a kill
            (folder / EPISODE_FILE).write_text(
                json.dumps(_job(generation, shard, labels)) + "\n", encoding="utf-8"
            )
            self._renderer.start(PROGRAM, ("video", self._run_dir, folder), folder)
        except OSError as error:
            _LOG.warning("no value video in %s: %s", folder, error)

    def close(self, finish: bool) -> None:
        """finish: waits for the renderer; else it is stopped."""
        self._renderer.wait(_PATIENCE_S if finish else 0.0)
        if finish:
            self._warn()

    def _warn(self) -> None:
        if problem := self._renderer.collect():
            _LOG.warning("%s", problem)


def newest_shard(generation: Generation) -> ChunkDataset | None:
    """The data set with the actors' newest episode, the last of the collection; None where there is none."""
    if generation.data is None or not generation.online_episodes:
        return None
    return generation.data.datasets[-1]


def _no_cameras(shard: ChunkDataset) -> str:
    return f"{shard.name} has no cameras to show in value videos: leave --value-videos.every-episodes out"


def _job(generation: Generation, shard: ChunkDataset, labels: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The newest episode: where it is, and its labels, [T] each."""
    assert generation.data is not None
    begin, _ = generation.data.spans[-1]
    rows = slice(begin + int(shard.table.episode_start[-1]), begin + len(shard))  # every row is a start
    job: dict[str, Any] = {"shard": shard.name, "episode": shard.episode_identities[-1]}
    return job | {name: labels[name][rows].tolist() for name in ("value", "advantage")}
