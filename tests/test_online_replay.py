"""Episodes become LeRobot data sets, each once, whenever the learner is killed."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from online_learner import CONFIG, items, length
from online_records import SPEC, episode, episode_id, full_disk, same, step

from chunkrl.data import ChunkDataset, ChunkSettings
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.inspect import make_report
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.data.writer import DatasetWriter
from chunkrl.errors import ChunkRLError, DatasetError, RecordError
from chunkrl.online.actor.recorder import ItemSpool
from chunkrl.online.learner import replay as rp
from chunkrl.online.learner.intake import EpisodeIntake, read_set_aside
from chunkrl.online.learner.replay import EPISODE_KEY, Replay, reading
from chunkrl.online.link.config import ReplayConfig
from chunkrl.online.link.records import EpisodeSummary, Hello, Item, StepRecord
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.wire import Batch, decode_item, encode_item
from chunkrl.progress import silent

KINDS = ("success", "failure", "timeout")


def steps(number: int, count: int = 0, **kind) -> list[StepRecord]:
    """Episode `number`, without its summary."""
    outcome = kind.get("outcome", KINDS[number % 3])
    return cast("list[StepRecord]", episode(number, count or length(number), outcome)[:-1])


def stored_ids(root: Path) -> list[str]:
    """Episode ids in the order of shards and episodes, as the data sets say."""
    found: list[str] = []
    with reading(root) as folders:
        for folder in folders:
            report = make_report(InspectCommand(str(folder), horizon=2), silent, root.parent / "cache")
            assert not report.problems
            rows: dict[int, set[str]] = {}
            for file in folder.glob("data/*/*.parquet"):
                table = pq.read_table(file, columns=["episode_index", EPISODE_KEY]).to_pylist()
                for row in table:
                    rows.setdefault(row["episode_index"], set()).add(row[EPISODE_KEY])
            assert all(len(rows[i]) == 1 for i in range(report.num_episodes))
            found += [rows[i].pop() for i in range(report.num_episodes)]
    return found


def test_every_episode_is_at_once_in_a_normal_data_set(tmp_path):
    replay = Replay(tmp_path / "replay", SPEC, CONFIG)
    for number in range(6):
        stored = replay.add(steps(number))
        assert stored and stored.index == number % 4 and stored.success == (number % 3 == 0)
        assert stored_ids(tmp_path / "replay") == [episode_id(i) for i in range(number + 1)]
        with reading(tmp_path / "replay") as folders:
            assert [folder.name for folder in folders] == ["shard-000000", "shard-000001"][: 1 + number // 4]
            data = ChunkDataset(folders[-1], ChunkSettings(2), cache_dir=tmp_path / "cache", progress=silent)
        ours = [s for i in range(number // 4 * 4, number + 1) for s in steps(i)]
        np.testing.assert_array_equal(data.table.action, [s.executed_action for s in ours])
        np.testing.assert_array_equal(data.table.state, [s.state for s in ours])
        np.testing.assert_array_equal(data.frame_labels.human, [s.human for s in ours])
        np.testing.assert_array_equal(data.frame_labels.reward, [s.reward for s in ours])
        np.testing.assert_array_equal(
            data.frame_labels.success, [i % 3 == 0 for i in range(number // 4 * 4, number + 1)]
        )
        picture = data.batch(np.arange(len(ours))).observation.images["observation.images.front"]
        np.testing.assert_array_equal(picture.permute(0, 2, 3, 1), [s.images["front"] for s in ours])
        for column, name in [
            *[("next.terminated", "terminated"), ("next.truncated", "truncated"), ("next.done", "done")],
            *[
                ("complementary_info.is_held", "held"),
                ("complementary_info.policy_version", "policy_version"),
            ],
            ("complementary_info.proposed_action", "proposed_action"),
        ]:
            expected = np.array([getattr(s, name) for s in ours])
            np.testing.assert_array_equal(data.table.column(column).reshape(expected.shape), expected)
    assert replay.num_steps == sum(length(i) for i in range(6))
    replay.close()
    with reading(tmp_path / "replay") as folders:
        parts = [
            ChunkDataset(f, ChunkSettings(2), cache_dir=tmp_path / "cache", progress=silent) for f in folders
        ]
    assert len(ChunkCollection(parts, [1, 2])) == replay.num_steps


def test_an_episode_is_stored_once_and_others_go_on_after_reopening(tmp_path):
    replay = Replay(tmp_path, SPEC, CONFIG)
    for number in range(5):
        if number:
            replay.close()
            replay = Replay(tmp_path, SPEC, CONFIG)
            assert replay.add(steps(number - 1)) is None
        assert replay.add(steps(number))
        assert len(replay.episode_ids) == number + 1
    replay.close()
    with pytest.raises(DatasetError, match="the replay is closed"):
        replay.add(steps(9))
    assert stored_ids(tmp_path) == [episode_id(i) for i in range(5)]
    with pytest.raises(DatasetError, match="feature 'action'"):
        Replay(tmp_path, replace(SPEC, action_names=("dx", "dy", "grip")), CONFIG)


def test_the_oldest_shards_go_when_the_others_hold_enough(tmp_path):
    replay = Replay(tmp_path, SPEC, ReplayConfig(shard_episodes=2, capacity_steps=10, cameras="image"))
    for number in range(9):
        replay.add(steps(number, 4))
        ids = stored_ids(tmp_path)
        assert ids == [episode_id(i) for i in range(number + 1)][-len(ids) :]
        assert replay.num_steps == 4 * len(ids) and replay.episode_ids == set(ids)
        assert min(number + 1, 3) <= len(ids) <= 5  # at least 10 steps, and less than a shard of 8 more
    replay.close()
    (tmp_path / "shard-000003").rename(tmp_path / ".evicted-shard-000003")  # killed in the middle
    replay = Replay(tmp_path, SPEC, ReplayConfig(shard_episodes=2, capacity_steps=10, cameras="image"))
    assert not (tmp_path / ".evicted-shard-000003").exists()
    assert stored_ids(tmp_path) == [episode_id(8)]
    replay.close()


def test_each_actors_steps_are_counted_over_restarts_and_dropped_shards(tmp_path):
    config = ReplayConfig(shard_episodes=2, cameras="image", capacity_steps=8)
    stored = [("arm", 3), ("leg", 4), ("arm", 5), ("arm", 2), ("leg", 6)]
    replay = Replay(tmp_path, SPEC, config)
    for number, (actor, num) in enumerate(stored):
        replay.add([item for item in episode(number, num, actor=actor) if isinstance(item, StepRecord)])
        assert sum(replay.steps_by_actor.values()) == replay.totals[1]
    replay.close()
    assert not (tmp_path / "shard-000000").exists()
    again = Replay(tmp_path, SPEC, config)
    assert again.steps_by_actor == {"arm": 10, "leg": 10} and again.totals == (5, 20)
    again.close()
    forgotten = tmp_path / "evicted.json"  # of before actors were counted: the dropped ones are nobody's
    forgotten.write_text(json.dumps({"shard-000000": [2, 7]}))
    before = Replay(tmp_path, SPEC, config)
    assert before.steps_by_actor == {"arm": 7, "leg": 6} and before.totals == (5, 20)
    before.close()
    for damaged in ([2, 7, {"arm": -1}], [2, 7, {"arm": True}], [2, 7, 3], [2]):
        forgotten.write_text(json.dumps({"shard-000000": damaged}))
        with pytest.raises(DatasetError, match=r"evicted\.json is damaged"):
            Replay(tmp_path, SPEC, config)


def test_adding_waits_for_readers(tmp_path):
    replay = Replay(tmp_path, SPEC, CONFIG)
    replay.add(steps(0))
    with reading(tmp_path) as folders:
        thread = threading.Thread(target=replay.add, args=(steps(1),))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and rp._totals(folders[0])[0] == 1
    thread.join()
    assert stored_ids(tmp_path) == [episode_id(0), episode_id(1)]
    replay.close()
    with pytest.raises(DatasetError, match="is no folder"), reading(tmp_path / "none"):
        pass


def test_videos(tmp_path):
    spec = replace(SPEC, cameras={"front": (64, 64)})
    replay = Replay(tmp_path / "replay", spec)
    grey = [
        replace(s, images={"front": np.full((64, 64, 3), 20 * i, np.uint8)})
        for i, s in enumerate(steps(0, 4))
    ]
    replay.add(grey)
    assert stored_ids(tmp_path / "replay") == [episode_id(0)]
    replay.close()
    with pytest.raises(DatasetError, match=r"videos need even sizes; use --replay.cameras image"):
        Replay(tmp_path / "odd", replace(SPEC, cameras={"front": (7, 8)}))


def test_what_is_no_whole_episode_is_refused(tmp_path):
    replay = Replay(tmp_path, SPEC, CONFIG)
    good = steps(0, 4)
    other = steps(1, 4)
    for wrong, text in [
        ([], "without steps"),
        (good[1:], "step 1 of .* stands where its step 0 belongs"),
        ([good[0], *good[2:]], "stands where its step 1 belongs"),
        ([*good[:2], *other[2:]], "stands where its step 2 belongs"),
        (good[:3], "step 2 of 3 is not marked as its last"),
        ([replace(good[0], truncated=True), *good[1:]], "step 0 of 4 is marked as its last"),
        ([replace(good[0], reward=1e300), *good[1:]], "'next.reward': NaN, inf or a number too large"),
    ]:
        with pytest.raises(RecordError, match=text):
            replay.add(wrong)
    assert replay.add(good)
    replay.close()


def test_a_full_disk_after_the_episode_was_stored_stores_it_once(tmp_path, monkeypatch):
    replay = Replay(tmp_path, SPEC, CONFIG)

    def full(*_):
        raise DatasetError("No space left on device")

    for name in ("_write_statistics", "_write_frames"):  # after and before the episode counts
        with monkeypatch.context() as patch:
            patch.setattr(DatasetWriter, name, full)
            with pytest.raises(DatasetError, match="No space"):
                replay.add(steps(len(replay.episode_ids)))
    assert replay.add(steps(0)) is None
    assert replay.add(steps(1))
    assert stored_ids(tmp_path) == [episode_id(0), episode_id(1)]
    replay.close()


# Intake


class Learner:
    """Streams, replay and intake in a folder, with one actor's stream to write to."""

    def __init__(self, root: Path) -> None:
        self.streams = ReceivedStreams(root / "incoming")
        self.next = self.streams.greet(Hello("arm", episode_id(99), SPEC))
        self.replay = Replay(root / "replay", SPEC, CONFIG)
        self.intake = EpisodeIntake(self.streams, self.replay, root / "set_aside")

    def receive(self, *received: Item) -> list[int]:
        """Episode indices that became visible."""
        batch = Batch("arm", episode_id(99), 1, self.next, [encode_item(item) for item in received])
        self.next = self.streams.append(batch)
        return [stored.index for stored in self.intake.poll()]

    def close(self) -> None:
        """As when the learner ends."""
        self.streams.close()
        self.replay.close()


