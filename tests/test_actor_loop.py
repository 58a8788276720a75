"""The actor's loop end to end: on a fake robot with a leader arm, and on MetaWorld with the scripted corrector."""

import io
import os
import signal

import numpy as np
import pytest
from actor_fakes import CountingSource, fake_rate, robot_rig

from chunkrl.envs.action_guard import ActionSpace
from chunkrl.envs.fake_robot import FakeLeader, FakeRobot
from chunkrl.envs.metaworld import FULL_STATE, MetaWorldEnv
from chunkrl.envs.metaworld_family import MetaWorldFamily
from chunkrl.envs.protocol import EnvStep
from chunkrl.envs.robot import Home, PacedEnvironment, RobotEnvironment, RobotState
from chunkrl.errors import ChunkRLError
from chunkrl.online.actor.actor import Actor, ActorConfig, Human
from chunkrl.online.actor.executor import ChunkExecutor, ExecutionConfig
from chunkrl.online.actor.policy_runner import PolicyChunk
from chunkrl.online.actor.recorder import ItemSpool, stream_spec
from chunkrl.online.human.correctors import Handover, LeaderArm, ScriptedCorrector
from chunkrl.online.human.intervention import Corrector
from chunkrl.online.human.keys import ScriptedKeys
from chunkrl.online.link.config import CorrectionRule
from chunkrl.online.link.records import EpisodeSummary, Item, StepRecord
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.wire import decode_item
from chunkrl.online.status import ActorStatus, StatusLine

START = ("2", "")


class _Session:
    """An actor on a fake robot of 3 joints whose policy goes up by 0.1 per step; `keys`: one entry a poll. There is
    a poll after the world was reset (`*START`), and one per step."""

    def __init__(
        self, keys, leader: FakeLeader | None = None, source=None, limit=np.inf, confirm=True, **config
    ):
        self.arm, self.env, space, rate = robot_rig(
            3, max_steps=6, limit=limit, cameras={"front": (4, 5), "wrist.left": (2, 2)}
        )
        self.source = source or CountingSource(4, 3, scale=0.1)
        execution = ExecutionConfig(exec_steps=3, prefetch_steps=1, when_dry="wait")
        corrector: Corrector | None = None
        if leader is not None:
            corrector = LeaderArm(leader, [0, 1, 2], max_step=0.5, tolerance=0.2)
        self.items: list[Item] = []
        self.statuses = []
        self.keys = _Keys(keys)
        human = Human(self.keys, corrector, None if leader is None else Handover(0.5, 0.2))
        self.actor = Actor(
            self.env,
            space,
            ChunkExecutor(self.source, execution),
            self.items,
            ActorConfig(actor_id="arm-1", confirm=confirm, **config),
            human,
            rate,
            self.statuses.append,
        )

    def episodes(self) -> list[tuple[list[StepRecord], EpisodeSummary]]:
        """What was recorded, checked for order and against the stream's description."""
        spec = stream_spec(self.env, EnvStep(np.zeros(3), {"observation.images.front": np.zeros((4, 5, 3))}))
        assert dict(spec.cameras) == {"front": (4, 5)}
        episodes, steps = [], []
        for item in self.items:
            if isinstance(item, StepRecord):
                assert item.step_index == len(steps) and set(item.images) == {"front", "wrist.left"}
                steps.append(item)
                continue
            assert {step.episode_id for step in steps} == {item.episode_id} and item.num_steps == len(steps)
            assert item.total_reward == pytest.approx(sum(step.reward for step in steps))
            assert not any(step.done for step in steps[:-1]) and steps[-1].done
            episodes.append((steps, item))
            steps = []
        assert not steps, "steps without a summary"
        return episodes


class _Keys(ScriptedKeys):
    closed = False

    def close(self) -> None:
        self.closed = True


