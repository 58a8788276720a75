"""Videos of recorded episodes with the critic's value and advantage below the images.

Also a program of its own, `python -m chunkrl.report.value_video RUN VALUES_DIR NUM OUTPUT`: training starts it
beside itself (`training.value_videos`) and talks to it through files alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from chunkrl.config import load_config
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.video import (
    BACKGROUND,
    FAILURE,
    INK,
    PANE_WIDTH,
    SUCCESS,
    encode,
    header,
    hold_last,
    pane,
)
from chunkrl.files.atomic import replace_file
from chunkrl.report.svg import Range, nice_ticks, span, tick_labels
from chunkrl.report.training_run import Episode, LabelledData, load_data
from chunkrl.run.config import TrainConfig

_MUTED, _LINE, _VALUE = (150, 160, 172), (52, 60, 70), (126, 166, 255)
HUMAN = (236, 178, 72)
"""Marks the steps of a human."""
_LEFT, _RIGHT, _STRIP = 44, 10, 150  # margins and height of the curves, pixels
_MIN_WIDTH = 420


def value_video(
    frames: NDArray[np.uint8],
    value: NDArray[np.floating],
    advantage: NDArray[np.floating],
    title: str,
    fps: float,
    *,
    success: bool,
    ranges: tuple[Range, Range] | None = None,
    human: NDArray[np.bool_] | None = None,
) -> tuple[bytes, str]:
    """One episode, with a cursor that moves along its value (line) and advantage (columns).

    Args:
        frames: uint8 RGB [T, H, W, 3]; several cameras stand side by side in one image.
        value, advantage: float [T].
        title: above the images. success: the outcome, beside the title throughout, and with a
            border on the last frame, which stays for 1.5 s.
        ranges: of value and advantage, to compare videos; default: the episode's own.
        human: bool [T], steps that a human chose: marked between the curves; default: none.

    Returns:
        The file's bytes and its MIME type (`video.encode`).

    Raises:
        ChunkRLError: other shapes or types, no frames, values that are not finite.
    """
    num = len(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ChunkRLError(
            f"frames: expected uint8 [T, H, W, 3], T > 0, got {frames.dtype} {list(frames.shape)}"
        )
    if value.shape != (num,) or advantage.shape != (num,):
        raise ChunkRLError(
            f"{num} frames need one value and one advantage each: {value.shape}, {advantage.shape}"
        )
    if human is None:
        human = np.zeros(num, bool)
    if not (np.isfinite(value).all() and np.isfinite(advantage).all()):
        raise ChunkRLError(f"{title}: values or advantages are not finite; the critic diverged")
    factor = max(1, -(-PANE_WIDTH // frames.shape[2]), -(-_MIN_WIDTH // frames.shape[2]))
    if ranges is None:
        ranges = value_ranges([value], [advantage])
    width = frames.shape[2] * factor
    strip = _curves(value, advantage, human, ranges, width)
    headers = [
        header(title, width, True, success)
    ] * 2  # values are judged by the outcome: it stands from the first

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for t in range(num + hold_last(fps)):
            shown = min(t, num - 1)
            above = pane(frames, t, factor, headers, success)
            yield np.concatenate([above, _with_cursor(strip, shown, value, advantage, human)])

    return encode(pictures(), fps)


def value_ranges(
    values: list[NDArray[np.floating]], advantages: list[NDArray[np.floating]]
) -> tuple[Range, Range]:
    """Axes that several episodes share."""
    return (
        span([float(v) for one in values for v in one], pad=0.06),
        span([float(a) for one in advantages for a in one], pad=0.06, include=0.0),
    )


def _x(t: float, num: int, width: int) -> float:
    return _LEFT + (t + 0.5) / num * (width - _LEFT - _RIGHT)


_VALUE_BAND, _HUMAN_BAND, _ADVANTAGE_BAND = (24, 80), (83, 86), (90, _STRIP - 6)  # top and bottom, pixels


def _curves(
    value: NDArray[np.floating],
    advantage: NDArray[np.floating],
    human: NDArray[np.bool_],
    ranges: tuple[Range, Range],
    width: int,
) -> Image.Image:
    """What stays the same in all images below the frames."""
    image = Image.new("RGB", (width, _STRIP), BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=11)
    for band, axis in zip((_VALUE_BAND, _ADVANTAGE_BAND), ranges, strict=True):
        ticks = nice_ticks(axis, 3)
        for tick, label in zip(ticks, tick_labels(ticks), strict=True):
            y = axis.scale(tick, band[1], band[0])
            draw.line([(_LEFT, y), (width - _RIGHT, y)], fill=_LINE)
            draw.text((_LEFT - 5, y), label.replace("−", "-"), fill=_MUTED, font=font, anchor="rm")
    num, (top, bottom), axis = len(value), _ADVANTAGE_BAND, ranges[1]
    column = max((width - _LEFT - _RIGHT) / num * 0.8, 1)
    zero = axis.scale(0, bottom, top)
    for t, a in enumerate(advantage.tolist()):
        if a:
            low, high = sorted((zero, axis.scale(a, bottom, top)))
            x = _x(t, num, width)
            draw.rectangle((x - column / 2, low, x + column / 2, high), fill=SUCCESS if a > 0 else FAILURE)
    step = (width - _LEFT - _RIGHT) / num
    for t in np.flatnonzero(human).tolist():
        x = _x(t, num, width)
        draw.rectangle((x - step / 2, _HUMAN_BAND[0], x + step / 2, _HUMAN_BAND[1]), fill=HUMAN)
    top, bottom = _VALUE_BAND
    line = [(_x(t, num, width), ranges[0].scale(v, bottom, top)) for t, v in enumerate(value.tolist())]
    draw.line(line, fill=_VALUE, width=2)
    return image


def _with_cursor(
    strip: Image.Image,
    t: int,
    value: NDArray[np.floating],
    advantage: NDArray[np.floating],
    human: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """The curves with the cursor at frame t and the numbers there, uint8 [_STRIP, W, 3]."""
    image = strip.copy()
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=12)
    x = _x(t, len(value), image.width)
    draw.line([(x, _VALUE_BAND[0]), (x, _ADVANTAGE_BAND[1])], fill=INK)
    draw.text((_LEFT, 10), f"value {value[t]:.2f}", fill=_VALUE, font=font, anchor="lm")
    good = SUCCESS if advantage[t] > 0 else FAILURE
    draw.text((_LEFT + 90, 10), f"advantage {advantage[t]:+.3f}", fill=good, font=font, anchor="lm")
    if human[t]:
        draw.text((_LEFT + 215, 10), "human", fill=HUMAN, font=font, anchor="lm")
    draw.text((image.width - _RIGHT, 10), f"frame {t}", fill=_MUTED, font=font, anchor="rm")
    return np.asarray(image)


def render_episodes(data: LabelledData, episodes: list[Episode]) -> Iterator[tuple[Episode, bytes, str]]:
    """Videos of episodes on common axes, one at a time: episode, bytes, MIME type.

    Raises:
        ChunkRLError: the data has no cameras, or no values.
    """
    name = data.dataset.name
    if not data.cameras:
        raise ChunkRLError(
            f"{name} has no cameras: there is nothing to show under a value video; leave videos out"
        )
    if "value" not in data.labels:
        raise ChunkRLError(
            f"there are no values of {name}: train with an objective that labels the data (cross_fitted, "
            "advantage_conditioned, value)"
        )
    value, advantage = data.labels["value"], data.labels["advantage"]
    ranges = value_ranges([value[e.rows] for e in episodes], [advantage[e.rows] for e in episodes])
    for episode in episodes:
        video, mime = render_episode(data, episode, side_by_side(data, episode), ranges)
        yield episode, video, mime


def render_episode(
    data: LabelledData,
    episode: Episode,
    frames: NDArray[np.uint8],
    ranges: tuple[Range, Range] | None = None,
) -> tuple[bytes, str]:
    """One episode's `value_video`, of frames uint8 [T, H, W, 3]."""
    return value_video(
        frames,
        data.labels["value"][episode.rows],
        data.labels["advantage"][episode.rows],
        f"episode {episode.index}: {episode.task}",
        data.dataset.fps,
        success=episode.success,
        ranges=ranges,
        human=data.dataset.frame_labels.human[episode.rows],
    )


