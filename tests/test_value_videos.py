"""Videos with the critic's value: what they show; training neither waits for them nor hides their failures."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from chunk_data import image_episodes, random_episodes, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation import video
from chunkrl.models.config import NetworkConfig
from chunkrl.report.svg import Range
from chunkrl.report.value_video import value_ranges, value_video, write_value_videos
from chunkrl.training.config import ValueVideoConfig
from chunkrl.training.value_videos import FOLDER, ValueVideos

T = 6


def decoded(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def near(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 60) -> Any:
    return np.abs(pixel.astype(int) - colour).max(axis=-1) < tolerance


def test_a_cursor_moves_along_the_curves() -> None:
    frames = np.full((T, 32, 48, 3), 128, dtype=np.uint8)
    advantage = np.array([1.0, 1, 1, -1, -1, -1])
    content, mime = value_video(frames, np.linspace(0, 1, T), advantage, "episode 3", fps=10, success=False)
    assert mime in ("video/mp4", "video/webm")
    pictures = decoded(content)
    assert len(pictures) == T + 15  # the last frame stays for 1.5 s
    factor = -(-420 // 48)
    assert pictures.shape[1:3] == (30 + 32 * factor + 150, 48 * factor)
    below = pictures[:, 30 + 32 * factor :]
    # where nothing else is drawn the cursor is the only bright column, and it goes to the right
    cursor = near(below[:, 84:88], video.INK).any(axis=1)
    places = [int(np.flatnonzero(row).mean()) for row in cursor[:T]]
    assert places == sorted(set(places))
    bars = below[0, 90:144]
    middle = (44 + bars.shape[1] - 10) // 2
    left, right = bars[:, : middle - 8], bars[:, middle + 8 :]
    assert near(left, video.SUCCESS).any() and not near(left, video.FAILURE).any()
    assert near(right, video.FAILURE).any() and not near(right, video.SUCCESS).any()
    border = pictures[:, 32 + 16 * factor, 1]
    assert near(border[0], (128, 128, 128)) and near(border[-1], video.FAILURE)


@pytest.mark.parametrize(("success", "colour"), [(True, video.SUCCESS), (False, video.FAILURE)])
def test_the_outcome_stands_from_the_first_frame(success: bool, colour: tuple[int, int, int]) -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    title = "a title that is much longer than the video is wide, so that it must be shortened for the outcome"
    content, _ = value_video(frames, np.ones(4), np.ones(4), title, fps=10, success=success)
    marked = near(decoded(content)[0, :30], colour)
    assert marked[:, -80:].sum() > 20  # pixels of the word, at the right of the head
    assert not marked[:, :-80].any()


def test_axes_are_shared() -> None:
    values, advantages = value_ranges(
        [np.array([0.0, 1.0]), np.array([2.0])], [np.array([0.5]), np.array([1.0])]
    )
    assert values == Range(-0.12, 2.12)
    assert advantages.low < 0 < advantages.high  # 0 is always there


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((T, 8, 8, 3))}, "expected uint8"),
        ({"value": np.zeros(T - 1)}, "one value and one advantage"),
        ({"advantage": np.full(T, np.nan)}, "not finite"),
    ],
)
def test_what_cannot_be_shown_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "frames": np.zeros((T, 8, 8, 3), np.uint8),
        "value": np.zeros(T),
        "advantage": np.zeros(T),
    }
    with pytest.raises(ChunkRLError, match=message):
        value_video(**(given | changes), title="x", fps=10, success=True)


def settings(data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "dataset_dir": str(data),
        "action_horizon": 3,
        "action_dim": 2,
        "batch_size": 4,
        "num_updates": 2,
        "value_epochs": 0.2,
        "num_folds": 2,
        "network": NetworkConfig(hidden_dim=8, num_layers=1, image_channels=(8,), text_dim=4),
        "device": "cpu",
        "output_dir": str(output),
    } | changes


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", image_episodes(4, size=16))


@pytest.mark.slow  # the renderer is a process that imports everything
def test_videos_beside_training(pictured: Path, tmp_path: Path) -> None:
    config = settings(pictured, tmp_path / "run", value_videos=ValueVideoConfig(num_episodes=3), cameras=())
    ChunkLevelOfflineRL(**config).train()
    (folder,) = (tmp_path / "run" / FOLDER).iterdir()  # one set of values: one set of videos
    names = [p.stem for p in sorted(folder.glob("episode-*"))]
    assert names == ["episode-000000-success", "episode-000001-failure", "episode-000002-success"]


def test_videos_by_hand(pictured: Path, tmp_path: Path) -> None:
    run = ChunkLevelOfflineRL(**settings(pictured, tmp_path / "run", cameras=()))
    run.train()
    written = write_value_videos(run.config, tmp_path / "run", 1, tmp_path / "out")
    assert [p.stem for p in written] == ["episode-000000-success"]
    # both cameras side by side
    assert decoded(written[0].read_bytes()).shape[2] == 32 * -(-420 // 32)


def test_data_without_cameras_or_values_is_refused(pictured: Path, tmp_path: Path) -> None:
    plain = write_dataset(tmp_path / "d", random_episodes(4))
    videos = ValueVideoConfig(num_episodes=1)
    with pytest.raises(ChunkRLError, match="no cameras to show"):
        ChunkLevelOfflineRL(**settings(plain, tmp_path / "run", value_videos=videos))
    with pytest.raises(ChunkRLError, match=r"does not read .*--value-videos.num-episodes"):
        ChunkLevelOfflineRL(
            **settings(pictured, tmp_path / "run", value_videos=videos, objective="success_cloning")
        )
    run = ChunkLevelOfflineRL(**settings(plain, tmp_path / "run"))
    with pytest.raises(ChunkRLError, match="no cameras"):
        write_value_videos(run.config, tmp_path / "run", 1, tmp_path / "out")
    run = ChunkLevelOfflineRL(**settings(pictured, tmp_path / "run"))
    with pytest.raises(ChunkRLError, match="no values"):
        write_value_videos(run.config, tmp_path / "run", 1, tmp_path / "out")


class Renderers:
    """Stands for the renderer: a program that waits for a file, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        self.started: list[list[str]] = []
        popen = subprocess.Popen

        def start(arguments: list[str], **options: Any) -> subprocess.Popen:
            self.started.append(arguments)
            return popen([sys.executable, "-c", code], **options)

        monkeypatch.setattr(subprocess, "Popen", start)