def test_episodes_are_taken_in_when_they_end(tmp_path):
    learner = Learner(tmp_path)
    first, second = episode(0, 4), episode(1, 3, "failure")
    assert learner.receive(*first[:3]) == []
    assert learner.streams.spool("arm").acknowledged == 0
    assert not list((tmp_path / "replay").glob("shard-*"))  # `chunkrl train` takes all that there are
    learner.close()
    learner = Learner(tmp_path)  # a partial episode outlives the learner
    assert learner.receive(first[3]) == []
    assert learner.receive(first[4], *second, *episode(2, 2, "discarded"), second[0]) == [0, 1]
    assert learner.streams.spool("arm").acknowledged == 5 + 4 + 3
    assert (learner.intake.num_stored, learner.intake.num_discarded, learner.intake.num_set_aside) == (
        2,
        1,
        0,
    )
    learner.close()
    assert stored_ids(tmp_path / "replay") == [episode_id(0), episode_id(1)]


@pytest.mark.parametrize("read_bytes", [1, 2**20])
def test_of_much_that_came_actors_take_turns_until_it_is_enough(tmp_path, read_bytes):
    learner = Learner(tmp_path)
    learner.streams.greet(Hello("leg", episode_id(98), SPEC))
    for actor, spool, first in (("arm", 99, 0), ("leg", 98, 10)):
        items = [encode_item(item) for number in range(3) for item in episode(first + number, 2, actor=actor)]
        learner.streams.append(Batch(actor, episode_id(spool), 1, 0, items))
    found: list[str] = []

    def one_more() -> bool:
        return learner.intake.num_stored > len(found)

    for _ in range(6):
        (stored,) = learner.intake.poll(read_bytes, one_more)
        found.append(stored.episode_id)
    assert not learner.intake.poll(read_bytes, one_more)
    assert found == [episode_id(i) for i in (0, 10, 1, 11, 2, 12)]
    learner.close()


