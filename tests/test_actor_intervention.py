"""The human: phases and keys, key sources, handovers without jumps, the leader arm, the scripted corrector."""

import math
import os
import pty
import sys
import termios
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl.envs.fake_robot import FakeLeader
from chunkrl.envs.metaworld import FULL_STATE
from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError
from chunkrl.online.human.correctors import Handover, LeaderArm, ScriptedCorrector, task_distance
from chunkrl.online.human.intervention import EpisodePhases, Phase
from chunkrl.online.human.keys import PynputKeys, TerminalKeys, key_source
from chunkrl.online.link.config import CorrectionRule

# ---- phases


def _running(can_intervene: bool = True) -> EpisodePhases:
    phases = EpisodePhases(can_intervene)
    phases.begin()
    return phases


@pytest.mark.parametrize(
    ("keys", "outcome"), [("1", "success"), ("0", "failure"), ("r", "discarded"), ("R", "discarded")]
)
def test_a_verdict_ends_the_episode_and_may_be_changed_until_it_counts(keys, outcome):
    for before in ("", "5"):
        phases = _running()
        assert not phases.apply(before + keys)
        assert (phases.phase, phases.outcome, phases.quit) == (Phase.ENDED, outcome, False)
    assert not phases.apply("01r1")
    assert phases.outcome == "success"
    assert phases.apply("20")  # confirmed before the second verdict
    assert phases.outcome == "success"


def test_five_toggles_and_counts_interventions():
    phases = _running()
    seen = []
    for _ in range(4):
        phases.apply("5")
        seen.append(phases.phase)
    assert seen == [Phase.HUMAN, Phase.POLICY] * 2 and phases.num_interventions == 2
    phases.apply("1")
    phases.apply("5")  # after the end there is nothing to take over
    assert phases.phase is Phase.ENDED
    phases.begin()
    assert (phases.num_interventions, phases.outcome) == (0, None)


def test_what_makes_no_sense_in_a_phase_is_ignored():
    phases = EpisodePhases(can_intervene=False)
    assert not phases.apply("510rx") and phases.phase is Phase.WAITING
    assert phases.apply("2")
    phases.begin()
    assert not phases.apply("25") and phases.phase is Phase.POLICY  # nobody could take over
    with pytest.raises(ChunkRLError, match="nobody is there"):
        phases.intervene(True)


def test_quitting_ends_a_running_episode_without_a_verdict_and_keeps_one_that_is_there():
    phases = _running()
    assert not phases.apply("q1") and (phases.quit, phases.outcome) == (True, "timeout")
    phases = _running()
    phases.apply("1")
    phases.apply("q")
    assert (phases.quit, phases.outcome) == (True, "success")


# ---- keys


def test_a_terminal_gives_keys_at_once_and_gets_its_settings_back():
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        with TerminalKeys(theirs) as keys:
            assert termios.tcgetattr(theirs)[3] & (termios.ICANON | termios.ECHO) == 0
            assert keys.poll() == ""
            os.write(ours, b"5")
            _wait_until_readable(theirs)
            assert keys.poll() == "5"
            os.write(ours, b"\x1b[5~1\x1b[A0\xc3\xa4")  # Page Up, 1, Up, 0, and a letter beyond ASCII
            _wait_until_readable(theirs)
            assert keys.poll() == "10"
        assert termios.tcgetattr(theirs) == before
        keys.close()  # once more does no harm
        with pytest.raises(RuntimeError, match="robot"), TerminalKeys(theirs):
            raise RuntimeError("the robot is gone")
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def _wait_until_readable(descriptor: int) -> None:
    import select

    assert select.select([descriptor], [], [], 10.0)[0]


def test_keys_that_cannot_be_had_say_what_to_do():
    reading, writing = os.pipe()
    with pytest.raises(ChunkRLError, match="ssh -t"):
        TerminalKeys(reading)
    os.close(reading)
    os.close(writing)
    with pytest.raises(ChunkRLError, match="must be one of"):
        key_source("mouse")  # pyright: ignore[reportArgumentType]
    assert key_source("none").poll() == ""