def side_by_side(data: LabelledData, episode: Episode) -> NDArray[np.uint8]:
    """All cameras of an episode in one image per frame, uint8 [T, H, W, 3]; smaller ones are centred."""
    rows = np.arange(episode.rows.start, episode.rows.stop)
    cameras = [data.pictures(camera, rows) for camera in data.cameras]
    height = max(pictures.shape[1] for pictures in cameras)
    padded = []
    for pictures in cameras:
        room = height - pictures.shape[1]
        padded.append(np.pad(pictures, ((0, 0), (room // 2, room - room // 2), (0, 0), (0, 0))))
    return np.concatenate(padded, axis=2)


def write_value_videos(config: TrainConfig, values_dir: Path, num_episodes: int, output: Path) -> list[Path]:
    """Videos of the first episodes of --dataset-dir, successes and failures in turn, under `output`.

    values_dir: where values.parquet lies. Raises ChunkRLError as `render_episodes` and `load_data` do.
    """
    data = load_data(config, values_dir)[0]
    written = []
    for episode, video, mime in render_episodes(data, data.choose_episodes(num_episodes)):
        written.append(write_video(output, episode, video, mime))
    return written


def write_video(output: Path, episode: Episode, video: bytes, mime: str) -> Path:
    """The file under `output`, which says episode and outcome."""
    outcome = "success" if episode.success else "failure"
    path = output / f"episode-{episode.index:06d}-{outcome}.{mime.split('/')[1]}"
    with replace_file(path) as temporary:
        temporary.write_bytes(video)
    return path


def render_beside_training(render: Callable[[], object]) -> None:
    """The whole of a renderer's process; a ChunkRLError is printed as one message, exit status 2."""
    os.nice(10)  # training goes first
    try:
        render()
    except ChunkRLError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def main(arguments: list[str]) -> None:
    """Renders what training asks for."""
    run, values_dir, num_episodes, output = arguments

    def render() -> None:
        config = load_config(TrainConfig, Path(run) / "config.json")
        write_value_videos(config, Path(values_dir), int(num_episodes), Path(output))

    render_beside_training(render)


if __name__ == "__main__":
    main(sys.argv[1:])
