"""Single frames of a video are those of reading it from the start, whatever the order they are stored in."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from chunkrl.data.video import VideoFile

NUM_FRAMES, FPS, SIZE = 40, 10, (32, 32)


@pytest.mark.parametrize(
    "options",
    [
        {"g": "2", "bf": "0"},
        {"g": "12", "bf": "3"},
        {"g": "30", "bf": "8", "b-pyramid": "normal"},
        {"g": "250", "bf": "0"},
    ],
    ids=lambda options: f"gop {options['g']}, {options['bf']} reordered",
)
def test_any_frame_alone_is_the_one_of_the_whole(tmp_path: Path, options: dict[str, str]):
    file = tmp_path / "video.mp4"
    with av.open(str(file), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={**options, "crf": "1"})
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        for number in range(NUM_FRAMES):
            picture = np.full((*SIZE, 3), 6 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    times, tolerance = np.arange(NUM_FRAMES) / FPS, 0.5 / FPS
    with VideoFile(file) as video:
        whole = [picture.copy() for picture in video.frames_at(times, tolerance, SIZE, alone=True)]
    assert [round(float(picture.mean()) / 6) for picture in whole] == list(range(NUM_FRAMES))
    rng = np.random.default_rng(0)
    with VideoFile(file) as video:
        for number in rng.permutation(NUM_FRAMES):
            for shift in (0.0, *rng.uniform(-0.8, 0.8, 2) * tolerance):
                (alone,) = video.frames_at(times[number : number + 1] + shift, tolerance, SIZE)
                np.testing.assert_array_equal(alone, whole[number])