def test_an_episode_of_the_policy_is_recorded_step_by_step():
    session = _Session([*START, "", "", "1", "2", "q"], num_episodes=1)
    summary = session.actor.run()
    [(steps, end)] = session.episodes()
    assert (end.outcome, end.num_steps, end.total_reward, end.num_interventions) == ("success", 3, 1.0, 0)
    executed = np.array([step.executed_action[0] for step in steps])
    np.testing.assert_allclose(executed, [0.0, 0.1, 0.2], atol=1e-6)
    np.testing.assert_allclose(
        [step.state[0] for step in steps], [0.0, 0.0, 0.1], atol=1e-6
    )  # before the action
    assert [(s.reward, s.success, s.terminated, s.truncated) for s in steps] == [
        (0.0, False, False, False),
        (0.0, False, False, False),
        (1.0, True, True, False),
    ]
    assert (summary.num_episodes, summary.num_success, summary.num_steps) == (1, 1, 3)
    assert summary.jitter is not None and summary.jitter.num_ticks == 3
    assert session.arm.closed and session.keys.closed
    assert {s.phase for s in session.statuses} >= {"waiting", "policy", "ended: success"}


def test_the_time_limit_truncates_and_a_human_may_still_say_what_it_was():
    for keys, outcome, flags in (
        ([*START, *" " * 6, "2"], "timeout", (0.0, False, False, True)),
        ([*START, *" " * 6, "1", "2"], "success", (1.0, True, True, False)),
        ([*START, *" " * 6, "1", "0", "2"], "failure", (0.0, False, True, False)),
    ):
        session = _Session(keys, num_episodes=1)
        session.actor.run()
        [(steps, end)] = session.episodes()
        assert (end.outcome, end.num_steps) == (outcome, 6)
        last = steps[-1]
        assert (last.reward, last.success, last.terminated, last.truncated) == flags


def test_an_own_time_limit_truncates_too():
    session = _Session([], confirm=False, num_episodes=2, max_steps=4)
    assert session.actor.run().num_steps == 8
    assert [end.outcome for _, end in session.episodes()] == ["timeout"] * 2
    acting = [status for status in session.statuses if status.phase == "policy"]
    # nobody confirms an end, which is on the screen for an instant: how the last one ended stays
    assert [status.last for status in acting] == [""] * 3 + ["truncated"] * 3, acting


def test_an_episode_recorded_again_is_discarded_and_starts_from_the_same_seed():
    session = _Session([*START, "", "r", *START, "", "1", "r", *START, "1", "2"], num_episodes=1)
    summary = session.actor.run()
    assert [end.outcome for _, end in session.episodes()] == ["discarded", "discarded", "success"]
    assert (summary.num_episodes, summary.num_discarded, summary.num_steps) == (1, 2, 1)
    firsts = [session.source.seeds[i] for i in session.source.begun]
    assert len(firsts) == 3 and len(set(firsts)) == 1


def shown(session: _Session) -> list[tuple[str, str]]:
    """Phase and keys as they were shown, without repetitions."""
    found = [(status.phase, status.hint) for status in session.statuses]
    return [one for i, one in enumerate(found) if i == 0 or one != found[i - 1]]


def test_phase_and_keys_agree_also_after_an_episode_that_is_recorded_again():
    acting = ("policy", "1 success, 0 failure, r again, q quit")  # nobody is there to take over
    again = ("ended: discarded", "2 record again, 1 keep as success, 0 keep as failure, q quit without it")
    resetting = ("resetting", "q quit")
    session = _Session([*START, "", "r", "", *START, "", "1", "", "2"], num_episodes=1)
    session.actor.run()
    ended = ("ended: success", "2 keep and next, 1 success, 0 failure, r again, q keep and quit")
    assert shown(session) == [
        ("waiting", "2 start, q quit"),
        resetting,
        acting,
        again,
        resetting,
        acting,
        ended,
    ]
    # an episode that ended keeps the number of its steps while its verdict may change
    assert {status.step for status in session.statuses if status.phase.startswith("ended")} == {2}


def test_episodes_are_numbered_over_restarts():
    session = _Session([], confirm=False, num_episodes=2, first_episode=5)
    session.actor.run()
    assert {status.episode for status in session.statuses} == {6, 7}


