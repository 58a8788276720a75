"""What the page shows: episodes of several data sets by one number, their labels, values, curves and images."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from chunkrl.browser.curves import curve_charts, value_chart
from chunkrl.browser.values import Values, order_key
from chunkrl.data.frames import FrameTable
from chunkrl.data.on_demand import OnDemandCamera
from chunkrl.label.base import BaseLabels
from chunkrl.label.by_hand import HandLabels
from chunkrl.label.journal import History
from chunkrl.options import EpisodeOrder

JPEG_QUALITY = 90


class Labels(Protocol):
    """What is said of the episodes of one data set."""

    base: BaseLabels

    def history(self, position: int) -> History: ...


class FixedLabels:
    """Labels that nobody changes."""

    def __init__(self, table: FrameTable, base: BaseLabels) -> None:
        self.base, self._table = base, table
        self._histories: dict[int, History] = {}

    def history(self, position: int) -> History:
        """What is said of the episode at this position, with nothing before it."""
        if position not in self._histories:
            self._histories[position] = History([self.base.marks(self._table, position)])
        return self._histories[position]


@dataclass(frozen=True, eq=False)
class ShownSet:
    """One data set on the page."""

    table: FrameTable
    labels: Labels
    values: Values | None
    name: str
    notes: tuple[str, ...] = ()

    def rows(self, position: int) -> slice:
        """The rows of the episode at a position."""
        start = int(self.table.episode_start[position])
        return slice(start, start + int(self.table.episode_length[position]))

    def doubt(self, position: int) -> float | None:
        """See `Values.doubt`."""
        if self.values is None:
            return None
        return self.values.doubt(self.labels.history(position).marks, self.rows(position))


class Workbench:
    """All data sets of the page. Episodes are numbered through them, in order: 0 to `num_episodes` - 1.

    Attributes: key (of these data in this order: numbers of another page mean other episodes, and a browser keeps the
    images, videos and undo of both).
    """

    def __init__(self, sets: Sequence[ShownSet], order: EpisodeOrder) -> None:
        self.sets, self.order = tuple(sets), order
        shown = [(str(one.table.description.root), one.table.description.fingerprint) for one in sets]
        self.key = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
        self._firsts = np.cumsum([0, *(shown.table.num_episodes for shown in sets)])
        files = [
            span.file
            for shown in sets
            for episode in shown.table.description.episodes
            for name, span in episode.videos.items()
            if name in shown.table.description.cameras
        ]
        self.video_files = tuple(dict.fromkeys(files))
        self._file_numbers = {file: number for number, file in enumerate(self.video_files)}
        self._decoder = cache(self._open_decoder)

    @property
    def num_episodes(self) -> int:
        """The number of episodes of all data sets."""
        return int(self._firsts[-1])

    @property
    def is_editable(self) -> bool:
        """Whether labels can be changed."""
        return all(isinstance(shown.labels, HandLabels) for shown in self.sets)

    def place(self, number: int) -> tuple[ShownSet, int]:
        """The data set and position of an episode. Raises KeyError where there is none."""
        if not 0 <= number < self.num_episodes:
            raise KeyError(number)
        which = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return self.sets[which], number - int(self._firsts[which])

    def queue(self, order: EpisodeOrder) -> list[int]:
        """All episodes in an order (`values.order_key`)."""

        def key(number: int) -> tuple[int, float, int]:
            shown, position = self.place(number)
            return (*order_key(order, shown.labels.history(position).marks, shown.doubt(position)), number)

        return sorted(range(self.num_episodes), key=key)

    def page(self) -> dict[str, Any]:
        """What the page is told first."""
        return {
            "key": self.key,
            "editable": self.is_editable,
            "order": self.order,
            "has_values": any(shown.values is not None for shown in self.sets),
            "num_episodes": self.num_episodes,
            "sets": [
                {
                    "name": shown.name,
                    "root": str(shown.table.description.root),
                    "num_episodes": shown.table.num_episodes,
                    "told": shown.labels.base.told,
                    "file": str(shown.labels.path) if isinstance(shown.labels, HandLabels) else "",
                    "notes": list(shown.notes),
                }
                for shown in self.sets
            ],
        }

    def row(self, number: int) -> dict[str, Any]:
        """An episode in the list."""
        shown, position = self.place(number)
        history, table = shown.labels.history(position), shown.table
        marks = history.marks
        return {
            "number": number,
            "set": shown.name,
            "episode": int(table.episode_ids[position]),
            "length": int(table.episode_length[position]),
            "task": table.task_text(int(table.episode_start[position])),
            "success": marks.success,
            "excluded": marks.excluded,
            "by_hand": marks.by_hand,
            "doubt": shown.doubt(position),
        }

    def episode(self, number: int) -> dict[str, Any]:
        """All that the page shows of an episode but curves and images."""
        shown, position = self.place(number)
        history, description = shown.labels.history(position), shown.table.description
        marks = history.marks
        return self.row(number) | {
            "fps": description.fps,
            "cameras": [self._camera(shown, position, number, i) for i in range(len(description.cameras))],
            "success_step": marks.success_step,
            "subgoals": marks.subgoals,
            "human": marks.human,
            "version": history.version,
            "can_undo": history.can_undo,
            "can_redo": history.can_redo,
            "told": marks.told(),
        }

    def _camera(self, shown: ShownSet, position: int, number: int, which: int) -> dict[str, Any]:
        description = shown.table.description
        name = description.cameras[which]
        camera = shown.table.camera(name)
        told = {
            "name": name.removeprefix("observation.images."),
            "height": camera.size[0],
            "width": camera.size[1],
            "frames": f"/frame/{self.key}/{number}/{which}/",
        }
        if not camera.is_video:
            return told
        span = description.episodes[position].videos[name]
        return told | {
            "video": f"/video/{self.key}/{self._file_numbers[span.file]}",
            "from": span.from_timestamp,
        }

    def curves(self, number: int) -> Mapping[str, Any]:
        """Value and advantage along an episode, then state and action: charts and where their steps are."""
        shown, position = self.place(number)
        rows, marks = shown.rows(position), shown.labels.history(position).marks
        charts = []
        if shown.values is not None and shown.values.known[rows].any():
            charts.append(value_chart(shown.values, marks, rows))
        table = shown.table
        vectors = [("action", table.action, table.description.action_names)]
        if table.state is not None:
            vectors.insert(0, ("state", table.state, table.description.state_names))
        for name, values, names in vectors:
            charts += curve_charts(name, np.asarray(values[rows]), names)
        return {"charts": charts}

    def frame(self, number: int, which: int, step: int) -> bytes:
        """An image of a camera as JPEG.

        Raises:
            KeyError: there is no such camera or step. DatasetError: it cannot be decoded.
        """
        shown, position = self.place(number)
        rows, cameras = shown.rows(position), shown.table.description.cameras
        if not (0 <= which < len(cameras) and 0 <= step < rows.stop - rows.start):
            raise KeyError(step)
        decoder = self._decoder(shown, cameras[which])
        image = decoder.read(np.array([rows.start + step]))[0].transpose(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()

    @staticmethod
    def _open_decoder(shown: ShownSet, camera: str) -> OnDemandCamera:
        return shown.table.decoder(camera)

    def video_file(self, number: int) -> Path:
        """A file of videos by its number. Raises KeyError where there is none."""
        if not 0 <= number < len(self.video_files):
            raise KeyError(number)
        return self.video_files[number]
