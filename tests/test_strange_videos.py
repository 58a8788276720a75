"""Videos of strangers' data sets: spans that are wrong, other rates and times, codecs. Right images or an error."""

from __future__ import annotations

import hashlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from lerobot_folder import LeRobotFolder, edit_json, edit_parquet, write_lerobot_folder, write_video
from strange_sets import FRONT, decoded, edit_episodes, edit_info, opened, problems, refused_everywhere, says

from chunkrl.data.chunk_settings import ColumnMapping, FrameSettings
from chunkrl.data.formats import describe
from chunkrl.data.frames import FrameTable
from chunkrl.errors import DatasetError
from chunkrl.progress import silent

SPAN = f"videos/{FRONT}"
WRIST = "observation.images.wrist"


def shared_video(root: Path, lengths: tuple[int, ...] = (4, 4, 4)) -> LeRobotFolder:
    """v3.0, all episodes in one file."""
    return write_lerobot_folder(
        root, "v3.0", camera="video", lengths=lengths, episodes_per_file=9, size=(8, 8)
    )


def set_spans(root: Path, begins: list[Any], ends: list[Any], camera: str = FRONT) -> None:
    sides = {f"videos/{camera}/from_timestamp": begins, f"videos/{camera}/to_timestamp": ends}
    edit_episodes(root, **sides)


@pytest.mark.parametrize(
    ("begins", "ends", "words"),
    [
        (
            [0.0] * 3,
            [0.4] * 3,
            ("episodes 0 to 2 lie at the same time", "episode 0 (0 to 0.4 s) and episode 1"),
        ),
        ([0.0, 0.4, 0.7], [0.4, 0.8, 1.1], ("episodes 1 to 2", "same time")),
        ([0.4, 0.0, 0.8], [0.8, 0.4, 1.2], ("episode 0", "begin")),
        ([0.1, 0.5, 0.9], [0.5, 0.9, 1.3], ("no episode stands before episode 0",)),
        ([0.0, 0.5, 0.9], [0.4, 0.9, 1.3], ("episode 1 (0.5 to 0.9 s) does not begin where episode 0",)),
        ([0.0, 0.4, 0.8], [0.4, 0.8, 1.4], ("episode 2 (0.8 to 1.4 s) has 4 frames, which last 0.4 s",)),
        ([0.0, 0.4, 0.8], [0.2, 0.8, 1.2], ("episode 0 (0 to 0.2 s) has 4 frames",)),
    ],
)
def test_spans_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, begins: list[float], ends: list[float], words: tuple[str, ...]
) -> None:
    root = shared_video(tmp_path / "set").root
    set_spans(root, begins, ends)
    refused_everywhere(root, "file-000.mp4", *words)


def test_frames_behind_the_last_span_are_refused(tmp_path: Path) -> None:
    folder = shared_video(tmp_path / "set")
    pictures = folder.images[FRONT]
    file = folder.root / f"{SPAN}/chunk-000/file-000.mp4"
    write_video(file, np.concatenate([pictures, pictures[:2]]), 10)
    refused_everywhere(folder.root, "file-000.mp4", "2 frames after its last episode")
    write_video(file, pictures[:-3], 10)
    refused_everywhere(folder.root, "file-000.mp4", "ends 3 frames before")


def test_spans_of_cameras_that_nobody_uses_stop_nobody(tmp_path: Path) -> None:
    folder = shared_video(tmp_path / "set")
    set_spans(folder.root, [0.0] * 3, [float("nan"), 0.4, 0.4], WRIST)
    refused = problems(folder.root)
    says(refused, WRIST, "nan")
    table = opened(folder.root, ColumnMapping(image_keys=(FRONT,)))
    np.testing.assert_array_equal(
        table.images(FRONT, np.arange(12)), folder.images[FRONT].transpose(0, 3, 1, 2)
    )