def test_with_somebody_to_take_over_the_keys_say_so():
    session = _Session([*START, "5", "5", "1", "2"], FakeLeader(3), num_episodes=1)
    session.actor.run()
    told = dict(shown(session))
    assert told["policy"].startswith("5 take over,") and told["human"].startswith("5 give back,")


def test_quitting_without_an_episode_that_was_to_be_recorded_again():
    session = _Session([*START, "", "r", "q"], num_episodes=3)
    summary = session.actor.run()
    assert (summary.num_episodes, summary.num_discarded) == (0, 1)


def test_what_is_pressed_while_the_world_is_reset_is_no_verdict():
    session = _Session(["2", "r15", "", "1", "2"], num_episodes=1)  # pressed before anything was seen
    summary = session.actor.run()
    assert [end.outcome for _, end in session.episodes()] == ["success"] and summary.num_discarded == 0
    gone = _Session(["2", "q"], num_episodes=1)
    assert gone.actor.run().num_episodes == 0 and gone.items == []


def test_while_the_learner_is_waited_for_no_key_starts_an_episode():
    session = _Session(["2", "2", "", *START, "1", "2"], num_episodes=1)
    answers = iter([False, False, True])
    session.actor._ready = lambda: next(answers)
    session.actor.run()
    assert shown(session)[:3] == [("waiting", "2 start, q quit"), ("held", "q quit"), ("resetting", "q quit")]


def test_quitting_keeps_the_running_episode_as_truncated():
    session = _Session([*START, "", "q"])
    summary = session.actor.run()
    [(steps, end)] = session.episodes()
    assert (end.outcome, len(steps), summary.num_episodes) == ("timeout", 2, 1)
    assert steps[-1].truncated
    nothing = _Session(["q"])
    assert nothing.actor.run().num_episodes == 0 and nothing.items == []


def test_a_leader_arm_takes_over_and_gives_back_without_a_jump():
    leader = FakeLeader(3, np.full(3, 2.0))

    class Hand(_Keys):
        """Moves the leader while it is free."""

        def poll(self) -> str:
            if not leader.torque:
                leader.hand(np.full(3, 1.0))
            return super().poll()

    session = _Session([], leader, num_episodes=1)
    session.actor._keys = Hand([*START, "5", "", "", "", "5", "1", "2"])
    summary = session.actor.run()
    [(steps, end)] = session.episodes()
    assert [step.human for step in steps] == [False] + [True] * 4 + [False]
    assert (end.num_interventions, summary.num_human) == (1, 4)
    executed = np.array([step.executed_action for step in steps])
    jumps = np.abs(np.diff(executed, axis=0)).max(axis=1)
    assert jumps.max() <= 0.5 + 1e-6
    # the leader was driven from 2.0 to 1.5 before the hand took it, and is at 1.0 from its first poll on
    np.testing.assert_allclose(executed[1:5, 0], [0.5, 1.0, 1.0, 1.0], atol=1e-6)
    for step in steps:
        if step.human:
            np.testing.assert_array_equal(step.proposed_action, step.executed_action)
    assert leader.closed


def test_what_cannot_be_sent_is_held_and_counted():
    class Faulty(CountingSource):
        def act(self, step, seed):
            chunk = super().act(step, seed).actions.copy()
            chunk[1, 2], chunk[2] = np.nan, 250.0
            return PolicyChunk(chunk, 0)

    session = _Session([], source=Faulty(4, 3, scale=0.1), confirm=False, num_episodes=1, max_steps=3)
    summary = session.actor.run()
    [(steps, _)] = session.episodes()
    assert [step.held for step in steps] == [False, True, False]
    np.testing.assert_array_equal(steps[1].executed_action, steps[0].executed_action)
    np.testing.assert_array_equal(steps[1].proposed_action, steps[1].executed_action)
    np.testing.assert_array_equal(steps[2].proposed_action, [250.0] * 3)
    np.testing.assert_array_equal(steps[2].executed_action, [100.0] * 3)
    assert (summary.num_held, summary.num_clipped) == (1, 3)
    [fault] = summary.faults
    assert (fault.episode, fault.step) == (0, 1) and "NaN" in fault.message


