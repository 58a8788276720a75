"""The frames with the highest and lowest advantages, as images where the data has cameras, else as rows."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from chunkrl.report.numbers import signed
from chunkrl.report.page import Card, Frame, Frames, Section
from chunkrl.report.tables import Cell, Table, count_cell
from chunkrl.report.training_run import Episode, LabelledData

NUM_FRAMES = 8
PICTURE_HEIGHT = 180  # pixels; larger ones are scaled down, smaller ones stay
JPEG_QUALITY = 85


@dataclass(frozen=True)
class ExtremeFrame:
    """A frame of a data set: its row in the table, its episode, and what the run says of it."""

    data: LabelledData
    row: int
    episode: Episode
    value: float
    advantage: float

    @property
    def frame(self) -> int:
        """Frame of the episode."""
        return self.row - self.episode.rows.start


def extreme_frames(data: Sequence[LabelledData], num: int, highest: bool) -> list[ExtremeFrame]:
    """The `num` frames of highest (or lowest) advantage, one of each episode: neighbours look alike."""
    best = []
    for part in data:
        advantage = part.labels["advantage"]
        for episode in part.episodes:
            along = advantage[episode.rows]
            row = episode.rows.start + int(along.argmax() if highest else along.argmin())
            best.append(
                ExtremeFrame(part, row, episode, float(part.labels["value"][row]), float(advantage[row]))
            )
    best.sort(key=lambda found: found.advantage, reverse=highest)
    return best[:num]


VideoOf = Callable[[LabelledData, Episode], str]
"""Where an episode's video is on the page; "" where there is none."""


def extreme_frames_section(data: Sequence[LabelledData], video_of: VideoOf, num: int = NUM_FRAMES) -> Section:
    """Both ends, one frame per episode, which leads to the episode's video."""
    cards = []
    for highest, title in ((True, "Highest advantages"), (False, "Lowest advantages")):
        found = extreme_frames(data, num, highest)
        pictured = all(part.cameras for part in data)
        part = _pictures(found, video_of) if pictured else _rows(found, video_of)
        cards.append(Card(title, [part], wide=True))
    lead = (
        "One frame per episode. The chunk that begins here led to more, or less, than its situation promised."
    )
    return Section("Frames with the highest and lowest advantages", lead, cards)


def _rows(found: Sequence[ExtremeFrame], video_of: VideoOf) -> Table:
    rows = [
        {
            "episode": Cell(
                f"episode {one.episode.index}", one.episode.index, video_of(one.data, one.episode)
            ),
            "frame": count_cell(one.frame),
            "task": one.episode.task,
            "outcome": "success" if one.episode.success else "failure",
            "value": Cell(f"{one.value:.3f}", one.value),
            "advantage": Cell(signed(one.advantage), one.advantage),
        }
        for one in found
    ]
    return Table(rows)


def _pictures(found: Sequence[ExtremeFrame], video_of: VideoOf) -> Frames:
    frames = []
    for one in found:
        where = f"episode {one.episode.index}, frame {one.frame}"
        shots = [
            (f"{camera}, {where}", _data_uri(one.data.pictures(camera, np.array([one.row]))[0]))
            for camera in one.data.cameras
        ]
        frames.append(
            Frame(
                shots,
                f"advantage {signed(one.advantage)}",
                f"value {one.value:.3f}",
                where,
                ("good", "success") if one.episode.success else ("bad", "failure"),
                video_of(one.data, one.episode),
            )
        )
    return Frames(frames)


def _data_uri(picture: np.ndarray) -> str:
    """uint8 RGB [H, W, 3] as a small JPEG."""
    image = Image.fromarray(picture)
    if image.height > PICTURE_HEIGHT:
        image = image.resize((max(1, round(image.width * PICTURE_HEIGHT / image.height)), PICTURE_HEIGHT))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
