"""`chunkrl trial` from policies to its page: in a simulator of arithmetic, and on a robot with a person's keys."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pages import Page
from torch import nn
from toy_env import ToyFamily
from waiting import until

from chunkrl.data.frames import FrameTable
from chunkrl.envs import registry
from chunkrl.envs.fake_robot import FakeRobot
from chunkrl.errors import ChunkRLError
from chunkrl.files.output_folder import held
from chunkrl.online.actor import station
from chunkrl.online.human.keys import NoKeys
from chunkrl.progress import silent
from chunkrl.trial import command as trial_command
from chunkrl.trial.acting import BlindSource, TrialSink
from chunkrl.trial.command import run_trial
from chunkrl.trial.config import TrialCommand
from chunkrl.trial.records import Attempt, PolicyEntry, TrialSettings
from chunkrl.trial.result import SIDECAR, TrialResult
from chunkrl.trial.standing import Standing


class ToyPolicy:
    """Goes to the goal in the way that its folder's file names, three actions a chunk.

    good: at once. slow: at a third of the way. idle: never. right: to goals on the right alone. wide: for two joints.
    far: for two joints, to their limits.
    """

    action_horizon, state_dim, cameras, own_image_size = 3, 2, (), None
    fps: float | None = None
    takes = SimpleNamespace(cameras=())

    def __init__(self, folder: Path) -> None:
        self.way, self.policy = (folder / "way").read_text(), nn.Linear(1, 1)
        self.action_dim = 2 if self.way in ("wide", "far") else 1
        self.num_asked = 0
        if (folder / "fps").exists():
            self.fps = float((folder / "fps").read_text())

    def ask_as(self, asked: Any) -> dict[str, Any]:
        return {}

    def act(self, observation: Any, generators: Any, mode: str, num_candidates: int) -> torch.Tensor:
        self.num_asked += 1
        if self.way == "broken" or (self.way == "once" and self.num_asked == 2):
            raise RuntimeError("out of paper")
        state = observation.state.numpy()
        shift = state[:, 1] - state[:, 0]
        gain = {"slow": 0.3, "idle": 0.0, "right": 2.0 * (state[0, 1] > 0)}.get(self.way, 2.0)
        if self.way == "nan":
            gain = np.nan
        chunk = np.zeros((len(shift), self.action_horizon, self.action_dim), np.float32)
        chunk[:, 0] = (gain * shift)[:, None]
        if self.way == "far":
            chunk[:] = 1.0
        return torch.from_numpy(chunk)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_policies(monkeypatch)


def toy_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command opens are toys."""
    monkeypatch.setattr(registry, "FAMILIES", [ToyFamily(), *registry.FAMILIES])
    monkeypatch.setattr(trial_command, "load_policy", lambda folder, *_: ToyPolicy(Path(folder)))


def policy(root: Path, way: str) -> str:
    folder = root / way
    folder.mkdir(exist_ok=True)
    (folder / "way").write_text(way)
    return f"{way}={folder}"


def asked(root: Path, *ways: str, **changes: Any) -> TrialCommand:
    given = {"env": "toy/line", "output_dir": str(root / "trial"), "device": "cpu", "order_seed": 5} | changes
    return TrialCommand(policies=tuple(policy(root, way) for way in ways), **given)


def run(command: TrialCommand) -> tuple[TrialResult, str]:
    said: list[str] = []
    return run_trial(command, silent, said.append), "\n".join(said)