def test_what_the_robot_made_of_an_action_is_what_was_executed():
    session = _Session([], limit=0.03, confirm=False, num_episodes=1, max_steps=3)
    session.actor.run()
    [(steps, _)] = session.episodes()
    np.testing.assert_allclose([s.executed_action[0] for s in steps], [0.0, 0.03, 0.06], atol=1e-6)
    np.testing.assert_allclose([s.proposed_action[0] for s in steps], [0.0, 0.1, 0.2], atol=1e-6)


def test_every_step_says_which_weights_made_its_chunk():
    source = CountingSource(4, 3, scale=0.1)
    session = _Session([], source=source, confirm=False, num_episodes=1)
    run = source.act

    def act(step: EnvStep, seed: int) -> PolicyChunk:
        chunk = run(step, seed)
        source.version += 1
        return chunk

    source.act = act
    session.actor.run()
    [(steps, _)] = session.episodes()
    assert [step.policy_version for step in steps] == [0, 0, 0, 1, 1, 1]


def test_a_signal_ends_the_session_in_order_and_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    session = _Session([], confirm=False)

    def show(status):
        if status.episode == 2 and status.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    session.actor._show = show
    summary = session.actor.run()
    assert [end.num_steps for _, end in session.episodes()] == [
        6,
        4,
    ]  # kept, truncated after the step under way
    assert summary.num_episodes == 2 and session.arm.closed
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_robot_that_fails_leaves_an_unfinished_episode_and_everything_closed():
    leader = FakeLeader(3)
    session = _Session([], leader, confirm=False)

    def lost(targets):
        raise OSError("motor 3 does not answer")

    def show(status):
        if status.step == 3:
            session.arm.send = lost

    session.actor._show = show
    with pytest.raises(OSError, match="motor 3"):
        session.actor.run()
    assert len(session.items) == 2 and all(isinstance(item, StepRecord) for item in session.items)
    assert session.arm.closed and session.keys.closed and leader.closed


def test_actors_that_could_jump_or_do_not_fit_are_refused():
    _, env, space, rate = robot_rig(3)
    executor = ChunkExecutor(CountingSource(4, 3), ExecutionConfig(exec_steps=4))
    corrector = LeaderArm(FakeLeader(3), [0, 1, 2], 0.5, 0.2)
    with pytest.raises(ChunkRLError, match="Handover"):
        Actor(env, space, executor, [], ActorConfig(), Human(corrector=corrector), rate)
    with pytest.raises(ChunkRLError, match="limits for 4"):
        Actor(env, ActionSpace.simulator(4), executor, [], ActorConfig())
    executor.close()


def test_what_the_actor_records_is_what_its_spool_takes(tmp_path):
    session = _Session([*START, "", "r", *START, "", "", "1", "2"], num_episodes=1)
    step = session.env.reset(seed=0)
    spec = stream_spec(session.env, step, session.env.state_names, session.env.action_names)
    with Spool(tmp_path / "spool") as spool:
        session.actor._sink = ItemSpool(spool, "arm-1", spec)
        assert session.actor.run().num_episodes == 1
        kept = [decode_item(payload) for payload in spool.read(0, max_bytes=1_000_000)]
    outcomes = [item.outcome for item in kept if isinstance(item, EpisodeSummary)]
    assert outcomes == ["discarded", "success"] and len(kept) == 2 + 2 + 3


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_status_is_one_line_of_a_terminal_and_few_lines_of_a_file():
    def status(step: int, phase: str = "policy") -> ActorStatus:
        return ActorStatus(2, step, phase, 29.96, 7, 1, 4, "q quit")

    file = io.StringIO()
    line = StatusLine(file, note=lambda: [("learner", "3 behind")])
    for step in range(5):
        line(status(step))
    line(status(5, "human"))
    line.close()
    assert file.getvalue() == (
        "episode 2 step 0 | policy | 30.0 Hz | policy v7 | 1 interventions | queue 4 | q quit | learner 3 behind\n"
        "episode 2 step 5 | human | 30.0 Hz | policy v7 | 1 interventions | queue 4 | q quit | learner 3 behind\n"
    )
    terminal = _Terminal()
    line = StatusLine(terminal)
    for phase in ("policy", "human"):
        line(status(1, phase))
    line.close()
    shown = terminal.getvalue()
    assert shown.count("\r") == 2 and shown.count("\n") == 1 and shown.endswith("\x1b[K\n")


