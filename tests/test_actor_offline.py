"""`chunkrl actor --offline` leaves a LeRobot data set, whatever ends it; the spool keeps all for a learner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_actor_command
from online_records import SPEC, episode, full_disk, same
from started import STARTED
from test_actor_command import ROBOT, Learner, _command
from test_online_faults import stored_episodes
from waiting import until

from chunkrl.data.frames import FrameTable
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.files import json_files
from chunkrl.online.actor.recorder import KEPT_FILE, ItemSpool
from chunkrl.online.actor.session import run_actor
from chunkrl.online.learner.intake import read_set_aside, store_recordings
from chunkrl.online.learner.replay import Replay
from chunkrl.online.link.records import Item, Outcome, StepRecord
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import STREAM_FILE

folder, port = test_actor_command.folder, test_actor_command.port


def test_what_is_recorded_offline_is_a_data_set_and_can_still_be_sent(folder, tmp_path, port, capsys) -> None:
    run = tmp_path / "run"
    run_actor(_command(folder, run, offline=True))
    assert f"data set: {run}/data/shard-000000, 2 episodes, 20 steps" in capsys.readouterr().out
    run_actor(_command(folder, run, offline=True, num_episodes=1))
    table = FrameTable.open(run / "data/shard-000000")
    assert table.episode_length.tolist() == [10, 10, 10]
    assert [camera.removeprefix("observation.images.") for camera in table.description.cameras] == ["front"]
    learner = Learner(tmp_path / "learner", port)
    run_actor(_command(folder, run, port, send_only=True))
    assert len(learner.episodes()) == 3
    learner.close()
    before = stored_episodes(run / "data")
    run_actor(_command(folder, run, export_only=True))  # all is sent and stored: nothing is added
    assert stored_episodes(run / "data") == before and len(before) == 3
    assert "all records are with the learner" in capsys.readouterr().out


def recorded(root: Path, *episodes: list, spec=SPEC) -> Path:
    """A spool with these items."""
    with Spool(root, sync_interval_s=1.0) as spool:
        sink = ItemSpool(spool, "arm", spec)
        for items in episodes:
            for item in items:
                sink.append(item)
        (root / STREAM_FILE).write_text(json.dumps({"actor_id": "arm", **json.loads(json.dumps(vars(spec)))}))
    return root


def test_unfinished_and_discarded_episodes_are_none_of_it(tmp_path: Path) -> None:
    spool = recorded(tmp_path / "spool", episode(0, 4), episode(1, 3, "discarded"), episode(2, 5)[:-1])
    stored = store_recordings(spool, tmp_path / "data", keep=True)
    assert (stored.num_episodes, stored.num_steps, stored.num_set_aside, stored.is_whole) == (1, 4, 0, True)
    with Spool(spool) as kept:
        assert kept.acknowledged == 0  # for a learner


def test_an_episode_whose_beginning_a_learner_has_is_left_out(tmp_path: Path) -> None:
    spool = recorded(tmp_path / "spool", episode(0, 4), episode(1, 3))
    with Spool(spool) as sent:
        sent.acknowledge(2)
    stored = store_recordings(spool, tmp_path / "data", keep=True)
    assert (stored.num_episodes, stored.num_steps, stored.num_set_aside) == (1, 3, 0)


def test_a_stop_or_a_fault_half_way_stores_the_rest_later_and_nothing_twice(
    tmp_path: Path, monkeypatch
) -> None:
    spool = recorded(tmp_path / "spool", *(episode(number, 3 + number) for number in range(4)))
    asked = iter([*[False] * 5, *[True] * 99])
    stored = store_recordings(spool, tmp_path / "data", keep=True, stopped=lambda: next(asked))
    assert (stored.num_episodes, stored.is_whole) == (1, False)
    add = Replay.add

    def killed_after_storing(self, steps):
        add(self, steps)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Replay, "add", killed_after_storing)
        with pytest.raises(KeyboardInterrupt):
            store_recordings(spool, tmp_path / "data", keep=True)
    stored = store_recordings(spool, tmp_path / "data", keep=True)
    assert (stored.num_episodes, stored.num_steps) == (4, 3 + 4 + 5 + 6)
    assert sorted(stored_episodes(tmp_path / "data").values()) == [3, 4, 5, 6]


def test_what_was_stored_before_is_not_read_again(tmp_path: Path, monkeypatch) -> None:
    spool = recorded(tmp_path / "spool", episode(0, 4))
    store_recordings(spool, tmp_path / "data", keep=True)
    recorded(tmp_path / "spool", episode(1, 5))
    added: list[int] = []
    add = Replay.add
    monkeypatch.setattr(Replay, "add", lambda self, steps: (added.append(len(steps)), add(self, steps))[1])
    assert store_recordings(spool, tmp_path / "data", keep=True).num_episodes == 2
    assert added == [5]


def test_pictures_of_odd_sides_are_stored_as_images(tmp_path: Path) -> None:
    odd = replace(SPEC, cameras={"front": (7, 11)})
    items = [
        replace(item, images={"front": np.zeros((7, 11, 3), np.uint8)}) if hasattr(item, "images") else item
        for item in episode(0, 3)
    ]
    assert (
        store_recordings(
            recorded(tmp_path / "spool", items, spec=odd), tmp_path / "data", keep=True
        ).num_steps
        == 3
    )


TALL = replace(SPEC, cameras={"front": (121, 161), "wrist": (7, 11)})  # odd: images are kept without loss
ROW_BYTES = 3 * (121 * 161 + 7 * 11)


def tall(number: int, length: int, outcome: Outcome = "success") -> list[Item]:
    """An episode whose images are large and easily packed."""

    def images(step: StepRecord) -> dict[str, np.ndarray]:
        shade = (10 * number + step.step_index) % 256
        return {name: np.full((*size, 3), shade, np.uint8) for name, size in TALL.cameras.items()}

    items = episode(number, length, outcome)
    return [replace(item, images=images(item)) if isinstance(item, StepRecord) else item for item in items]


@pytest.mark.parametrize("keep", [True, False])
def test_episodes_longer_than_memory_are_stored_whole(tmp_path: Path, monkeypatch, keep: bool) -> None:
    monkeypatch.setattr(json_files, "MAX_BYTES", 2**20)  # a buffer that is hardly touched, and counted
    episodes = [tall(0, 90), tall(1, 3), tall(2, 80, "discarded"), tall(3, 200, "timeout"), tall(4, 50)[:-1]]
    spool = recorded(tmp_path / "spool", *episodes, spec=TALL)
    # what is imported on first use is not counted
    store_recordings(recorded(tmp_path / "other", tall(5, 3), spec=TALL), tmp_path / "others")
    tracemalloc.start()
    stored = store_recordings(spool, tmp_path / "data", keep, memory_bytes=20 * ROW_BYTES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (stored.num_episodes, stored.num_steps, stored.num_set_aside) == (3, 90 + 3 + 200, 0)
    assert peak < 80 * ROW_BYTES  # of 200
    whole = sum(len(items) for items in episodes[:-1])
    with Spool(spool) as rest:  # what was cut off may go on
        noted = json.loads((tmp_path / "data/exported.json").read_text())["next_sequence"] if keep else 0
        assert (noted, rest.acknowledged) == ((whole, 0) if keep else (0, whole))
    table = FrameTable.open(stored.folder, cache_dir=tmp_path / "cache")
    assert table.episode_length.tolist() == [90, 3, 200]
    for name in TALL.cameras:
        shades = table.images(f"observation.images.{name}", np.arange(293))
        expected = np.concatenate([np.arange(90), 10 + np.arange(3), 30 + np.arange(200)])
        assert (shades == expected[:, None, None, None]).all()
    assert {path.name for path in (tmp_path / "data").iterdir() if path.is_file()} <= {
        *("exported.json", ".reading.lock"),
    }


def test_a_long_episode_that_is_damaged_is_set_aside_in_one_piece(tmp_path: Path) -> None:
    long, end = tall(0, 30)[:-1], tall(0, 31)[-1]
    spool = recorded(tmp_path / "spool", [*long, end], tall(1, 3), spec=TALL)
    stored = store_recordings(spool, tmp_path / "data", memory_bytes=12 * ROW_BYTES)
    assert (stored.num_episodes, stored.num_steps, stored.num_set_aside) == (1, 3, 1)
    (file,) = (tmp_path / "data/set_aside").iterdir()
    assert all(same(a, b) for a, b in zip(read_set_aside(file), [*long, end], strict=True))


def test_a_stop_or_a_full_disk_within_a_long_episode_stores_it_later(tmp_path: Path) -> None:
    spool, memory = recorded(tmp_path / "spool", tall(0, 40), spec=TALL), 5 * ROW_BYTES
    asked = iter([*[False] * 20, *[True] * 99])
    stored = store_recordings(
        spool, tmp_path / "data", True, stopped=lambda: next(asked), memory_bytes=memory
    )
    assert (stored.num_episodes, stored.is_whole) == (0, False)
    with (
        full_disk(20 * ROW_BYTES),
        pytest.raises(DatasetError, match=r"images of a long episode .* free as much"),
    ):
        store_recordings(spool, tmp_path / "data", True, memory_bytes=memory)
    stored = store_recordings(spool, tmp_path / "data", True, memory_bytes=memory)
    assert (stored.num_episodes, stored.num_steps, stored.num_set_aside) == (1, 40, 0)


def test_long_episodes_without_cameras_are_stored(tmp_path: Path) -> None:
    blind = replace(SPEC, cameras={})
    items = [replace(item, images={}) if isinstance(item, StepRecord) else item for item in episode(0, 30)]
    spool = recorded(tmp_path / "spool", items, spec=blind)
    assert store_recordings(spool, tmp_path / "data", memory_bytes=5 * 4096).num_steps == 30


def test_a_killed_actors_finished_episodes_are_stored_by_the_next_command(folder, tmp_path, capsys) -> None:
    robot = tmp_path / "robot.json"
    robot.write_text(json.dumps(ROBOT | {"max_steps": 5}))
    run = tmp_path / "run"
    arguments = [f"--policy={folder / 'policy'}", f"--robot={robot}", f"--output-dir={run}", "--keys=none"]
    process = subprocess.Popen(
        [sys.executable, "-m", "chunkrl.cli", "actor", *arguments, "--offline"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    STARTED.append(process)
    kept = run / "spool" / KEPT_FILE
    until(lambda: kept.exists() and json.loads(kept.read_text())["num_episodes"] >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    run_actor(_command(folder, run, export_only=True))
    with Spool(run / "spool") as spool:
        recorded_episodes = ItemSpool(spool, "actor", SPEC).kept.num_episodes
    stored = stored_episodes(run / "data")
    assert len(stored) == recorded_episodes >= 3 and set(stored.values()) == {5}
    assert f"{len(stored)} episodes, {5 * len(stored)} steps" in capsys.readouterr().out


def test_what_cannot_be_exported_says_so(folder, tmp_path, capsys) -> None:
    with pytest.raises(ChunkRLError, match="no actor's spool"):
        run_actor(_command(folder, tmp_path / "none", export_only=True))
    assert not (tmp_path / "none").exists()  # no folder of a mistyped name
    for both in ({"offline": True, "export_only": True}, {"send_only": True, "export_only": True}):
        with pytest.raises(ChunkRLError, match="give one of them"):
            run_actor(_command(folder, tmp_path / "none", **both))
    spool = recorded(tmp_path / "run/spool", episode(0, 3)[:-1])
    run_actor(_command(folder, spool.parent, export_only=True))
    assert "there is no data set" in capsys.readouterr().out