def test_unfinished_and_damaged_episodes_are_set_aside_and_never_mixed(tmp_path, caplog):
    learner = Learner(tmp_path)
    cut, whole, wrong = episode(0, 4)[:2], episode(1, 3), episode(2, 3)
    assert learner.receive(*cut, *whole) == [0]
    assert "its actor began another episode" in caplog.text
    assert learner.receive(wrong[0], wrong[2], wrong[3], *episode(3, 2)) == [1]
    assert "2 steps came, its end speaks of 3" in caplog.text
    end = cast("EpisodeSummary", episode(4, 2)[-1])
    assert learner.receive(*episode(4, 2)[:-1], replace(end, outcome="failure")) == []
    assert "outcome failure, but its last step says success" in caplog.text
    assert learner.intake.num_set_aside == 3
    learner.close()
    assert stored_ids(tmp_path / "replay") == [episode_id(1), episode_id(3)]
    files = sorted((tmp_path / "set_aside").iterdir())
    contents = [read_set_aside(path) for path in files]
    assert [len(content) for content in contents] == [2, 3, 3]
    assert all(same(a, b) for a, b in zip(contents[0], cut, strict=True))


def test_an_episode_that_does_not_end_is_set_aside_in_parts_of_bounded_size(tmp_path, caplog):
    learner = Learner(tmp_path)
    size = 4096 + sum(image.nbytes for image in steps(0)[0].images.values())
    learner.intake = EpisodeIntake(learner.streams, learner.replay, tmp_path / "set_aside", 3 * size)
    long, end = episode(0, 9)[:-1], episode(0, 9)[-1]
    assert learner.receive(*long[:3]) == []
    assert learner.intake.num_set_aside == 0 and learner.streams.spool("arm").acknowledged == 0
    assert learner.receive(*long[3:]) == []
    assert "raise --replay.max-episode-bytes" in caplog.text
    assert learner.streams.spool("arm").acknowledged == 8
    assert learner.receive(end, *episode(1, 3)) == [
        0
    ]  # its last part is no episode; one of 3 steps is short enough
    assert learner.intake.num_set_aside == 3
    learner.close()
    parts = [read_set_aside(path) for path in sorted((tmp_path / "set_aside").iterdir())]
    assert [len(part) for part in parts] == [4, 4, 2]
    assert all(same(a, b) for a, b in zip(chain(*parts), [*long, end], strict=True))
    assert stored_ids(tmp_path / "replay") == [episode_id(1)]