# ---- robots


def test_a_robot_goes_home_slowly_and_says_when_it_cannot():
    robot = FakeRobot(2)
    robot.positions = np.array([1.0, -0.5], np.float32)
    home = Home((0.0, 0.0), max_step=0.25, tolerance=0.01)
    env = RobotEnvironment(robot, fake_rate(), "reach", 30.0, 10, home)
    assert env.reset(seed=0).state == pytest.approx([0.0, 0.0])
    sent = np.array([[1.0, -0.5], *robot.sent])
    assert len(robot.sent) == 4 and np.abs(np.diff(sent, axis=0)).max() <= 0.25 + 1e-6
    stuck = RobotEnvironment(
        FakeRobot(2, limit=0.0), fake_rate(), "reach", 30.0, 10, Home((9.0, 0.0), 1.0, 0.1, 5)
    )
    with pytest.raises(ChunkRLError, match=r"joint_0 is at 0, home is 9"):
        stuck.reset(seed=0)
    with pytest.raises(ChunkRLError, match="home has 1"):
        RobotEnvironment(FakeRobot(2), fake_rate(), "reach", 30.0, 10, Home((9.0,), 1.0, 0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_step": -1.0}, r"home.max_step is -1.0; it must be above 0"),
        ({"max_step": np.inf}, "home.max_step is inf"),
        ({"tolerance": -0.1}, "home.tolerance is -0.1; it must be at least 0"),
        ({"tolerance": np.nan}, "home.tolerance is nan"),
        ({"timeout_steps": 0}, "home.timeout_steps is 0; it must be at least 1"),
        ({"positions": (0.0, np.nan)}, "home.positions are .*: give a finite number for each joint"),
    ],
)
def test_a_home_that_no_robot_can_go_to_is_refused(settings, message):
    with pytest.raises(ChunkRLError, match=message):
        Home(**{"positions": (0.0, 0.0), "max_step": 0.5, "tolerance": 0.1} | settings)


def test_on_the_way_home_nothing_outside_the_limits_is_sent():
    limits = np.array([-1.0, -1.0], np.float32), np.array([0.1, 1.0], np.float32)

    def environment(home: Home, *positions: float) -> tuple[RobotEnvironment, FakeRobot]:
        robot = FakeRobot(2)
        robot.positions = np.array(positions, np.float32)
        return RobotEnvironment(robot, fake_rate(), "reach", 30.0, 10, home, limits), robot

    home = Home((0.1, 1.0), max_step=0.25, tolerance=0.01)  # on the limits, whatever float32 makes of them
    env, robot = environment(home, -1.2, 0.4)  # outside, as a resting arm may be
    assert env.reset(seed=0).state == pytest.approx([0.1, 1.0])
    sent = np.array([[-1.2, 0.4], *robot.sent], np.float32)
    assert (sent[1:] >= limits[0]).all() and (sent[1:] <= limits[1]).all() and len(sent) > 2
    assert np.abs(np.diff(sent, axis=0)).max() <= 0.25 + 1e-6
    robot.positions = np.array([0.1, -1.4], np.float32)  # it sagged from where it was told to be
    env.reset(seed=0)
    assert robot.sent[len(sent) - 1] == pytest.approx([0.1, -1.0])
    env, robot = environment(home, 0.0, 1.3)
    with pytest.raises(
        ChunkRLError, match=r"joint_1 is at 1.3, outside its limits \[-1, 1\].*would jump: move it"
    ):
        env.reset(seed=0)
    env, broken = environment(home, np.nan, 0.0)
    with pytest.raises(ChunkRLError, match=r"reports the joint positions .*nan.*check its connection"):
        env.reset(seed=0)
    assert robot.sent == broken.sent == []
    with pytest.raises(
        ChunkRLError, match=r"home.positions\[0\] is -9, beyond low -1.*move home inside, or widen"
    ):
        environment(Home((-9.0, 0.0), 0.25, 0.01), 0.0, 0.0)