class _Listener:
    def __init__(self, on_press) -> None:
        self.on_press, self.running = on_press, False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False


def test_pynput_delivers_characters_and_needs_extra_and_display(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"\[keyboard\]"):
        PynputKeys()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(
        sys.modules, "pynput", types.ModuleType("pynput")
    )  # as without a display: no `keyboard`
    with pytest.raises(ChunkRLError, match="choose keys terminal"):
        PynputKeys()
    module = types.ModuleType("pynput")
    module.keyboard = types.SimpleNamespace(Listener=_Listener)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "pynput", module)
    keys = PynputKeys()
    for key in (
        types.SimpleNamespace(char="5"),
        types.SimpleNamespace(name="shift"),
        types.SimpleNamespace(char="1"),
    ):
        keys._pressed(key)
    assert keys.poll() == "51" and keys.poll() == ""
    keys.close()
    assert not keys._listener.running


# ---- handover


def test_a_handover_takes_the_steps_that_the_gap_needs():
    handover = Handover(max_step=0.5, tolerance=0.1)
    handover.begin(np.zeros(2))
    wanted = np.array([2.0, -1.0])
    targets = []
    while not handover.agreed and len(targets) < 9:
        targets.append(handover.limit(wanted))
    np.testing.assert_allclose(targets, [[0.5, -0.5], [1, -1], [1.5, -1], [2, -1], [2, -1]])
    assert len(targets) - 1 == math.ceil((2.0 - 0.1) / 0.5)
    np.testing.assert_array_equal(handover.limit(np.array([9.0, 9.0])), [9.0, 9.0])  # it leads


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(0, 2**31), st.just(0.0) | st.floats(1e-9, 1.0))
def test_no_step_of_a_handover_is_longer_than_allowed(num_joints, seed, share):
    rng = np.random.default_rng(seed)
    max_step = rng.uniform(0.05, 1.0, num_joints)
    handover = Handover(max_step, share * max_step)
    last = rng.normal(size=num_joints).astype(np.float32)
    handover.begin(last)
    wanted = rng.normal(scale=3.0, size=num_joints).astype(np.float32)
    for _ in range(400):
        wanted = wanted + rng.uniform(-0.02, 0.02, num_joints) * share  # a hand that is not quite still
        target = handover.limit(wanted)
        assert (np.abs(target - last) <= max_step + 1e-5).all()
        last = target
        if handover.agreed:
            break
    assert handover.agreed == (np.abs(wanted - last) < 1e-6).all()


@pytest.mark.parametrize(
    ("max_step", "tolerance"), [(0.0, 0.0), (0.1, 0.2), (0.1, -0.1), (float("nan"), 0.1)]
)
def test_handovers_that_could_jump_are_refused(max_step, tolerance):
    with pytest.raises(ChunkRLError, match="handover"):
        Handover(max_step, tolerance)


# ---- leader arm


def _world(*positions: float) -> EnvStep:
    return EnvStep(state=np.array([99.0, *positions], np.float32))  # the joints are not the first values


def test_the_leader_comes_to_the_follower_slowly_then_mirrors_it():
    leader = FakeLeader(2, np.array([3.0, 0.0]))
    arm = LeaderArm(leader, joints=[1, 2], max_step=1.0, tolerance=0.25)
    arm.begin_episode(_world(0.0, 0.5))
    assert leader.torque
    np.testing.assert_array_equal(leader.driven[0], [3.0, 0.0])  # torque came on where it was
    ways = []
    for _ in range(4):
        arm.follow(_world(0.0, 0.5))
        ways.append(leader.at.copy())
    np.testing.assert_allclose(ways, [[2, 0.5], [1, 0.5], [0, 0.5], [0, 0.5]])
    arm.follow(_world(-7.0, 7.0))  # from here as far as the follower goes
    np.testing.assert_array_equal(leader.at, [-7.0, 7.0])