def test_whole_seconds_and_small_gaps_are_right(tmp_path: Path) -> None:
    folder = shared_video(tmp_path / "set", (10, 10, 10))
    set_spans(folder.root, [0, 1, 2], [1, 2, 3])
    set_spans(folder.root, [0.0, 1.001, 1.999], [1.002, 2.0, 3.001], WRIST)
    assert problems(folder.root) == ""
    table = decoded(folder.root, cache=False)
    for camera, pictures in folder.images.items():
        np.testing.assert_array_equal(table.images(camera, np.arange(30)), pictures.transpose(0, 3, 1, 2))


def test_what_is_left_of_a_shared_video_is_right(tmp_path: Path) -> None:
    folder = shared_video(tmp_path / "set")
    edit_episodes(folder.root, tasks=[["open the drawer"], ["close the drawer"], ["another"]])
    settings = FrameSettings(skip_bad_episodes=True)
    table = FrameTable.open(folder.root, progress=silent, settings=settings)
    assert table.episode_ids.tolist() == [0, 1]
    np.testing.assert_array_equal(
        table.images(FRONT, np.arange(8)), folder.images[FRONT][:8].transpose(0, 3, 1, 2)
    )


@pytest.mark.parametrize(
    ("version", "template", "words"),
    [
        ("v3.0", "videos/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4", ("cameras", FRONT, WRIST)),
        ("v2.1", "videos/chunk-{episode_chunk:03d}/{video_key}/episode.mp4", ("episodes 0 to 2", "one each")),
    ],
)
def test_one_file_for_two_is_refused(
    tmp_path: Path, version: Any, template: str, words: tuple[str, ...]
) -> None:
    folder = write_lerobot_folder(
        tmp_path / "set", version, camera="video", lengths=(4, 4, 4), episodes_per_file=9
    )
    for file in (
        folder.root / "videos/chunk-000/file-000.mp4",
        *(folder.root / f"videos/chunk-000/{key}/episode.mp4" for key in folder.images),
    ):
        write_video(file, folder.images[FRONT], 10)
    edit_json(folder.root / "meta/info.json", video_path=template)
    with pytest.raises(DatasetError) as caught:
        describe(folder.root)
    says(str(caught.value), *words)


def at_rate(file: Path, pictures: np.ndarray, rate: float) -> None:
    """A lossless video whose frame i is shown at i / rate seconds, rounded to milliseconds."""
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264rgb", rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "rgb24"
        stream.options = {"qp": "0", "g": "4"}
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * number / rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("fps", "rate", "said"), [(10, 9.8, "9.8"), (29, 30, "30"), (30, 15, "15"), (25, 30, "30")]
)
def test_both_rates_are_named(tmp_path: Path, fps: int, rate: float, said: str) -> None:
    folder = write_lerobot_folder(
        tmp_path / "set", "v2.1", camera="video", lengths=(60, 60), size=(8, 8), fps=fps
    )
    for index, file in enumerate(sorted(folder.root.glob(f"videos/*/{FRONT}/*.mp4"))):
        pictures = folder.images[FRONT][60 * index :][:60]
        at_rate(file, pictures, rate) if rate % 1 else write_video(file, pictures, int(rate))
    refused_everywhere(folder.root, "episode 0", f"its video has {said}", f"meta/info.json says {fps}")


@pytest.mark.parametrize("rate", [30.0, 30000 / 1001])
def test_videos_of_the_datas_rate_are_right(tmp_path: Path, rate: float) -> None:
    folder = write_lerobot_folder(
        tmp_path / "set", "v2.1", camera="video", lengths=(120, 90), size=(8, 8), fps=30
    )
    root = folder.root
    edit_json(root / "meta/info.json", fps=rate)
    for index, file in enumerate(sorted((root / "data").rglob("*.parquet"))):
        times = np.arange(folder.lengths[index]) / rate
        edit_parquet(file, timestamp=times.astype(np.float32))
        for camera, pictures in folder.images.items():
            own = pictures[120 * index :][: folder.lengths[index]]
            write_video(
                root / f"videos/chunk-000/{camera}/episode_{index:06d}.mp4",
                own,
                Fraction(rate).limit_denominator(1001),
            )
    table = decoded(root, cache=False)
    np.testing.assert_array_equal(
        table.images(FRONT, np.arange(210)), folder.images[FRONT].transpose(0, 3, 1, 2)
    )


