"""Every frame of a LeRobot data set by row: numeric columns and images, memory-mapped from the cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chunkrl.data.cache import cache_folder, file_name
from chunkrl.data.chunk_settings import ColumnMapping, FrameSettings
from chunkrl.data.formats import RECOGNISE, DatasetDescription, describe
from chunkrl.data.hold_out import split
from chunkrl.data.image_decoding import Camera
from chunkrl.data.images import check_space, open_camera
from chunkrl.data.on_demand import DataFiles, OnDemandCamera
from chunkrl.data.problems import Collector, Problem, refuse
from chunkrl.data.store import open_columns
from chunkrl.data.survey import examine, set_aside
from chunkrl.data.video_ends import check_ends
from chunkrl.errors import DatasetError
from chunkrl.progress import Progress, ProgressBars

if TYPE_CHECKING:
    from chunkrl.data.normalize import Statistics


class FrameTable:
    """The frames of a data set; row i is frame i of all episodes laid end to end, in order of their index.

    Memory does not grow with the data set: arrays are read-only maps of files in the cache. A table can be
    sent to another process; it opens the same files there.

    description: the data set.
    state: float32 [N, S], or None where there is no state column. action: float32 [N, A]. Both finite.
    task_index: int64 [N]. timestamp: float32 [N], seconds from the episode's start.
    episode_start, episode_length, episode_ids: int64 [E], first row, frames and `episode_index`.
    settings: how frames are kept. problems: what is wrong with the episodes that were set aside.
    """

    def __init__(
        self,
        description: DatasetDescription,
        folder: Path,
        progress: Progress,
        settings: FrameSettings = FrameSettings(),
        problems: tuple[Problem, ...] = (),
    ) -> None:
        """Use `open`. folder: the data set's own folder in the cache."""
        self.description = description
        self.settings = settings
        self.problems = problems
        self._folder = folder
        self._progress = progress
        self._columns = open_columns(description, folder, progress)
        self._files = DataFiles()
        self._cameras: dict[str, Callable[[np.ndarray], Callable[[], np.ndarray]]] = {}
        self.episode_start = np.array([episode.start for episode in description.episodes], np.int64)
        self.episode_length = np.array([episode.length for episode in description.episodes], np.int64)
        self.episode_ids = np.array([episode.index for episode in description.episodes], np.int64)
        features = description.features.values()
        self._unreadable = {f.name: f.fault for f in features if f.fault is not None}
        self.action = self._columns.vectors(description.action_keys)
        self.state = self._columns.vectors(description.state_keys) if description.state_keys else None
        self.task_index = self._columns.read("task_index", np.int64)
        self.timestamp = self._columns.read("timestamp", np.float32)

    @classmethod
    def open(
        cls,
        dataset: str | Path,
        mapping: ColumnMapping = RECOGNISE,
        revision: str | None = None,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
        settings: FrameSettings = FrameSettings(),
        label_columns: Callable[[DatasetDescription], Collection[str]] = lambda _: (),
        held_out: bool = False,
        part: Callable[[DatasetDescription], DatasetDescription] = lambda whole: whole,
    ) -> FrameTable:
        """Opens a data set; the first time its numeric columns are read and checked.

        Args:
            dataset, mapping, revision: as `chunkrl.data.formats.describe` takes them.
            cache_dir: where to keep what was read, instead of `$CHUNKRL_CACHE` or `~/.cache/chunkrl`.
            progress: shows reading and decoding, instead of bars on the terminal.
            settings: how frames are kept; `skip_bad_episodes` reads and decodes everything once beforehand.
            label_columns: the columns whose faults make an episode bad, beside those with a role.
            held_out: the episodes that `settings.held_out` keeps from training, in place of the others.
            part: leaves episodes out, such as those that labels leave out (`label_files.labelled_part`).

        Raises:
            DatasetError: the data set is absent, incomplete, damaged or inconsistent.
            ChunkRLError: the cache has no space or cannot be written.
        """
        progress = progress or ProgressBars()
        found = Collector()
        description = describe(dataset, mapping, revision, found if settings.skip_bad_episodes else refuse)
        description = part(description)
        problems: tuple[Problem, ...] = ()
        folder = cache_folder(description.fingerprint, cache_dir)
        if settings.skip_bad_episodes:
            labels = label_columns(description)
            problems = examine(description, found, folder, progress, images=True, label_columns=labels)
            description = set_aside(description, problems)
        if settings.held_out or held_out:
            description = split(description, settings.held_out, held_out)
        if problems or settings.held_out:
            folder = cache_folder(description.fingerprint, cache_dir)
        return cls(description, folder, progress, settings, problems)

    def __reduce__(self):
        return FrameTable, (self.description, self._folder, self._progress, self.settings, self.problems)

    @property
    def cache_dir(self) -> Path:
        """The data set's own folder in the cache; what is made from it may be kept there."""
        return self._folder

    @property
    def num_frames(self) -> int:
        """N, the frames in all episodes."""
        return len(self.action)

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.episode_start)

    def episode_of(self, rows: np.ndarray) -> np.ndarray:
        """int64, the position of each row's episode; rows int, any shape."""
        return np.searchsorted(self.episode_start, rows, side="right") - 1

    def task_text(self, row: int) -> str:
        """The text of the row's task."""
        return self.description.tasks[int(self.task_index[row])]

    def has_column(self, name: str) -> bool:
        """Whether info.json declares a column of this name that is numeric, or is not said to be anything."""
        return name in self._columns.names or name in self._unreadable

    @property
    def column_faults(self) -> dict[str, str]:
        """Numeric columns that cannot be used as they are -> why; `column` raises it."""
        return self._columns.faults

    def is_finite(self, name: str) -> bool:
        """Whether the numeric column can be used, and holds no NaN or infinite value."""
        return self._columns.is_finite(name)

    def column(self, name: str) -> np.ndarray:
        """A numeric or boolean column in its own type: [N], or [N, ...] where a frame has several; read-only.

        Raises:
            DatasetError: there is no such column, or its values are missing, or others than info.json declares.
        """
        if name in self._unreadable:
            raise DatasetError(
                f"{self.description.root}/meta/info.json: column '{name}' {self._unreadable[name]}: correct it"
            )
        if not self.has_column(name):
            raise DatasetError(
                f"{self.description.root}: no numeric column '{name}'; "
                f"columns: {', '.join(self._columns.names)}"
            )
        return self._columns.read(name)

    def images(self, camera: str, rows: np.ndarray) -> np.ndarray:
        """Images of a camera, uint8 RGB [n, 3, height, width], for int rows [n].

        The first call for a camera decodes all of it into the cache, unless the settings say otherwise.

        Raises:
            DatasetError: the description has no such camera; an image or a video is missing or damaged.
            ChunkRLError: the cache has no space or cannot be written.
        """
        return self.start_images(camera, rows)()

    def start_images(self, camera: str, rows: np.ndarray) -> Callable[[], np.ndarray]:
        """Begins what `images` does, and returns a function that gives its result or raises its error.

        Where images are decoded on demand, several that are begun before the first is waited for keep all cores
        busy to the end.
        """
        self.open_cameras([camera])
        return self._cameras[camera](rows)

    def open_cameras(self, names: Sequence[str]) -> None:
        """What the first call of `images` for each of these cameras does, after a check that the disk has space for
        the stores of all that are not in the cache.

        Raises:
            DatasetError, ChunkRLError: as `images`.
        """
        new = {name: self.camera(name) for name in names if name not in self._cameras}
        if new and self.settings.cache:
            check_space(new.values(), self._folder)
        for name, camera in new.items():
            check_ends(camera, self.description.episodes, refuse)
            self._cameras[name] = self._open(name)

    def statistics(self, names: Sequence[str]) -> Statistics:
        """Statistics over all frames of numeric columns joined in this order, as float32 [D]; computed once and kept
        in the cache.

        Raises:
            DatasetError: there is no such column, or it holds NaN or inf.
        """
        from chunkrl.data.normalize import compute_statistics, saved_statistics  # late: torch takes seconds

        for name in names:
            self.column(name)
        file = self._folder / "statistics" / f"{file_name('+'.join(names))}.json"
        return saved_statistics(file, lambda: compute_statistics(self._columns.vectors(names)))

    def camera(self, name: str) -> Camera:
        """What the camera's images are decoded from, and their size.

        Raises:
            DatasetError: the description has no such camera.
        """
        return Camera(self.description, name, self._columns.read("timestamp"), self.settings.image_resize)

    def decoder(self, name: str) -> OnDemandCamera:
        """Decodes single images of the camera, whatever the settings say of the cache.

        Raises:
            DatasetError: the description has no such camera.
        """
        return OnDemandCamera(self.camera(name), self._files)

    def _open(self, name: str) -> Callable[[np.ndarray], Callable[[], np.ndarray]]:
        if not self.settings.cache:
            return self.decoder(name).start
        pictures = open_camera(self.camera(name), self._folder, self._progress)
        return lambda rows: lambda: np.asarray(pictures[rows])
