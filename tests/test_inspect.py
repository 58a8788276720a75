"""`chunkrl inspect` against what was written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chunk_data import episode, write_dataset
from lerobot_folder import edit_parquet, write_lerobot_folder

from chunkrl.cli import main
from chunkrl.data.inspect import length_histogram, make_report, to_text
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.progress import silent


def test_report_of_a_good_data_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = write_dataset(tmp_path / "set", [episode(n, n == 4, rng) for n in (4, 6, 4)], ("push", "pull"))
    report = make_report(InspectCommand(str(root), horizon=3), silent)
    assert (report.version, report.fps, report.num_episodes, report.num_frames) == ("v3.0", 10, 3, 14)
    assert report.tasks == {"push": 2, "pull": 1}
    assert (report.state, report.action) == (("observation.state", 3), ("action", 2))
    assert report.length_histogram == ((4, 4, 2), (5, 5, 0), (6, 6, 1))
    assert report.problems == ()
    rewards = report.rewards
    assert rewards is not None
    assert rewards.rules == ("next.success", "success")
    assert (rewards.success_rate, rewards.subgoal_density) == (2 / 3, 2 / 14)
    # Each success is within 3 actions of its last three starts.
    assert (rewards.num_rewarded_chunks, rewards.num_chunks) == (6, 14)
    text = to_text(report)
    for words in ("2 episodes: push", "success    66.7%", "6 of 14", "problems   none"):
        assert words in text


def test_every_problem_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", camera="image", lengths=(5, 3, 4, 6))
    data = folder.root / "data/chunk-000"
    edit_parquet(data / "episode_000000.parquet", action=[[0.0, np.nan]] * 5)
    (data / "episode_000001.parquet").unlink()
    edit_parquet(data / "episode_000003.parquet", timestamp=[0.0, 0.1, 0.1, 0.2, 0.3, 0.4])
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(folder.root), "--json", "--horizon", "2"])
    assert caught.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert [problem["episodes"] for problem in report["problems"][:3]] == [[1], [0], [3]]
    assert report["num_bad_episodes"] == 3
    assert [camera["size"] for camera in report["cameras"]] == [[16, 16]] * 2
    assert report["length_histogram"] == [[4, 4, 1]]
    with pytest.raises(SystemExit):
        main(["inspect", str(folder.root), "--no-images"])
    text = capsys.readouterr().out
    assert text.count("problem ") == len(report["problems"])


def test_data_that_does_not_say_who_succeeded(tmp_path: Path) -> None:
    root = write_lerobot_folder(tmp_path / "set", "v2.1", naming="openpi").root
    report = make_report(InspectCommand(str(root)), silent)
    assert report.rewards is None
    assert "--success" in report.problems[0].message
    assert report.tasks


def test_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], [str(tmp_path)]):
        with pytest.raises(SystemExit) as caught:
            main(["inspect", *arguments])
        assert caught.value.code == 2
        assert "data set" in capsys.readouterr().err


def test_bins_cover_every_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 400, 100)
    bins = length_histogram(lengths)
    assert len(bins) <= 10
    assert [int(((lengths >= low) & (lengths <= high)).sum()) for low, high, _ in bins] == [
        b[2] for b in bins
    ]
    assert sum(b[2] for b in bins) == 100