def test_from_policies_to_a_verdict(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result, said = run(asked(tmp_path, "good", "idle"))
    shown = capfd.readouterr()
    assert result.decided and "good is better than idle" in said
    found = json.loads((tmp_path / "trial/result.json").read_text())
    (compared,) = found["comparisons"]
    # eight pairs that good alone wins decide; idle wins where it stands at the goal already, and so does good
    assert (compared["verdict"], compared["only_a"], compared["only_b"]) == ("better", 8, 0)
    assert compared["confidence_sequence"][0] > 0 and compared["further_pairs"] is None
    assert found["policies"]["good"]["success"] == 1.0
    assert found["policies"]["good"]["successes_per_hour"] > found["policies"]["idle"]["successes_per_hour"]
    trials = found["trials"]
    assert len(trials) == 2 * compared["num_pairs"]
    by_place = {trial["policy"] for trial in trials if trial["place"] == 0}
    assert by_place == {"good", "idle"}  # either one begins now and then
    # both begin where the pair begins
    seeds = {number: {t["seed"] for t in trials if t["pair"] == number} for number in range(len(trials) // 2)}
    assert {len(found) for found in seeds.values()} == {1} and len(seeds) == len(
        {*map(tuple, seeds.values())}
    )
    page = Page((tmp_path / "trial/report.html").read_text())
    assert "good is better than idle" in page.text and "8 : 0 won alone" in page.text
    # the episodes are a data set; which policy made each stands in a column and beside it
    data = tmp_path / "trial/data/shard-000000"
    table = FrameTable.open(data)
    assert len(table.episode_length) == len(trials)
    beside = json.loads((data / SIDECAR).read_text())
    assert sorted(beside["episodes"].values()) == sorted(trial["policy"] for trial in trials)
    # nothing that is read while it runs tells who acts
    names = ("good", "idle", "version 1", "v1")
    attempts = "".join(file.read_text() for file in (tmp_path / "trial/attempts").iterdir())
    assert not any(name in text for name in names for text in (attempts, shown.out, shown.err))
    assert (tmp_path / "trial/trial.log").read_text() == ""


def outcomes(result: TrialResult) -> list[Any]:
    return [(t.policy, replace(t.attempt, episode_id="")) for t in result.trials]


def test_a_stopped_trial_goes_on_as_it_would_have(tmp_path: Path) -> None:
    whole, _ = run(asked(tmp_path, "right", "slow", max_pairs=9, output_dir=str(tmp_path / "whole")))
    for pairs in (2, 5):
        part, said = run(asked(tmp_path, "right", "slow", max_pairs=pairs))
        assert not part.decided and part.num_pairs == pairs
        assert "not decided: the same command with a larger --max-pairs goes on" in said
    resumed, said = run(asked(tmp_path, "right", "slow", max_pairs=9))
    assert "10 trials are there, going on" in said
    assert outcomes(resumed) == outcomes(whole) and len(outcomes(whole)) == 18
    assert "further pairs" in said
    again, _ = run(asked(tmp_path, "right", "slow", max_pairs=9))  # nothing is left to do
    assert outcomes(again) == outcomes(whole)


def test_a_kill_costs_the_episode_under_way(tmp_path: Path) -> None:
    command = asked(tmp_path, "right", "slow", max_pairs=300)
    child = multiprocessing.get_context("fork").Process(target=run, args=(command,))
    child.start()
    attempts = tmp_path / "trial/attempts"
    until(lambda: len(list(attempts.glob("*.json"))) >= 5)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    kept = len(list(attempts.glob("*.json")))
    pairs = kept // 2 + 2
    resumed, said = run(replace(command, max_pairs=pairs))
    assert f"{kept} trials are there" in said and len(resumed.trials) == 2 * pairs
    whole, _ = run(replace(command, max_pairs=pairs, output_dir=str(tmp_path / "whole")))
    assert outcomes(resumed) == outcomes(whole)
    episodes = FrameTable.open(tmp_path / "trial/data/shard-000000").episode_length
    assert len(episodes) - len(resumed.trials) in (0, 1)  # the one whose attempt was about to be noted


def test_a_policy_that_crashes_counts_as_neither(tmp_path: Path) -> None:
    result, said = run(asked(tmp_path, "good", "once", max_pairs=3))
    assert len(result.trials) == 6 and result.num_neither == {"crashed": 1}
    assert "made again: 1 crashed" in said and "RuntimeError: out of paper" in said
    assert "out of paper" in Page((tmp_path / "trial/report.html").read_text()).text
    assert all(t.success for t in result.trials)
    data = FrameTable.open(tmp_path / "trial/data/shard-000000")
    assert len(data.episode_length) == 6
    for way, told in (("broken", "RuntimeError: out of paper"), ("nan", "NaN or infinite")):
        command = asked(tmp_path, "good", way, output_dir=str(tmp_path / f"{way}-trial"))
        with pytest.raises(ChunkRLError, match=rf"{way} crashed 3 times in a row in pair 1.*{told}"):
            run(command)
        assert not (tmp_path / f"{way}-trial/result.json").exists()


def test_what_a_policy_raises_too_late_is_not_the_next_ones_fault() -> None:
    asked_for, goes_on = Event(), Event()

    def act(step: Any, seed: int) -> Any:
        asked_for.set()
        assert goes_on.wait(60)
        raise RuntimeError("out of paper")

    late: Any = SimpleNamespace(action_dim=1, begin_episode=lambda: None, act=act)
    turns = iter((0, 1))
    source = BlindSource([late, late], 3, lambda: next(turns))
    source.begin_episode()
    thread = Thread(target=source.act, args=(None, 0))
    thread.start()
    assert asked_for.wait(60)
    source.begin_episode()
    goes_on.set()
    thread.join()
    assert source.version == 1 and source.failure == ""
    chunk = source.act(late, 0)  # its own counts
    assert (
        source.failure == "RuntimeError: out of paper"
        and np.isnan(chunk.actions).all()
        and chunk.version == 1
    )


def test_what_cannot_be_a_trial(tmp_path: Path) -> None:
    for ways, changes, told in (
        ((), {}, "at least two policies, got 0: chunkrl trial NEW OLD"),
        (("good",), {}, "at least two policies, got 1"),
        (("good", "wide"), {}, r"differ in their number of values \(good 1, wide 2\)"),
        (("good", "idle"), {"env": None}, "--env with a simulator's task, or --robot"),
        (("good", "idle"), {"exec_steps": 4}, "more than a policy's chunk"),
        (
            ("good", "idle"),
            {"env": None, "robot": "arm.json", "keys": "none"},
            "a person says it with the keys",
        ),
    ):
        with pytest.raises(ChunkRLError, match=told):
            run(asked(tmp_path, *ways, **changes))
    assert not (tmp_path / "trial").exists()
    with pytest.raises(ChunkRLError, match="is no folder"):
        run(replace(asked(tmp_path, "good"), policies=(policy(tmp_path, "good"), "old=nowhere")))
    with pytest.raises(ChunkRLError, match="error is 1; it must lie between 0 and 1"):
        asked(tmp_path, "good", error=1)
    with pytest.raises(ChunkRLError, match="give each its own name"):
        run(replace(asked(tmp_path, "good"), policies=("a=x", "a=y")))
    run(asked(tmp_path, "good", "idle", max_pairs=1))
    for changes, told in (
        ({"error": 0.1}, "error 0.05 there, 0.1 asked for"),
        ({"seed": 3}, "seed 0 there, 3"),
        ({"order_seed": 6}, "another order: leave --order-seed out"),
    ):
        with pytest.raises(ChunkRLError, match=told):
            run(asked(tmp_path, "good", "idle", **changes))
    with pytest.raises(ChunkRLError, match=r"other settings \(policies.*slow"):
        run(asked(tmp_path, "good", "slow"))
    settings = tmp_path / "trial/trial.json"
    settings.rename(tmp_path / "kept.json")
    (tmp_path / "trial/result.json").unlink()  # as a kill leaves it
    with pytest.raises(ChunkRLError, match="nobody knows what the attempts there are of"):
        run(asked(tmp_path, "good", "slow"))
    (tmp_path / "kept.json").rename(settings)
    (tmp_path / "trial/order.json").unlink()
    with pytest.raises(ChunkRLError, match="nobody knows which policy acted"):
        run(asked(tmp_path, "good", "idle"))
    run(asked(tmp_path, "good", "slow", max_pairs=1, overwrite=True))
    assert (tmp_path / "trial.replaced-001/trial.json").is_file()


def test_a_trial_that_is_under_way_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = asked(tmp_path, "good", "idle", max_pairs=1)
    run(command)

    def opened(*_: Any) -> None:
        raise AssertionError("the robot was opened")

    monkeypatch.setattr(trial_command, "open_station", opened)
    with (
        held(tmp_path / "trial", "trial"),
        pytest.raises(ChunkRLError, match="in use by another chunkrl trial"),
    ):
        run(command)


def test_the_same_policy_twice_is_said(tmp_path: Path) -> None:
    folder = policy(tmp_path, "good").partition("=")[2]
    result, said = run(replace(asked(tmp_path, "good", max_pairs=2), policies=(folder, folder)))
    assert f"{folder} and {folder} (2) are the same policy: an A/A trial" in said
    assert not result.decided and "no pair has told the two apart" in said


def test_half_a_pair_does_not_tell_who_acts_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaves(TrialSink):
        def append(self, item: Any) -> object:
            number = super().append(item)
            if len(self._standing.trials) == 3:
                raise KeyboardInterrupt  # as a session that ends in the middle of the second pair
            return number

    monkeypatch.setattr(trial_command, "TrialSink", Leaves)
    command = asked(tmp_path, "right", "slow", max_pairs=3)
    with pytest.raises(KeyboardInterrupt):
        run(command)
    monkeypatch.undo()
    toy_policies(monkeypatch)
    monkeypatch.setattr(trial_command, "_goes_on", lambda *_: False)
    result, said = run(command)
    assert result.num_pairs == 1 and result.num_pending == 1
    assert [rate.num_episodes for rate in result.rates if rate is not None] == [1, 1]
    assert "1 trial of a pair that is not complete will count with it" in said
    found = json.loads((tmp_path / "trial/result.json").read_text())
    assert [trial["pair"] for trial in found["trials"]] == [0, 0] and found["pending"] == 1
    data = tmp_path / "trial/data/shard-000000"
    assert len(json.loads((data / SIDECAR).read_text())["episodes"]) == 2
    assert len(FrameTable.open(data).episode_length) == 3
    assert "will count with it" in Page((tmp_path / "trial/report.html").read_text()).text
    monkeypatch.undo()
    toy_policies(monkeypatch)
    whole, _ = run(command)
    assert len(whole.trials) == 6 and whole.num_pending == 0
    assert len(json.loads((data / SIDECAR).read_text())["episodes"]) == 6


SETTINGS = TrialSettings(
    policies=tuple(PolicyEntry(name, name, name) for name in "abc"),
    **{"where": "toy/line", "robot": "", "error": 0.05, "seed": 0, "max_steps": 12, "fps": 10.0},
    **{"exec_steps": 3, "prefetch_steps": 0, "mode": "mode", "condition": None, "guidance": None},
    **{"flow_steps": None, "camera_size": None, "rate_hz": None, "device": "cpu"},
)


def played(standing: Standing, success: Callable[[int], bool], most: int = 400) -> list[Attempt]:
    """Attempts until all is decided, or `most`."""
    made = []
    while not standing.decided and len(made) < most:
        upcoming = standing.upcoming
        outcome = "success" if success(upcoming.policy) else "failure"
        made.append(Attempt(upcoming.pair, upcoming.place, outcome, upcoming.seed, 3, ""))
        standing.add(made[-1])
    return made


def test_of_three_policies_one_that_is_decided_about_rests() -> None:
    standing = Standing(SETTINGS, 1)
    made = played(standing, lambda policy: policy != 1, most=60)
    # two comparisons share the error: nine pairs won alone are needed, 2^(10) / 10 >= 80
    assert [c.verdict for c in standing.comparisons] == [1, 0]
    assert [c.counts.num_pairs for c in standing.comparisons] == [9, (60 - 27) // 2 + 9]
    assert {t.policy for t in standing.trials[:27]} == {0, 1, 2} and 1 not in {
        t.policy for t in standing.trials[27:]
    }
    result = TrialResult.of(SETTINGS, standing, made)
    assert [found.verdict_told for found in result.compared] == ["a is better than b", "not decided"]
    assert Standing(SETTINGS, 1, made).upcoming == standing.upcoming
    with pytest.raises(ChunkRLError, match="attempts do not fit the trial"):
        Standing(SETTINGS, 1, made[1:])


def test_the_order_is_drawn_for_each_pair() -> None:
    two = replace(SETTINGS, policies=SETTINGS.policies[:2])
    firsts = [
        t.policy
        for t in Standing(two, 3, played(Standing(two, 3), lambda _: True)).trials
        if not t.attempt.place
    ]
    assert 80 < sum(firsts) < 120  # of 200
    others = [t.policy for t in Standing(two, 4, played(Standing(two, 4), lambda _: True)).trials]
    assert others != [t.policy for t in Standing(two, 3, played(Standing(two, 3), lambda _: True)).trials]


class Person(NoKeys):
    """Answers what the screen shows: starts, watches three steps, says the next of `verdicts`, keeps it.

    A verdict may be several keys: before the episode's end the first, after it the others.
    """

    def __init__(self, *verdicts: str) -> None:
        self.verdicts, self.shown, self.after = list(verdicts), [], ""
        self.lines: list[str] = []

    def __call__(self, status: Any) -> None:
        self.shown.append(status)
        self.lines.append(str(status))

    def poll(self) -> str:
        if not self.shown:
            return ""
        status = self.shown[-1]
        if status.phase == "policy" and status.step >= 3:
            keys, self.after = self.verdicts[0][:1], self.verdicts.pop(0)[1:]
            return keys
        if status.phase.startswith("ended"):
            keys, self.after = self.after + "2", ""
            return keys
        return "2" if status.phase == "waiting" or status.phase.startswith("set up") else ""


def test_a_person_judges_a_robot_blind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robot = {"type": "fake", "num_joints": 2}
    content = {"robot": robot, "task": "reach", "low": [-1], "high": [1], "rate_hz": 400, "max_steps": 5}
    (tmp_path / "arm.json").write_text(json.dumps(content))
    # wide takes two actions; the third verdict is corrected before it is kept, the fourth episode made again
    person = Person("1", "0", "10", "r", "1", "q")
    monkeypatch.setattr(trial_command, "key_source", lambda name: person)
    monkeypatch.setattr(trial_command, "StatusLine", lambda note: person)
    folders = [policy(tmp_path, "wide").partition("=")[2] for _ in range(2)]
    command = asked(tmp_path, env=None, robot=str(tmp_path / "arm.json"), keys="terminal")
    result, said = run(replace(command, policies=(f"new={folders[0]}", f"old={folders[1]}")))
    assert [t.attempt.outcome for t in result.trials] == ["success", "failure", "failure", "success"]
    assert result.num_neither == {"discarded": 2}  # made again, and under way when the session ended
    assert "made again: 2 discarded" in said and result.num_pairs == 2
    shown = "\n".join(person.lines)
    assert "set up the same scene again" in shown and "set up another scene" in shown
    assert "policy v1" not in shown and "2 start, q quit" in shown
    assert len(FrameTable.open(tmp_path / "trial/data/shard-000000").episode_length) == 4


def test_the_guard_against_jumps_is_the_robots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both policies want to be far away at once; nobody leads the robot by hand."""
    content = {"robot": {"type": "fake", "num_joints": 2}, "task": "reach", "low": [-1], "high": [1]}
    guard = {"handover": {"max_step": 0.125, "tolerance": 0.0625}, "rate_hz": 400, "max_steps": 5}
    home = {"positions": [0, 0], "max_step": 0.25, "tolerance": 0.01}
    (tmp_path / "arm.json").write_text(json.dumps(content | guard | {"home": home}))
    robots: list[FakeRobot] = []
    monkeypatch.setattr(station, "FakeRobot", lambda *given: robots.append(FakeRobot(*given)) or robots[-1])
    person = Person("1", "1", "q")
    monkeypatch.setattr(trial_command, "key_source", lambda name: person)
    monkeypatch.setattr(trial_command, "StatusLine", lambda note: person)
    folder = policy(tmp_path, "far").partition("=")[2]
    command = asked(tmp_path, env=None, robot=str(tmp_path / "arm.json"), keys="terminal")
    result, _ = run(replace(command, policies=(f"new={folder}", f"old={folder}")))
    assert len(result.trials) == 2
    (robot,) = robots
    sent = np.array([[0.0, 0.0], *robot.sent])
    assert sent.max() == 3 * 0.125  # each watched for three steps, and home again between them
    assert np.abs(np.diff(sent, axis=0)).max() <= 0.25 and robot.closed


def test_a_robot_has_one_rate_for_policies_of_any_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leaves = Person()
    monkeypatch.setattr(leaves, "poll", lambda: "q")
    monkeypatch.setattr(trial_command, "key_source", lambda name: leaves)
    monkeypatch.setattr(trial_command, "StatusLine", lambda note: leaves)
    robot = {"robot": {"type": "fake", "num_joints": 2}, "task": "reach", "low": [-1], "high": [1]}

    def rate(*rates: float | None, **more: Any) -> float:
        """Control steps per second of a trial of policies whose data had `rates`."""
        caplog.clear()
        (tmp_path / "arm.json").write_text(json.dumps(robot | more))
        named = []
        for name, fps in zip(("new", "old"), rates, strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            folder = Path(policy(tmp_path / name, "wide").partition("=")[2])
            (folder / "fps").unlink(missing_ok=True)
            if fps is not None:
                (folder / "fps").write_text(str(fps))
            named.append(f"{name}={folder}")
        command = asked(tmp_path, env=None, robot=str(tmp_path / "arm.json"), keys="terminal", overwrite=True)
        run(replace(command, policies=tuple(named)))
        return json.loads((tmp_path / "trial/trial.json").read_text())["fps"]

    for rates, told in (((30, 10), "new 30, old 10"), ((10, 30), "new 10, old 30")):
        with pytest.raises(ChunkRLError, match=rf"arm.json gives no rate_hz.*\({told}\).*give rate_hz"):
            rate(*rates)
    with pytest.raises(ChunkRLError, match="old does not say how many frames per second its data had: give"):
        rate(30, None)

    def warned() -> list[str]:
        return [found for found in caplog.messages if "rate_hz" in found]

    for alike in ((30, 30), (30, 30.1), (30.1, 30)):
        assert rate(*alike) == 30 and not warned()
    assert rate(30, 10, rate_hz=30) == 30
    (said,) = warned()
    assert "rate_hz is 30, and old's data had 10 frames per second: it moves 3 times as fast" in said
    assert rate(30, 10, rate_hz=20) == 20
    first, second = warned()
    assert "new's data" in first and "old's data" in second
