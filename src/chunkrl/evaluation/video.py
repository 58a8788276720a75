"""Side-by-side videos of two policies from the same initial state, as bytes for a page; and what videos share."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from chunkrl.errors import ChunkRLError

# Encoder, container, MIME type and options, in order of preference. Both play in current browsers.
_ENCODERS = (
    ("libx264", "mp4", "video/mp4", {"crf": "24", "preset": "medium"}),
    ("libvpx-vp9", "webm", "video/webm", {"crf": "34", "b": "0", "cpu-used": "4", "row-mt": "0"}),
)
PANE_WIDTH = 280  # smaller frames are enlarged by a whole factor until they are at least this wide
_HEADER = 30
_GAP = 6
_BORDER = 5
_HOLD_SECONDS = 1.5

BACKGROUND = (24, 28, 34)
INK = (236, 239, 242)
SUCCESS = (48, 190, 140)
FAILURE = (240, 100, 80)
_OUTCOMES = ("failure", "success")


def side_by_side(
    left: NDArray[np.uint8],
    right: NDArray[np.uint8],
    labels: tuple[str, str],
    fps: float,
    *,
    success: tuple[bool, bool],
) -> tuple[bytes, str]:
    """One video of two episodes that play at the same time.

    Args:
        left, right: uint8 [T1, H, W, 3] and [T2, H, W, 3], RGB. The shorter freezes on its last frame.
        labels: text above each side.
        fps: frames per second.
        success: whether each side's episode succeeded; from its last frame on the side has a green or red
            border and says so. The last image stays for 1.5 s.

    Returns:
        The file's bytes and its MIME type: H.264 in mp4, or VP9 in webm where PyAV has no H.264 encoder.

    Raises:
        ChunkRLError: frames of other shapes or types, no frames, an fps that is not positive, or no encoder.
    """
    _check(left, right, fps)
    factor = max(1, -(-PANE_WIDTH // left.shape[2]))
    headers = [
        [header(label, left.shape[2] * factor, ended, ok) for ended in (False, True)]
        for label, ok in zip(labels, success, strict=True)
    ]
    num_frames = max(len(left), len(right)) + hold_last(fps)
    pictures = (
        np.concatenate(
            [
                pane(left, t, factor, headers[0], success[0]),
                np.full((_HEADER + left.shape[1] * factor, _GAP, 3), BACKGROUND, dtype=np.uint8),
                pane(right, t, factor, headers[1], success[1]),
            ],
            axis=1,
        )
        for t in range(num_frames)
    )
    return encode(pictures, fps)


def episode_video(frames: NDArray[np.uint8], label: str, fps: float, success: bool) -> tuple[bytes, str]:
    """One episode's video as `side_by_side` draws it: frames uint8 [T, H, W, 3] -> the file's bytes and MIME type.

    Raises:
        ChunkRLError: as `side_by_side`.
    """
    _check(frames, frames, fps)
    factor = max(1, -(-PANE_WIDTH // frames.shape[2]))
    headers = [header(label, frames.shape[2] * factor, ended, success) for ended in (False, True)]
    num_frames = len(frames) + hold_last(fps)
    return encode((pane(frames, t, factor, headers, success) for t in range(num_frames)), fps)


def _check(left: NDArray[np.uint8], right: NDArray[np.uint8], fps: float) -> None:
    for side, frames in (("left", left), ("right", right)):
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise ChunkRLError(
                f"{side} video: expected uint8 [T, H, W, 3], T > 0, got {frames.dtype} {list(frames.shape)}"
            )
    if left.shape[1:] != right.shape[1:]:
        raise ChunkRLError(
            f"both sides need frames of one size, got {list(left.shape[1:])} and {list(right.shape[1:])}"
        )
    if not fps > 0:
        raise ChunkRLError(f"fps must be positive, got {fps}")


def hold_last(fps: float) -> int:
    """How many more images the last frame stays."""
    return round(_HOLD_SECONDS * fps)


def header(label: str, width: int, ended: bool, success: bool) -> NDArray[np.uint8]:
    """The strip above one side [_HEADER, width, 3]: its label, and the outcome once the episode has ended."""
    image = Image.new("RGB", (width, _HEADER), BACKGROUND)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=16)
    room = width - 2 * _BORDER - max(draw.textlength(word, font=font) for word in _OUTCOMES) - 10
    colour = SUCCESS if success else FAILURE
    outcome = _OUTCOMES[success] if ended else ""
    draw.text((width - _BORDER, _HEADER / 2), outcome, fill=colour, font=font, anchor="rm")
    for size in (16, 14, 12):  # a smaller label before a shorter one
        font = ImageFont.load_default(size=size)
        if draw.textlength(label, font=font) <= room:
            break
    while len(label) > 1 and draw.textlength(label, font=font) > room:
        label = label.rstrip("…")[:-1] + "…"
    draw.text((_BORDER, _HEADER / 2), label, fill=INK, font=font, anchor="lm")
    return np.asarray(image)


def pane(
    frames: NDArray[np.uint8], t: int, factor: int, headers: list[NDArray[np.uint8]], success: bool
) -> NDArray[np.uint8]:
    """One side at time t [_HEADER + H factor, W factor, 3]."""
    ended = t >= len(frames) - 1
    frame = frames[min(t, len(frames) - 1)].repeat(factor, axis=0).repeat(factor, axis=1)
    if ended:
        inner = frame[_BORDER:-_BORDER, _BORDER:-_BORDER].copy()
        frame[:] = SUCCESS if success else FAILURE
        frame[_BORDER:-_BORDER, _BORDER:-_BORDER] = inner
    return np.concatenate([headers[int(ended)], frame])


def encode(pictures: Iterable[NDArray[np.uint8]], fps: float) -> tuple[bytes, str]:
    """The file's bytes and MIME type, from RGB images uint8 [H, W, 3] of one size.

    They are cropped to even sides, as 4:2:0 colour needs.

    Raises:
        ChunkRLError: PyAV has no encoder.
    """
    chosen = next((e for e in _ENCODERS if e[0] in av.codecs_available), None)
    if chosen is None:
        raise ChunkRLError(
            "this PyAV can encode neither H.264 nor VP9: pip install --force-reinstall --only-binary av av"
        )
    codec, container_format, mime, options = chosen
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format=container_format) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000), options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for i, picture in enumerate(pictures):
            height, width = (side // 2 * 2 for side in picture.shape[:2])
            if i == 0:
                stream.height, stream.width = height, width
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue(), mime