def test_the_hand_leads_without_torque_and_gives_back_without_a_jump():
    leader = FakeLeader(1)
    arm = LeaderArm(leader, joints=[1], max_step=1.0, tolerance=0.5)
    arm.begin_episode(_world(0.0))
    arm.follow(_world(0.0))
    arm.take(_world(0.0))
    assert not leader.torque and arm.num_early == 0
    leader.hand(np.array([5.0]))
    assert arm.act(_world(0.0)) == pytest.approx([5.0])
    num_driven = len(leader.driven)
    arm.release(_world(2.0))
    assert leader.torque and len(leader.driven) == num_driven + 1
    np.testing.assert_array_equal(leader.driven[-1], [5.0])
    arm.follow(_world(2.0))
    np.testing.assert_array_equal(leader.at, [4.0])
    arm.take(_world(2.0))  # before they agree
    assert arm.num_early == 1
    arm.close()
    assert leader.closed and not leader.torque


def test_a_leader_of_another_kind_is_refused():
    with pytest.raises(ChunkRLError, match="leader has 3 joints"):
        LeaderArm(FakeLeader(3), joints=[0, 1], max_step=1.0, tolerance=0.5)


# ---- scripted corrector


class _Scene:
    """A full state whose task distance is what the test says: the object's way to the goal."""

    def __init__(self) -> None:
        self.state = np.zeros(len(FULL_STATE), np.float32)

    def at(self, distance: float) -> EnvStep:
        self.state[FULL_STATE.index("goal_x")] = distance
        return EnvStep(state=self.state)


def _corrector(scene: _Scene, **rule) -> ScriptedCorrector:
    return ScriptedCorrector(lambda state: np.full(4, 2.0), lambda: scene.state, CorrectionRule(**rule))


def test_the_task_distance_is_the_hands_way_and_the_objects():
    state = np.zeros(len(FULL_STATE), np.float32)
    state[FULL_STATE.index("object_y")] = 3.0
    state[FULL_STATE.index("goal_y")] = 3.0
    state[FULL_STATE.index("goal_x")] = 4.0
    assert task_distance(state) == pytest.approx(3.0 + 4.0)


def test_a_stalling_policy_is_corrected_for_a_fixed_time():
    scene = _Scene()
    corrector = _corrector(scene, stall_steps=3, progress_m=0.1, correction_steps=3, let_go_steps=1, budget=9)
    corrector.begin_episode(scene.at(1.0))
    wants = [corrector.wants_control(scene.at(d), human=False) for d in (0.95, 0.89, 0.85, 0.84, 0.83)]
    assert wants == [False, False, False, False, True]  # 0.89 was progress, then three steps without
    corrector.take(scene.at(0.83))
    acted = []
    while corrector.wants_control(scene.at(0.5), human=True) and len(acted) < 9:
        acted.append(corrector.act(scene.at(0.5)))
    up_and_open = [0, 0, 1, -1]
    np.testing.assert_array_equal(acted, [up_and_open, [1] * 4, [1] * 4])  # the expert's: clipped to [-1, 1]
    corrector.release(scene.at(0.5))
    assert not corrector.wants_control(scene.at(0.5), human=False) and corrector.num_left == 8


def test_a_deviating_policy_is_corrected_while_the_budget_lasts():
    scene = _Scene()
    corrector = _corrector(scene, deviation_m=0.2, budget=1)
    corrector.begin_episode(scene.at(1.0))
    assert not corrector.wants_control(scene.at(1.15), human=False)
    assert corrector.wants_control(scene.at(1.25), human=False)
    corrector.take(scene.at(1.25))
    corrector.release(scene.at(1.0))
    assert corrector.num_left == 0 and not corrector.wants_control(scene.at(9.0), human=False)


@pytest.mark.parametrize(
    "rule", [{"budget": -1}, {"stall_steps": 0}, {"deviation_m": 0.0}, {"let_go_steps": -1}]
)
def test_rules_that_mean_nothing_are_refused(rule):
    with pytest.raises(ChunkRLError):
        CorrectionRule(**rule)
