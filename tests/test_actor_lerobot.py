"""LeRobot's devices: stand-ins of its interface everywhere, its own SO-100 classes where it is installed."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from actor_fakes import CountingSource, fake_rate

from chunkrl.envs.action_guard import ActionSpace
from chunkrl.envs.robot import RobotEnvironment
from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError
from chunkrl.integration.lerobot_devices import LeRobotLeader, LeRobotRobot, lerobot_robot, make_device
from chunkrl.integration.lerobot_processors import ProcessedDevice, ProcessorFiles, processed
from chunkrl.online.actor.actor import Actor, ActorConfig, Human
from chunkrl.online.actor.executor import ChunkExecutor, ExecutionConfig
from chunkrl.online.human.correctors import Handover, LeaderArm
from chunkrl.online.human.keys import ScriptedKeys
from chunkrl.online.link.records import StepRecord

JOINTS = ("shoulder_pan", "elbow_flex", "gripper")
KEYS = tuple(f"{joint}.pos" for joint in JOINTS)


class _Bus:
    """As a motor bus: goals are reached at once if there is torque."""

    def __init__(self, joints=JOINTS) -> None:
        self.at = dict.fromkeys(joints, 0.0)
        self.torque = False

    def enable_torque(self) -> None:
        self.torque = True

    def disable_torque(self) -> None:
        self.torque = False

    def sync_write(self, register: str, values: dict[str, float]) -> None:
        assert register == "Goal_Position" and set(values) == set(self.at)
        if self.torque:
            self.at.update(values)


class _Device:
    """As `lerobot.robots.Robot` and `lerobot.teleoperators.Teleoperator`."""

    name = "stand_in"

    def __init__(self, cameras=None, max_relative_target=np.inf, calibrated=True) -> None:
        self.bus, self.cameras = _Bus(), cameras or {}
        self.max_relative_target = max_relative_target
        self.is_connected, self.is_calibrated = False, calibrated
        self.action_features: dict[str, type] = dict.fromkeys(KEYS, float)
        self.observation_features = {**self.action_features, **{k: (*s, 3) for k, s in self.cameras.items()}}
        self.feedback_features = {}

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate, "would ask questions on the terminal"
        self.is_connected = True

    def get_action(self) -> dict:
        return {f"{joint}.pos": value for joint, value in self.bus.at.items()}

    def get_observation(self) -> dict:
        return self.get_action() | {k: np.full((*s, 3), 7, np.uint8) for k, s in self.cameras.items()}

    def send_action(self, action: dict) -> dict:
        limit = self.max_relative_target
        now = self.get_action()
        sent = {
            key: float(np.clip(value, now[key] - limit, now[key] + limit)) for key, value in action.items()
        }
        self.bus.at = {key.removesuffix(".pos"): value for key, value in sent.items()}
        return sent

    def send_feedback(self, feedback: dict) -> None:
        raise NotImplementedError

    def disconnect(self) -> None:
        self.is_connected = False


def test_a_robot_is_driven_by_its_own_names():
    device = _Device({"front": (4, 6), "wrist": (2, 2)}, max_relative_target=5.0)
    robot = LeRobotRobot(device)
    assert device.is_connected
    assert (robot.joint_names, dict(robot.cameras)) == (KEYS, {"front": (4, 6), "wrist": (2, 2)})
    np.testing.assert_array_equal(robot.send(np.array([1.0, -9.0, 2.0], np.float32)), [1.0, -5.0, 2.0])
    seen = robot.observe()
    np.testing.assert_array_equal(seen.positions, [1.0, -5.0, 2.0])
    assert seen.positions.dtype == np.float32 and seen.images["front"].shape == (4, 6, 3)
    robot.close()
    robot.close()
    assert not device.is_connected


def test_robots_that_cannot_be_driven_say_why():
    device = _Device()
    device.observation_features = {**device.action_features, "x.vel": float}
    with pytest.raises(ChunkRLError, match=r"x\.vel"):
        LeRobotRobot(device)
    device = _Device(calibrated=False)
    with pytest.raises(ChunkRLError, match="lerobot-calibrate"):
        LeRobotRobot(device)
    assert not device.is_connected
    device = _Device()
    robot = LeRobotRobot(device)
    device.bus.at.pop("gripper")
    with pytest.raises(ChunkRLError, match=r"gives no 'gripper\.pos'"):
        robot.observe()


def test_a_leader_is_driven_over_its_motors_or_by_feedback():
    device = _Device()
    leader = LeRobotLeader(device)
    leader.drive(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(leader.positions(), [0.0, 0.0, 0.0])  # no torque yet
    leader.set_torque(True)
    leader.drive(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(leader.positions(), [1.0, 2.0, 3.0])
    leader.close()
    assert not device.bus.torque and not device.is_connected

    device = _Device()
    device.feedback_features = dict(device.action_features)
    given = []
    device.send_feedback = lambda feedback: given.extend([feedback])
    LeRobotLeader(device).drive(np.array([1.0, 2.0, 3.0]))
    assert given == [dict(zip(KEYS, (1.0, 2.0, 3.0), strict=True))]


def test_two_leader_arms_are_one_leader():
    left, right = _Bus(("pan", "grip")), _Bus(("pan",))
    device = _Device()
    del device.bus
    device.left_arm, device.right_arm = SimpleNamespace(bus=left), SimpleNamespace(bus=right)  # pyright: ignore
    device.action_features = dict.fromkeys(("left_pan.pos", "left_grip.pos", "right_pan.pos"), float)
    leader = LeRobotLeader(device)
    leader.set_torque(True)
    leader.drive(np.array([1.0, 2.0, 3.0]))
    assert (left.at, right.at) == ({"pan": 1.0, "grip": 2.0}, {"pan": 3.0})


def test_what_is_no_leader_arm_is_refused():
    device = _Device()
    del device.bus
    with pytest.raises(ChunkRLError, match="cannot mirror"):
        LeRobotLeader(device)
    device = _Device()
    device.action_features = {"delta_x": float}
    with pytest.raises(ChunkRLError, match="delta_x"):
        LeRobotLeader(device)


def test_without_lerobot_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(MissingExtraError, match=r"\[lerobot\]"):
        lerobot_robot({"type": "so100_follower", "port": "/dev/null"})
    with pytest.raises(ChunkRLError, match="lack `type`"):
        make_device("robots", "RobotConfig", {})


def test_the_actor_runs_a_follower_and_a_leader_of_lerobot():
    follower, leader = _Device({"front": (4, 6)}), _Device()
    rate = fake_rate()
    env = RobotEnvironment(LeRobotRobot(follower), rate, "reach", 30.0, 8)
    bound = np.full(3, 100.0, np.float32)
    items = []
    Actor(
        env,
        ActionSpace.joint_targets(-bound, bound),
        ChunkExecutor(CountingSource(4, 3, 0.1), ExecutionConfig(exec_steps=4, when_dry="wait")),
        items,
        ActorConfig(num_episodes=1),
        Human(
            ScriptedKeys(["2", "", "", "5", "", "1", "2"]),
            LeaderArm(LeRobotLeader(leader), [0, 1, 2], 0.5, 0.2),
            Handover(0.5, 0.2),
        ),
        rate,
    ).run()
    steps = [item for item in items if isinstance(item, StepRecord)]
    assert [step.human for step in steps] == [False, False, True, True]
    # the leader mirrored the follower, so that taking over moves nothing
    np.testing.assert_allclose(steps[2].executed_action, steps[2].state, atol=0.11)
    assert not follower.is_connected and not leader.is_connected


@pytest.mark.lerobot
def test_lerobots_own_so100_is_understood(monkeypatch, tmp_path):
    camera = {"type": "opencv", "index_or_path": 0, "width": 64, "height": 48, "fps": 30}
    settings = {"port": "/dev/none", "id": "a", "calibration_dir": str(tmp_path)}
    device = make_device(
        "robots", "RobotConfig", {"type": "so100_follower", "cameras": {"front": camera}, **settings}
    )
    monkeypatch.setattr(type(device), "is_connected", True)
    robot = LeRobotRobot(device)
    assert robot.name == "so_follower" and len(robot.joint_names) == 6
    assert robot.joint_names[0] == "shoulder_pan.pos" and dict(robot.cameras) == {"front": (48, 64)}
    device = make_device("teleoperators", "TeleoperatorConfig", {"type": "so100_leader", **settings})
    monkeypatch.setattr(type(device), "is_connected", True)
    written = {}
    monkeypatch.setattr(device.bus, "sync_write", lambda register, values: written.update({register: values}))
    LeRobotLeader(device).drive(np.arange(6.0))
    assert written["Goal_Position"]["gripper"] == 5.0 and len(written["Goal_Position"]) == 6
    with pytest.raises(ChunkRLError, match="no 'so999_follower'"):
        make_device("robots", "RobotConfig", {"type": "so999_follower"})
    with pytest.raises(ChunkRLError, match="refuses the settings"):
        make_device("robots", "RobotConfig", {"type": "so100_follower", "prot": "/dev/none"})
    from lerobot.robots import utils  # type: ignore[import-not-found]

    def without_driver(config: object) -> None:
        raise ImportError(
            "'feetech-servo-sdk' is required but not installed"
        )  # as 0.6 says it, without a name

    monkeypatch.setattr(utils, "make_robot_from_config", without_driver)
    with pytest.raises(ChunkRLError, match=r"so100_follower needs its driver, .*feetech-servo-sdk"):
        make_device("robots", "RobotConfig", {"type": "so100_follower", **settings})


class _SeenDevice(_Device):
    """A stand-in whose scalars are where its motors are, with one image."""

    def get_observation(self) -> dict:
        pictures = {name: np.zeros((*size, 3), np.uint8) for name, size in self.cameras.items()}
        return {f"{joint}.pos": value for joint, value in self.bus.at.items()} | pictures

    def send_action(self, action: dict) -> dict:
        self.bus.at = {name.removesuffix(".pos"): value for name, value in action.items()}
        return action


def test_a_robot_behind_pipelines_is_the_robot_that_they_make_of_it():
    """Degrees to radians on the way in, back on the way out; names too."""
    device = _SeenDevice({"front": (4, 6)})
    seen_with: list[dict] = []

    def observation(raw: dict) -> dict:
        angles = {f"{k[:-4]}.rad": np.deg2rad(v) for k, v in raw.items() if k.endswith(".pos")}
        return {**angles, "scene": raw["front"]}

    def action(pair: tuple[dict, dict]) -> dict:
        wanted, raw = pair
        seen_with.append(raw)
        return {f"{k[:-4]}.pos": np.rad2deg(v) for k, v in wanted.items()}

    robot = LeRobotRobot(ProcessedDevice(device, observation, action))
    assert robot.joint_names == tuple(f"{joint}.rad" for joint in JOINTS)
    assert dict(robot.cameras) == {"scene": (4, 6)}
    robot.observe()
    targets = np.array([0.5, -1.0, 0.25], np.float32)
    np.testing.assert_array_equal(robot.send(targets), targets)
    np.testing.assert_allclose(list(device.bus.at.values()), np.rad2deg(targets), rtol=1e-6)
    assert set(seen_with[0]) == {*KEYS, "front"}  # the newest raw observation
    np.testing.assert_allclose(robot.observe().positions, targets, rtol=1e-6)
    robot.close()
    assert not device.is_connected


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (lambda raw: raw | {"front": raw["front"] / 255.0}, None, "stay uint8"),
        (lambda raw: raw | {"state": np.zeros(3)}, None, "3 values"),
        (lambda raw: {"front": raw["front"]}, None, "observes"),
        (None, lambda pair: {"x": 1.0}, "no 'elbow_flex.pos'"),
    ],
)
def test_pipelines_that_make_no_robot_are_refused(observation, action, message):
    device = _SeenDevice({"front": (4, 6)})
    with pytest.raises(ChunkRLError, match=message):
        LeRobotRobot(ProcessedDevice(device, observation, action)).send(np.zeros(3, np.float32))
    assert device.is_connected == (action is not None)


def test_pipelines_that_cannot_be_read_say_so(monkeypatch, tmp_path):
    with pytest.raises(ChunkRLError, match="no processor pipeline"):
        processed(_SeenDevice(), ProcessorFiles(action=str(tmp_path / "none.json")))
    (tmp_path / "some.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "lerobot", None)
    monkeypatch.setitem(sys.modules, "lerobot.processor", None)
    with pytest.raises(MissingExtraError, match=r"\[lerobot\]"):
        processed(_SeenDevice(), ProcessorFiles(action=str(tmp_path / "some.json")))


@pytest.mark.lerobot
def test_pipelines_that_lerobot_saved_are_applied(tmp_path):
    import lerobot.processor as lerobot  # type: ignore[import-not-found]
    from lerobot.processor import converters  # type: ignore[import-not-found]

    @lerobot.ProcessorStepRegistry.register("chunkrl_test_offset")
    class Offset(lerobot.RobotActionProcessorStep):
        """Adds to every target."""

        def __init__(self, offset: float = 0.0) -> None:
            self.offset = offset

        def action(self, action: dict) -> dict:
            return {name: value + self.offset for name, value in action.items()}

        def get_config(self) -> dict:
            return {"offset": self.offset}

        def transform_features(self, features: dict) -> dict:
            return features

    names = {"front": "scene"}
    lerobot.RobotProcessorPipeline(
        steps=[lerobot.RenameObservationsProcessorStep(rename_map=names)],
        to_transition=converters.observation_to_transition,
        to_output=converters.transition_to_observation,
    ).save_pretrained(tmp_path, config_filename="observation.json")
    lerobot.RobotProcessorPipeline(
        steps=[Offset(2.5)],
        to_transition=converters.robot_action_observation_to_transition,
        to_output=converters.transition_to_robot_action,
    ).save_pretrained(tmp_path, config_filename="action.json")
    device = _SeenDevice({"front": (4, 6)})
    files = ProcessorFiles(str(tmp_path / "observation.json"), str(tmp_path / "action.json"))
    robot = LeRobotRobot(processed(device, files))
    assert robot.joint_names == KEYS and dict(robot.cameras) == {"scene": (4, 6)}
    robot.observe()
    robot.send(np.array([1.0, 2.0, 3.0], np.float32))
    assert list(device.bus.at.values()) == [3.5, 4.5, 5.5]
    (tmp_path / "action.json").write_text('{"steps": [{"class": "no.such.Step"}]}')
    with pytest.raises(ChunkRLError, match="cannot read"):
        processed(device, files)