def hook(run_dir: Path, labels: dict[str, np.ndarray], **changes: int) -> ValueVideos:
    def save(folder: Path) -> None:
        folder.mkdir(parents=True)

    config = ValueVideoConfig(num_episodes=2, **changes)
    return ValueVideos(config, run_dir, lambda: labels, save)


def test_rendering_is_due_when_the_values_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderers = Renderers(monkeypatch, "")
    labels: dict[str, np.ndarray] = {}
    videos = hook(tmp_path, labels, every_saves=2)
    for number in range(1, 11):
        if number == 4:
            labels["value"] = np.zeros(3)
        if number == 8:
            labels["value"] = np.ones(3)
        videos.after_save(tmp_path / "checkpoints" / f"{number:07d}")
        assert videos.finish() == []
    assert [Path(arguments[-1]).name for arguments in renderers.started] == ["0000004", "0000008"]


def test_a_failure_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Renderers(monkeypatch, "import sys; print('first'); sys.exit('no space left')")
    videos = hook(tmp_path, {"value": np.zeros(3)})
    videos.after_save(tmp_path / "checkpoints" / "0000001")
    (problem,) = videos.finish()
    assert "0000001 failed (exit status 1): no space left" in problem


def test_training_does_not_wait_for_a_renderer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderers = Renderers(monkeypatch, "import signal; signal.pause()")
    labels = {"value": np.zeros(3)}
    videos = hook(tmp_path, labels)
    videos.after_save(tmp_path / "checkpoints" / "0000001")
    labels["value"] = np.ones(3)
    videos.after_save(tmp_path / "checkpoints" / "0000002")  # the first is still at it
    assert len(renderers.started) == 1
    skipped, stopped = videos.finish(timeout=0.1)
    assert "no value videos at checkpoint 0000002" in skipped
    assert "0000001 failed (exit status -9): nothing was said" in stopped


def test_a_failure_does_not_spoil_the_run(
    pictured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Renderers(monkeypatch, "import sys; sys.exit('broken')")
    config = settings(pictured, tmp_path / "run", value_videos=ValueVideoConfig(num_episodes=1), cameras=())
    with pytest.warns(RuntimeWarning, match="broken"):
        ChunkLevelOfflineRL(**config).train()
    assert (tmp_path / "run" / "policy").is_dir() and (tmp_path / "run" / "values.parquet").is_file()
