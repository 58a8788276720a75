"""Single frames of a video are those of reading it from the start, whatever the order they are stored in."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from chunkrl.data.video import VideoFile
from chunkrl.errors import DatasetError

NUM_FRAMES, FPS, SIZE = 40, 10, (32, 32)


def write_video(file: Path, options: dict[str, str]) -> None:
    """Frame i is grey of 6 i."""
    with av.open(str(file), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={**options, "crf": "1"})
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        for number in range(NUM_FRAMES):
            picture = np.full((*SIZE, 3), 6 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))


@pytest.mark.parametrize(
    "options",
    [
        {"g": "2", "bf": "0"},
        {"g": "12", "bf": "3"},
        {"g": "30", "bf": "8", "b-pyramid": "normal"},
        {"g": "250", "bf": "0"},
        {"g": "10", "bf": "3", "x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:b-adapt=0"},
        {"g": "9", "bf": "5", "x264-params": "open-gop=1:b-pyramid=normal:b-adapt=0:scenecut=0:min-keyint=9"},
    ],
    ids=lambda options: f"gop {options['g']}, {options['bf']} reordered",
)
def test_any_frame_alone_is_the_one_of_the_whole(tmp_path: Path, options: dict[str, str]):
    file = tmp_path / "video.mp4"
    write_video(file, options)
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


def test_open_groups_of_pictures_have_key_frames_with_frames_before_them(tmp_path: Path):
    """What the two settings above rely on: without it they would test nothing."""
    file = tmp_path / "video.mp4"
    options = {"g": "10", "bf": "3", "x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:b-adapt=0"}
    write_video(file, options)
    with av.open(str(file)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    assert len(keys) > 2
    assert all(packets[key + 1].pts < packets[key].pts for key in keys[1:])


def test_damage_inside_an_open_group_is_still_damage(tmp_path: Path):
    file = tmp_path / "video.mp4"
    write_video(file, {"g": "10", "bf": "3", "x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0"})
    with av.open(str(file)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None and packet.pos]
        places = [(packet.pos, packet.size) for packet in packets[1:14]]
    content = bytearray(file.read_bytes())
    for begin, size in places:
        content[begin + 4 : begin + size] = bytes(size - 4)
    file.write_bytes(content)
    with VideoFile(file) as video, pytest.raises(DatasetError, match="damaged"):
        list(video.frames_at(np.array([1.2]), 0.5 / FPS, SIZE))
