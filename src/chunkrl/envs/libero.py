"""LIBERO (extra `libero`): 130 manipulation tasks of a Franka arm, with the conventions of openpi and LeRobot.

State [8]: position of the gripper (m, world frame), its orientation as axis times angle (rad), the two finger joints
(m). Action [7] in [-1, 1]: changes of position (1: 5 cm) and orientation (1: 0.5 rad) of the controller's target, and
the gripper: -1 opens, +1 closes. 20 actions per second. After a reset 10 actions without motion let the objects
settle. Images are rotated by 180 degrees. An episode ends at success, by the task's own predicate, or after
`max_steps`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np

from chunkrl.envs.libero_contacts import Contacts
from chunkrl.envs.libero_control import ArmControl
from chunkrl.envs.libero_objects import PRIVILEGED_NAMES, PrivilegedState
from chunkrl.envs.libero_package import import_libero
from chunkrl.envs.libero_tasks import NUM_INITIAL_STATES, InitialStates, find_task, initial_states
from chunkrl.envs.offscreen import OffscreenRenderer, Rendering
from chunkrl.envs.protocol import EnvStep
from chunkrl.envs.software_geometry import import_mujoco
from chunkrl.errors import ChunkRLError

STATE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right")
ACTION_NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
STATES: dict[str, tuple[str, ...]] = {"full": STATE_NAMES, "privileged": (*STATE_NAMES, *PRIVILEGED_NAMES)}
LiberoState = Literal["full", "privileged"]
STATE_DIM, ACTION_DIM = len(STATE_NAMES), len(ACTION_NAMES)
FPS = 20.0
SIMULATOR_CAMERAS = ("agentview", "robot0_eye_in_hand")
# What data sets and policies call the two: LeRobot's names, and openpi's.
CAMERAS = ("observation.images.image", "observation.images.image2")
OPENPI_CAMERAS = ("image", "wrist_image")
NUM_SETTLING_STEPS = 10
ARM_NOISE_RAD = 0.02  # of the joints, robosuite's default, with which the official states were made
# Of the 25 physics steps of an action: robosuite's sensors are read after the last but one, because their clocks run
# ahead by the two readings that a reset and the setting of an initial state force.
OBSERVED_SUBSTEP = 23
NO_MOTION = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float64)
PUBLIC_CAMERA_SIZE = 256  # of openpi's and LeRobot's data sets; policies scale the images themselves
VIDEO_SIZE = 256


class LiberoEnv:
    """One LIBERO task behind `chunkrl.envs.protocol.Environment`."""

    action_dim = ACTION_DIM
    fps = FPS

    def __init__(
        self,
        name: str,
        max_steps: int | None = None,
        camera_size: int = 0,
        cameras: tuple[str, ...] = CAMERAS,
        rendering: Rendering = "default",
        initial: InitialStates = "official",
        state: LiberoState = "full",
    ) -> None:
        """
        Args:
            name: `suite/number`, e.g. `libero_spatial/3`.
            max_steps: time limit, steps, settling not counted; default: the suite's.
            camera_size: side of the images, pixels; 0: no camera, and no rendering context.
            cameras: names of the outer and the wrist camera in `EnvStep.images`.
            rendering: `default` as robosuite draws; `fast` without shadows, reflections and multisampling.
            initial: `official`: `reset(i)` starts in the official initial state i (0 to 49), for evaluation;
                `sampled`: `reset(seed)` draws placements from the regions of the task's definition, for training
                data, which so does not hold the states that are evaluated.
            state: `full`, the field's eight entries; `privileged`: also where object and target are (only for tasks
                that put one object in one place), for policies without cameras.

        Raises:
            ChunkRLError: no such task, missing assets, no OpenGL, or a second environment with cameras in a process.
            MissingExtraError: LIBERO is not installed.
        """
        task = find_task(name)
        for what, value, known in (
            ("rendering", rendering, get_args(Rendering)),
            ("initial", initial, get_args(InitialStates)),
            ("state", state, tuple(STATES)),
        ):
            if value not in known:
                raise ChunkRLError(f"{what} is {value!r}; LIBERO's tasks have {' and '.join(known)}")
        if camera_size < 0:
            raise ChunkRLError(f"camera_size is {camera_size}; it must be 0 (no camera) or a side in pixels")
        if len(cameras) != len(SIMULATOR_CAMERAS):
            raise ChunkRLError(
                f"LIBERO has the cameras {' and '.join(SIMULATOR_CAMERAS)}; {len(cameras)} names are given for "
                f"them: {cameras}"
            )
        self.name, self.task = task.name, task.text
        self.max_steps = task.max_steps if max_steps is None else max_steps
        self.num_initial_states = NUM_INITIAL_STATES if initial == "official" else None
        self.cameras = cameras if camera_size else ()
        self._camera_size = camera_size
        self._rendering: Rendering = rendering
        self._official = initial_states(task) if initial == "official" else None
        self.domain, self._randomization_error = _build(task)
        self._mujoco = import_mujoco()
        self._control = ArmControl(self.domain)
        Contacts(self.domain)
        self.state_dim = len(STATES[state])
        self._privileged = PrivilegedState(self.domain) if state == "privileged" else None
        self._renderer: OffscreenRenderer | None = None
        self._num_steps = 0
        robot = self.domain.robots[0]
        self._hand = self.domain.sim.model.body_name2id(robot.robot_model.eef_name)
        if camera_size:
            self._make_renderer()

    @property
    def mujoco(self):
        """(MjModel, MjData), for renderers and experts."""
        return self.domain.sim.model._model, self.domain.sim.data._data

    def reset(self, seed: int) -> EnvStep:
        """Starts the episode of initial state `seed` (`official`: 0 to 49), whatever ran before.

        LIBERO places fixtures (cabinet, stove) again at every reset and keeps their place in no initial state: `seed`
        determines it as well.

        Raises:
            ChunkRLError: no such official initial state.
        """
        if self._official is not None and not 0 <= seed < len(self._official):
            raise ChunkRLError(
                f"{self.name} has the official initial states 0 to {len(self._official) - 1}, not {seed}"
            )
        return self.reset_to(None if self._official is None else self._official[seed], seed)

    def reset_to(self, state: np.ndarray | None, seed: int = 0, settle: bool = True) -> EnvStep:
        """Starts from a state of the whole scene, float [1 + nq + nv] (time, positions, velocities); None: as placed.

        seed: of the placement of objects and fixtures; a state holds no fixtures. settle: with the actions without
        motion that follow a reset; else the state goes on. Raises ChunkRLError for a state of another scene.
        """
        model = self.mujoco[0]
        if state is not None and state.shape != (1 + model.nq + model.nv,):
            raise ChunkRLError(
                f"a state of {self.name} has {1 + model.nq + model.nv} values, not {list(state.shape)}: it is of "
                "another task"
            )
        with _seeded(seed):
            while True:
                self._fixtures_to_origin()
                try:
                    self.domain.reset()
                    break
                except self._randomization_error:  # no placement without overlap was found: draw again
                    continue
            if state is None:
                joints = self.domain.robots[0]._ref_joint_pos_indexes
                self.mujoco[1].qpos[joints] += np.random.normal(0.0, ARM_NOISE_RAD, len(joints))
        self._control.begin()
        if state is not None:
            self.domain.sim.set_state_from_flattened(state)
        self.domain.sim.forward()
        if self._renderer is not None:
            for camera in self._camera_ids:
                self._renderer.check(self.mujoco[1], camera, self._camera_size)
        if settle:
            for _ in range(NUM_SETTLING_STEPS - 1):
                self._advance(NO_MOTION, draw=False)
            observed = self._advance(NO_MOTION, draw=True)
        else:
            self._control.hold()
            observed = {"state": self._state(), "images": self._pictures()}
        self._num_steps = 0
        return EnvStep(**observed)

    def _fixtures_to_origin(self) -> None:
        """Puts fixtures where they are in a model that was just built: LIBERO's sampler places what lies in a drawer
        or on a cabinet by where the model has its regions, and takes the fixtures for unplaced."""
        model = self.mujoco[0]
        for name, fixture in self.domain.fixtures_dict.items():
            body, root = self.domain.obj_body_id[name], fixture.get_obj()
            model.body_pos[body] = np.array(root.get("pos", "0 0 0").split(), dtype=float)
            model.body_quat[body] = np.array(root.get("quat", "1 0 0 0").split(), dtype=float)

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        """One action, 1/20 s; reward 1 at success, else 0. Without `draw` there are no images."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise ValueError(f"{self.name} takes {ACTION_DIM} finite action values, got {action}")
        observed = self._advance(np.clip(action, -1.0, 1.0), draw)
        self._num_steps += 1
        success = bool(self.domain._check_success())
        return EnvStep(
            **observed,
            reward=float(success),
            success=success,
            terminated=success,
            truncated=not success and self._num_steps >= self.max_steps,
        )

    def _advance(self, action: np.ndarray, draw: bool) -> dict[str, Any]:
        """robosuite's `step`, number for number, with one pass of MuJoCo through the scene where it makes three.

        robosuite computes positions and velocities before the controller, again in the controller, and a third time
        when it steps. MuJoCo's step comes in two halves for controllers that need the first one's results.

        Returns `state` and `images` of an EnvStep, seen where robosuite's observables see them.
        """
        domain, (model, data) = self.domain, self.mujoco
        observed: dict[str, Any] = {}
        for substep in range(round(domain.control_timestep / domain.model_timestep)):
            self._mujoco.mj_step1(model, data)
            self._control.act(action, first=substep == 0)
            self._mujoco.mj_step2(model, data)
            if substep == OBSERVED_SUBSTEP:
                observed = {"state": self._state(), "images": self._pictures() if draw else {}}
        domain.timestep += 1
        domain.cur_time += domain.control_timestep
        domain._post_process()  # what changes its looks: a stove that is on
        return observed

    def _state(self) -> np.ndarray:
        robot, (_, data) = self.domain.robots[0], self.mujoco
        position, rotation = data.site_xpos[robot.eef_site_id], axis_angle(data.xquat[self._hand])
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        more = [] if self._privileged is None else [self._privileged.read()]
        return np.concatenate([position, rotation, fingers, *more]).astype(np.float32)

    def _pictures(self) -> dict[str, np.ndarray]:
        if not self._camera_size:
            return {}
        pairs = zip(self.cameras, self._camera_ids, strict=True)
        return {name: self._draw(camera, self._camera_size) for name, camera in pairs}

    def _draw(self, camera: int, size: int) -> np.ndarray:
        """Rotated by 180 degrees, as the field has them: OpenGL's first row is the lowest."""
        if self._renderer is None:
            self._make_renderer()
        assert self._renderer is not None
        return np.ascontiguousarray(self._renderer.draw(self.mujoco[1], camera, size)[::-1, ::-1])

    def _make_renderer(self) -> None:
        model = self.mujoco[0]
        self._camera_ids = [model.camera(name).id for name in SIMULATOR_CAMERAS]
        self._renderer = OffscreenRenderer(model, max(self._camera_size, VIDEO_SIZE), self._rendering)

    def render(self) -> np.ndarray:
        """The outer camera's view for videos, uint8 [256, 256, 3]; needs OpenGL without cameras too."""
        if self._renderer is None:
            self._make_renderer()
        return self._draw(self._camera_ids[0], VIDEO_SIZE)

    def close(self) -> None:
        """Frees the simulator and the rendering context."""
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = None
        self.domain.close()


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Axis times angle (rad) of a quaternion (w, x, y, z), as openpi and LeRobot convert LIBERO's: the angle is 0 to
    2 pi, so q and -q come out differently."""
    w = np.clip(quaternion[0], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return quaternion[1:] * 2.0 * np.arccos(w) / sine


def _build(task) -> tuple[Any, type[Exception]]:
    """The task's robosuite environment, without observables and rendering, and robosuite's RandomizationError."""
    libero = import_libero()
    problem = libero.parse_problem(str(task.bddl_file))
    try:
        with _seeded(0):
            domain = libero.domains[problem["problem_name"]](
                str(task.bddl_file),
                robots=["Panda"],
                controller_configs=libero.controller_config("OSC_POSE"),
                initialization_noise=None,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                ignore_done=True,
                control_freq=int(FPS),
                hard_reset=False,
            )
    except (OSError, ValueError) as error:  # an absent mesh: ValueError by MuJoCo, OSError by robosuite
        raise ChunkRLError(
            f"{task.name}: its scene cannot be built from the assets in {libero.assets}: {error}. If that folder "
            "holds a part of LIBERO's assets only, unset LIBERO_ASSETS to fetch them all from the Hub"
        ) from error
    domain._observables.clear()  # sensors are read 25 times per step otherwise; `_observe` reads what is needed
    return domain, libero.RandomizationError


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """numpy's global generator, which LIBERO draws from, seeded for a while."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
