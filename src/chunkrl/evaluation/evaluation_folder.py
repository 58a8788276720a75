"""The folder of one evaluation: settings, one file a finished episode, so that a killed evaluation goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chunkrl.config import load_config, save_config
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.evaluation_result import EpisodeOutcome, EvaluationSettings, Video
from chunkrl.evaluation.rollout import Episode
from chunkrl.files.atomic import remove_temporaries, write_text
from chunkrl.files.output_folder import begin_folder, hold

_SETTINGS, _EPISODES, _SESSIONS, _VIDEOS = "settings.json", "episodes", "sessions", "videos"
_INTERVAL = 10.0  # seconds between notes of the time that a session has taken


class EvaluationFolder:
    """`settings.json`, `episodes/TASK/STATE.json`, `sessions`, `videos`; every file is written whole or not at all.

    One process at a time holds the folder.
    """

    def __init__(self, root: str | Path, settings: EvaluationSettings, overwrite: bool = False) -> None:
        """
        overwrite: an evaluation that is there makes place (`chunkrl.files.output_folder`).

        Raises:
            ChunkRLError: the folder belongs to an evaluation with other settings or of another policy, holds
                something else, or is in use.
        """
        self.root = begin_folder(Path(root), "evaluate", resumes=not overwrite, overwrite=overwrite)
        self._lock = hold(self.root, "evaluate")
        remove_temporaries(self.root)
        try:
            self._keep(settings)
        except ChunkRLError:
            self._lock.release()
            raise

    def _keep(self, settings: EvaluationSettings) -> None:
        file = self.root / _SETTINGS
        if not file.is_file():
            save_config(settings, file)
            return
        there = load_config(EvaluationSettings, file)
        if different := there.differences(settings):
            told = "; ".join(
                f"{name} {getattr(there, name)!r} there, {getattr(settings, name)!r} asked for"
                for name in different
            )
            raise ChunkRLError(
                f"{self.root} holds an evaluation of other settings ({told}): give another --output-dir, the same "
                "settings to resume it, or --overwrite to put the new one in its place"
            )

    def _episode_file(self, episode: Episode) -> Path:
        return self.root / _EPISODES / episode.env.replace("/", ".") / f"{episode.seed}.json"

    def save(self, episode: Episode, outcome: EpisodeOutcome) -> None:
        """Keeps one finished episode."""
        write_text(self._episode_file(episode), json.dumps(asdict(outcome)) + "\n")

    def load(self, episodes: Sequence[Episode]) -> dict[int, EpisodeOutcome]:
        """The outcomes that are there, by position in `episodes`."""
        found = {}
        for number, episode in enumerate(episodes):
            file = self._episode_file(episode)
            if file.is_file():
                found[number] = load_config(EpisodeOutcome, file)
        return found

    def videos(self) -> list[Video]:
        """The videos that are there; a note whose video was deleted is none."""
        noted = [load_config(Video, file) for file in sorted((self.root / _VIDEOS).glob("*.json"))]
        return [video for video in noted if (self.root / video.file).is_file()]

    def save_video(self, video: Video) -> None:
        """Notes a video whose file is there."""
        file = (self.root / video.file).with_suffix(".json")
        write_text(file, json.dumps(asdict(video)) + "\n")

    def clock(self) -> SessionClock:
        """The clock of a new session."""
        return SessionClock(self.root / _SESSIONS)

    def close(self) -> None:
        """Lets others use the folder."""
        self._lock.release()


@dataclass(frozen=True)
class _Session:
    seconds: float

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise ChunkRLError(f"seconds is {self.seconds}")


class SessionClock:
    """Wall time of a session, noted on the way: what a killed session took is not lost. total: of all sessions."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.json"))
        self._before = sum(load_config(_Session, file, cure="delete it").seconds for file in files)
        self._file = folder / f"{len(files)}.json"
        self._started = self._noted = time.monotonic()
        self.total = self._before

    def tick(self) -> None:
        """Notes the time, now and then."""
        if time.monotonic() - self._noted > _INTERVAL:
            self.stop()

    def stop(self) -> None:
        """Notes the time."""
        self._noted = time.monotonic()
        seconds = self._noted - self._started
        self.total = self._before + seconds
        write_text(self._file, json.dumps({"seconds": seconds}) + "\n")
