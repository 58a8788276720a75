"""Sub-goals by replays, as far as they need no simulator: whose task an episode is, what is kept of its replay."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_libero_package import _fill, package  # noqa: F401  # a package that was made for tests

from chunkrl.collect.command import RECORD
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.frames import FrameTable
from chunkrl.data.writer import DatasetWriter
from chunkrl.envs.libero_package import assets_fingerprint
from chunkrl.envs.libero_replay import Recording, Replay, ReplayConfig
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.label import replay as replay_labels
from chunkrl.label.replay import replay_subgoals
from chunkrl.progress import Progress, silent


@pytest.fixture(autouse=True)
def assets(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """Of the package that was made for tests."""
    monkeypatch.setenv("LIBERO_ASSETS", str(_fill(tmp_path / "assets")))
    return tmp_path / "assets"


class Replays:
    """In place of the simulators: remembers what was asked for; every second action is a sub-goal.

    unmatched, drifting: episodes that cannot be replayed, and those that drift by 3 cm.
    """

    def __init__(self) -> None:
        self.tasks: dict[int, str] = {}
        self.recordings: dict[int, Recording] = {}
        self.unmatched: set[int] = set()
        self.drifting: set[int] = set()

    def __call__(
        self,
        recordings: Mapping[int, Recording],
        tasks: Mapping[int, str],
        num_workers: int,
        progress: Progress,
    ) -> Iterator[Replay]:
        for episode, recording in recordings.items():
            self.tasks[episode], self.recordings[episode] = tasks[episode], recording
            onsets = {"goal": tuple(range(0, len(recording.action), 2)), "grasp": (), "lift": ()}
            drift = 0.03 if episode in self.drifting else 0.0
            if episode in self.unmatched:
                yield Replay(episode, "", {}, None, False)
            else:
                yield Replay(episode, "seed", onsets, (drift, 0.0), True)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    made = Replays()
    monkeypatch.setattr(replay_labels, "replay_all", made)
    return made


def write(root: Path, *texts: str, robot_type: str = "panda", env: str = "") -> Path:
    """One episode of two frames a text; with `env`, as `chunkrl collect` writes it."""
    features = {"observation.state": FeatureSpec("float32", (8,)), "action": FeatureSpec("float32", (7,))}
    with DatasetWriter(root, fps=20, features=features, robot_type=robot_type) as writer:
        for text in texts:
            writer.add_episode({"observation.state": np.zeros((2, 8)), "action": np.zeros((2, 7))}, text)
    if env:
        (root / RECORD).write_text(json.dumps({"env": env}))
    return root


def replay(root: Path, suite: str, **settings: Any) -> Path:
    return replay_subgoals(FrameTable.open(root, progress=silent), ReplayConfig(suite, **settings), silent)


def test_tasks_of_one_text_are_told_apart_by_what_collection_noted(replays: Replays, tmp_path: Path) -> None:
    texts = ("open it", "close it", "open it") * 2
    replay(write(tmp_path / "whole", *texts, env="libero_90"), "libero_90")
    assert replays.tasks == {i: f"libero_90/{i % 3}" for i in range(6)}
    replay(write(tmp_path / "some", "open it", "close it", env="libero_90/2+libero_90/1"), "libero_90")
    assert replays.tasks == replays.tasks | {0: "libero_90/2", 1: "libero_90/1"}
    replay(write(tmp_path / "exported", "open it", robot_type="libero:libero_90/2"), "libero_90")
    assert replays.tasks[0] == "libero_90/2"


def test_a_text_of_several_tasks_is_not_guessed(replays: Replays, tmp_path: Path) -> None:
    root = write(tmp_path / "d", "close it", "Open  it")
    with pytest.raises(
        DatasetError,
        match=r"d, episode 1: .*libero_90/0 and libero_90/2, .*does not say .*--replay.suite libero_90/0; ",
    ):
        replay(root, "libero_90")
    assert not replays.tasks
    replay(root, "libero_90/1+libero_90/2")
    assert replays.tasks == {0: "libero_90/1", 1: "libero_90/2"}
    replay(write(tmp_path / "one", "open it"), "libero_90/2")
    assert replays.tasks[0] == "libero_90/2"
    # the same text in other hands' numbering: the note is of other episodes
    with pytest.raises(DatasetError, match="does not say"):
        replay(write(tmp_path / "moved", "open it", env="libero_90/1"), "libero_90")


def test_suites_that_are_not_the_recordings_are_refused(replays: Replays, tmp_path: Path) -> None:
    root = write(tmp_path / "d", "open it", env="libero_90/2")
    with pytest.raises(
        DatasetError, match=r"recorded in libero_90/2, not in libero_90/0: correct --replay.suite"
    ):
        replay(root, "libero_90/0")
    with pytest.raises(DatasetError, match=r"episode 0: 'open it' is no task of libero_spatial"):
        replay(root, "libero_spatial")
    with pytest.raises(ChunkRLError, match="no suite 'libero'"):
        replay(root, "libero")
    assert not replays.tasks


def test_replays_begin_from_the_first_row_of_the_states_column(replays: Replays, tmp_path: Path) -> None:
    features = {"state": ("float32", 8), "actions": ("float32", 7), "states": ("float64", 5)}
    specs = {name: FeatureSpec(kind, (size,)) for name, (kind, size) in features.items()}
    root = tmp_path / "d"
    with DatasetWriter(root, fps=20, features=specs) as writer:
        for number in range(2):
            columns = {name: np.full((3, size), number + 0.5) for name, (_, size) in features.items()}
            columns["states"][0] += np.arange(5)
            writer.add_episode(columns, "close it")
    replay(root, "libero_90", state_key="states")
    for number, recording in replays.recordings.items():
        assert recording.seed is None and recording.scene is not None
        assert recording.scene.tolist() == [number + 0.5 + entry for entry in range(5)]
        assert recording.state.shape == (3, 8) and recording.action.shape == (3, 7)
    replays.recordings = {}
    replay(root, "libero_90")  # without the column they begin elsewhere: no replay that was kept counts
    assert [recording.scene for recording in replays.recordings.values()] == [None, None]
    with pytest.raises(DatasetError, match=r"no column 'scene': correct --replay.state-key"):
        replay(root, "libero_90", state_key="scene")


def test_replays_with_other_assets_or_of_another_version_are_made_anew(
    replays: Replays, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "d", "close it")

    def made() -> bool:
        replays.tasks = {}
        replay(root, "libero_90")
        return bool(replays.tasks)

    assert made() and not made()
    (assets / "scenes" / "more.xml").touch()
    assets_fingerprint.cache_clear()
    assert made() and not made()
    monkeypatch.setattr(replay_labels, "_VERSION", 0)
    assert made()
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(ChunkRLError, match="nowhere is no folder of LIBERO's assets"):
        made()


def test_replays_go_on_behind_a_line_that_a_kill_cut_off(replays: Replays, tmp_path: Path) -> None:
    root = write(tmp_path / "d", *["close it"] * 3)
    labels = replay(root, "libero_90").read_text()
    (kept,) = (root / "labels").glob("*.jsonl")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9])
    replays.tasks = {}
    assert replay(root, "libero_90").read_text() == labels and list(replays.tasks) == [2]
    assert kept.read_bytes() == whole
    assert replay(root, "libero_90").read_text() == labels and list(replays.tasks) == [2]
    kept.write_bytes(b"x" + whole)
    with pytest.raises(DatasetError, match=r"jsonl, line 1 is damaged .*delete the file"):
        replay(root, "libero_90")


def test_what_cannot_be_replayed_is_refused_or_left_out(
    replays: Replays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "d", *["close it"] * 3)
    replays.unmatched, replays.drifting = {0}, {2}
    with pytest.raises(
        DatasetError,
        match=r"2 of 3 episodes cannot .* episode 0: no initial state fits .*--replay.state-key.*--replay.skip-unm",
    ):
        replay(root, "libero_90")
    file = replay(root, "libero_90", skip_unmatched=True)
    assert file.read_text().splitlines() == ["episode_index,frame_index,event", "1,0,goal"]
    assert "no sub-goals: " in capsys.readouterr().out

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in file.with_suffix(".jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    report = json.loads(file.with_suffix(".json").read_text(), parse_constant=refuse)
    assert [entry["drift_m"] for entry in report["replays"]] == [None, [0, 0], [0.03, 0]]
    assert report["not_replayed"] == {
        "0": "no initial state fits its first observed state",
        "2": "the replay drifts by 0.030 m",
    }
    assert report["drift_m"] == {"median": 0.015, "max": 0.03} and report["successful_replays"] == 2
    # a drift that is allowed: the kept replays are judged again
    file = replay(root, "libero_90", skip_unmatched=True, tolerance_m=0.05)
    assert file.read_text().splitlines()[1:] == ["1,0,goal", "2,0,goal"]
    file = replay(write(tmp_path / "none", "open it"), "libero_90/0", skip_unmatched=True)
    assert json.loads(file.with_suffix(".json").read_text())["drift_m"] is None
