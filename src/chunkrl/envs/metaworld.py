"""MetaWorld 3.0.0 tasks (extra `sim`): state observations, sparse success reward, scripted experts.

The goal is part of the observation. An episode ends at the first success (terminated) or after
`max_steps` (truncated). Facts measured: `simulators.md` of the project's reference folder.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from chunkrl.envs.metaworld_states import InitialStates, touches
from chunkrl.envs.protocol import EnvStep
from chunkrl.envs.software_render import SoftwareRenderer, metaworld_camera
from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError
from chunkrl.suggest import did_you_mean

State = Literal["full", "compact"]
_XYZ = ("x", "y", "z")
_FRAME = (
    *(f"hand_{axis}" for axis in _XYZ),
    "gripper",
    *(f"{thing}_{entry}" for thing in ("object", "object2") for entry in (*_XYZ, "qx", "qy", "qz", "qw")),
)
_GOAL_NAMES = tuple(f"goal_{axis}" for axis in _XYZ)
# Names of the 39 entries: this frame, the frame before, the goal. Tasks with one object leave `object2` at 0.
FULL_STATE = (*_FRAME, *(f"previous_{name}" for name in _FRAME), *_GOAL_NAMES)
# What the scripted experts of push and pick-place read: short enough for a prompt.
_COMPACT = (*_FRAME[:7], *_GOAL_NAMES)
STATE_NAMES: dict[State, tuple[str, ...]] = {"full": FULL_STATE, "compact": _COMPACT}
_COMPACT_ENTRIES = [FULL_STATE.index(name) for name in _COMPACT]
CAMERA = "observation.images.camera"  # as data sets name it, so that policies know it by one name
STATE_DIM = len(FULL_STATE)
ACTION_DIM = 4
GOAL = slice(36, 39)
VIDEO_SIZE = (240, 320)  # height and width of `render`'s images
MAX_STEPS = 150  # default time limit
FPS = 80.0  # MuJoCo step 2.5 ms, 5 steps an action
TASK_TEXT = {
    "push-v3": "push the puck to the goal",
    "pick-place-v3": "pick up the puck and place it at the goal",
}
_INITIAL_STATES = InitialStates()


def _import_metaworld():
    try:
        import metaworld
        from metaworld import policies
    except ImportError as error:
        raise MissingExtraError("The MetaWorld environment", error.name or "metaworld", "sim") from error
    return metaworld, policies


def task_names() -> tuple[str, ...]:
    """All MetaWorld tasks, e.g. `push-v3`."""
    metaworld, _ = _import_metaworld()
    return tuple(metaworld.ALL_V3_ENVIRONMENTS)


def check_task(name: str) -> None:
    """Raises ChunkRLError unless MetaWorld has a task `name`."""
    if name not in task_names():
        raise ChunkRLError(
            f"MetaWorld has no task {name!r}{did_you_mean(name, task_names())}; it has "
            f"{', '.join(task_names())}"
        )


def task_text(name: str) -> str:
    """The task in words, as policies are given it."""
    return TASK_TEXT.get(name, name.removesuffix("-v3").replace("-", " "))


def check_observation(state: str, camera_size: int) -> None:
    """Raises ChunkRLError unless `MetaWorldEnv` can observe so."""
    if state not in get_args(State):
        raise ChunkRLError(f"state is {state!r}; it must be one of {get_args(State)}")
    if camera_size < 0:
        raise ChunkRLError(
            f"camera_size is {camera_size}; it must be 0 (no camera) or an image's side in pixels"
        )


class MetaWorldEnv:
    """One MetaWorld task behind `chunkrl.envs.protocol.Environment`."""

    action_dim = ACTION_DIM
    fps = FPS

    def __init__(
        self,
        name: str,
        max_steps: int = MAX_STEPS,
        state: State = "full",
        camera_size: int = 0,
        plain: bool = False,
    ) -> None:
        """
        Args:
            name: MetaWorld task.
            max_steps: time limit, steps.
            state: entries of the state, named by `STATE_NAMES`: `full` has all 39; `compact` the 10 of hand,
                gripper, object position and goal (no orientation, no second object, no previous frame).
            camera_size: side of the square image of camera `CAMERA`, pixels; 0: no camera. Drawn in software.
            plain: with MetaWorld's own reset and contacts: what the quick ones are compared with.

        Raises:
            ChunkRLError: no such task, another state, or a negative size.
        """
        metaworld, _ = _import_metaworld()
        check_task(name)
        check_observation(state, camera_size)
        self._entries = _COMPACT_ENTRIES if state == "compact" else list(range(STATE_DIM))
        self.state_dim = len(self._entries)
        self.full_state = np.zeros(STATE_DIM, dtype=np.float32)  # of the last step, whatever `state` says
        self.name = name
        self.task = task_text(name)
        self.max_steps = max_steps
        self._env = metaworld.ALL_V3_ENVIRONMENTS[name]()
        # The goal belongs to the observation; the space that `step` clips to is cached with the goal at 0.
        self._env._partially_observable = False
        self._env.__dict__.pop("sawyer_observation_space", None)
        self._env._freeze_rand_vec = False  # a frozen vector makes some tasks' resets loop forever
        self._env.seeded_rand_vec = True
        self._env._set_task_called = True
        self._plain = plain
        if not plain:
            self._env.touching_object = partial(touches, self._env)
        self._num_steps = 0
        self._renderer = self._video_renderer = None
        if camera_size:
            self._renderer = SoftwareRenderer(self.mujoco[0], metaworld_camera(), camera_size, camera_size)

    @property
    def mujoco(self):
        """(MjModel, MjData), for renderers."""
        return self._env.model, self._env.data

    def reset(self, seed: int) -> EnvStep:
        """Initial object and goal positions are drawn from `seed` alone; a state that was begun from is restored."""
        simulate = partial(self._simulate_reset, seed)
        observation = (
            simulate() if self._plain else _INITIAL_STATES.reset(self._env, self.name, seed, simulate)
        )
        self._num_steps = 0
        return EnvStep(**self._observe(observation))

    def _simulate_reset(self, seed: int) -> np.ndarray:
        """MetaWorld's own reset; its observation [39].

        It makes the initial state twice, the second time from a fresh simulation: of the first, only the random
        numbers that it takes matter, so the 50 steps that settle its hand are left out.
        """
        self._env.seed(seed)
        if not self._plain:
            self._env._reset_hand = self._skip_settling
        observation, _ = self._env.reset()
        return observation

    def _skip_settling(self) -> None:
        """Stands in place of `_reset_hand`, once."""
        del self._env._reset_hand  # what the class has
        self._env.init_tcp = self._env.tcp_center

    def _observe(self, observation: np.ndarray, draw: bool = True) -> dict[str, Any]:
        """`state` and `images` of an EnvStep, from MetaWorld's own observation [39]."""
        self.full_state = np.asarray(observation, dtype=np.float32)
        images = {CAMERA: self._renderer.render(self.mujoco[1])} if self._renderer and draw else {}
        return {"state": self.full_state[self._entries], "images": images}

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        """One 80 Hz action [dx, dy, dz, gripper] in [-1, 1]; reward 1 at success; no image without `draw`."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise ValueError(f"{self.name} takes {ACTION_DIM} finite action values, got {action}")
        observation, _, _, _, info = self._env.step(np.clip(action, -1.0, 1.0))
        self._num_steps += 1
        success = bool(info["success"])
        return EnvStep(
            **self._observe(observation, draw),
            reward=float(success),
            success=success,
            terminated=success,
            truncated=not success and self._num_steps >= self.max_steps,
        )

    def render(self) -> np.ndarray:
        """The scene for videos, uint8 [*VIDEO_SIZE, 3]: larger than a policy's images, drawn in software."""
        if self._video_renderer is None:
            height, width = VIDEO_SIZE
            self._video_renderer = SoftwareRenderer(self.mujoco[0], metaworld_camera(), width, height)
        return self._video_renderer.render(self.mujoco[1])

    def close(self) -> None:
        """Frees the simulator."""
        self._env.close()


def make_expert(name: str):
    """The scripted expert of task `name`: state float [39] -> action float [4] (not clipped)."""
    _, policies = _import_metaworld()
    if name not in policies.ENV_POLICY_MAP:
        raise ChunkRLError(f"MetaWorld ships no scripted expert for {name!r}")
    policy = policies.ENV_POLICY_MAP[name]()
    return lambda state: np.asarray(policy.get_action(np.asarray(state, dtype=np.float64)), dtype=np.float64)


class MetaWorldExpert:
    """MetaWorld's own expert, bound to an environment (`chunkrl.envs.scripted.ScriptedExpert`)."""

    release = np.array([0.0, 0.0, 0.5, -1.0])

    def __init__(self, env: MetaWorldEnv) -> None:
        self._policy, self._env = make_expert(env.name), env

    def reset(self) -> None:
        """It remembers nothing."""

    def act(self, shift: np.ndarray) -> np.ndarray:
        """The next action [4], not clipped; the goal that it sees is shifted by shift [3], metres."""
        state = self._env.full_state.copy()
        state[GOAL] += shift.astype(state.dtype)
        return self._policy(state)