@pytest.mark.parametrize(
    ("offset", "dtype", "words"),
    [
        (1.7e9, "float64", ("timestamps must begin at 0", "1.7e+09")),
        (1.7e9, "float32", ("timestamps must begin at 0",)),
        (100.0, "float32", ("timestamps must begin at 0", "begin at 100 s")),
        (1.7e18, "int64", ("timestamps must begin at 0", "1.7e+18")),
    ],
)
def test_times_of_a_wall_clock_are_named(
    tmp_path: Path, offset: float, dtype: str, words: tuple[str, ...]
) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="video", size=(8, 8))
    edit_info(folder.root, timestamp={"dtype": dtype, "shape": [1]})
    for length, file in zip(folder.lengths, sorted((folder.root / "data").rglob("*.parquet")), strict=True):
        edit_parquet(file, timestamp=(offset + np.arange(length) / 10).astype(dtype))
    refused_everywhere(folder.root, "episode 0", *words)


def test_a_pause_that_the_video_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="video", lengths=(120, 120), size=(8, 8))
    frames = np.arange(120)
    for file in sorted((folder.root / "data").rglob("*.parquet")):
        edit_parquet(file, timestamp=(frames / 10 + 0.5 * (frames >= 60)).astype(np.float32))
    refused_everywhere(folder.root, "episode 0", "ends at 12 s", "last frame is at 12.4 s")


@pytest.mark.parametrize("codec", ["libx265", "libsvtav1", "audio"])
def test_codecs_and_an_audio_stream_before_the_video(tmp_path: Path, codec: str) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="video", lengths=(6, 5), size=(64, 64))
    for index, length in enumerate(folder.lengths):
        for camera in folder.images:
            _flat_video(
                folder.root / f"videos/chunk-000/{camera}/episode_{index:06d}.mp4", codec, index, length
            )
    assert problems(folder.root) == ""
    red = decoded(folder.root).images(FRONT, np.arange(11))[:, 0].mean(axis=(1, 2))
    expected = [20 + 100 * e + 12 * t for e, length in enumerate(folder.lengths) for t in range(length)]
    np.testing.assert_allclose(red, expected, atol=4)


def _flat_video(file: Path, codec: str, episode: int, length: int) -> None:
    with av.open(str(file), "w") as container:
        audio: Any = container.add_stream("aac", rate=44100) if codec == "audio" else None
        stream: Any = container.add_stream("libx264" if codec == "audio" else codec, rate=10)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        log = {"libx265": {"x265-params": "log-level=none:keyint=3"}, "libsvtav1": {"g": "2", "crf": "20"}}
        stream.options = log.get(codec, {"g": "3", "crf": "5"})
        if audio is not None:
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 44100, 0, Fraction(1, 44100)
            for packets in (audio.encode(sound), audio.encode(None)):
                container.mux(packets)
        for frame in range(length):
            picture = np.full((64, 64, 3), 90, np.uint8)
            picture[..., 0] = 20 + 100 * episode + 12 * frame
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_files_may_be_links_into_a_folder_of_blobs(tmp_path: Path) -> None:
    root, blobs = tmp_path / "snapshots/abc", tmp_path / "blobs"
    folder = write_lerobot_folder(root, "v2.1", camera="video", size=(8, 8))
    blobs.mkdir()
    for file in [path for path in root.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(str(file).encode()).hexdigest()
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    assert problems(root) == ""
    np.testing.assert_array_equal(
        decoded(root).images(FRONT, np.arange(12)), folder.images[FRONT].transpose(0, 3, 1, 2)
    )
