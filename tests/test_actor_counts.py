"""What an actor counts, over kills, other run folders and other actors; how far the learner is behind it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import test_actor_command
from actor_fakes import small_policy
from online_records import SPEC, episode
from test_actor_command import Learner, _command

from chunkrl.errors import ChunkRLError, SpoolError
from chunkrl.online.actor import session as actor_session
from chunkrl.online.actor.recorder import KEPT_FILE, ItemSpool, Kept, read_kept
from chunkrl.online.actor.session import run_actor
from chunkrl.online.link.records import EpisodeSummary, Outcome
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.weights import make_push
from chunkrl.training.metrics import METRICS_FILE, read_records

folder, port = test_actor_command.folder, test_actor_command.port


def test_kept_episodes_are_counted_over_restarts(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        sink = ItemSpool(spool, "arm", SPEC)
        lasted: tuple[tuple[int, Outcome], ...] = ((3, "success"), (4, "discarded"), (5, "timeout"))
        for number, (length, outcome) in enumerate(lasted):
            for item in episode(number, length, outcome):
                sink.append(item)
        assert sink.kept == Kept(15, 2, 8)
    with Spool(tmp_path) as spool:
        sink = ItemSpool(spool, "arm", SPEC)
        assert sink.kept == Kept(15, 2, 8)
        spool.acknowledge(15)  # what was sent is still counted
        for item in episode(3, 2)[:-1]:  # killed in an episode
            sink.append(item)
    with Spool(tmp_path) as spool:
        assert read_kept(spool).num_steps == 8


def test_an_episode_that_a_kill_kept_from_being_counted_is_counted_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Spool(tmp_path) as spool:
        sink = ItemSpool(spool, "arm", SPEC)
        for item in episode(0, 3):
            sink.append(item)
        with monkeypatch.context() as killed:
            killed.setattr("chunkrl.online.actor.recorder.note_kept", lambda *_: None)
            for item in episode(1, 4):
                sink.append(item)
    assert json.loads((tmp_path / KEPT_FILE).read_text())["num_steps"] == 3
    with Spool(tmp_path) as spool:
        assert read_kept(spool) == Kept(9, 2, 7)


def test_a_full_disk_keeps_no_record_from_being_written_once(tmp_path: Path, monkeypatch, caplog) -> None:
    def full(*_: object) -> None:
        raise SpoolError("the disk is full")

    with Spool(tmp_path) as spool:
        sink = ItemSpool(spool, "arm", SPEC)
        with monkeypatch.context() as patch:
            patch.setattr("chunkrl.online.actor.recorder.note_kept", full)
            assert [sink.append(item) for item in episode(0, 3)] == [0, 1, 2, 3]
        assert "noted after the next one: the disk is full" in caplog.text
        for item in episode(1, 2):
            sink.append(item)
        assert json.loads((tmp_path / KEPT_FILE).read_text())["num_steps"] == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"next_sequence": 9, "num_episodes": 1, "num_steps": 3}', "counts 9 entries, and the spool has 4"),
        ('{"next_sequence": 4, "num_episodes": -1, "num_steps": 3}', "below 0"),
        ("[", "kept.json"),
    ],
)
def test_a_damaged_count_is_an_error_with_its_cure(tmp_path: Path, content: str, message: str) -> None:
    with Spool(tmp_path) as spool:
        for item in episode(0, 3):
            ItemSpool(spool, "arm", SPEC).append(item)
        (tmp_path / KEPT_FILE).write_text(content)
        with pytest.raises(SpoolError, match=message) as refused:
            read_kept(spool)
        assert "delete it" in str(refused.value)


def test_another_run_folder_with_the_same_spool_goes_on_counting(folder, tmp_path) -> None:
    spool = str(tmp_path / "spool")
    run_actor(_command(folder, tmp_path / "a", spool=spool, offline=True))
    run_actor(_command(folder, tmp_path / "b", spool=spool, offline=True, num_episodes=1))
    last = read_records(tmp_path / "b" / METRICS_FILE)[-1]
    assert (last.update, last.scalars["actor/episodes"]) == (30, 3)


def rows_of(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What the view shows beside the status, each time."""
    shown: list[dict[str, str]] = []
    note = actor_session._Session._note

    def noted(self, *arguments):
        found = note(self, *arguments)
        shown.append(dict(found))
        return found

    monkeypatch.setattr(actor_session._Session, "_note", noted)
    return shown


def test_the_learner_is_behind_by_this_actors_steps_alone(folder, tmp_path, port, monkeypatch) -> None:
    """Other actors' steps, or an earlier run's, once made the lag negative."""
    learner = Learner(tmp_path / "learner", port)
    weights = dict(small_policy(1, 3, 3).policy.named_parameters())
    learner.receiver.offer(make_push(1, weights, num_steps=500), {"other": 500})
    shown = rows_of(monkeypatch)
    run_actor(_command(folder, tmp_path / "run", port))
    learner.close()
    lags = [row["weights"] for row in shown if "weights" in row]
    assert lags[0] == "version 1, 0 steps behind" and "version 1, 10 steps behind" in lags
    assert not any("-" in lag for lag in lags)


def test_a_learner_that_has_more_than_the_spool_remembers_is_believed(
    folder, tmp_path, port, monkeypatch
) -> None:
    """A spool of before had noted nothing; its steps were recorded all the same."""
    learner = Learner(tmp_path / "learner", port)
    weights = dict(small_policy(1, 3, 3).policy.named_parameters())
    learner.receiver.offer(make_push(1, weights, num_steps=40), {"actor": 40})
    shown = rows_of(monkeypatch)
    run_actor(_command(folder, tmp_path / "run", port, num_episodes=1, max_ahead_steps=0))
    learner.close()
    assert all("-" not in row["weights"] for row in shown if "weights" in row)
    with Spool(tmp_path / "run" / "spool") as spool:
        assert read_kept(spool).num_steps == 50


def test_waiting_for_a_learner_that_cannot_say_what_is_waited_for_is_refused(folder, tmp_path, port) -> None:
    learner = Learner(tmp_path / "learner", port)
    weights = dict(small_policy(1, 3, 3).policy.named_parameters())
    learner.receiver.offer(make_push(1, weights, num_steps=40))  # as one of before
    with pytest.raises(ChunkRLError, match="install this chunkrl version there"):
        run_actor(_command(folder, tmp_path / "run", port, max_ahead_steps=0))
    run_actor(_command(folder, tmp_path / "run", port))
    ends = learner.episodes()
    learner.close()
    assert len(ends) == 2 and all(isinstance(end, EpisodeSummary) for end in ends)