def test_a_robot_that_reports_nonsense_is_not_driven():
    robot = FakeRobot(2, cameras={"front": (4, 4)})
    env = RobotEnvironment(robot, fake_rate(), "reach", 30.0, 10)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="finite joint targets"):
        env.step(np.array([np.nan, 0.0]))
    assert robot.sent == []
    for seen, message in (
        (RobotState(np.zeros(2, np.float32)), "camera 'front' of fake_robot gives no image"),
        (
            RobotState(np.zeros(2, np.float32), {"front": np.zeros((2, 4, 3), np.uint8)}),
            r"\(2, 4, 3\), declared",
        ),
        (RobotState(np.array([np.nan, 0.0], np.float32)), "joint positions"),
    ):
        robot.observe = lambda seen=seen: seen
        with pytest.raises(ChunkRLError, match=message):
            env.reset(seed=0)


# ---- MetaWorld


class _Idle:
    """A policy that does nothing useful: small noise."""

    action_horizon, action_dim, version = 10, 4, 0

    def begin_episode(self) -> None:
        pass

    def act(self, step: EnvStep, seed: int) -> PolicyChunk:
        noise = 0.1 * np.random.default_rng(seed).standard_normal((self.action_horizon, self.action_dim))
        return PolicyChunk(noise.astype(np.float32), self.version)


def _metaworld_session(budget: int, paced: bool = False) -> tuple[list[Item], list[float]]:
    pytest.importorskip("metaworld")
    env = MetaWorldEnv("push-v3", max_steps=120)
    rule = CorrectionRule(budget=budget, stall_steps=5, correction_steps=75)
    corrector = ScriptedCorrector.of(MetaWorldFamily().correction(env), rule)
    rate = fake_rate(80.0)
    items: list[Item] = []
    execution = ExecutionConfig(exec_steps=5, prefetch_steps=2, when_dry="wait")
    actor = Actor(
        PacedEnvironment(env, rate) if paced else env,
        ActionSpace.simulator(4),
        ChunkExecutor(_Idle(), execution),
        items,
        ActorConfig(num_episodes=2, confirm=False, seed=3),
        Human(corrector=corrector),
        rate if paced else None,
    )
    summary = actor.run()
    assert summary.num_episodes == 2
    return items, [summary.num_success, summary.num_interventions, summary.num_human]


def test_the_scripted_corrector_brings_an_idle_policy_to_success_within_its_budget():
    items, (num_success, num_interventions, num_human) = _metaworld_session(budget=6)
    assert num_success == 2 and 2 <= num_interventions <= 6
    steps = [item for item in items if isinstance(item, StepRecord)]
    assert sum(step.human for step in steps) == num_human
    assert steps[0].state.shape == (len(FULL_STATE),) and not steps[0].human
    paced, numbers = _metaworld_session(budget=6, paced=True)
    assert numbers == [num_success, num_interventions, num_human]  # one trajectory, whatever the clock
    theirs = [item for item in paced if isinstance(item, StepRecord)]
    for ours, other in zip(steps, theirs, strict=True):
        np.testing.assert_array_equal(ours.state, other.state)
        np.testing.assert_array_equal(ours.executed_action, other.executed_action)


def test_without_budget_nobody_helps():
    items, numbers = _metaworld_session(budget=0)
    assert numbers == [0, 0, 0]
    assert [item.outcome for item in items if isinstance(item, EpisodeSummary)] == ["timeout"] * 2