@pytest.mark.parametrize("room", [0, 100, 3000, 6000])
def test_a_full_disk_stops_the_intake_and_loses_nothing(tmp_path, room):
    learner = Learner(tmp_path)
    assert learner.receive(*episode(0, 3), *episode(1, 2)[:1]) == [0]
    batch = [encode_item(item) for item in [*episode(1, 2)[1:], *episode(2, 3)]]
    learner.next = learner.streams.append(Batch("arm", episode_id(99), 1, learner.next, batch))
    for _ in range(3):
        with full_disk(room), pytest.raises(ChunkRLError, match="free some space"):
            learner.intake.poll()
    learner.intake.poll()
    learner.close()
    assert stored_ids(tmp_path / "replay") == [episode_id(i) for i in range(3)]
    assert list(tmp_path.glob("set_aside/*")) == []


def test_the_actors_spool_takes_only_what_the_learner_takes(tmp_path):
    with Spool(tmp_path) as spool:
        sink = ItemSpool(spool, "arm", SPEC)
        assert [sink.append(item) for item in episode(0, 2)] == [0, 1, 2]
        assert all(
            same(decode_item(data), item)
            for data, item in zip(spool.read(0, 2**20), episode(0, 2), strict=True)
        )
        with pytest.raises(RecordError, match="item of actor other"):
            sink.append(step(1, 0, "other"))
        with pytest.raises(RecordError, match="cameras"):
            sink.append(replace(step(1, 0), images={}))
        assert spool.next_sequence == 3


# Kills


def kill_learner(tmp_path: Path, rounds: int, num_episodes: int, seed: int) -> None:
    rng = random.Random(seed)
    script = Path(__file__).with_name("online_learner.py")
    expected = [episode_id(i) for i in range(num_episodes) if i % 5 != 4]
    found: list[str] = []
    for last in [False] * rounds + [True]:
        command = [sys.executable, str(script), str(tmp_path), str(num_episodes)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout and process.stdout.readline() == "begun\n"
            if last:
                assert process.stdout.read() == "done\n"
            else:
                time.sleep(rng.uniform(0.0, 0.6))
                process.send_signal(signal.SIGKILL)
        found = stored_ids(tmp_path / "replay") if rp._shard_paths(tmp_path / "replay") else []
        assert found == expected[: len(found)]
    assert found == expected
    assert list(tmp_path.glob("set_aside/*")) == []
    streams = ReceivedStreams(tmp_path / "incoming")
    assert streams.spool("arm").acknowledged == len(items(num_episodes))
    streams.close()


def test_a_killed_learner_stores_every_episode_once(tmp_path):
    kill_learner(tmp_path, 3, 40, 0)


@pytest.mark.slow
def test_a_learner_killed_20_times_stores_every_episode_once(tmp_path):
    kill_learner(tmp_path, 20, 260, 1)
